"""`python -m medvlm.demo.train OUT`: draw scans, train the demo model in three stages, write its checkpoint."""

import sys
from pathlib import Path

import click

from ...runtime.commands import ErrorCommand
from ...runtime.errors import InputError

try:
    import torch

    from .stages import Plan, train
except ModuleNotFoundError as error:
    click.echo(f"Error: {error.name} is not installed; pip install 'medvlm[export,calibrate]'", err=True)
    sys.exit(InputError.exit_code)


@click.command(cls=ErrorCommand)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Cores to train on.")
def main(out: Path, seed: int, threads: int) -> None:
    """Train the demo model into OUT; run it again to go on after an interruption.

    OUT/checkpoint is the result, and OUT/log.jsonl tells what happened.
    """
    torch.set_num_threads(threads)
    train(out, Plan(seed=seed))


if __name__ == "__main__":
    main()
