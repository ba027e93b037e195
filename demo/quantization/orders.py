"""`python -m medvlm.demo.quantization.orders`: what methods lose on average over several orders of the channels."""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from ...runtime.cli_options import THREADS
from ...runtime.commands import ErrorCommand
from ...runtime.errors import InputError
from ..evaluate import CHECKPOINT
from ..reordered import write_reordered
from .cases import WAYS, all_cases
from .judge import draw_questions, judge
from .rows import Row

_WAYS = ("rtn", "rtn-search", "hqq")


@click.command(cls=ErrorCommand)
@click.option("--orders", default=12, show_default=True, help="How many orders.")
@click.option("--questions", default=100, show_default=True, help="Measure on so many of the test split.")
@click.option("--calibration-questions", default=32, show_default=True, help="Calibrate on so many of another split.")
@click.option("--block-size", type=click.Choice(["32", "64", "128", "256"]), default="128", show_default=True)
@click.option("--method", "methods", type=click.Choice([*WAYS]), multiple=True, default=_WAYS, show_default=True)
@THREADS
def main(
    orders: int,
    questions: int,
    calibration_questions: int,
    block_size: str,
    methods: tuple[str, ...],
    threads: int | None,
) -> None:
    """Quantize the demo model with its channels in several orders, weights only, and print each method's KL divergence.

    Every order is the same function in fp32; what differs is which weights share a block.
    """
    if orders < 1 or questions < 1 or calibration_questions < 1:
        raise InputError("--orders, --questions and --calibration-questions are 1 or more; correct them")
    found: defaultdict[str, list[float]] = defaultdict(list)

    def keep(row: Row) -> None:
        found[row.way].append(row.kl)
        click.echo(f"{row.model}, {row.way}: KL {row.kl:.2e}", file=sys.stderr)

    cases = all_cases(methods, [int(block_size)], ["weights only"])
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_questions(Path(folder), questions, calibration_questions)
        for seed in range(orders):
            checkpoint = Path(folder) / f"order {seed}"
            write_reordered(CHECKPOINT, checkpoint, seed)
            judge(checkpoint.name, checkpoint, cases, drawn, keep, threads)
    click.echo(table(found))


def table(found: dict[str, list[float]]) -> str:
    """The mean KL divergence of each method over its orders, with its standard error and its extremes, as Markdown."""
    lines = ["| method | orders | KL, mean | standard error | least | most |", "|---|---|---|---|---|---|"]
    for method, kl in found.items():
        error = np.std(kl, ddof=1) / np.sqrt(len(kl)) if len(kl) > 1 else np.nan
        lines.append(f"| {method} | {len(kl)} | {np.mean(kl):.2e} | {error:.1e} | {min(kl):.2e} | {max(kl):.2e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
