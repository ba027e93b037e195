"""What tells two bundles apart: distances of their distributions, accuracies, and the answers that flipped."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dataset import DatasetItem
from .manifest import Loss
from .result import Answer
from .statistics import mcnemar_exact


@dataclass(frozen=True)
class Reading:
    """At each token of one of A's answers: KL(A || B) [tokens] in nats, and whether the likeliest agree [tokens]."""

    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]


@dataclass(frozen=True)
class Flip:
    """A question whose letter differs between A and B. choice: by the paper's strict rule, None where there is none."""

    index: int
    images: tuple[str, ...]
    problem: str
    solution: str
    choice_a: str | None
    choice_b: str | None
    reasoning_a: str
    reasoning_b: str
    text_a: str
    text_b: str


@dataclass(frozen=True)
class Comparison:
    """What tells B from A.

    tokens: of A's answers; at each of them both give the distribution of the next, and kl is the mean of KL(A || B),
    in nats, kl_p95 and kl_max its 95th percentile and its largest. top1_agreement: the share, 0 to 1, of tokens where
    the likeliest is the same.
    accuracy_a, accuracy_b: the shares of right letters. flips: questions whose letter differs, `flipped` in the order
    of the questions. lost, won: right answers of A that are wrong in B, and the reverse; mcnemar_p: their exact
    two-sided p-value.
    """

    questions: int
    tokens: int
    kl: float
    kl_p95: float
    kl_max: float
    top1_agreement: float
    accuracy_a: float
    accuracy_b: float
    flips: int
    lost: int
    won: int
    mcnemar_p: float
    flipped: tuple[Flip, ...]

    def loss(self, dataset: str) -> Loss:
        """B's loss against A, on questions that are called `dataset`, as a manifest holds it."""
        return Loss(
            dataset=dataset,
            questions=self.questions,
            tokens=self.tokens,
            kl=self.kl,
            top1_agreement=self.top1_agreement,
            flips=self.flips,
            accuracy=self.accuracy_b,
            reference_accuracy=self.accuracy_a,
        )


def summarize(
    items: Sequence[DatasetItem], answers_a: Sequence[Answer], answers_b: Sequence[Answer], readings: list[Reading]
) -> Comparison:
    """What both answered to each question, and how B read A's answers, in figures."""
    kl = np.concatenate([reading.kl for reading in readings])
    pairs = list(zip(items, answers_a, answers_b, strict=True))
    right = [(a.strict_choice == item.solution, b.strict_choice == item.solution) for item, a, b in pairs]
    lost, won = right.count((True, False)), right.count((False, True))
    flipped = tuple(_flip(item, a, b) for item, a, b in pairs if a.strict_choice != b.strict_choice)
    return Comparison(
        questions=len(items),
        tokens=len(kl),
        kl=float(kl.mean()),
        kl_p95=float(np.percentile(kl, 95)),
        kl_max=float(kl.max()),
        top1_agreement=float(np.concatenate([reading.agrees for reading in readings]).mean()),
        accuracy_a=sum(a for a, _ in right) / len(right),
        accuracy_b=sum(b for _, b in right) / len(right),
        flips=len(flipped),
        lost=lost,
        won=won,
        mcnemar_p=mcnemar_exact(lost, won),
        flipped=flipped,
    )


def _flip(item: DatasetItem, a: Answer, b: Answer) -> Flip:
    return Flip(
        index=item.index,
        images=tuple(map(str, item.images)),
        problem=item.problem,
        solution=item.solution,
        choice_a=a.strict_choice,
        choice_b=b.strict_choice,
        reasoning_a=a.reasoning,
        reasoning_b=b.reasoning,
        text_a=a.text,
        text_b=b.text,
    )
