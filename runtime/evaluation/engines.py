"""Where the work is done, as the commands' options choose it: in this process, or by actors of Ray."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ..bundle import Bundle
from ..cli_options import Loading, with_options
from ..commands import shown_item
from ..errors import InputError
from ..interrupts import terminate_as_interrupt
from ..processor import Processor
from .outcome import Outcome
from .tasks import Engine, Task, Way, answer_here

Command = Callable[..., None]

_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who answers: this process, or a model in each of several actors of Ray (extra: ray).",
    ),
    click.option("--actors", type=int, help="With --engine ray, how many  [default: as many as fit the resources]"),
    click.option(
        "--ray-address", help="With --engine ray, the cluster's address, or auto  [default: Ray is started here]"
    ),
)


@dataclass(frozen=True)
class Chosen:
    """The engine that was chosen. actors, address: of Ray's."""

    engine: str
    actors: int | None
    address: str | None

    def check(self) -> None:
        """Raise `InputError` where it cannot be, as far as that is known before it starts."""
        if self.engine == "ray":
            from .ray_engine import check_ray

            check_ray(self.actors)
        elif self.actors is not None or self.address is not None:
            raise InputError("--actors and --ray-address are for --engine ray; give it, or leave them out")

    def make(self, opened: Bundle, processor: Processor, loading: Loading, way: Way) -> Engine:
        """The engine; it loads the model when it is given its tasks."""
        if self.engine == "ray":
            from .ray_engine import ray_engine

            return ray_engine(opened, loading, way, self.actors, self.address)

        def here(tasks: Sequence[Task]) -> Iterator[Outcome]:
            yield from answer_here(loading.load(opened, processor), way, tasks)

        return here


def engine_options(command: Command) -> Command:
    """Add the options of engines, which reach the command as `chosen`."""

    @functools.wraps(command)
    def wrapped(*args: Any, engine: str, actors: int | None, ray_address: str | None, **others: Any) -> None:
        command(*args, chosen=Chosen(engine, actors, ray_address), **others)

    return with_options(wrapped, _OPTIONS)


@contextlib.contextmanager
def progress_bar(
    label: str, tasks: int, before: int, count: Callable[[Outcome], str]
) -> Iterator[Callable[[Outcome], None]]:
    """A bar with the time left on standard error, and what to call after each of `tasks`.

    before: how many more were done by an earlier run. count: what the bar says when one more is there.
    """
    shown = f"{label}, {before} done before" if before else label
    bar = click.progressbar(
        length=tasks, label=shown, file=sys.stderr, show_pos=True, show_eta=True, item_show_func=shown_item
    )
    # Whatever ends it, the bar gives the terminal its cursor back.
    with terminate_as_interrupt(), bar:
        yield lambda outcome: bar.update(1, count(outcome))
