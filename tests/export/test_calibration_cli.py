"""`medvlm-export` with questions: what it refuses, what it notes, and what it leaves behind."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from medvlm.demo.dataset import make_item
from medvlm.export import cli
from medvlm.export.calibration import Collected, collect
from medvlm.export.questions import open_questions
from medvlm.export.recipe import make_recipe
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.dataset import DatasetItem
from PIL import Image


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# Refused

GPTQ = ["--method", "gptq"]
REFUSED: dict[str, tuple[list[str], str]] = {
    "scale of hqq": (["--method", "hqq", "--scale", "max"], "--scale max belongs to --method rtn"),
    "scale of gptq": ([*GPTQ, "--scale", "search"], "--scale search belongs to --method rtn"),
    "method of fp32": (["--fp32", "--method", "rtn"], "--method belongs to --int4 and --int8"),
    "scale of nf4": (["--nf4", "--scale", "search"], "--method belongs to --int4 and --int8"),
    "order alone": (["--act-order"], "--act-order belongs to --method gptq"),
    "order of awq": (["--act-order", "--method", "awq"], "--act-order belongs to --method gptq"),
    "mixed int8": (["--int8", "--mixed", "1"], "--mixed keeps tensors of a 4-bit decoder at 8 bits"),
    "mixed nf4": (["--nf4", "--mixed", "1"], "--mixed keeps tensors of a 4-bit decoder at 8 bits"),
    "mixed below 0": (["--mixed", "-1"], "--mixed is -1 MB; give 0 or more"),
    "mixed nan": (["--mixed", "nan"], "--mixed is nan MB"),
    "mixed inf": (["--mixed", "inf"], "--mixed is inf MB"),
    "no questions": ([*GPTQ, "--calibration-questions", "0"], "--calibration-questions is 0; give at least 1"),
    "none to measure": (["--report", "FOLDER/r.json", "--report-questions", "0"], "--report-questions is 0"),
    "no dataset": ([*GPTQ, "--calibrate", "FOLDER/absent.json"], "absent.json: No such file"),
    "no installed dataset": ([*GPTQ, "--calibrate", "demos"], "cannot read demos"),
    "unused dataset": (["--calibrate", "DATASET"], "--calibrate is for --method awq or gptq"),
    "unused images": (["--images", "FOLDER"], "--calibrate is for --method awq or gptq"),
    "images of demo": ([*GPTQ, "--images", "FOLDER"], "--images belongs to a dataset's JSON file"),
    "images elsewhere": ([*GPTQ, "--calibrate", "DATASET", "--images", "FOLDER"], "own.json[0]: there is no image"),
    "few questions": ([*GPTQ, "--calibrate", "DATASET"], "own.json has 6 questions, and 32 are to calibrate"),
    "none left": (
        ["--report", "FOLDER/r.json", "--calibrate", "DATASET", "--calibration-questions", "6"],
        "own.json has 6 questions, and 6 are to calibrate and others to measure on",
    ),
    "tried alone": (["--tried", "FOLDER/r.json"], "--tried shows reports beside this one; give --report too"),
    "tried absent": (["--report", "FOLDER/r.json", "--tried", "FOLDER/absent.json"], "cannot read"),
    "report nowhere": (["--report", "FOLDER/absent/r.json"], "absent is not a directory; create it first"),
    "report of no kind": (["--report", "FOLDER/r.pdf"], "r.pdf is no name for a report"),
    "report in the bundle": (["--report", "FOLDER/out/r.json"], "out is not a directory"),
    "threads": ([*GPTQ, "--threads", "0"], "threads is 0; give 1 to"),
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, folder: Path) -> Callable[..., str]:
    """Runs the command, which must fail before any work, and gives its line."""

    def refused(*options: object) -> str:
        for name in ("write_bundle", "collect"):
            monkeypatch.setattr(cli, name, lambda *_, **__: pytest.fail("the work was begun"))
        result = run(tiny_checkpoint, folder / "out", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert not any(folder.iterdir())
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    return refused


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_is_one_line_before_any_work(
    fault: str, refused: Callable[..., str], tiny_dataset: Path, folder: Path
) -> None:
    options, message = REFUSED[fault]
    given = [option.replace("FOLDER", str(folder)).replace("DATASET", str(tiny_dataset)) for option in options]
    assert message in refused(*given)


def test_an_image_that_cannot_be_read_is_told_before_any_work(
    refused: Callable[..., str], tiny_dataset: Path, tmp_path: Path
) -> None:
    """One that is measured on would be met after hours of calibration."""
    copy = Path(shutil.copytree(tiny_dataset.parent, tmp_path / "copy"))
    (copy / "3-0.png").write_bytes(b"no image")
    given = ["--method", "gptq", "--calibrate", copy / "own.json", "--calibration-questions", 3]
    assert "own.json[3]: " in refused(*given, "--report", tmp_path / "r.json")


def test_without_onnxruntime_it_says_what_to_install(
    refused: Callable[..., str], tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    given = ["--method", "gptq", "--calibrate", tiny_dataset, "--calibration-questions", 3]
    assert "onnxruntime is not installed; pip install 'medvlm[cpu]'" in refused(*given)


# Done


def manifest_of(bundle: Path) -> dict[str, Any]:
    open_bundle(bundle, hash_files=True)
    return json.loads((bundle / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("options", "method", "act_order"),
    [
        (["--method", "awq"], "awq", False),
        (["--method", "gptq", "--act-order"], "gptq", True),
        (["--method", "awq+gptq", "--int8"], "awq+gptq", False),
    ],
)
def test_the_manifest_says_what_calibrated_and_how(
    options: list[str], method: str, act_order: bool, tiny_checkpoint: Path, tiny_dataset: Path, folder: Path
) -> None:
    given = ["--calibrate", tiny_dataset, "--calibration-questions", 2, "--block-size", 32]
    result = run(tiny_checkpoint, folder / "out", *options, *given)
    assert result.exit_code == 0, result.stderr
    recipe = manifest_of(folder / "out")["recipe"]
    assert recipe["calibration"] == {"dataset": "own.json", "questions": 2}
    for part in ("decoder", "head"):
        assert (recipe[part]["method"], recipe[part]["act_order"]) == (method, act_order)
    assert recipe["eight_bits"] == []
    assert f"block 32 {method}" in result.stdout
    assert names(folder) == {"out"}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_mixed_precisions_are_in_the_manifest_with_the_questions_that_chose_them(
    method: str, tiny_checkpoint: Path, tiny_dataset: Path, folder: Path
) -> None:
    given = ["--method", method, "--mixed", 0.01, "--calibrate", tiny_dataset, "--calibration-questions", 1]
    assert run(tiny_checkpoint, folder / "out", *given, "--quiet").exit_code == 0
    recipe = manifest_of(folder / "out")["recipe"]
    assert recipe["calibration"] == {"dataset": "own.json", "questions": 1}
    assert 0 < len(recipe["eight_bits"]) < 11
    assert names(folder) == {"out"}


def test_methods_and_scales_choose_the_recipe(tiny_checkpoint: Path, folder: Path) -> None:
    for i, (options, recipe) in enumerate(
        [
            ([], make_recipe("int4", method="rtn-search")),
            (["--method", "rtn"], make_recipe("int4", method="rtn-search")),
            (["--method", "rtn", "--scale", "max"], make_recipe("int4", method="rtn")),
            (["--scale", "search"], make_recipe("int4", method="rtn-search")),
            (["--method", "hqq"], make_recipe("int4", method="hqq")),
            (["--int8", "--method", "rtn"], make_recipe("int8", method="rtn")),
            (["--int8", "--method", "hqq"], make_recipe("int8", method="hqq")),
            (["--no-smooth"], make_recipe("int4", smooth=False)),
            (["--fp32", "--smooth", "--vision", "w4"], make_recipe("fp32", smooth=True, vision="w4")),
        ]
    ):
        assert run(tiny_checkpoint, folder / str(i), *options, "--quiet").exit_code == 0
        assert manifest_of(folder / str(i))["recipe"] == recipe.to_json()


def test_the_loss_in_the_manifest_is_the_reports(tiny_checkpoint: Path, tiny_dataset: Path, folder: Path) -> None:
    given = ["--method", "gptq", "--mixed", 0.01, "--calibrate", tiny_dataset, "--calibration-questions", 2]
    result = run(tiny_checkpoint, folder / "out", *given, "--report", folder / "r.json", "--report-questions", 3)
    assert result.exit_code == 0, result.stderr
    assert names(folder) == {"out", "r.json"}
    manifest, report = manifest_of(folder / "out"), json.loads((folder / "r.json").read_text())
    loss, found = manifest["loss"], report["whole_model"]
    assert loss["dataset"] == report["dataset"] == "own.json"
    assert loss["questions"] == found["questions"] == 3
    for name in ("tokens", "kl", "top1_agreement", "flips"):
        assert loss[name] == found[name]
    assert (loss["accuracy"], loss["reference_accuracy"]) == (found["accuracy_b"], found["accuracy_a"])
    assert loss["kl"] > 0
    assert report["recipe"] == manifest["recipe"]
    assert report["calibration"] == {"dataset": "own.json", "images": 2, "method": "gptq"}
    assert report["total_bytes"] == sum(entry["size"] for entry in manifest["files"].values())
    eight = {tensor["scope"] for tensor in report["tensors"] if tensor["precision"].startswith("int8 block")}
    assert eight == set(manifest["recipe"]["eight_bits"])


@pytest.mark.parametrize("options", [[], ["--method", "gptq"]], ids=["hqq", "gptq"])
def test_what_is_measured_on_never_calibrates_and_is_the_same_for_all_methods(
    options: list[str], tiny_checkpoint: Path, tiny_dataset: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MeasuredError(Exception):
        pass

    asked: dict[str, list[int]] = {}

    def note(name: str, items: Sequence[DatasetItem]) -> None:
        asked[name] = [item.index for item in items]

    def measure(_checkpoint: object, _out: object, items: list[DatasetItem], *_: object) -> None:
        note("measuring", items)
        raise MeasuredError

    def collecting(*arguments: Any) -> Collected:
        note("calibrating", arguments[3].items)
        return collect(*arguments)

    monkeypatch.setattr(cli, "collect", collecting)
    monkeypatch.setattr(cli, "measure_loss", measure)
    given = ["--calibrate", tiny_dataset, "--calibration-questions", 2, "--report", folder / "r.json"]
    result = run(tiny_checkpoint, folder / "out", *options, *given, "--report-questions", 3)
    assert isinstance(result.exception, MeasuredError)
    assert asked.pop("calibrating", [0, 1]) == [0, 1]
    assert asked == {"measuring": [2, 3, 4]}


# Stands still while the bundle is compared, until a signal comes.
SLOW_MEASURING = """
import signal, time
from medvlm.export import cli, loss
signal.signal(signal.SIGTERM, signal.SIG_DFL)
def wait(*_):
    print("ready", flush=True)
    time.sleep(60)
loss.carry_out = wait
cli.main()
"""


def test_a_process_that_is_told_to_stop_while_it_measures_leaves_the_bundle_alone(
    tiny_checkpoint: Path, tiny_dataset: Path, folder: Path
) -> None:
    given = ["--calibrate", tiny_dataset, "--calibration-questions", "1", "--report", folder / "r.json", "--quiet"]
    command = [sys.executable, "-c", SLOW_MEASURING, tiny_checkpoint, folder / "out", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(names(folder)) == 2
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.split()) == (1, ["Aborted!"])
    assert names(folder) == {"out"}
    assert "loss" not in manifest_of(folder / "out")


def test_calibration_needs_no_torch(tiny_checkpoint: Path, tiny_dataset: Path, folder: Path) -> None:
    code = "import sys; sys.modules.update(torch=None, transformers=None); from medvlm.export.cli import main; main()"
    given = ["--method", "awq+gptq", "--mixed", "0.01", "--calibrate", tiny_dataset, "--calibration-questions", "1"]
    command = [sys.executable, "-c", code, tiny_checkpoint, folder / "out", "--quiet", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_demo_is_questions_that_its_model_was_not_trained_on() -> None:
    with open_questions("demo", None, 2, 1) as questions:
        assert (questions.name, len(questions.calibrating), len(questions.measuring)) == ("demo", 2, 1)
        for i, item in enumerate([*questions.calibrating, *questions.measuring]):
            held_out, trained = make_item("validate", i), make_item("train", i)
            assert (item.problem, item.solution) == (held_out.question.problem, held_out.question.solution)
            with Image.open(item.images[0]) as image:
                np.testing.assert_array_equal(np.asarray(image), held_out.scan.pixels)
                assert not np.array_equal(np.asarray(image), trained.scan.pixels)
        path = questions.measuring[0].images[0]
    assert not path.exists()
