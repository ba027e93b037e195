"""The `medvlm-export` command."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ..runtime.commands import ErrorCommand, shown_item
from ..runtime.describe import loss_line
from ..runtime.errors import InputError
from ..runtime.manifest import Manifest
from ..runtime.model import check_threads
from ..runtime.session import check_device

try:
    from .calibration import Calibration, check_collection, collect, steps
    from .carry_options import Carrying, carrying_options
    from .checkpoint import Checkpoint
    from .cli_options import DEFAULT_DATASET, Measuring, measuring_options, recipe_options
    from .convert import ObservePart, bundle_bytes, check_export, read_bytes, write_bundle
    from .loss import check_measuring, measure_loss, note_loss
    from .questions import Questions, open_questions
    from .recipe import Blockwise, Recipe
    from .report import Tried, read_tried
    from .report_file import check_report_path, write_report
    from .tensor_losses import TensorLosses, make_report
    from .workdir import Workdir
except ModuleNotFoundError as error:
    click.echo(f"Error: {error.name} is not installed; pip install 'medvlm[export]'", err=True)
    sys.exit(InputError.exit_code)


@click.command(cls=ErrorCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medvlm")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@recipe_options
@measuring_options
@carrying_options
@click.option("--force", is_flag=True, help="Replace OUT where it is a bundle.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def main(
    checkpoint: Path, out: Path, recipe: Recipe, measuring: Measuring, carrying: Carrying, force: bool, quiet: bool
) -> None:
    """Convert the Hugging Face CHECKPOINT of MedVLM-R1 or Qwen2-VL-2B to the ONNX bundle OUT.

    Needs neither torch nor transformers (but for --nf4: bitsandbytes and torch). OUT is written whole or not at all. A
    calibration that is interrupted goes on where it was when the same command is given again. --kit packs the bundle
    with all that it needs for a machine without internet.
    """
    opened = check_export(checkpoint, out, recipe, force=force)
    tried = _check(opened, out, recipe, measuring)
    carrying = carrying.for_devices(recipe.devices)
    carrying.check(out, bundle_bytes(opened, recipe))
    if carrying.kit and not quiet:
        click.echo(f"Collecting the kit's wheels in {carrying.kit.parent} ...", err=True)
    with carrying.carry(out) as kits:
        _export(opened, out, recipe, measuring, tried, quiet=quiet)
    for kit in kits if not quiet else ():
        click.echo(f"{carrying.kit}: note the sha256 of its SHA256SUMS, {kit.digest}")


def _export(
    opened: Checkpoint, out: Path, recipe: Recipe, measuring: Measuring, tried: list[Tried], *, quiet: bool
) -> None:
    """Write the bundle, calibrated and measured as was asked for."""
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        questions = _questions(stack, recipe, measuring)
        if not (quiet or opened.has_template):
            click.echo("Note: the checkpoint has no chat template; Qwen2-VL's own is used", err=True)
        workdir = None
        if questions.calibrating:
            calibration = Calibration(questions.name, questions.calibrating, measuring.threads, measuring.mixed)
            check_collection(opened, out, recipe, calibration)
            recipe, workdir = _collect(opened, out, recipe, calibration, quiet=quiet)
        losses = TensorLosses() if measuring.report else None
        manifest = _write(opened, out, recipe, workdir, losses, quiet=quiet)
        if workdir is not None:
            workdir.remove()
        if not quiet:
            click.echo(parts_table(manifest, time.perf_counter() - started))
        if measuring.report and losses:
            with _bar(2 * len(questions.measuring), "Measuring", quiet=quiet) as step:
                found = measure_loss(opened, out, questions.measuring, measuring.threads, step)
            manifest = note_loss(out, manifest, found, questions.name)
            report = make_report(manifest, losses, found, questions.name, time.perf_counter() - started)
            paths = write_report(measuring.report, report, tried)
            if not quiet:
                click.echo(f"lost: {loss_line(found.loss(questions.name))}\n" + "\n".join(map(str, paths)))


def _check(opened: Checkpoint, out: Path, recipe: Recipe, measuring: Measuring) -> list[Tried]:
    """Find what is wrong with what is measured, before any work; the reports to compare with."""
    if measuring.mixed is not None and not (isinstance(recipe.decoder, Blockwise) and recipe.decoder.bits == 4):
        raise InputError("--mixed keeps tensors of a 4-bit decoder at 8 bits; give it with --int4")
    if measuring.mixed is not None and not 0 <= measuring.mixed < math.inf:
        raise InputError(f"--mixed is {measuring.mixed:g} MB; give 0 or more")
    for name in ("calibration_questions", "report_questions"):
        if getattr(measuring, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(measuring, name)}; give at least 1")
    if measuring.report and "cpu" not in recipe.devices:
        raise InputError("--report measures on the CPU; give --device both, or leave --report out")
    if measuring.tried and not measuring.report:
        raise InputError("--tried shows reports beside this one; give --report too")
    if measuring.report:
        check_report_path(measuring.report, out)
        check_measuring(opened, out, measuring.report_questions, bundle_bytes(opened, recipe))
    if _collecting(recipe, measuring) or measuring.report:
        check_device("auto")
        check_threads(measuring.threads)
    elif measuring.calibrate or measuring.images:
        raise InputError("--calibrate is for --method awq or gptq, for --mixed and for --report; give one of them too")
    return [read_tried(path) for path in measuring.tried]


def _questions(stack: contextlib.ExitStack, recipe: Recipe, measuring: Measuring) -> Questions:
    """What is asked, as far as something is. The same questions are measured on whether others calibrate or not."""
    collecting = _collecting(recipe, measuring)
    if not (collecting or measuring.report):
        return Questions("", [], [])
    wanted = measuring.calibration_questions, measuring.report_questions if measuring.report else 0
    questions = stack.enter_context(open_questions(measuring.calibrate or DEFAULT_DATASET, measuring.images, *wanted))
    return questions if collecting else dataclasses.replace(questions, calibrating=[])


def _collecting(recipe: Recipe, measuring: Measuring) -> bool:
    return recipe.calibrated or measuring.mixed is not None


def _collect(
    opened: Checkpoint, out: Path, recipe: Recipe, calibration: Calibration, *, quiet: bool
) -> tuple[Recipe, Workdir]:
    with _bar(steps(opened, recipe, calibration), "Calibrating", quiet=quiet) as step:
        collected = collect(opened, out, recipe, calibration, step)
    return collected.recipe, collected.workdir


def _write(
    opened: Checkpoint, out: Path, recipe: Recipe, workdir: Workdir | None, observe: ObservePart | None, *, quiet: bool
) -> Manifest:
    """Write the bundle under a bar that shows the tensor, its bytes, how far the work is and the time left."""
    if quiet:
        return write_bundle(opened, out, recipe, calibrated=workdir, observe=observe)
    total = read_bytes(opened, recipe)
    with click.progressbar(length=total, label="Exporting", file=sys.stderr, item_show_func=shown_item) as bar:

        def show(name: str, size: int) -> None:
            done = f"{(bar.pos + size) / 1e9:.2f}/{total / 1e9:.2f} GB  {name}"
            bar.update(size, f"{done}, {size / 1e6:.1f} MB" if size else done)

        return write_bundle(opened, out, recipe, show, workdir, observe)


@contextlib.contextmanager
def _bar(length: int, label: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar, and what moves it on by a step."""
    if quiet:
        yield lambda what: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, item_show_func=shown_item) as bar:
        yield lambda what: bar.update(1, what)


def parts_table(manifest: Manifest, seconds: float) -> str:
    """The parts with their precision, size and time, and the whole with the `seconds` that it took."""
    rows = [(p.name, p.precision, f"{p.bytes / 1e6:.1f} MB", f"{p.seconds:.1f} s") for p in manifest.parts]
    size = sum(file.size for file in manifest.files.values())
    rows = [("part", "precision", "size", "time"), *rows, ("all files", "", f"{size / 1e6:.1f} MB", f"{seconds:.1f} s")]
    width = max([18, *(len(precision) for _, precision, _, _ in rows)])
    return "\n".join(f"{a:18} {b:{width}} {c:>12} {d:>9}" for a, b, c, d in rows)
