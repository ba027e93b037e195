"""`python -m medvlm.demo.quantization`: what every way to quantize costs the demo model and its stress version."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ...export.cli_options import BLOCK_SIZES
from ...runtime.bench.plot import check_picture
from ...runtime.cli_options import THREADS
from ...runtime.commands import ErrorCommand
from ...runtime.errors import InputError
from ...runtime.model import check_threads
from ...runtime.session import check_device
from ..evaluate import CHECKPOINT
from ..stress import write_stress
from .cases import SETTINGS, WAYS, Case, Setting, all_cases
from .judge import Questions, draw_questions, judge
from .plot import draw
from .rows import Row, append_row, read_rows, tables

MODELS = ("plain", "stress")


class _Listed(click.ParamType):
    """Names with commas between them."""

    name = "list"

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names in the order in which they are allowed."""
        given = {name.strip() for name in value.split(",")}
        for name in sorted(given - {*self._allowed}):
            self.fail(f"{name!r} is none of {', '.join(self._allowed)}", param, ctx)
        return tuple(name for name in self._allowed if name in given)


@click.command(cls=ErrorCommand)
@click.option("--questions", default=600, show_default=True, help="Measure on so many of the test split.")
@click.option("--calibration-questions", default=256, show_default=True, help="Calibrate on so many of another split.")
@click.option("--blocks", type=_Listed(BLOCK_SIZES), default=",".join(BLOCK_SIZES), show_default=True)
@click.option("--methods", type=_Listed([*WAYS]), default=",".join(WAYS), show_default=True)
@click.option("--settings", type=_Listed(SETTINGS), default=",".join(SETTINGS), show_default=True)
@click.option("--models", type=_Listed(MODELS), default=",".join(MODELS), show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="quantization.jsonl",
    show_default=True,
    help="The figures, a JSON object in a line for each bundle. What is there already is not measured again.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw size against KL into this .png, .svg or .pdf.")
@THREADS
def main(
    questions: int,
    calibration_questions: int,
    blocks: tuple[str, ...],
    methods: tuple[str, ...],
    settings: tuple[Setting, ...],
    models: tuple[str, ...],
    out: Path,
    plot: Path | None,
    threads: int | None,
) -> None:
    """Quantize the demo model in every way, hold each bundle against float32, and print the tables as Markdown.

    A run that was interrupted goes on when it is given again. With --models plain in one process and --models stress in
    another, both may share an --out.
    """
    for name, value in (("questions", questions), ("calibration-questions", calibration_questions)):
        if value < 1:
            raise InputError(f"--{name} is {value}; give at least 1")
    check_device("auto")
    check_threads(threads)
    if plot is not None:
        check_picture(plot)
    cases = all_cases(methods, [int(size) for size in blocks], settings)
    rows = _rows(out, questions, calibration_questions)
    missing = {model: [case for case in cases if (model, case) not in rows] for model in models}
    if any(missing.values()):
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_questions(Path(folder), questions, calibration_questions)
            for model in models:
                _measure(model, missing[model], drawn, out, threads)
        rows = _rows(out, questions, calibration_questions)
    wanted = [rows[model, case] for model in models for case in cases]
    # By setting first: the tables come in the order of the rows.
    wanted.sort(key=lambda row: (models.index(row.model), row.setting != cases[0].setting, methods.index(row.way)))
    click.echo(tables(wanted))
    if plot is not None:
        draw(wanted, plot)


def _rows(out: Path, questions: int, calibrating: int) -> dict[tuple[str, Case], Row]:
    """What was measured already. Raises `InputError` where that was on other questions."""
    rows = read_rows(out)
    for row in rows:
        if (row.questions, row.calibrating) != (questions, calibrating):
            raise InputError(
                f"{out} was measured on {row.questions} questions and calibrated on {row.calibrating}; "
                "choose another --out, or these numbers"
            )
    return {(row.model, row.case): row for row in rows}


def _measure(model: str, cases: Sequence[Case], questions: Questions, out: Path, threads: int | None) -> None:
    """Measure `cases` and append their rows to `out`."""
    if not cases:
        return
    started = time.perf_counter()

    def keep(row: Row) -> None:
        append_row(out, row)
        name = f"{row.model}, {row.setting}, {row.way} block {row.block_size}"
        click.echo(f"{time.perf_counter() - started:6.0f} s  {name}: KL {row.kl:.2e}", file=sys.stderr)

    with _checkpoint(model) as directory:
        judge(model, directory, cases, questions, keep, threads)


@contextlib.contextmanager
def _checkpoint(model: str) -> Iterator[Path]:
    if model == MODELS[0]:
        yield CHECKPOINT
        return
    with tempfile.TemporaryDirectory() as folder:
        write_stress(CHECKPOINT, Path(folder) / model)
        yield Path(folder) / model


if __name__ == "__main__":
    main()
