"""The demo's questions, each with the scan that it is about: seeded, so that an index is one question everywhere."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from .questions import TYPES, Facts, Question, ask, draw_facts
from .scans.canvas import Rng
from .scans.catalog import draw_scan
from .scans.scan import Scan

Split = Literal["train", "validate", "test"]
# First number of each split's seeds: no scan of one split is in another.
_SPLIT_SEEDS: dict[Split, int] = {"train": 11, "validate": 13, "test": 14}


@dataclass(frozen=True)
class Item:
    """A question about a scan, and what is true of the scan."""

    scan: Scan
    facts: Facts
    question: Question

    @property
    def image(self) -> Image.Image:
        """The scan as a grey image."""
        return Image.fromarray(self.scan.pixels)


def make_item(split: Split, index: int) -> Item:
    """Question number `index` of a split. Types take turns; kinds, findings and letters are drawn."""
    question_type, facts = item_facts(split, index)
    scan = draw_scan(_rng(split, index, 1), facts.kind, facts.finding, facts.place)
    return Item(scan, facts, ask(_rng(split, index, 2), facts, question_type))


def item_facts(split: Split, index: int) -> tuple[str, Facts]:
    """The type of question number `index` of a split, and the facts of its scan, which is not drawn."""
    question_type = TYPES[index % len(TYPES)]
    return question_type, draw_facts(_rng(split, index, 0), question_type)


def _rng(split: Split, index: int, part: int) -> Rng:
    return np.random.default_rng([_SPLIT_SEEDS[split], index, part])
