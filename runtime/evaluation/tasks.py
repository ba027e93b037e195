"""Questions to be answered one after the other, each into its line of a results file."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..cli_options import Asking
from ..decoding import Decoding
from ..errors import InputError, MedVLMError
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
    """How questions are put and answered."""

    asking: Asking
    decoding: Decoding


def answer_here(model: MedVLM, way: Way, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Answer tasks in this process, in their order."""
    for task in tasks:
        yield answer(model, way, task)


def answer(model: MedVLM, way: Way, task: Task) -> Outcome:
    """Answer one task. An image or a question that will not do, or a failure at it, is an outcome too."""
    started = time.perf_counter()
    try:
        images = [_blank(path) for path in task.images] if task.blank else list(task.images)
        given = model.ask(images, task.question, way.decoding, **asdict(way.asking))
    except MedVLMError as error:
        return Outcome(task.key, error=" ".join(str(error).split()))
    return Outcome.of_answer(task.key, given, time.perf_counter() - started)


def _blank(path: Path) -> LoadedImage:
    """A grey image as large as the one in a file."""
    return LoadedImage(Image.new("RGB", load_image(path).pixels.size, _GREY), ())


def pending(tasks: Sequence[Task], results: Results) -> list[Task]:
    """The tasks that have no line yet."""
    return [task for task in tasks if task.key not in results.outcomes]


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
    if not any(_is_there(path) for task in tasks for path in task.images):
        raise InputError(f"none of the images is there, {folder} is where they were looked for; give --images")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
