"""Questions to be answered one after the other, each into its line of a results file."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..cli_options import Asking
from ..dataset import is_there
from ..decoding import Decoding
from ..dicom.view import DEFAULT_VIEW, View
from ..errors import AuditError, InputError, MedVLMError
from ..images import LoadedImage, load_image
from ..model import MedVLM
from .outcome import Outcome
from .results import Results

# The middle of the levels, as the demo model's grey images have it.
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Task:
    """One question. key: what its line is found by, no other task has it. images: files that may not be there.

    blank: show grey images of the same sizes in their place. about: what else its line should say.
    """

    key: str
    images: tuple[Path, ...]
    question: str
    blank: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


Engine = Callable[[Sequence[Task]], Iterable[Outcome]]
"""What answers tasks: an outcome for each, in any order, and each as soon as it is there."""


@dataclass(frozen=True)
class Way:
    """How questions are put and answered. view: how DICOM images are shown."""

    asking: Asking
    decoding: Decoding
    view: View = DEFAULT_VIEW


def answer_here(model: MedVLM, way: Way, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Answer tasks in this process, in their order."""
    for task in tasks:
        yield answer(model, way, task)


def answer(model: MedVLM, way: Way, task: Task) -> Outcome:
    """Answer one task. An image or a question that will not do, or a failure at it, is an outcome too.

    Raises `AuditError`: without the log that was asked for, nothing more may be answered.
    """
    started = time.perf_counter()
    try:
        images = [_blank(path, way.view) for path in task.images] if task.blank else list(task.images)
        given = model.ask(images, task.question, way.decoding, view=way.view, **asdict(way.asking))
    except AuditError:
        raise
    except MedVLMError as error:
        return Outcome(task.key, error=" ".join(str(error).split()))
    return Outcome.of_answer(task.key, given, time.perf_counter() - started)


def _blank(path: Path, view: View) -> LoadedImage:
    """A grey image as large as the one in a file."""
    return LoadedImage(Image.new("RGB", load_image(path, view).pixels.size, _GREY), ())


def pending(tasks: Sequence[Task], results: Results, *, errors: bool = False) -> list[Task]:
    """The tasks that have no line yet; with `errors`, those too that have no other line than an error's."""
    return [task for task in tasks if not (results.has_answer(task.key) if errors else task.key in results.outcomes)]


def kept(results: Results, tasks: Sequence[Task]) -> list[Outcome]:
    """The outcomes that are there and stay when `tasks` are carried out."""
    again = {task.key for task in tasks}
    return [outcome for key, outcome in results.outcomes.items() if key not in again]


def carry_out(
    tasks: Sequence[Task], engine: Engine, results: Results, progress: Callable[[Outcome], None] = lambda outcome: None
) -> None:
    """Let `engine` answer tasks, and write each outcome before the next is taken.

    progress: called with each outcome once it is on the disk. Raises `MedVLMError` where the file cannot be written,
    where it was stopped by Ctrl-C, and where the engine left tasks out; the same call with what is pending goes on.
    """
    abouts = {task.key: task.about for task in tasks}
    try:
        for outcome in engine(tasks):
            # A task that was done twice, after its worker had seemed dead, counts once.
            if outcome.key in abouts:
                results.append(outcome, abouts.pop(outcome.key))
                progress(outcome)
    except KeyboardInterrupt:
        raise MedVLMError(
            f"stopped after {len(tasks) - len(abouts)} of {len(tasks)}; the same command goes on from there"
        ) from None
    if abouts:
        raise MedVLMError(
            f"{len(abouts)} of {len(tasks)} questions got no answer: what worked on them died, for lack of memory "
            "perhaps; the same command asks them again"
        )


def check_some_image(tasks: Sequence[Task], folder: Path) -> None:
    """Raise `InputError` where no task has an image that is there: the folder is wrong then, and not an image."""
    if not any(is_there(path) for task in tasks for path in task.images):
        raise InputError(f"none of the images is there, {folder} is where they were looked for; give --images")
