"""Images and a question to what the model reads: patches, token ids and positions. No session is needed for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .bundle import TOKENIZER, Bundle
from .errors import BundleError, InputError
from .images import ImageSource, LoadedImage, load_image
from .manifest import Manifest
from .positions import mrope_positions
from .preprocess import Patches, preprocess, token_grid, with_pixel_limits
from .prompt import check_question, parse_options, question_text, render_prompt


@dataclass(frozen=True)
class Request:
    """One question, ready for the model.

    images: the patches of each image, in order.
    token_ids: [tokens] int64, each image a run of the image token.
    positions: [3, tokens] int64, the (t, h, w) position of each token.
    options: the letters that the question offers, with their texts; empty where it is not multiple-choice.
    """

    images: tuple[Patches, ...]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    prompt: str
    options: dict[str, str]
    visual_tokens: int
    notes: tuple[str, ...]


class Processor:
    """The bundle's tokenizer and image preprocessing."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest: Manifest = bundle.manifest
        self.tokenizer = _load_tokenizer(bundle.path(TOKENIZER))
        self._image_token = self.tokenizer.id_to_token(self.manifest.image_token_id)
        if self._image_token is None or self.manifest.prompt.image.count(self._image_token) != 1:
            raise BundleError(
                f"{bundle.directory}: the prompt and {TOKENIZER} disagree on the image token; export again"
            )
        self._reserved = [
            token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special
        ]

    def prepare(
        self,
        images: Sequence[ImageSource | LoadedImage],
        question: str,
        *,
        raw: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Request:
        """Load the images and build the prompt. Raises `InputError` for a bad image, question or limit."""
        check_question(question, self._reserved)
        settings = with_pixel_limits(self.manifest.preprocessing, min_pixels, max_pixels)
        loaded = [image if isinstance(image, LoadedImage) else load_image(image) for image in images]
        grids = [token_grid(image.pixels.height, image.pixels.width, settings) for image in loaded]
        self._check_length(question, grids)
        prompt = render_prompt(self.manifest.prompt, question_text(question, raw), len(loaded))
        token_ids = self._expand(self.tokenizer.encode(prompt, add_special_tokens=False).ids, grids)
        return Request(
            images=tuple(preprocess(image.pixels, settings) for image in loaded),
            token_ids=token_ids,
            positions=mrope_positions(token_ids, self.manifest.image_token_id, grids),
            prompt=prompt,
            options=parse_options(question),
            visual_tokens=sum(math.prod(grid) for grid in grids),
            notes=tuple(note for image in loaded for note in image.notes),
        )

    def _check_length(self, question: str, grids: Sequence[tuple[int, int]]) -> None:
        """Refuse what cannot fit in any context, before pixels are resized or a book is tokenized."""
        visual, limit = sum(math.prod(grid) for grid in grids), self.manifest.text.max_positions
        if visual >= limit:
            raise InputError(
                f"the images take {visual} tokens and the model holds {limit}; lower --max-pixels, or give fewer images"
            )
        # A token of a byte-level vocabulary stands for well under 256 bytes of ordinary text.
        if len(question) > limit * 256:
            raise InputError(f"the question has {len(question)} characters; the model holds {limit} tokens")

    def _expand(self, ids: list[int], grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """Repeat each image token as often as its image has visual tokens."""
        tokens = np.array(ids, np.int64)
        repeats = np.ones_like(tokens)
        repeats[tokens == self.manifest.image_token_id] = [math.prod(grid) for grid in grids]
        return np.repeat(tokens, repeats)


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise BundleError(f"{path} cannot be read as a tokenizer ({error}); export the bundle again") from None
