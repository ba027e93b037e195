"""Samples as the tensors that the model reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from ...export.chat_template import QWEN2_VL_CHAT_TEMPLATE, prompt_parts
from ...runtime.manifest import Preprocessing
from ...runtime.positions import mrope_positions
from ...runtime.preprocess import preprocess
from ...runtime.prompt import question_text, render_prompt
from ..questions import Question
from .pool import Sample

_SETTINGS = Preprocessing(
    min_pixels=3136,
    max_pixels=12845056,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)


@dataclass(frozen=True)
class Images:
    """Patches of a batch of scans, [patches, 1176], and each scan's (1, height, width) in patches, [scans, 3]."""

    patches: torch.Tensor
    grids: torch.Tensor


@dataclass(frozen=True)
class Sequences:
    """Token ids [batch, length], M-RoPE positions [3, batch, length], and which tokens are real, [batch, length]."""

    ids: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True)
class Tokens:
    """A text's ids, the characters [start, end) that each stands for, and where each stands in the whole sequence.

    An image's token is in `ids` as often as the image has visual tokens, and has one place, that of the first.
    """

    text: str
    ids: NDArray[np.int64]
    spans: list[tuple[int, int]]
    places: NDArray[np.int64]

    def within(self, start: int, end: int) -> tuple[int, ...]:
        """Places of the tokens that have characters of [start, end)."""
        return tuple(int(p) for p, (a, b) in zip(self.places, self.spans, strict=True) if a < end and b > start)


class Encoder:
    """The tokenizer and the prompt's form."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.image_id = vocabulary["<|image_pad|>"]
        self.end_id = vocabulary["<|im_end|>"]
        self._parts = prompt_parts(QWEN2_VL_CHAT_TEMPLATE)

    def prompt(self, question: Question, grid: tuple[int, int]) -> Tokens:
        """A question's whole prompt, the image's tokens among them."""
        text = render_prompt(self._parts, question_text(question.problem, raw=False), 1)
        read = self.read(text)
        repeats = np.where(read.ids == self.image_id, grid[0] * grid[1], 1)
        return Tokens(text, np.repeat(read.ids, repeats), read.spans, repeats.cumsum() - repeats)

    def response(self, text: str, start: int = 0) -> Tokens:
        """An answer, with the token that ends it; its first token stands at `start`."""
        read = self.read(text, start)
        return Tokens(text, np.append(read.ids, self.end_id), read.spans, read.places)

    def read(self, text: str, start: int = 0) -> Tokens:
        """A text whose first token stands at `start`."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoded.ids, np.int64)
        return Tokens(text, ids, encoded.offsets, np.arange(start, start + len(ids)))

    def sequences(
        self, rows: list[NDArray[np.int64]], grids: list[list[tuple[int, int]]], *, left: bool = False
    ) -> Sequences:
        """Rows of ids, each with images of those grids of visual tokens, padded on the right or on the left."""
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.end_id)
        positions = torch.zeros((3, len(rows), length), dtype=torch.long)
        real = torch.zeros((len(rows), length), dtype=torch.bool)
        for i, (row, row_grids) in enumerate(zip(rows, grids, strict=True)):
            where = slice(length - len(row), None) if left else slice(len(row))
            ids[i, where] = torch.from_numpy(row)
            positions[:, i, where] = torch.from_numpy(mrope_positions(row, self.image_id, row_grids))
            real[i, where] = True
        return Sequences(ids, positions, real)


def images(samples: list[Sample]) -> Images:
    """The scans' patches, cut and normalized by the runtime's own code."""
    cut = [preprocess(Image.fromarray(sample.pixels).convert("RGB"), _SETTINGS) for sample in samples]
    patches = torch.from_numpy(np.concatenate([c.pixel_values for c in cut]))
    return Images(patches, torch.tensor([(1, *c.grid) for c in cut]))


def embed(model: Any, sequences: Sequences, features: torch.Tensor, image_id: int) -> torch.Tensor:
    """Embeddings [batch, length, hidden] of the sequences; `features` [visual tokens, hidden] are the image tokens'."""
    embedded = model.get_input_embeddings()(sequences.ids)
    return embedded.masked_scatter((sequences.ids == image_id)[..., None], features)
