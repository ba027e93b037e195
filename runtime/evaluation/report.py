"""An evaluation as one HTML page that opens offline: no scripts, nothing that is fetched, images inside."""

import base64
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..bundle import Bundle
from ..dataset import DatasetItem
from ..dicom.view import DEFAULT_VIEW, View
from ..errors import InputError, MedVLMError, plain
from ..files import check_report_place
from ..images import load_image
from ..page import render_page
from ..prompt import parse_options
from .outcome import Outcome
from .score import PUBLISHED, Score, is_the_papers
from .table import percent, share_text

TEMPLATE = "report.html.jinja"

# The longer side of a picture in pixels, and JPEG's quality: some 10 kB each.
_SIDE, _QUALITY = 320, 80


@dataclass(frozen=True)
class Wrong:
    """A wrong answer. pictures: data URIs, None of an image that cannot be shown. words: what the model wrote."""

    index: int
    images: tuple[str, ...]
    pictures: tuple[str | None, ...]
    subset: str | None
    problem: str
    solution: str
    choice: str
    note: str
    words: str


def check_report(path: Path) -> None:
    """Raise `InputError` where a report could not be written, as far as that is known before there is anything."""
    if importlib.util.find_spec("jinja2") is None:
        raise InputError("jinja2 is not installed, which --report needs; pip install 'medvlm[report]'")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path.name} is no name for a report; give one that ends in .html")
    check_report_place(path)


def render_report(
    bundle: Bundle,
    dataset: Path,
    items: Sequence[DatasetItem],
    outcomes: Mapping[str, Outcome],
    scores: Sequence[Score],
    view: View = DEFAULT_VIEW,
) -> str:
    """The page: the scores, each answer that is wrong by the strict rule, and the errors.

    view: how DICOM images were shown.

    The same outcomes give the same page. Every text in it that is not the project's own is escaped.
    """
    pairs = [(item, outcomes[str(item.index)]) for item in items if str(item.index) in outcomes]
    return render_page(
        Path(__file__).with_name(TEMPLATE),
        {"percent": percent, "share": share_text},
        source=bundle.manifest.source.name,
        recipe=bundle.manifest.recipe.get("name", ""),
        dataset=plain(dataset.name),
        scores=scores,
        total=scores[-1],
        published=PUBLISHED if is_the_papers(items) else None,
        wrong=(_wrong(item, outcome, view) for item, outcome in pairs if _is_wrong(item, outcome)),
        errors=[(item.index, outcome.error) for item, outcome in pairs if outcome.error is not None],
    )


def _is_wrong(item: DatasetItem, outcome: Outcome) -> bool:
    return outcome.error is None and outcome.strict_choice != item.solution


def _wrong(item: DatasetItem, outcome: Outcome, view: View) -> Wrong:
    options = parse_options(item.problem)
    return Wrong(
        index=item.index,
        images=tuple(plain(path.name) for path in item.images),
        pictures=tuple(picture(path, view) for path in item.images),
        subset=item.subset,
        problem=item.problem,
        solution=f"{item.solution}) {options[item.solution]}",
        choice=f"{outcome.strict_choice}) {options.get(outcome.strict_choice, '')}"
        if outcome.strict_choice
        else "no letter",
        note=_note(item, outcome),
        words=(outcome.reasoning or outcome.text).strip(),
    )


def _note(item: DatasetItem, outcome: Outcome) -> str:
    """What else a reader should know of the answer."""
    notes = [*outcome.flags, *outcome.notes]
    if outcome.choice == item.solution:
        notes.insert(0, "right as a person reads it: the form is wrong, not the letter")
    elif outcome.choice != outcome.strict_choice:
        notes.insert(0, f"as a person reads it: {outcome.choice or 'no letter'}")
    return "; ".join(notes)


def picture(path: Path, view: View = DEFAULT_VIEW) -> str | None:
    """An image scaled down, as a data URI; None where it can no longer be read."""
    try:
        pixels = load_image(path, view).pixels.copy()
    except MedVLMError:
        return None
    pixels.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    # Encoded anew: nothing of the file but its pixels is taken over.
    pixels.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
