"""`medvlm demo`: the whole path in under a minute, from a trained checkpoint to graded answers."""

import contextlib
import importlib.util
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ..runtime.commands import ErrorCommand
from ..runtime.errors import InputError
from ..runtime.model import MedVLM
from ..runtime.session import check_device
from .dataset import Item, make_item
from .evaluate import CHECKPOINT, Answered, answer_all, chance, share
from .saved import DATASET, IMAGES, save_dataset
from .scans.catalog import KINDS

BUNDLE = "bundle"
ASKED, SAVED = 60, 300
_WARNING = (
    "The demo model was trained on drawings of scans and knows nothing of medicine.\n"
    "It shows that the runtime works on this machine, and how fast; never ask it about a patient."
)
_STAGES = ("preprocess", "vision", "prefill", "decode", "total")


@click.command(cls=ErrorCommand)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help=f"Leave the bundle and {SAVED} questions with their images in this directory.",
)
def demo(save: Path | None) -> None:
    """Export the small trained model that comes with medvlm, and ask it about drawings of scans."""
    check_device("auto")
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("jinja2") is None:
        raise InputError("the demo exports a model; pip install 'medvlm[cpu,export]'")
    if save is not None:
        _make_empty(save)
    with contextlib.ExitStack() as stack:
        run(save or Path(stack.enter_context(tempfile.TemporaryDirectory())))
    if save is not None:
        _save_questions(save)


def run(directory: Path) -> None:
    """Export, load, draw and ask, each timed; leaves the bundle in `directory`."""
    from ..export.convert import export
    from ..export.recipe import make_recipe

    click.echo(_WARNING + "\n")
    with _stage("export the model with --int4"):
        export(CHECKPOINT, directory / BUNDLE, make_recipe("int4"))
    with _stage("load the bundle"):
        model = MedVLM.load(directory / BUNDLE)
    with _stage(f"draw {ASKED} scans"):
        items = [make_item("test", index) for index in range(ASKED)]
    with _stage(f"answer {ASKED} questions"):
        answered = answer_all(model, items)
    for one in _one_of_each_modality(answered):
        click.echo("\n" + _described(one))
    click.echo("\n" + _latencies(answered))
    right = 100 * share(answered, "correct")
    click.echo(f"accuracy {right:.1f} % over {ASKED} questions (guessing: {100 * chance(items):.1f} %)")


def _one_of_each_modality(answered: Sequence[Answered]) -> list[Answered]:
    """The first answer about an X-ray, a CT and an MRI each, in the order of asking."""
    first: dict[str, Answered] = {}
    for one in answered:
        first.setdefault(KINDS[one.item.facts.kind].modality, one)
    return list(first.values())


def _described(one: Answered) -> str:
    """The question, the reasoning, the answer against the truth, and its timings."""
    question, facts, answer = one.item.question, one.item.facts, one.answer
    drawn = ", ".join(part for part in (facts.kind, facts.finding or "nothing abnormal", facts.place) if part)
    times = ", ".join(f"{name} {1000 * getattr(answer.timings, f'{name}_s'):.0f} ms" for name in _STAGES)
    return "\n".join(
        [
            f"A drawing of: {drawn}",
            question.problem,
            f"reasoning: {answer.reasoning.strip()}",
            f"answer: {answer.choice or 'none'}   truth: {question.solution}",
            f"{times}; {answer.new_tokens} tokens",
        ]
    )


def _latencies(answered: Sequence[Answered]) -> str:
    """The median of each stage, and of the decoding speed."""
    timings = [one.answer.timings for one in answered]
    medians = [1000 * statistics.median(getattr(t, f"{name}_s") for t in timings) for name in _STAGES]
    speed = statistics.median(t.decode_tokens_per_s or 0.0 for t in timings)
    parts = ", ".join(f"{name} {median:.1f} ms" for name, median in zip(_STAGES, medians, strict=True))
    return f"latency, median: {parts}; decode {speed:.0f} tokens/s"


def _save_questions(save: Path) -> None:
    """Draw the questions that `--save` leaves, and name a command to try."""
    with click.progressbar(range(SAVED), label=f"Drawing {SAVED} scans", file=sys.stderr) as bar:
        items: list[Item] = [make_item("test", index) for index in bar]
    image = save_dataset(save, items)[0]
    command = shlex.join(["medvlm", "ask", str(save / BUNDLE), str(image), "-q", items[0].question.problem])
    click.echo(f"\nSaved {BUNDLE}, {IMAGES} and {DATASET} in {save}. Try:\n{command}")


def _make_empty(save: Path) -> None:
    try:
        if save.exists() and (not save.is_dir() or any(save.iterdir())):
            raise InputError(f"{save} exists and is not an empty directory; choose another one for --save")
        save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{save} cannot be made ({error.strerror}); choose another directory for --save") from None


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    click.echo(f"{name:30} {time.perf_counter() - started:7.3f} s")
