"""Bundles of the demo model on its held-out questions: how good they are, and what a precision changes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.decoding import Decoding
from ..runtime.model import MedVLM
from ..runtime.result import Answer
from ..runtime.statistics import majority_share, mcnemar_exact
from .dataset import Item
from .grading import Grade, grade

# The trained demo model, as the package ships it.
CHECKPOINT = Path(__file__).parent / "checkpoint"
DECODING = Decoding(max_new_tokens=96)


@dataclass(frozen=True)
class Answered:
    """One question with what the model answered, and its grade."""

    item: Item
    answer: Answer
    grade: Grade


@dataclass(frozen=True)
class Flips:
    """What another precision changed on the same questions.

    letters: questions whose letter differs. lost and won: right answers that became wrong, wrong ones that became
    right. p: McNemar's exact two-sided p-value of lost and won.
    """

    letters: int
    lost: int
    won: int
    p: float


def answer_all(
    model: MedVLM,
    items: Iterable[Item],
    shown: Callable[[Item], Image.Image] = lambda item: item.image,
    decoding: Decoding = DECODING,
    batch_size: int = 1,
) -> list[Answered]:
    """The model's answer to every item, about the image that `shown` makes of it; `batch_size` are decoded together."""
    if batch_size == 1:
        pairs = [(item, model.ask(shown(item), item.question.problem, decoding)) for item in items]
    else:
        items = list(items)
        asked = [(shown(item), item.question.problem) for item in items]
        pairs = list(zip(items, model.ask_batch(asked, decoding, batch_size=batch_size), strict=True))
    return [Answered(item, answer, grade(answer.text, item.question, item.facts)) for item, answer in pairs]


def blank(item: Item) -> Image.Image:
    """A flat grey image of the item's size: what the question alone tells."""
    return Image.new("L", (item.scan.pixels.shape[1], item.scan.pixels.shape[0]), 128)


def flips(reference: Sequence[Answered], other: Sequence[Answered]) -> Flips:
    """What `other` changed against `reference`, both answers to the same questions in the same order."""
    pairs = [(a.grade, b.grade) for a, b in zip(reference, other, strict=True)]
    lost = sum(a.correct and not b.correct for a, b in pairs)
    won = sum(b.correct and not a.correct for a, b in pairs)
    return Flips(sum(a.choice != b.choice for a, b in pairs), lost, won, mcnemar_exact(lost, won))


def share(answered: Sequence[Answered], name: str) -> float:
    """The share, 0 to 1, of answers whose grade has `name` (correct, well_formed, agrees, truthful)."""
    return float(np.mean([getattr(one.grade, name) for one in answered]))


def chance(items: Sequence[Item]) -> float:
    """The accuracy of guessing: one over the number of options, averaged over the questions."""
    return float(np.mean([1 / len(item.question.options) for item in items]))


def majority(items: Sequence[Item]) -> float:
    """The accuracy of always giving the letter that is right most often."""
    return majority_share([item.question.solution for item in items])
