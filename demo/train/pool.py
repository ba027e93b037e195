"""Scans drawn ahead of training by all cores, resized as the runtime resizes them, and kept on the disk."""

import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.preprocess import smart_resize
from ..dataset import Split, item_facts, make_item
from ..questions import Facts
from ..scans.catalog import KINDS, places_of

# What a visual token can show a part of: a finding, at one of its places where it has some.
SIGHTS = tuple(
    dict.fromkeys(
        (finding, place) for kind in KINDS for finding in KINDS[kind].findings for place in places_of(kind, finding)
    )
)
_TOKEN = 28  # pixels along a visual token
# How much of a visual token's square a finding must cover for the token to show a part of it; half of what it covers
# of any token where it is too small for that.
_COVERED = 0.2


@dataclass(frozen=True)
class Sample:
    """A scan to train on, what is true of it, and the type of question to ask.

    pixels: [height, width] uint8, both multiples of 28. labels: [visual tokens] uint8, 0 where the token shows no
    part of a finding, else 1 + the index in `SIGHTS` of the finding and its place.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    facts: Facts
    question_type: str

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) in visual tokens."""
        return self.pixels.shape[0] // _TOKEN, self.pixels.shape[1] // _TOKEN


def load_pool(split: Split, count: int, path: Path) -> list[Sample]:
    """The first `count` samples of a split, from `path` where they were drawn before."""
    if not path.exists():
        _draw_pool(split, count, path)
    with np.load(path) as stored:
        shapes, pixels, labels = stored["shapes"], stored["pixels"], stored["labels"]
    samples, pixel, label = [], 0, 0
    for index, (height, width) in enumerate(shapes.tolist()):
        size, tokens = height * width, height * width // _TOKEN**2
        question_type, facts = item_facts(split, index)
        image = pixels[pixel : pixel + size].reshape(height, width)
        samples.append(Sample(image, labels[label : label + tokens], facts, question_type))
        pixel, label = pixel + size, label + tokens
    return samples


def _draw_pool(split: Split, count: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = []
    with multiprocessing.get_context("spawn").Pool() as workers:
        results = workers.imap(partial(_draw, split), range(count), chunksize=32)
        with click.progressbar(results, length=count, label=f"Drawing {count} scans") as bar:
            drawn.extend(bar)
    partial_path = path.with_suffix(".partial.npz")
    np.savez(
        partial_path,
        shapes=np.array([pixels.shape for pixels, _ in drawn]),
        pixels=np.concatenate([pixels.ravel() for pixels, _ in drawn]),
        labels=np.concatenate([labels for _, labels in drawn]),
    )
    partial_path.replace(path)


def _draw(split: Split, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    scan = make_item(split, index).scan
    drawn_height, drawn_width = scan.pixels.shape
    height, width = smart_resize(drawn_height, drawn_width, _TOKEN, 3136, 12845056)
    pixels = np.asarray(Image.fromarray(scan.pixels).resize((width, height), Image.Resampling.BICUBIC))
    mask = Image.fromarray(scan.mask.astype(np.float32))
    share = np.asarray(mask.resize((width // _TOKEN, height // _TOKEN), Image.Resampling.BOX))
    shows = share > min(_COVERED, share.max() / 2)
    sight = 1 + SIGHTS.index((scan.finding, scan.place)) if scan.finding else 0
    return pixels, (shows * sight).astype(np.uint8).ravel()
