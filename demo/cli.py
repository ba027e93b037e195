"""`medvlm demo`: the whole path in under a minute, from a checkpoint to an answer."""

import contextlib
import importlib.util
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from ..runtime.commands import ErrorCommand
from ..runtime.errors import InputError
from ..runtime.model import MedVLM
from ..runtime.session import check_device
from .image import make_image

QUESTION = "Which kind of image is this?\nA) MRI\nB) CT\nC) X-ray\nD) Ultrasound"
BUNDLE, IMAGE = "bundle", "image.png"
_NEW_TOKENS = 64


@click.command(cls=ErrorCommand)
@click.option("--save", type=click.Path(path_type=Path), help="Leave the bundle and the image in this directory.")
def demo(save: Path | None) -> None:
    """Make a tiny random model, export it, and ask it a question."""
    check_device("auto")
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("jinja2") is None:
        raise InputError("the demo exports a model; pip install 'medvlm[cpu,export]'")
    if save is not None:
        _make_empty(save)
    with contextlib.ExitStack() as stack:
        directory = save or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run(directory)
    if save is not None:
        paths = shlex.join([str(save / BUNDLE), str(save / IMAGE)])
        click.echo(f'Saved. Try: medvlm ask {paths} -q "{QUESTION.splitlines()[0]}"')


def run(directory: Path) -> None:
    """Checkpoint, export, load and ask, each timed; leaves the bundle and the image in `directory`."""
    from ..export.convert import export
    from ..export.recipe import make_recipe
    from .random_checkpoint import RandomCheckpoint

    with tempfile.TemporaryDirectory() as checkpoint:
        with _stage("write a tiny random checkpoint"):
            RandomCheckpoint().write(Path(checkpoint))
        with _stage("export it with --int4"):
            export(Path(checkpoint), directory / BUNDLE, make_recipe("int4", 32))
    with _stage("generate an image"):
        make_image().save(directory / IMAGE)
    with _stage("load the bundle"):
        model = MedVLM.load(directory / BUNDLE)
    answer = model.ask(directory / IMAGE, QUESTION, max_new_tokens=_NEW_TOKENS)
    for name in ("preprocess", "vision", "prefill", "decode"):
        _report(f"ask: {name}", getattr(answer.timings, f"{name}_s"))
    click.echo(f"\nQ: {QUESTION}\nA: {answer.text!r}")
    click.echo("\nThe weights are random, so the answer is noise. What was shown is that the whole path works here.")


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
    _report(name, time.perf_counter() - started)


def _report(name: str, seconds: float) -> None:
    click.echo(f"{name:32} {seconds:7.3f} s")
