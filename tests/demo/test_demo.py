"""`medvlm demo`: the whole path on a tiny random model, and what it leaves."""

import importlib.util
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from medvlm.demo.image import make_image
from medvlm.runtime.cli import main
from medvlm.runtime.errors import MedVLMError
from PIL import Image

STAGES = (
    "write a tiny random checkpoint",
    "export it with --int4",
    "generate an image",
    "load the bundle",
    "ask: preprocess",
    "ask: vision",
    "ask: prefill",
    "ask: decode",
)


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


def test_demo_prints_every_stage_with_its_time_and_says_that_the_answer_is_noise(temporary: Path) -> None:
    result = demo()
    assert result.exit_code == 0
    for stage in STAGES:
        assert re.search(rf"^{stage} +\d+\.\d{{3}} s$", result.stdout, re.MULTILINE), stage
    assert "The weights are random, so the answer is noise." in result.stdout
    assert "Q: Which kind of image is this?" in result.stdout


def test_demo_leaves_nothing_behind(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_demo_saves_is_accepted_by_the_other_commands(temporary: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "there already").mkdir()
    folder = tmp_path / name
    result = demo("--save", folder)
    assert result.exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "image.png"]
    assert list(temporary.iterdir()) == []
    assert CliRunner().invoke(main, ["verify", str(folder / "bundle")]).exit_code == 0
    # The command that it names can be copied into a shell.
    medvlm, *words = shlex.split(result.stdout.splitlines()[-1].split("Try: ")[1])
    assert medvlm == "medvlm"
    asked = CliRunner().invoke(main, [*words, "--max-new-tokens", "3", "--threads", "1"])
    assert asked.exit_code == 0
    assert "3 new tokens" in asked.stdout or "stopped by: end" in asked.stdout


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


def test_image_is_grey_of_the_size_asked_for_and_the_same_for_a_seed() -> None:
    image = make_image(3, 112)
    assert (image.mode, image.size) == ("L", (112, 112))
    assert np.array_equal(np.asarray(image), np.asarray(make_image(3, 112)))
    assert not np.array_equal(np.asarray(image), np.asarray(make_image(4, 112)))
    assert isinstance(image, Image.Image)
