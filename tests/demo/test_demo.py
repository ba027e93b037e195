"""`medvlm demo`: the whole path on the trained demo model, and what it leaves."""

import importlib.util
import json
import re
import shlex
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from medvlm.demo import cli
from medvlm.demo.dataset import make_item
from medvlm.runtime.cli import main
from medvlm.runtime.errors import MedVLMError


def demo(*words: object) -> Result:
    return CliRunner().invoke(main, ["demo", *map(str, words)])


def refusal(result: Result) -> str:
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty and alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer questions than a user sees: what they are about is tested once, with all of them."""
    monkeypatch.setattr(cli, "ASKED", 4)
    monkeypatch.setattr(cli, "SAVED", 6)


def test_demo_shows_three_modalities_and_how_often_the_model_is_right(temporary: Path) -> None:
    result = demo()
    assert result.exit_code == 0
    out = result.stdout
    for stage in ("export the model with --int4", "load the bundle", "draw 60 scans", "answer 60 questions"):
        assert re.search(rf"^{stage} +\d+\.\d{{3}} s$", out, re.MULTILINE), stage
    assert "trained on drawings of scans and knows nothing of medicine" in out
    assert len(re.findall(r"^reasoning: (This is|The image shows) an? .+\.$", out, re.MULTILINE)) == 3
    assert len(re.findall(r"^answer: [A-D]   truth: [A-D]$", out, re.MULTILINE)) == 3
    drawings = re.findall(r"^A drawing of: (.+)$", out, re.MULTILINE)
    assert [sum(word in drawing for drawing in drawings) for word in ("X-ray", "CT")] == [1, 1]
    times = "".join(rf"{name} \d+(\.\d)? ms, " for name in ("preprocess", "vision", "prefill", "decode"))
    assert len(re.findall(rf"^{times}total \d+ ms; \d+ tokens$", out, re.MULTILINE)) == 3
    assert re.search(rf"^latency, median: {times}total \d+\.\d ms; decode \d+ tokens/s$", out, re.MULTILINE)
    accuracy = re.search(r"^accuracy (\d+\.\d) % over 60 questions \(guessing: (\d+\.\d) %\)$", out, re.MULTILINE)
    assert accuracy is not None
    # Guessing by hand: two to four options a question.
    options = [len(make_item("test", index).question.options) for index in range(60)]
    assert float(accuracy[2]) == pytest.approx(100 * sum(1 / n for n in options) / 60, abs=0.051)
    assert float(accuracy[1]) >= 90


def test_demo_leaves_nothing_behind(
    few: None, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert demo().exit_code == 0
    assert list(temporary.iterdir()) == list(work.iterdir()) == []


def test_demo_that_fails_leaves_nothing_behind(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MedVLMError("the disk is full")

    monkeypatch.setattr("medvlm.export.convert.export", fail)
    result = demo()
    assert result.exit_code == 1
    assert result.stderr == "Error: the disk is full\n"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["saved", "new/deep/saved", "with a space", "there already"])
def test_what_demo_saves_is_accepted_by_the_other_commands(
    few: None, temporary: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "there already").mkdir()
    folder = tmp_path / name
    result = demo("--save", folder)
    assert result.exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "dataset.json", "images"]
    entries = json.loads((folder / "dataset.json").read_text())
    assert len(entries) == len(list((folder / "images").iterdir())) == 6
    assert all((folder / entry["image"][0]).is_file() for entry in entries)
    assert list(temporary.iterdir()) == []
    assert CliRunner().invoke(main, ["verify", str(folder / "bundle")]).exit_code == 0
    # The command that it names can be copied into a shell.
    medvlm, *words = shlex.split(result.stdout.split("Try:\n")[1])
    assert medvlm == "medvlm"
    asked = CliRunner().invoke(main, [*words, "--json", "--threads", "1"])
    assert asked.exit_code == 0
    assert json.loads(asked.stdout)["choice"] in "ABCD"


def test_demo_saves_three_hundred_questions() -> None:
    assert (cli.ASKED, cli.SAVED) == (60, 300)


def test_demo_saves_over_nothing(temporary: Path, tmp_path: Path) -> None:
    keep = tmp_path / "full" / "keep.txt"
    keep.parent.mkdir()
    keep.write_text("mine")
    assert "not an empty directory" in refusal(demo("--save", keep.parent))
    assert "not an empty directory" in refusal(demo("--save", keep))
    assert keep.read_text() == "mine"
    assert list(keep.parent.iterdir()) == [keep]


def test_folder_that_cannot_be_made_is_one_line(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "folder")
    for name in ("file/inside", "dangling", "x" * 300):
        assert "choose another directory" in refusal(demo("--save", tmp_path / name))


@pytest.mark.parametrize(
    ("absent", "says"),
    [("onnx", "medvlm[cpu,export]"), ("jinja2", "medvlm[cpu,export]"), ("onnxruntime", "medvlm[gpu]")],
)
def test_demo_without_what_it_needs_is_one_line(monkeypatch: pytest.MonkeyPatch, absent: str, says: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find_spec(name))
    assert says in refusal(demo())


def test_help_of_demo_works_without_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "--save" in demo("--help").stdout
