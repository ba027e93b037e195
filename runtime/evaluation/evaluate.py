"""A dataset, or a folder of images and one question, as tasks and as the header of their results."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bundle import Bundle, sha256
from ..dataset import DatasetItem, is_there
from ..dicom.view import DEFAULT_VIEW, View
from ..errors import InputError
from ..files import real_path
from ..manifest import MANIFEST
from .results import Header
from .score import blank_key
from .tasks import Task, Way


def check_dataset(dataset: Path) -> None:
    """Raise `InputError` for a pipe: it is read once, and what its answers are of could not be told by its content."""
    if is_there(dataset) and not dataset.is_file():
        raise InputError(f"{dataset} is not a file; give a dataset's JSON, JSONL or CSV file")


def dataset_tasks(items: Sequence[DatasetItem], folder: Path, *, blank_images: bool = False) -> list[Task]:
    """A task for every item; with `blank_images` another for each behind them, about grey images.

    folder: where the images' names in the results start from.
    """
    shown = [_dataset_task(item, folder, blank=False) for item in items]
    return shown + ([_dataset_task(item, folder, blank=True) for item in items] if blank_images else [])


def _dataset_task(item: DatasetItem, folder: Path, *, blank: bool) -> Task:
    about = {
        "images": [_name(path, folder) for path in item.images],
        "blank_images": blank,
        "subset": item.subset,
        "problem": item.problem,
        "solution": item.solution,
    }
    return Task(blank_key(item.index) if blank else str(item.index), item.images, item.problem, blank, about)


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def dataset_header(bundle: Bundle, dataset: Path, folder: Path, way: Way, length: int) -> Header:
    """What the answers to a dataset are of. length: of the context, in tokens."""
    return Header("eval", sha256(bundle.path(MANIFEST)), sha256(dataset), str(folder.resolve()), _settings(way, length))


def folder_tasks(folder: Path, question: str, out: Path, view: View = DEFAULT_VIEW) -> list[Task]:
    """A task for every file in a folder, by name, but for hidden ones and the results `out` themselves.

    view: where it may be of a series, every folder in the folder is one. Raises `InputError` for a folder that cannot
    be listed, or without a file.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if _is_image(path, view))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}); give a folder of images") from None
    tasks = [Task(path.name, (path,), question) for path in paths if real_path(path) != real_path(out)]
    if not tasks:
        raise InputError(f"{folder} has no files; give a folder of images")
    return tasks


def _is_image(path: Path, view: View) -> bool:
    return not path.name.startswith(".") and (path.is_file() or (view.of_series and path.is_dir()))


def folder_header(bundle: Bundle, question: str, folder: Path, way: Way, length: int) -> Header:
    """What the answers about the files of a folder are of. length: of the context, in tokens."""
    digest = hashlib.sha256(question.encode()).hexdigest()
    settings = {"question": question, **_settings(way, length)}
    return Header("batch", sha256(bundle.path(MANIFEST)), digest, str(folder.resolve()), settings)


def _settings(way: Way, length: int) -> dict[str, Any]:
    """Whatever decides on the tokens of an answer; drafts and the number of threads change its speed."""
    decoding = asdict(way.decoding)
    sampling = decoding.pop("sampling")
    del decoding["max_draft"]
    return {**asdict(way.asking), **_view_settings(way.view), **decoding, **sampling, "context": length}


def _view_settings(view: View) -> dict[str, Any]:
    """A view's parts as the options have them; presets by their values."""
    return {
        "window": view.window and f"{view.window.center:g},{view.window.width:g}",
        "frame": view.frame,
        "montage": view.montage and "{}x{}".format(*view.montage),
    }
