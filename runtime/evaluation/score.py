"""What an evaluation's outcomes add up to, for each kind of images and for all."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..dataset import DatasetItem
from ..statistics import majority_share, wilson_interval
from .outcome import Outcome

ALL = "all"
_OTHERS = "(no subset)"

# "MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)" and "X-Ray", as the authors' files spell them.
_PAPERS = (
    re.compile(r"MRI?\b", re.IGNORECASE),
    re.compile(r"CT\b", re.IGNORECASE),
    re.compile("X-?ray", re.IGNORECASE),
)
PUBLISHED = (
    "published for MedVLM-R1 (strict): 78.22 %, the mean of MRI, CT and X-ray with 300 questions of OmniMedVQA each "
    "(Pan et al., 2025, arXiv:2502.19634)"
)


@dataclass(frozen=True)
class Share:
    """`count` of `total`, and the 95 % interval of Wilson's score in which the true share, 0 to 1, lies."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.count / self.total


@dataclass(frozen=True)
class Score:
    """The answers to the questions of one subset.

    questions: how many it has. answered: how many were, errors: how many could not be; the rest is still to come. What
    follows counts the answered ones, and is None where there are none.
    strict, robust: right letters by the paper's rule and as a person reads the text (see `medvlm.runtime.answer`).
    well_formed: answers of the form that was asked for. majority: the share, 0 to 1, that is right where every answer
    is the letter that is right most often. reasoning_words: their mean number. seconds: mean for a question.
    blank: right letters by the strict rule where grey images were shown instead.
    """

    subset: str
    questions: int
    answered: int
    errors: int
    strict: Share | None = None
    robust: Share | None = None
    well_formed: Share | None = None
    majority: float | None = None
    reasoning_words: float | None = None
    seconds: float | None = None
    blank: Share | None = None


class Tally:
    """Outcomes counted as they come, for whoever waits."""

    def __init__(self, items: Sequence[DatasetItem], outcomes: Iterable[Outcome]) -> None:
        """Count what was there before; items: whose right letters are known, if any."""
        self._solutions = {str(item.index): item.solution for item in items}
        self._right = self._graded = self._errors = 0
        for outcome in outcomes:
            self.add(outcome)

    def add(self, outcome: Outcome) -> str:
        """Count one more; what can be said of all so far. Answers about grey images are no errors, and not graded."""
        if outcome.error is not None:
            self._errors += 1
        elif outcome.key in self._solutions:
            self._graded += 1
            self._right += outcome.strict_choice == self._solutions[outcome.key]
        accuracy = f"{self._right / self._graded:.1%} right" if self._graded else ""
        return ", ".join(filter(None, [accuracy, f"errors: {self._errors}" if self._errors else ""]))


def blank_key(index: int) -> str:
    """The key of a question's outcome where grey images were shown."""
    return f"{index} blank"


def score_all(items: Sequence[DatasetItem], outcomes: Mapping[str, Outcome]) -> list[Score]:
    """The score of every subset, in the order of the dataset, and then of all; of all alone where there are no subsets.

    outcomes: by the index of their item, and by `blank_key`.
    """
    subsets = list(dict.fromkeys(item.subset for item in items))
    named = [subset for subset in subsets if subset is not None]
    scores = [
        _score(subset or _OTHERS, [item for item in items if item.subset == subset], outcomes)
        for subset in (subsets if named else [])
    ]
    return [*scores, _score(ALL, items, outcomes)]


def _score(subset: str, items: Sequence[DatasetItem], outcomes: Mapping[str, Outcome]) -> Score:
    seen = [(item, outcomes[str(item.index)]) for item in items if str(item.index) in outcomes]
    answered = [(item, outcome) for item, outcome in seen if outcome.error is None]
    blank = [(item, outcomes[blank_key(item.index)]) for item in items if blank_key(item.index) in outcomes]
    score = Score(
        subset=subset,
        questions=len(items),
        answered=len(answered),
        errors=len(seen) - len(answered),
        blank=_share([pair for pair in blank if pair[1].error is None], _strictly_right),
    )
    if not answered:
        return score
    return replace(
        score,
        strict=_share(answered, _strictly_right),
        robust=_share(answered, lambda item, outcome: outcome.choice == item.solution),
        well_formed=_share(answered, lambda _, outcome: outcome.well_formed),
        majority=majority_share([item.solution for item, _ in answered]),
        reasoning_words=sum(len(outcome.reasoning.split()) for _, outcome in answered) / len(answered),
        seconds=sum(outcome.seconds for _, outcome in answered) / len(answered),
    )


def _strictly_right(item: DatasetItem, outcome: Outcome) -> bool:
    return outcome.strict_choice == item.solution


def _share(pairs: Sequence[tuple[DatasetItem, Outcome]], holds: Callable[[DatasetItem, Outcome], bool]) -> Share | None:
    """The share of pairs for which `holds` does; None of no pairs."""
    if not pairs:
        return None
    count = sum(holds(item, outcome) for item, outcome in pairs)
    return Share(count, len(pairs), *wilson_interval(count, len(pairs)))


def is_the_papers(items: Sequence[DatasetItem]) -> bool:
    """Whether the dataset's subsets are the three that the paper's published figure is of."""
    names = {item.subset or "" for item in items}
    return all(any(kind.match(name) for kind in _PAPERS) for name in names) and all(
        any(kind.match(name) for name in names) for kind in _PAPERS
    )
