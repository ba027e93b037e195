"""Reports as files: what can be said about their paths beforehand, and writing them whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.files import check_report_place, lies_in, write_whole
from .report import Report, Tried, read_tried
from .report_html import render_html
from .report_plots import check_plotting

_SUFFIXES = (".html", ".json")


def check_report_path(path: Path, bundle: Path | None = None) -> None:
    """Raise `InputError` where `write_report` could not write, as far as that is known before there is a report.

    bundle: the directory that the bundle goes to, in which nothing else may lie.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path.name} is no name for a report; give one that ends in .html or .json")
    for target in _targets(path):
        check_report_place(target)
    if bundle is not None and lies_in(path, bundle):
        raise InputError(f"the report {path} would lie in the bundle {bundle}; choose another place for it")
    for target in _targets(path):
        _check_replaceable(target)
    if path.suffix.lower() == ".html":
        check_plotting()


def _check_replaceable(target: Path) -> None:
    """Raise `InputError` for a JSON file that is no report: it may be somebody's dataset."""
    if target.suffix.lower() != ".json" or not target.exists():
        return
    try:
        read_tried(target)
    except InputError:
        raise InputError(f"{target} exists and is not a report; move it, or choose another name") from None


def write_report(path: Path, report: Report, tried: Sequence[Tried] = ()) -> list[Path]:
    """Write the report to `path`: JSON alone, or a page and the JSON beside it, which have the same stem.

    tried: other bundles that the page compares this one with. Returns the files written. Older ones are replaced once
    the new ones are complete. Raises `InputError` as `check_report_path`, and `MedVLMError` while writing.
    """
    check_report_path(path)
    texts = [report.to_json()]
    if path.suffix.lower() == ".html":
        texts.append(render_html(report, tried))
    for target, text in zip(_targets(path), texts, strict=True):
        write_whole(target, text)
    return _targets(path)


def _targets(path: Path) -> list[Path]:
    """The JSON file, and the page where there is one."""
    return [path] if path.suffix.lower() == ".json" else [path.with_suffix(".json"), path]
