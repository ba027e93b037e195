"""Calibration as a whole: interrupted and gone on with, and nothing left behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from medvlm.export import cli
from medvlm.export.calibrate import Calibrator
from medvlm.export.calibration import Calibration, Collected, check_collection, collect, steps
from medvlm.export.checkpoint import Checkpoint
from medvlm.export.convert import export, write_bundle
from medvlm.export.recipe import Recipe, make_recipe
from medvlm.runtime.dataset import DatasetItem
from medvlm.runtime.errors import InputError


class StoppedError(Exception):
    """Stands for Ctrl-C."""


def recipe_of(method: Any, **options: Any) -> Recipe:
    return make_recipe("int4", 32, method=method, vision="fp32", prefill="same", accuracy_level=0, **options)


def calibration(items: Sequence[DatasetItem], **options: Any) -> Calibration:
    return Calibration("own", items, 1, **options)


def bundle_of(checkpoint: Checkpoint, out: Path, collected: Collected) -> dict[str, bytes]:
    """Write the bundle; its files without the times that the parts took."""
    write_bundle(checkpoint, out, collected.recipe, calibrated=collected.workdir)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    manifest = json.loads(files["manifest.json"])
    for part in manifest["parts"]:
        del part["seconds"]
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def stop_at(step: str) -> Callable[[str], None]:
    def progress(what: str) -> None:
        if what == step:
            raise StoppedError

    return progress


BOTH = recipe_of("awq+gptq")


@pytest.fixture(scope="module")
def uninterrupted(
    checkpoint: Checkpoint, tiny_items: list[DatasetItem], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out, done = tmp_path_factory.mktemp("whole") / "out", []
    asked = calibration(tiny_items[:2], mixed_mb=0.005)
    collected = collect(checkpoint, out, BOTH, asked, done.append)
    assert len(done) == steps(checkpoint, BOTH, asked)
    assert 0 < len(collected.recipe.eight_bits) < 11
    return bundle_of(checkpoint, out, collected)


@pytest.mark.parametrize(
    "step", ["question 2 of 2", "vision block 2 of 2", "sensitivity, head", "layer 1 of 2", "head"]
)
def test_an_interrupted_calibration_goes_on_and_gives_the_same_bundle(
    step: str,
    uninterrupted: dict[str, bytes],
    checkpoint: Checkpoint,
    tiny_items: list[DatasetItem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, asked = tmp_path / "out", calibration(tiny_items[:2], mixed_mb=0.005)
    with pytest.raises(StoppedError):
        collect(checkpoint, out, BOTH, asked, stop_at(step))
    (workdir,) = tmp_path.iterdir()
    assert workdir.name.startswith(".out.calibration-")
    scopes: list[str] = []
    quantize_layer = Calibrator._quantize_layer
    monkeypatch.setattr(
        Calibrator, "_quantize_layer", lambda self, i, *rest: (scopes.append(str(i)), quantize_layer(self, i, *rest))[1]
    )
    done: list[str] = []
    collected = collect(checkpoint, out, BOTH, asked, done.append)
    assert scopes == {"layer 1 of 2": ["1"], "head": []}.get(step, ["0", "1"])
    assert ("question 1 of 2" in done) == (step in ("question 2 of 2", "vision block 2 of 2"))
    assert len(done) == steps(checkpoint, BOTH, asked)
    assert bundle_of(checkpoint, out, collected) == uninterrupted
    collected.workdir.remove()
    assert list(tmp_path.iterdir()) == [out]


def test_other_settings_have_a_folder_of_their_own(
    checkpoint: Checkpoint, tiny_items: list[DatasetItem], tmp_path: Path
) -> None:
    others = [
        (recipe_of("gptq"), calibration(tiny_items[:1])),
        (recipe_of("gptq", act_order=True), calibration(tiny_items[:1])),
        (recipe_of("gptq", smooth=False), calibration(tiny_items[:1])),
        (recipe_of("gptq"), calibration(tiny_items[1:2])),
        (recipe_of("gptq"), calibration(tiny_items[:2])),
        (recipe_of("gptq"), calibration(tiny_items[:1], mixed_mb=1)),
    ]
    for count, (recipe, asked) in enumerate(others):
        for _ in range(2):
            with pytest.raises(StoppedError):
                collect(
                    checkpoint,
                    tmp_path / "out",
                    recipe,
                    asked,
                    stop_at("question 1 of 1" if len(asked.items) == 1 else "question 1 of 2"),
                )
            assert len(list(tmp_path.iterdir())) == count + 1


# Ends the process when half of a file is written: what SIGKILL or a power cut leaves.
KILLED = """
import os, signal, sys
import numpy as np
from medvlm.export.cli import main
savez = np.savez
def half(file, **arrays):
    savez(file, **arrays)
    if file.name.endswith(sys.argv[1]) and (sys.argv[1] != "streams.partial" or arrays["done"] == 2):
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
np.savez = half
main(sys.argv[2:])
"""


def calibrated_export(checkpoint: Checkpoint, dataset: Path, out: Path) -> list[str]:
    """The arguments of `medvlm-export`."""
    options = ["--method", "gptq", "--block-size", 32, "--calibrate", dataset, "--calibration-questions", 1]
    return [str(part) for part in (checkpoint.directory, out, *options, "--quiet", "--threads", 1)]


@pytest.fixture(scope="module")
def from_the_command(checkpoint: Checkpoint, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command") / "out"
    assert CliRunner().invoke(cli.main, calibrated_export(checkpoint, tiny_dataset, out)).exit_code == 0
    return out


@pytest.mark.parametrize("name", ["samples.partial", "layers.1.partial", "streams.partial"])
def test_a_process_killed_while_it_saves_leaves_what_can_be_gone_on_with(
    name: str, from_the_command: Path, checkpoint: Checkpoint, tiny_dataset: Path, tmp_path: Path
) -> None:
    arguments = calibrated_export(checkpoint, tiny_dataset, tmp_path / "out")
    command = [sys.executable, "-c", KILLED, name, *arguments]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    (workdir,) = tmp_path.iterdir()
    assert (workdir / name).is_file()
    assert CliRunner().invoke(cli.main, arguments).exit_code == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    for path in from_the_command.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_bundle_that_needs_activations_is_not_written_without_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks at activations"):
        export(tiny_checkpoint, tmp_path / "out", recipe_of("gptq"))
    assert list(tmp_path.iterdir()) == []


def test_room_for_what_is_kept_meanwhile_is_asked_for(
    checkpoint: Checkpoint, tiny_items: list[DatasetItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("medvlm.export.calibration.check_space", lambda _out, needed: asked.append(needed))
    for budget in (None, 0.1, 1e9):
        check_collection(checkpoint, tmp_path / "out", BOTH, calibration(tiny_items, mixed_mb=budget))
    assert asked[1] - asked[0] == pytest.approx(2e5)
    assert asked[1] < asked[2] < 3 * asked[0]
