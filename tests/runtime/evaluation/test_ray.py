"""Ray's engine: how many actors fit, and a run of which one actor is killed in the middle."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from medvlm.demo.dataset import Item
from medvlm.demo.saved import save_dataset
from medvlm.runtime import InputError
from medvlm.runtime.cli import main
from medvlm.runtime.evaluation.ray_engine import fit_actors

GB = 1_000_000_000


def node(cpus: int, gigabytes: float) -> dict[str, float]:
    return {"CPU": cpus, "memory": gigabytes * GB}


@pytest.mark.parametrize(
    ("nodes", "threads", "actors", "expected"),
    [
        # Four threads each, as long as CPUs last; then as long as memory does.
        ([node(16, 100)], None, None, (4, 4)),
        ([node(16, 10)], None, None, (4, 2)),
        ([node(2, 100)], None, None, (2, 1)),
        ([node(2, 100)], 1, None, (1, 2)),
        # No actor reaches over two machines.
        ([node(6, 100), node(6, 100)], None, None, (4, 2)),
        ([node(8, 100), node(4, 2)], None, None, (4, 2)),
        # What is asked for.
        ([node(2, 100)], None, 2, (1, 2)),
        ([node(16, 100)], None, 3, (4, 3)),
        ([node(16, 100)], 8, 2, (8, 2)),
    ],
)
def test_as_many_actors_as_fit(
    nodes: list[dict[str, float]], threads: int | None, actors: int | None, expected: tuple[int, int]
) -> None:
    assert fit_actors(nodes, threads, 4 * GB, actors) == expected


@pytest.mark.parametrize(
    ("nodes", "threads", "actors"),
    [([node(2, 100)], 4, None), ([node(8, 1)], None, None), ([node(2, 100)], None, 3), ([node(0, 100)], None, None)],
)
def test_what_does_not_fit_is_refused(nodes: list[dict[str, float]], threads: int | None, actors: int | None) -> None:
    with pytest.raises(InputError):
        fit_actors(nodes, threads, 4 * GB, actors)


def test_without_ray_one_line_says_what_to_install(
    tiny_bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    words = ["eval", str(tiny_bundle), str(tiny_dataset), "--out", str(tmp_path / "results.jsonl"), "--engine", "ray"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.stderr == "Error: Ray Data is not installed; pip install 'medvlm[ray]', or leave --engine out\n"
    assert not (tmp_path / "results.jsonl").exists()


def children(pid: int) -> Iterator[int]:
    """The process's children, their children, and so on."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from children(int(child))


def actors_of(pid: int) -> list[int]:
    """The actors that hold a model."""
    found = []
    for child in children(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        found += [child] if b"Answerer" in title else []
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses at which these processes wait for connections, as /proc has them."""
    links = [link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")]
    sockets = set()
    for link in links:
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(link))  # noqa: PTH115 - a socket is no path
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(("more", "exit_code"), [((), 1), (("--ray-address", "auto"), 2)])
def test_ray_that_does_not_start_is_one_line(
    demo_bundle: Path,
    demo_items: list[Item],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    exit_code: int,
) -> None:
    """On a busy machine Ray raises an exception of no kind of its own."""
    ray = pytest.importorskip("ray", reason="needs ray, which is not installed (extra: ray)")

    def late(*_: object, **__: object) -> None:
        raise Exception("The node timed out during startup.\nThis could happen because it is busy.")

    monkeypatch.setattr(ray, "init", late)
    save_dataset(tmp_path, demo_items[:1])
    words = ["eval", demo_bundle, tmp_path / "dataset.json", "--out", tmp_path / "out", "--engine", "ray", *more]
    result = CliRunner().invoke(main, [*map(str, words)])
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.splitlines()[-1].startswith("Error: Ray cannot be ")
    assert "(The node timed out during startup.); " in result.stderr.splitlines()[-1]


def skip_without_actors() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray, which is not installed (extra: ray)")
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc to find the actors")


def start(words: Sequence[object]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from medvlm.runtime.cli import main; main()", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def wait_for_lines(path: Path, number: int, process: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    while lines(path) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 300
        time.sleep(0.02)


def test_actor_that_is_killed_loses_no_question_and_repeats_none(
    demo_bundle: Path, demo_items: list[Item], tmp_path: Path
) -> None:
    skip_without_actors()
    save_dataset(tmp_path, demo_items[:40])
    out = tmp_path / "results.jsonl"
    words = ["eval", demo_bundle, tmp_path / "dataset.json", "--out", out, "--threads", "1"]
    # Begun here, without Ray.
    begun = CliRunner().invoke(main, [*map(str, words), "--questions", "3"])
    assert begun.exit_code == 0
    before = out.read_bytes()
    process = start([*words, "--engine", "ray", "--actors", "2", "--json"])
    try:
        wait_for_lines(out, 10, process)
        actors = actors_of(process.pid)
        assert len(actors) == 2
        at = listening({process.pid, *children(process.pid)})
        assert at
        assert at <= LOOPBACK
        os.kill(actors[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, stderr) == (0, "Evaluating, 3 done before\n")
    content = out.read_bytes()
    assert content.startswith(before)
    assert content.endswith(b"\n")
    answers = [json.loads(line) for line in content.splitlines()[1:]]
    assert sorted(int(answer["key"]) for answer in answers) == list(range(40))
    assert [answer["error"] for answer in answers] == [None] * 40
    # Nothing else is printed, though an actor died.
    total = json.loads(stdout)["scores"][-1]
    assert (total["answered"], total["errors"]) == (40, 0)


def test_sigterm_is_one_line_and_leaves_no_process(demo_bundle: Path, demo_items: list[Item], tmp_path: Path) -> None:
    skip_without_actors()
    save_dataset(tmp_path, demo_items[:40])
    out = tmp_path / "results.jsonl"
    words = ["eval", demo_bundle, tmp_path / "dataset.json", "--out", out, "--threads", "1", "--engine", "ray"]
    process = start(words)
    try:
        wait_for_lines(out, 3, process)
        started = set(children(process.pid))
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (1, "")
    stopped = f"Error: stopped after {lines(out) - 1} of 40; the same command goes on from there"
    assert stderr.splitlines() == ["Evaluating", stopped]
    assert not [pid for pid in started if Path(f"/proc/{pid}/exe").exists()]
