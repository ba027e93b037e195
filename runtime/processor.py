"""Images and a question to what the model reads: patches, token ids and positions. No session is needed for it."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .bundle import TOKENIZER, Bundle
from .decoded import DecodedImages
from .dicom.view import DEFAULT_VIEW, View
from .errors import BundleError, InputError
from .images import ImageSource, LoadedImage, load_image, read_encoded
from .manifest import Manifest, Preprocessing
from .positions import mrope_positions
from .prefix import Contents, find_spans
from .preprocess import Patches, preprocess, token_grid, with_pixel_limits
from .prompt import check_question, check_text, parse_options, question_text
from .turns import Exchange, render_turns


@dataclass(frozen=True)
class Picture:
    """An image that is known to be sound, cut into patches only when the encoder wants them.

    grid: (height, width) in visual tokens.
    """

    image: LoadedImage
    settings: Preprocessing
    grid: tuple[int, int]

    @property
    def visual_tokens(self) -> int:
        """How many tokens stand for it."""
        return math.prod(self.grid)

    @cached_property
    def digest(self) -> str:
        """The sha256 of all that decides what the encoder reads: the pixels, their size and the size they get."""
        pixels = self.image.pixels
        digest = hashlib.sha256(repr((pixels.size, self.grid)).encode())
        digest.update(pixels.tobytes())
        return digest.hexdigest()

    def patches(self) -> Patches:
        """What the encoder reads."""
        return preprocess(self.image.pixels, self.settings)


@dataclass(frozen=True)
class Request:
    """One question, ready for the model.

    images: each image, in order.
    token_ids: [tokens] int64, each image a run of the image token.
    positions: [3, tokens] int64, the (t, h, w) position of each token.
    options: the letters that the question offers, with their texts; empty where it is not multiple-choice.
    raw: whether the question was sent without the question template.
    """

    images: tuple[Picture, ...]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    prompt: str
    options: dict[str, str]
    notes: tuple[str, ...]
    contents: Contents
    raw: bool = False

    @property
    def visual_tokens(self) -> int:
        """How many tokens stand for all images together."""
        return sum(picture.visual_tokens for picture in self.images)

    @property
    def lag(self) -> int:
        """How far positions are behind slots after the prompt: an image takes no more of them than its longer side."""
        return len(self.token_ids) - 1 - int(self.positions.max())


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
        self._decoded = DecodedImages()

    def prepare(
        self,
        images: Sequence[ImageSource | LoadedImage],
        question: str,
        *,
        raw: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        view: View = DEFAULT_VIEW,
        earlier: Sequence[Exchange] = (),
        system: str | None = None,
    ) -> Request:
        """Load the images and build the prompt. Raises `InputError` for a bad image, question or limit.

        view: how DICOM files are shown; it asks nothing of images that are loaded already. earlier: the turns before
        this one; the images of all are the request's, in order. system: instead of the template's own system message.
        """
        check_question(question, self._reserved)
        self._check_others(earlier, system)
        settings = with_pixel_limits(self.manifest.preprocessing, min_pixels, max_pixels)
        loaded = [image for turn in earlier for image in turn.images]
        loaded += [self._load(image, view) for image in images]
        grids = [token_grid(image.pixels.height, image.pixels.width, settings) for image in loaded]
        self._check_length("".join((question, *(turn.question + turn.answer for turn in earlier))), grids)
        written = [(len(turn.images), question_text(turn.question, raw), turn.answer) for turn in earlier]
        prompt = render_turns(self.manifest.prompt, written, len(images), question_text(question, raw), system)
        token_ids = self._expand(self._encode(prompt), grids)
        pictures = tuple(Picture(image, settings, grid) for image, grid in zip(loaded, grids, strict=True))
        positions, contents = lay_out(token_ids, self.manifest.image_token_id, pictures)
        return Request(
            images=pictures,
            token_ids=token_ids,
            positions=positions,
            prompt=prompt,
            options=parse_options(question),
            notes=tuple(note for image in loaded for note in image.notes),
            contents=contents,
            raw=raw,
        )

    def _check_others(self, earlier: Sequence[Exchange], system: str | None) -> None:
        for turn in earlier:
            check_question(turn.question, self._reserved)
            check_text(turn.answer, self._reserved, "an earlier answer")
        check_text(system or "", self._reserved, "the system message")

    def _load(self, source: ImageSource | LoadedImage, view: View) -> LoadedImage:
        """The image in `source`, from memory where the same file was decoded before."""
        if isinstance(source, LoadedImage):
            return source
        encoded = read_encoded(source)
        if encoded is None:
            return load_image(source, view)
        return self._decoded.load(*encoded, view)

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

    def _encode(self, prompt: str) -> list[int]:
        try:
            return self.tokenizer.encode(prompt, add_special_tokens=False).ids
        except BaseException as error:
            # A panic of Rust, which is no Exception: a bomb of a regular expression, say.
            if type(error).__name__ != "PanicException":
                raise
            raise BundleError(f"{TOKENIZER} cannot split the question; verify the bundle or export it again") from None

    def _expand(self, ids: list[int], grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """Repeat each image token as often as its image has visual tokens."""
        tokens = np.array(ids, np.int64)
        if len(tokens) and tokens.max() >= self.manifest.text.vocab_size:
            raise BundleError(f"{TOKENIZER} has tokens that the manifest's vocabulary has not; export the bundle again")
        repeats = np.ones_like(tokens)
        repeats[tokens == self.manifest.image_token_id] = [math.prod(grid) for grid in grids]
        return np.repeat(tokens, repeats)


def lay_out(
    token_ids: NDArray[np.int64], image_token_id: int, pictures: Sequence[Picture]
) -> tuple[NDArray[np.int64], Contents]:
    """The positions [3, tokens] of a prompt's tokens [tokens], and what a cache holds that was filled with it."""
    spans = find_spans(token_ids, image_token_id, [(picture.digest, picture.visual_tokens) for picture in pictures])
    positions = mrope_positions(token_ids, image_token_id, [picture.grid for picture in pictures])
    return positions, Contents(token_ids, spans)


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # A prompt is read whole, and alone.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise BundleError(f"{path} cannot be read as a tokenizer ({error}); export the bundle again") from None
