"""The same work by several actors of Ray: one model in each, on this machine or on a cluster.

Ray Data hands out one question at a time and asks it again where an actor dies; only the driver writes results. On a
cluster every machine must find the bundle and the images under the same paths, and have medvlm installed.
"""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..bundle import Bundle
from ..cli_options import Loading
from ..errors import InputError, MedVLMError, first_line, plain
from ..interrupts import kept_handlers
from ..processor import Processor
from .outcome import Outcome
from .tasks import Engine, Task, Way, answer

# What a model takes beside its files: caches, activations, Python.
_OTHER_BYTES = 700_000_000
# Where no number of threads is given: more of them decode little faster, for memory is the limit then.
_MOST_THREADS = 4
# How often a question is begun: where an actor died at it each time, it may be the reason.
_MOST_STARTS = 3


def check_ray(actors: int | None) -> None:
    """Raise `InputError` where Ray Data is not installed, or for a number of actors that cannot be."""
    if actors is not None and actors < 1:
        raise InputError(f"--actors is {actors}; give at least 1")
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow", "pandas")):
        raise InputError("Ray Data is not installed; pip install 'medvlm[ray]', or leave --engine out")


def ray_engine(opened: Bundle, loading: Loading, way: Way, actors: int | None, address: str | None) -> Engine:
    """The engine that answers by `actors` actors, or as many as fit, of the cluster at `address` or one made here."""

    def there(tasks: Sequence[Task]) -> Iterator[Outcome]:
        _set_environment(address)
        import ray
        from ray.exceptions import RayError

        with _without_stdout():
            try:
                _start(address)
                yield from _outcomes(opened, loading, way, actors, tasks)
            except RayError as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                raise MedVLMError(f"Ray failed: {reason}; the same command goes on from there") from error
            finally:
                ray.shutdown()

    return there


def _set_environment(address: str | None) -> None:
    """What Ray reads when it is imported and when it starts."""
    # Its usage reports to its makers are on without this.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:
        # Whoever reaches its ports can run code: those of a Ray for this machine alone listen to this machine alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def _start(address: str | None) -> None:
    """Connect to Ray, or start it. Raises `MedVLMError` where that fails, `InputError` where the address may be why."""
    import ray

    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        # Ray would print a stack at SIGTERM and exit.
        with _without_stderr(), kept_handlers():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    # It raises plain ones too: where the machine is busy, when its own processes are not there after half a minute.
    except Exception as error:
        reason = plain(first_line(error))
        if address:
            raise InputError(f"Ray cannot be reached ({reason}); check --ray-address") from None
        raise MedVLMError(f"Ray cannot be started ({reason}); give the same command again") from error


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    """While it lasts, what is printed is lost: Ray prints, whatever it was told, when an actor died."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """While it lasts, what the process's libraries write to standard error is lost: Ray says how much it will say."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _outcomes(
    opened: Bundle, loading: Loading, way: Way, actors: int | None, tasks: Sequence[Task]
) -> Iterator[Outcome]:
    import ray.data

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    threads, fitting = fit_actors(nodes, loading.threads, _model_bytes(opened), actors)
    context = ray.data.DataContext.get_current()
    # The command has a bar of its own.
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    starts = ray.remote(num_cpus=0)(Starts).remote()
    own = dataclasses.replace(loading, threads=threads, hash_files=False)
    # A block of its own for every question, so that each comes back as soon as it is answered.
    numbers = ray.data.from_items([{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks))
    answered = numbers.map_batches(
        Answerer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(fitting, len(tasks)), max_tasks_in_flight_per_actor=1),
        num_cpus=threads,
        fn_constructor_args=(opened, own, way, list(tasks), starts),
    )
    for batch in answered.iter_batches(batch_size=None, prefetch_batches=0):
        for line in batch["line"]:
            yield Outcome.of_line(json.loads(line))


class Starts:
    """What one actor beside the others runs: it counts how often each question was begun."""

    def __init__(self) -> None:
        self._starts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count a start; how many there were, this one included."""
        self._starts[number] += 1
        return self._starts[number]


class Answerer:
    """What an actor runs: a model, loaded once, and one question after the other.

    Ray Data asks a question again, without end, if its actor dies. starts: a handle on the actor of `Starts`.
    """

    def __init__(self, opened: Bundle, loading: Loading, way: Way, tasks: Sequence[Task], starts: Any) -> None:
        self._model, self._way = loading.load(opened, Processor(opened)), way
        self._tasks, self._starts = tasks, starts

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """The outcomes of the tasks whose numbers are in `batch`, as lines of JSON."""
        outcomes = [self._answer(int(number)) for number in batch["number"]]
        return {"line": [json.dumps({"key": outcome.key, **outcome.to_line()}) for outcome in outcomes]}

    def _answer(self, number: int) -> Outcome:
        import ray

        task, starts = self._tasks[number], cast(int, ray.get(self._starts.begin.remote(number)))
        if starts > _MOST_STARTS:
            return Outcome(
                task.key, error=f"an actor of Ray died at it {_MOST_STARTS} times, for lack of memory perhaps"
            )
        return answer(self._model, self._way, task)


def fit_actors(
    nodes: Sequence[Mapping[str, float]], threads: int | None, model_bytes: int, actors: int | None
) -> tuple[int, int]:
    """Each actor's threads, and how many actors the nodes' CPUs and memory have room for, or `actors` if given.

    nodes: of each machine its "CPU"s and its "memory" in bytes. Raises `InputError` where the nodes have too little.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if not any(cpus):
        raise InputError("Ray's machines have no CPUs to give; start Ray with some")
    if threads is None:
        # With a given number of actors, all of them at the same time.
        shared = max(cpus) if actors is None else max(1, sum(cpus) // actors)
        threads = min(_MOST_THREADS, max(cpus), shared)
    rooms = [
        min(count // threads, int(node.get("memory", 0) // model_bytes))
        for node, count in zip(nodes, cpus, strict=True)
    ]
    fitting = sum(rooms) if actors is None else min(actors, sum(count // threads for count in cpus))
    if fitting < (actors or 1):
        raise InputError(
            f"{actors or 1} actors with {threads} CPUs and {model_bytes / 1e9:.1f} GB each do not fit on Ray's "
            "machines; give fewer --threads or --actors"
        )
    return threads, fitting


def _model_bytes(opened: Bundle) -> int:
    return sum(entry.size for entry in opened.manifest.files.values()) + _OTHER_BYTES
