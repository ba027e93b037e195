"""The `medvlm chat` command: one question after the other about the same images."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from .cli_options import BUNDLE, Asking, Loading, asking_options, decoding_options, loading_options, viewing_options
from .commands import ErrorCommand, one_line
from .decoding import Decoding
from .dicom.view import View
from .errors import InputError
from .images import LoadedImage, load_image
from .model import MedVLM
from .processor import Processor
from .show import choice_line, show_stream, status, timing_line


@click.command(cls=ErrorCommand)
@BUNDLE
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@asking_options
@viewing_options
@decoding_options
@loading_options
def chat(
    bundle: Path, images: tuple[str, ...], asking: Asking, view: View, decoding: Decoding, loading: Loading
) -> None:
    """Ask one question after the other about the same images.

    Reads questions from standard input; an empty line ends one, the end of input ends the chat. Each is asked by
    itself, as the model was trained. What it has read of the images stays in memory, so that every question after
    the first is answered sooner.
    """
    opened, _ = loading.open(bundle)
    processor = Processor(opened)
    loaded = [load_image(image, view) for image in images]
    for note in (note for image in loaded for note in image.notes):
        click.echo(f"Note: {note}", err=True)
    model = loading.load(opened, processor)
    status("ask; an empty line ends a question, the end of input (Ctrl-D) ends the chat")
    for question in read_questions(_standard_input()):
        _answer(model, loaded, question, asking, decoding)


def _standard_input() -> Iterator[str]:
    if sys.stdin is None:
        raise InputError("standard input is closed; chat reads its questions there")
    yield from map(_decoded, sys.stdin.buffer)


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text; type or save the questions as UTF-8") from None


def read_questions(lines: Iterable[str]) -> Iterator[str]:
    """The questions in `lines`, each ended by an empty line or by the end."""
    question: list[str] = []
    for line in lines:
        if line.strip():
            question.append(line.rstrip("\r\n"))
        elif question:
            yield "\n".join(question)
            question = []
    if question:
        yield "\n".join(question)


def _answer(model: MedVLM, images: list[LoadedImage], question: str, asking: Asking, decoding: Decoding) -> None:
    """Print the answer, or why the question cannot be asked: that does not end the chat."""
    try:
        stream = model.stream(images, question, decoding, **dataclasses.asdict(asking))
    except InputError as error:
        click.echo(one_line(error), err=True)
        return
    answer = show_stream(stream)
    click.echo(choice_line(answer, stream.options))
    click.echo(timing_line(answer) + "\n")
