"""The options that every command which asks has in common."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .bundle import Bundle, open_bundle
from .context import DEFAULT_MAX_LENGTH, context_length
from .decoding import DEFAULT_MAX_NEW_TOKENS, MOST_DRAFTED, Decoding
from .device import check_bundle_device
from .dicom.view import read_view
from .model import DEFAULT_PREFIX_MB, MedVLM
from .processor import Processor
from .sampling import Sampling
from .session import DEVICES, check_device
from .show import status

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
THREADS = click.option(
    "--threads", type=int, help="Threads to compute with  [default: one for each core that may be used]"
)

Command = Callable[..., None]


@dataclass(frozen=True)
class Loading:
    """How a bundle is loaded: opened first, which shows most of what can be wrong, and then its sessions."""

    threads: int | None
    device: str
    max_length: int | None
    prefix_mb: int
    hash_files: bool
    audit: Path | None = None
    gpu_mem_limit: int | None = None

    def open(self, bundle: Path) -> tuple[Bundle, int]:
        """The checked bundle and its context's length in tokens. Raises `InputError` and `BundleError`."""
        check_device(self.device)
        opened = open_bundle(bundle, hash_files=self.hash_files)
        check_bundle_device(self.device, opened.manifest)
        return opened, context_length(opened, self.max_length)

    def load(self, opened: Bundle, processor: Processor) -> MedVLM:
        """The model, which takes seconds."""
        status(f"loading {opened.directory}")
        model = MedVLM(
            opened,
            processor,
            device=self.device,
            threads=self.threads,
            max_length=self.max_length,
            prefix_mb=self.prefix_mb,
            audit=self.audit,
            gpu_mem_limit=self.gpu_mem_limit,
        )
        if model.device_note:
            click.echo(f"Note: {model.device_note}", err=True)
        return model


@dataclass(frozen=True)
class Asking:
    """How a question becomes a prompt."""

    raw: bool
    min_pixels: int | None
    max_pixels: int | None


_LOADING = (
    click.option(
        "--max-length", type=int, help=f"Tokens of prompt and answer together  [default: {DEFAULT_MAX_LENGTH}]"
    ),
    THREADS,
    click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Where to compute: auto takes CUDA where the bundle is for it and the machine has it.",
    ),
    click.option(
        "--gpu-mem-limit", type=int, metavar="MB", help="Take no more of the GPU's memory  [default: what is needed]"
    ),
    click.option(
        "--prefix-mb",
        default=DEFAULT_PREFIX_MB,
        show_default=True,
        help="Megabytes of earlier questions to keep for others about the same image; 0 keeps nothing.",
    ),
    click.option("--hash-files", is_flag=True, help="Check the sha256 of every file of the bundle first."),
    click.option(
        "--audit",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Add a sealed line to this log for each answer, without anything of the question or of the text.",
    ),
)
_ASKING = (
    click.option("--raw", is_flag=True, help="Send the question as it is, without MedVLM-R1's question template."),
    click.option("--min-pixels", type=int, help="Enlarge a smaller image to this many pixels."),
    click.option("--max-pixels", type=int, help="Shrink a larger image to this many pixels; 401408 as in training."),
)
_VIEWING = (
    click.option(
        "--window",
        metavar="CENTER,WIDTH",
        help="Show DICOM greys in this window, or in lung, bone, brain or soft-tissue  [default: the file's own]",
    ),
    click.option("--frame", type=int, help="Take this frame of a DICOM file, or slice of a series' folder, from 1."),
    click.option("--montage", metavar="RxC", help="Take so many frames or slices in rows and columns, such as 3x3."),
)
_DECODING = (
    click.option(
        "--max-new-tokens", default=DEFAULT_MAX_NEW_TOKENS, show_default=True, help="Stop after this many tokens."
    ),
    click.option(
        "--constrained/--unconstrained",
        default=True,
        show_default=True,
        help="Make the answer to a multiple-choice question one of its letters.",
    ),
    click.option(
        "--think-tokens",
        type=int,
        help="End the reasoning after this many tokens  [default: what leaves room to answer]",
    ),
    click.option(
        "--draft-tokens",
        default=MOST_DRAFTED,
        show_default=True,
        help="Tokens that prompt lookup may draft at once; 0 turns it off. It changes the speed and no token.",
    ),
    click.option("--temperature", default=0.0, show_default=True, help="Draw tokens at random; 0 takes the likeliest."),
    click.option("--top-k", default=0, show_default=True, help="Draw among this many tokens; 0 among all."),
    click.option("--top-p", default=1.0, show_default=True, help="Draw among the tokens with this share; 1 among all."),
    click.option(
        "--repetition-penalty", default=1.0, show_default=True, help="Above 1 makes what was said less likely."
    ),
    click.option("--seed", default=0, show_default=True, help="Of the random draws."),
)


def loading_options(command: Command) -> Command:
    """Add the options of loading, which reach the command as `loading`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        threads: int | None,
        device: str,
        max_length: int | None,
        prefix_mb: int,
        hash_files: bool,
        audit: Path | None,
        gpu_mem_limit: int | None,
        **others: Any,
    ) -> None:
        loading = Loading(threads, device, max_length, prefix_mb, hash_files, audit, gpu_mem_limit)
        command(*args, loading=loading, **others)

    return with_options(wrapped, _LOADING)


def asking_options(command: Command) -> Command:
    """Add the options of prompts, which reach the command as `asking`."""

    @functools.wraps(command)
    def wrapped(*args: Any, raw: bool, min_pixels: int | None, max_pixels: int | None, **others: Any) -> None:
        command(*args, asking=Asking(raw, min_pixels, max_pixels), **others)

    return with_options(wrapped, _ASKING)


def viewing_options(command: Command) -> Command:
    """Add the options of DICOM files, which reach the command as `view`."""

    @functools.wraps(command)
    def wrapped(*args: Any, window: str | None, frame: int | None, montage: str | None, **others: Any) -> None:
        command(*args, view=read_view(window, frame, montage), **others)

    return with_options(wrapped, _VIEWING)


def decoding_options(command: Command) -> Command:
    """Add the options of decoding, which reach the command as `decoding`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        max_new_tokens: int,
        constrained: bool,
        think_tokens: int | None,
        draft_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        repetition_penalty: float,
        seed: int,
        **others: Any,
    ) -> None:
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        decoding = Decoding(max_new_tokens, sampling, constrained, think_tokens, draft_tokens)
        command(*args, decoding=decoding, **others)

    return with_options(wrapped, _DECODING)


def with_options(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    """Add click's options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command
