"""An evaluation's scores as a table for a terminal."""

from collections.abc import Sequence

from ..errors import plain
from .score import Score, Share

_NONE = "-"
_HEAD = ("subset", "questions", "errors", "strict", "robust", "well formed", "one letter", "words", "s each")
LEGEND = (
    "strict: right letters by the paper's rule; robust: as a person reads the text; both with 95 % intervals.\n"
    "one letter: always giving the commonest one. words: mean length of the reasoning. Errors count in no share."
)
_BLANK = "grey: right letters (strict) where grey images were shown."


def score_table(scores: Sequence[Score]) -> str:
    """The scores in aligned columns, with what they mean below."""
    with_blank = any(score.blank for score in scores)
    rows = [(*_HEAD, *(("grey",) if with_blank else ()))]
    rows += [(*_cells(score), *((share_text(score.blank),) if with_blank else ())) for score in scores]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, "", LEGEND, *([_BLANK] if with_blank else [])])


def _cells(score: Score) -> tuple[str, ...]:
    questions = str(score.questions)
    if score.answered + score.errors < score.questions:
        questions = f"{score.answered + score.errors} of {questions}"
    return (
        plain(score.subset),
        questions,
        str(score.errors),
        share_text(score.strict),
        share_text(score.robust),
        _NONE if score.well_formed is None else percent(score.well_formed.value),
        _NONE if score.majority is None else percent(score.majority),
        _NONE if score.reasoning_words is None else f"{score.reasoning_words:.0f}",
        _NONE if score.seconds is None else f"{score.seconds:.2f}",
    )


def share_text(share: Share | None) -> str:
    """A share in percent, its interval in brackets."""
    if share is None:
        return _NONE
    return f"{percent(share.value)} ({100 * share.low:.1f}-{100 * share.high:.1f})"


def percent(share: float) -> str:
    """A share, 0 to 1, in percent."""
    return f"{100 * share:.1f} %"
