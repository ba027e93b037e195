"""Measuring every way to quantize: the figures are `compare`'s, nothing is measured twice, no question is shared."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from medvlm.demo.quantization import __main__ as command
from medvlm.demo.quantization.cases import SETTINGS, WAYS, Case, all_cases
from medvlm.demo.quantization.judge import Questions, draw_questions, judge
from medvlm.demo.quantization.rows import Row, append_row, read_rows, tables
from medvlm.export import calibration as calibration_module
from medvlm.export.calibration import Calibration, collect
from medvlm.export.checkpoint import open_checkpoint
from medvlm.export.convert import export, write_bundle
from medvlm.export.recipe import Blockwise, Float32, make_recipe
from medvlm.export.samples import ANSWERING, Sample, make_samples
from medvlm.runtime import InputError
from medvlm.runtime.compare import compare
from medvlm.runtime.dataset import DatasetItem

ROW = Row(
    model="plain",
    setting="weights only",
    way="rtn",
    block_size=128,
    questions=3,
    calibrating=2,
    tokens=120,
    kl=2e-4,
    top1_agreement=0.95,
    reference_accuracy=2 / 3,
    accuracy=1 / 3,
    flips=1,
    lost=1,
    won=0,
    mcnemar_p=1.0,
    bundle_bytes=7_710_000,
    decoder_bytes=1_570_000,
)
SMALL = ("--questions", 3, "--calibration-questions", 2, "--threads", 1, "--blocks", 32)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return draw_questions(tmp_path_factory.mktemp("questions"), 3, 2)


@pytest.fixture(scope="module")
def rows(tiny_checkpoint: Path, questions: Questions) -> list[Row]:
    """A way without calibration and one with, as they are judged."""
    found: list[Row] = []
    judge("plain", tiny_checkpoint, all_cases(["rtn", "gptq"], [32]), questions, found.append, threads=1)
    return found


@pytest.fixture(scope="module")
def exact_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "bundle"
    export(tiny_checkpoint, out, make_recipe("fp32"))
    return out


def run(*words: object) -> Result:
    return CliRunner().invoke(command.main, [str(word) for word in words])


# What is measured


@pytest.mark.parametrize("setting", SETTINGS)
def test_figures_are_those_of_compare(
    tiny_checkpoint: Path, exact_bundle: Path, rows: list[Row], questions: Questions, tmp_path: Path, setting: str
) -> None:
    options: dict[str, Any] = {"vision": "fp32", "prefill": "same", "accuracy_level": 0}
    recipe = make_recipe("int4", 32, method="rtn", smooth=False, **options if setting == "weights only" else {})
    bundle = tmp_path / "bundle"
    export(tiny_checkpoint, bundle, recipe)
    found = compare(exact_bundle, bundle, questions.measuring, decoding=ANSWERING, threads=1)
    (row,) = (row for row in rows if (row.way, row.setting) == ("rtn", setting))
    for name in ("questions", "tokens", "kl", "top1_agreement", "flips", "lost", "won", "mcnemar_p"):
        assert getattr(row, name) == getattr(found, name)
    assert (row.reference_accuracy, row.accuracy) == (found.accuracy_a, found.accuracy_b)
    sizes = {path.name: path.stat().st_size for path in bundle.iterdir() if path.name != "manifest.json"}
    assert row.bundle_bytes == sum(sizes.values())
    assert row.decoder_bytes == sum(size for name, size in sizes.items() if name.startswith("decoder"))


def test_blocks_that_settings_share_are_those_that_each_would_have_collected(
    tiny_checkpoint: Path, exact_bundle: Path, rows: list[Row], questions: Questions, tmp_path: Path
) -> None:
    bundle, checkpoint = tmp_path / "bundle", open_checkpoint(tiny_checkpoint)
    recipe = Case("gptq", 32, "as shipped").recipe
    collected = collect(checkpoint, bundle, recipe, Calibration("demo", questions.calibrating, 1))
    write_bundle(checkpoint, bundle, collected.recipe, calibrated=collected.workdir)
    found = compare(exact_bundle, bundle, questions.measuring, decoding=ANSWERING, threads=1)
    (row,) = (row for row in rows if (row.way, row.setting) == ("gptq", "as shipped"))
    assert row.kl == found.kl


def test_the_model_answers_the_calibrations_questions_once(
    tiny_checkpoint: Path, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(*args: Any, **options: Any) -> list[Sample]:
        made.append(1)
        return make_samples(*args, **options)

    monkeypatch.setattr(calibration_module, "make_samples", counted)
    found: list[Row] = []
    cases = [Case(way, 32, "weights only") for way in ("awq", "gptq")]
    judge("plain", tiny_checkpoint, cases, questions, found.append, threads=1)
    assert [row.case for row in found] == cases
    assert len(made) == 1


def test_no_question_calibrates_and_is_measured(tmp_path: Path) -> None:
    drawn = draw_questions(tmp_path, 12, 15)
    assert (len(drawn.measuring), len(drawn.calibrating)) == (12, 15)
    measuring, calibrating = ({_content(item) for item in items} for items in (drawn.measuring, drawn.calibrating))
    assert (len(measuring), len(calibrating)) == (12, 15)
    assert not measuring & calibrating


def _content(item: DatasetItem) -> str:
    """A scan's pixels: two questions may have the same words."""
    return hashlib.sha256(item.images[0].read_bytes()).hexdigest()


# What cases are


def test_weights_alone_differ_where_nothing_else_shall() -> None:
    for case in all_cases([*WAYS], [64]):
        recipe = case.recipe
        levels = {p.accuracy_level for p in (recipe.decoder, recipe.head) if isinstance(p, Blockwise)}
        if case.setting == "weights only":
            assert (recipe.vision, recipe.prefill) == (Float32(), None)
            assert levels <= {0}
        else:
            assert recipe.vision == recipe.prefill == make_recipe("int4").vision
            assert levels <= {4}


def test_ways_are_all_different_recipes() -> None:
    cases = all_cases([*WAYS], [32, 64, 128, 256])
    recipes = {json.dumps([case.recipe.to_json(), WAYS[case.way].mixed_mb]) for case in cases}
    assert len(recipes) == len(WAYS) * 4 * len(SETTINGS)


# Rows, tables and pictures


def test_rows_are_read_as_they_were_written(tmp_path: Path, rows: list[Row]) -> None:
    assert read_rows(tmp_path / "rows.jsonl") == []
    for row in rows:
        append_row(tmp_path / "rows.jsonl", row)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_table_shows_the_figures_and_what_they_are_of_the_baseline() -> None:
    better = dataclasses.replace(ROW, way="gptq", kl=5e-5, lost=0, flips=2)
    alone = dataclasses.replace(better, setting="as shipped", block_size=32)
    shown = tables([ROW, better, alone]).splitlines()
    assert shown[0] == "**plain, weights only** (3 questions, 120 tokens; fp32 accuracy 66.7 %)"
    assert shown[4:6] == [
        "| rtn | 128 | 2.00e-04 | 1.00 | 95.00 % | 33.3 % | 1 | 1, 0 | 1 | 7.71 | 1.57 |",
        "| gptq | 128 | 5.00e-05 | 0.25 | 95.00 % | 33.3 % | 2 | 0, 0 | 1 | 7.71 | 1.57 |",
    ]
    assert shown[7].startswith("**plain, as shipped**")
    assert shown[-1].startswith("| gptq | 32 | 5.00e-05 | - |")


def test_command_measures_once_prints_and_draws(
    tiny_checkpoint: Path, questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CHECKPOINT", tiny_checkpoint)
    monkeypatch.setattr(command, "draw_questions", lambda *_: questions)
    out, picture = tmp_path / "rows.jsonl", tmp_path / "plot.png"
    first = run(*SMALL, "--models", "plain", "--methods", "rtn", "--out", out)
    assert first.exit_code == 0, first.output
    before = out.read_text(encoding="utf-8")
    assert [row.setting for row in read_rows(out)] == [*SETTINGS]
    assert first.stdout == tables(read_rows(out)) + "\n"
    # Only what is new is measured.
    second = run(*SMALL, "--models", "plain", "--methods", "rtn symmetric,rtn", "--out", out, "--plot", picture)
    assert second.exit_code == 0, second.output
    assert out.read_text(encoding="utf-8").startswith(before)
    assert [row.way for row in read_rows(out)] == ["rtn", "rtn", "rtn symmetric", "rtn symmetric"]
    assert second.stdout.count("| rtn | 32 |") == second.stdout.count("| rtn symmetric | 32 |") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_measures_nothing_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "draw_questions", lambda *_: pytest.fail("questions were drawn"))
    for model in ("plain", "stress"):
        for setting in SETTINGS:
            append_row(tmp_path / "rows.jsonl", dataclasses.replace(ROW, model=model, setting=setting, block_size=32))
    result = run(*SMALL, "--methods", "rtn", "--out", tmp_path / "rows.jsonl")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("**")] == [
        f"**{model}, {setting}** (3 questions, 120 tokens; fp32 accuracy 66.7 %)"
        for model in ("plain", "stress")
        for setting in SETTINGS
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--questions", 0), "--questions is 0"),
        (("--calibration-questions", 0), "--calibration-questions is 0"),
        (("--threads", 0), "threads is 0"),
        (("--plot", "plot.txt"), "plot.txt is of no format for pictures"),
        ((), "was measured on 3 questions and calibrated on 2"),
        (("--out", "broken.jsonl"), "line 2 of broken.jsonl is no row"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "draw_questions", lambda *_: pytest.fail("questions were drawn"))
    append_row(Path("rows.jsonl"), ROW)
    append_row(Path("broken.jsonl"), ROW)
    with Path("broken.jsonl").open("a") as file:
        file.write('{"model": "plain"')
    result = run("--out", "rows.jsonl", *words)
    assert (result.exit_code, result.stdout) == (InputError.exit_code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert says in line


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for words in (("--methods", "rtn,magic"), ("--blocks", "48"), ("--models", "mine")):
        result = run(*words, "--out", tmp_path / "rows.jsonl")
        assert result.exit_code == 2
        assert "is none of" in result.stderr
