"""A report as one HTML page that opens offline: no scripts, and nothing that is fetched."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.comparison import Flip
from ..runtime.describe import recipe_line
from ..runtime.page import render_page
from ..runtime.prompt import parse_options
from .report import PARTS, Report, TensorLoss, Tried, image_names, precisions
from .report_plots import check_plotting, errors_svg, tried_svg
from .report_words import figures, number, percent

TEMPLATE = "report.html.jinja"

# The plots, by title, with the parts that each shows.
_PANELS = {
    "Decoder and head": ("decoder", "head"),
    "Vision encoder": ("vision encoder",),
    "Prefill (how prompts are read)": ("prefill",),
}


@dataclass(frozen=True)
class PartLoss:
    """All matrices of one part together. mean: of their relative errors, weighted by their elements."""

    name: str
    precision: str
    tensors: tuple[TensorLoss, ...]
    weights: int
    bytes: int
    mean: float

    @property
    def bits(self) -> float:
        """Bits stored for each weight."""
        return 8 * self.bytes / self.weights

    @property
    def worst(self) -> TensorLoss:
        """The matrix of the largest error."""
        return self.tensors[0]


@dataclass(frozen=True)
class Side:
    """One of the two answers to a question that flipped. words: its reasoning, and whether the other has them too."""

    name: str
    choice: str
    right: bool
    words: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Question:
    """A question that flipped."""

    index: int
    images: str
    problem: str
    solution: str
    sides: tuple[Side, Side]


def render_html(report: Report, tried: Sequence[Tried]) -> str:
    """The page of `report`, with the bundles of `tried` to compare it by. Raises `InputError` without matplotlib.

    The same report gives the same page. Every text in it that is not the project's own is escaped.
    """
    check_plotting()
    this = report.tried()
    others = sorted(tried, key=lambda one: (one.megabytes, one.label))
    comparable = [one for one in others if _same_questions(one, this)]
    return render_page(
        Path(__file__).with_name(TEMPLATE),
        {"percent": percent, "number": number},
        report=report,
        this=this,
        recipe=recipe_line(report.recipe),
        figures=list(figures(report.comparison)),
        tried=[(one, one in comparable) for one in others],
        tried_plot=tried_svg([this, *comparable]),
        error_plots=list(_error_plots(report.tensors)),
        exact=_exact(report.tensors),
        parts=parts(report.tensors),
        other_bytes=report.total_bytes - sum(tensor.bytes for tensor in report.tensors),
        questions=[_question(flip) for flip in report.comparison.flipped],
    )


def _same_questions(one: Tried, other: Tried) -> bool:
    return (one.source, one.dataset, one.questions) == (other.source, other.dataset, other.questions)


def _error_plots(tensors: Sequence[TensorLoss]) -> Iterator[str]:
    """A plot for each part that lost anything."""
    for title, names in _PANELS.items():
        shown = [tensor for tensor in tensors if tensor.part in names]
        if any(tensor.relative_error for tensor in shown):
            yield errors_svg(title, shown)


def _exact(tensors: Sequence[TensorLoss]) -> list[str]:
    """What no plot shows, for it lost nothing: whole parts, and of other parts the kinds of matrices."""
    names = []
    for part in parts(tensors):
        lossy = {tensor.kind for tensor in part.tensors if tensor.relative_error}
        exact = sorted({tensor.kind for tensor in part.tensors} - lossy)
        names += [f"{part.name} ({', '.join(exact)})" if lossy else part.name] if exact else []
    return names


def parts(tensors: Sequence[TensorLoss]) -> list[PartLoss]:
    """The parts of the model, and in each the matrices, the largest error first."""
    found = []
    for name in PARTS:
        shown = [tensor for tensor in tensors if tensor.part == name]
        if shown:
            weights = sum(tensor.weights for tensor in shown)
            found.append(
                PartLoss(
                    name=name,
                    precision=" + ".join(precisions(shown)),
                    tensors=tuple(sorted(shown, key=lambda tensor: (-tensor.relative_error, tensor.scope))),
                    weights=weights,
                    bytes=sum(tensor.bytes for tensor in shown),
                    mean=sum(tensor.weights * tensor.relative_error for tensor in shown) / weights,
                )
            )
    return found


def _question(flip: Flip) -> Question:
    options = parse_options(flip.problem)
    texts = [(a or b).strip() for a, b in _reasonings(flip)]
    sides = [
        Side(
            name=name,
            choice=_with_text(choice, options) if choice else "no letter",
            right=choice == flip.solution,
            words=tuple(marked_words(text, other)),
        )
        for name, choice, text, other in zip(
            ("Full precision", "This bundle"), (flip.choice_a, flip.choice_b), texts, reversed(texts), strict=True
        )
    ]
    return Question(
        index=flip.index,
        images=", ".join(image_names(flip)),
        problem=flip.problem,
        solution=_with_text(flip.solution, options),
        sides=(sides[0], sides[1]),
    )


def _reasonings(flip: Flip) -> Iterator[tuple[str, str]]:
    """What stands in the tags, and all that was written, for an answer without any."""
    yield flip.reasoning_a, flip.text_a
    yield flip.reasoning_b, flip.text_b


def _with_text(letter: str, options: dict[str, str]) -> str:
    return f"{letter}) {options[letter]}" if options.get(letter) else letter


def marked_words(text: str, other: str) -> Iterator[tuple[str, bool]]:
    """Runs of `text`, spaces included, and whether they stand in `other` at that place too."""
    words, others = re.findall(r"\s+|\S+", text), re.findall(r"\s+|\S+", other)
    for kind, start, end, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if end > start:
            yield "".join(words[start:end]), kind == "equal"
