"""The questions that activations are collected on, and those that a loss is measured on: never the same ones."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..runtime.dataset import DatasetItem, read_dataset
from ..runtime.errors import InputError, plain
from ..runtime.images import load_image

# Installed packages name datasets in this group of entry points: functions of a directory and a number of questions,
# which they write there; they return the path of the JSON file.
_GROUP = "medvlm.datasets"


@dataclass(frozen=True)
class Questions:
    """Questions of a dataset. calibrating: its first ones. measuring: ones that follow them."""

    name: str
    calibrating: Sequence[DatasetItem]
    measuring: Sequence[DatasetItem]


@contextlib.contextmanager
def open_questions(dataset: str, images: Path | None, calibrating: int, measuring: int) -> Iterator[Questions]:
    """The first `calibrating` questions of a dataset, and up to `measuring` that follow.

    dataset: a JSON file, or the name of one that is installed, whose images are there until the end of the block.
    Raises `InputError` for a dataset that is not there, is not sound or has too few questions.
    """
    with contextlib.ExitStack() as stack:
        path, name = Path(dataset), plain(Path(dataset).name)
        if not path.is_file() and (write := _installed(dataset)):
            if images is not None:
                raise InputError(f"--images belongs to a dataset's JSON file; leave it out with {dataset}")
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path, name = write(directory, calibrating + measuring), dataset
        items = read_dataset(path, images)
        if len(items) < calibrating + min(1, measuring):
            raise InputError(
                f"{name} has {len(items)} questions, and {calibrating} are to calibrate and others to measure on; "
                "lower --calibration-questions or give more"
            )
        items = items[: calibrating + measuring]
        for item in items:
            _check_images(name, item)
        yield Questions(name, items[:calibrating], items[calibrating:])


def _check_images(name: str, item: DatasetItem) -> None:
    """Raise `InputError` for an image that cannot be read: it would end hours of work."""
    try:
        for image in item.images:
            load_image(image)
    except InputError as error:
        raise InputError(f"{name}[{item.index}]: {error}") from None


def _installed(name: str) -> Callable[[Path, int], Path] | None:
    """What writes the installed dataset of this name."""
    found = metadata.entry_points(group=_GROUP, name=name)
    return next(iter(found)).load() if found else None
