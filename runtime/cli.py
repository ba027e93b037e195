"""The `medvlm` command: ask, audit, batch, chat, compare, eval, info, serve, verify."""

import dataclasses
import io
import json
import sys
import time
from pathlib import Path

import click

from .audit_cli import audit
from .bundle import find_faults, read_manifest
from .chat import chat
from .cli_options import BUNDLE, Asking, Loading, asking_options, decoding_options, loading_options, viewing_options
from .commands import CommandGroup, shown_item
from .compare_cli import compare
from .context import check_fit
from .decoding import Decoding
from .describe import describe
from .dicom.view import View
from .errors import BundleError, InputError, plain
from .evaluation.batch_cli import batch
from .evaluation.cli import evaluate
from .images import load_image
from .manifest import Manifest
from .processor import Processor
from .serve.cli import serve
from .show import choice_line, show_stream, status, timing_line, vote_lines
from .signing import signature_faults
from .votes import check_votes, vote


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medvlm")
def main() -> None:
    """Ask MedVLM-R1 about medical images, offline. A research model: it is no medical device."""
    # A model writes characters that not every terminal's encoding has.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


main.add_command(audit)
main.add_command(batch)
main.add_command(chat)
main.add_command(compare)
main.add_command(evaluate)
main.add_command(serve)


@main.command()
@BUNDLE
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-q", "--question", required=True, help="The question, its options included; - reads standard input.")
@click.option("--votes", default=1, show_default=True, help="Sample this many answers and count their choices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@asking_options
@viewing_options
@decoding_options
@loading_options
def ask(
    bundle: Path,
    images: tuple[str, ...],
    question: str,
    votes: int,
    as_json: bool,
    asking: Asking,
    view: View,
    decoding: Decoding,
    loading: Loading,
) -> None:
    """Ask a question of one image, or of several in order.

    Streams the reasoning, then prints the choice with its text and the time of each stage.
    """
    # Everything that can be wrong is looked at before the sessions are opened, which takes seconds.
    check_votes(votes, decoding)
    opened, length = loading.open(bundle)
    processor = Processor(opened)
    started = time.perf_counter()
    loaded = [load_image(image, view) for image in images]
    request = processor.prepare(loaded, _read_question(question), **dataclasses.asdict(asking))
    preprocess_s = time.perf_counter() - started
    check_fit(request, length)
    for note in request.notes if not as_json else ():
        click.echo(f"Note: {note}", err=True)
    model = loading.load(opened, processor)
    status(f"reading {request.visual_tokens} visual tokens")
    if votes > 1:
        counted = vote(model, request, decoding, votes)
        click.echo(json.dumps(dataclasses.asdict(counted)) if as_json else vote_lines(counted))
        return
    answer = show_stream(model.run(request, decoding, preprocess_s=preprocess_s), quiet=as_json)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(answer)))
    else:
        click.echo(choice_line(answer, request.options))
        click.echo(timing_line(answer))


@main.command()
@BUNDLE
def info(bundle: Path) -> None:
    """Print what a bundle holds and how it was made."""
    click.echo(describe(read_manifest(bundle)))


@main.command()
@BUNDLE
@click.option(
    "--public-key", type=click.Path(path_type=Path), metavar="KEY", help="Check the signature with this PEM file too."
)
def verify(bundle: Path, public_key: Path | None) -> None:
    """Hash every file of a bundle and name each that is missing, extra, changed or outside it.

    The manifest says what the files should be. Only a signature says who wrote the manifest: with --public-key each
    file, the manifest too, must be as it was signed.
    """
    # Before anything of the bundle is believed.
    unsigned = signature_faults(bundle, public_key) if public_key else []
    manifest = _manifest(bundle, unsigned)
    total = sum(entry.size for entry in manifest.files.values())
    with click.progressbar(
        length=total, label="Hashing", file=sys.stderr, show_pos=False, item_show_func=shown_item
    ) as bar:
        found = find_faults(bundle, manifest, hash_files=True, progress=lambda name, size: bar.update(size, name))
    faults = [*unsigned, *found]
    for fault in faults:
        click.echo(plain(fault), err=True)
    if faults:
        sys.exit(1)
    signed = ", and as it was signed" if public_key else ""
    click.echo(f"{bundle}: {len(manifest.files)} files, {total / 1e9:.2f} GB, all as the manifest says{signed}")


def _manifest(bundle: Path, unsigned: list[str]) -> Manifest:
    """The manifest of a bundle; where it cannot be read, what is wrong with the signature is still said."""
    try:
        return read_manifest(bundle)
    except BundleError:
        for fault in unsigned:
            click.echo(plain(fault), err=True)
        raise


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
