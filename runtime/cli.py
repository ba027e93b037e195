"""The `medvlm` command: ask, info, verify."""

import dataclasses
import io
import json
import sys
import time
from pathlib import Path

import click

from .bundle import find_faults, open_bundle, read_manifest
from .commands import CommandGroup, shown_item
from .errors import InputError, plain
from .images import load_image
from .manifest import Manifest
from .model import DEFAULT_MAX_LENGTH, DEFAULT_MAX_NEW_TOKENS, MedVLM, check_fit, context_length
from .processor import Processor
from .reasoning import ReasoningFilter
from .result import Answer
from .session import DEVICES, check_device
from .stream import Stream

# A terminal obeys control characters, and the model may write any.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medvlm")
def main() -> None:
    """Ask MedVLM-R1 about medical images, offline. A research model: it is no medical device."""
    # A model writes characters that not every terminal's encoding has.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@main.command()
@_BUNDLE
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-q", "--question", required=True, help="The question, its options included; - reads standard input.")
@click.option("--raw", is_flag=True, help="Send the question as it is, without MedVLM-R1's question template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option(
    "--max-new-tokens", default=DEFAULT_MAX_NEW_TOKENS, show_default=True, help="Stop after this many tokens."
)
@click.option("--min-pixels", type=int, help="Enlarge a smaller image to this many pixels.")
@click.option("--max-pixels", type=int, help="Shrink a larger image to this many pixels; 401408 as in training.")
@click.option("--max-length", type=int, help=f"Tokens of prompt and answer together  [default: {DEFAULT_MAX_LENGTH}]")
@click.option("--threads", type=int, help="Threads to compute with  [default: one for each core]")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute.")
@click.option("--hash-files", is_flag=True, help="Check the sha256 of every file of the bundle first.")
def ask(
    bundle: Path,
    images: tuple[str, ...],
    question: str,
    raw: bool,
    as_json: bool,
    max_new_tokens: int,
    min_pixels: int | None,
    max_pixels: int | None,
    max_length: int | None,
    threads: int | None,
    device: str,
    hash_files: bool,
) -> None:
    """Ask a question of one image, or of several in order.

    Streams the reasoning, then prints the choice with its text and the time of each stage.
    """
    # Everything that can be wrong is looked at before the sessions are opened, which takes seconds.
    check_device(device)
    opened = open_bundle(bundle, hash_files=hash_files)
    length = context_length(opened, max_length)
    processor = Processor(opened)
    started = time.perf_counter()
    loaded = [load_image(image) for image in images]
    request = processor.prepare(loaded, _read_question(question), raw=raw, min_pixels=min_pixels, max_pixels=max_pixels)
    preprocess_s = time.perf_counter() - started
    check_fit(request, length, max_new_tokens)
    for note in request.notes if not as_json else ():
        click.echo(f"Note: {note}", err=True)
    _status(f"loading {bundle}")
    model = MedVLM(opened, processor, device=device, threads=threads, max_length=length)
    _status(f"reading {request.visual_tokens} visual tokens")
    stream = model.run(request, max_new_tokens, preprocess_s=preprocess_s)
    answer = _show(stream, quiet=as_json)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(answer)))
    else:
        click.echo(_choice_line(answer, request.options))
        click.echo(_timing_line(answer))


@main.command()
@_BUNDLE
def info(bundle: Path) -> None:
    """Print what a bundle holds and how it was made."""
    click.echo(describe(read_manifest(bundle)))


@main.command()
@_BUNDLE
def verify(bundle: Path) -> None:
    """Hash every file of a bundle and name each that is missing, extra, changed or outside it."""
    manifest = read_manifest(bundle)
    total = sum(entry.size for entry in manifest.files.values())
    with click.progressbar(
        length=total, label="Hashing", file=sys.stderr, show_pos=False, item_show_func=shown_item
    ) as bar:
        faults = find_faults(bundle, manifest, hash_files=True, progress=lambda name, size: bar.update(size, name))
    for fault in faults:
        click.echo(plain(fault), err=True)
    if faults:
        sys.exit(1)
    click.echo(f"{bundle}: {len(manifest.files)} files, {total / 1e9:.2f} GB, all as the manifest says")


def describe(manifest: Manifest) -> str:
    """The manifest for a person."""
    text, vision = manifest.text, manifest.vision
    lines = [
        f"{manifest.source.name}, converted by {manifest.created_by} (format {manifest.format_version})",
        f"decoder   {text.layers} layers, width {text.hidden_size}, {text.num_heads} heads ({text.num_kv_heads} of "
        f"keys and values), vocabulary {text.vocab_size}, up to {text.max_positions} tokens",
        f"vision    {vision.depth} blocks, width {vision.embed_dim}, {vision.num_heads} heads; one visual token for "
        f"{vision.patch_size * vision.merge_size} x {vision.patch_size * vision.merge_size} pixels",
        f"images    {manifest.preprocessing.min_pixels} to {manifest.preprocessing.max_pixels} pixels",
        f"KV cache  {text.kv_bytes_per_token / 1024:.0f} KiB for each token",
        "",
        *(f"{part.name:18} {part.precision:18} {part.bytes / 1e6:9.1f} MB" for part in manifest.parts),
        "",
        *(f"{entry.sha256}  {name}" for name, entry in manifest.files.items()),
    ]
    return "\n".join(lines)


def _show(stream: Stream, *, quiet: bool) -> Answer:
    """Print the reasoning as it comes, unless `quiet`."""
    reasoning = ReasoningFilter()
    for piece in stream:
        if not quiet:
            click.echo(reasoning.feed(piece).translate(_CONTROL), nl=False)
            sys.stdout.flush()
    if not quiet:
        click.echo(reasoning.flush().rstrip().translate(_CONTROL) + "\n")
    return stream.answer


def _choice_line(answer: Answer, options: dict[str, str]) -> str:
    if answer.choice:
        flags = f"  ({', '.join(answer.flags)})" if answer.flags else ""
        return f"Answer: {answer.choice}) {answer.choice_text}{flags}"
    if options:
        return f"Answer: none of the options could be read from the text (stopped by: {answer.finish_reason})"
    return "Answer: the question offered no options; see the text above"


def _timing_line(answer: Answer) -> str:
    times = answer.timings
    rate = times.decode_tokens_per_s
    speed = f" ({rate:.1f} tokens/s)" if rate else ""
    return (
        f"load {times.load_s:.2f} s, preprocess {times.preprocess_s:.2f} s, vision {times.vision_s:.2f} s "
        f"({answer.visual_tokens} visual tokens), prefill {times.prefill_s:.2f} s ({answer.prompt_tokens} tokens), "
        f"decode {times.decode_s:.2f} s{speed}; {answer.new_tokens} new tokens, stopped by: {answer.finish_reason}"
    )


def _read_question(question: str) -> str:
    if question != "-":
        return question
    if sys.stdin is None:
        raise InputError("standard input is closed; give the question with -q")
    try:
        # A file from Windows may start with a byte order mark and end its lines with \r\n.
        return sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").strip()
    except UnicodeDecodeError:
        raise InputError("the question on standard input is not UTF-8 text; save it as UTF-8") from None


def _status(line: str) -> None:
    """Say what is going on where a person waits at a terminal."""
    if sys.stderr.isatty():
        click.echo(f"{line} ...", err=True)
