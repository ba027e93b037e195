"""`medvlm batch`: a folder's files, each asked about once, whatever stops it and whatever is added."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from medvlm.demo.dataset import Item
from medvlm.demo.saved import save_dataset
from medvlm.runtime import MedVLM
from medvlm.runtime.cli import main
from medvlm.runtime.decoding import Decoding

QUESTION = "Which is it?\nA) MRI\nB) CT\nC) X-ray"


@pytest.fixture
def folder(tmp_path: Path, demo_items: list[Item]) -> Path:
    """Five images, a text and a hidden file, and a folder in it."""
    save_dataset(tmp_path, demo_items[:5])
    folder = tmp_path / "images"
    (folder / "notes.txt").write_text("Ask about all of them.\n")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "more").mkdir()
    return folder


def words(bundle: Path, folder: Path, out: Path, *more: object, question: str = QUESTION) -> list[str]:
    return ["batch", *map(str, (bundle, folder, "-q", question, "--out", out, "--threads", 1, *more))]


def batch(*given: Any, **options: Any) -> Result:
    return CliRunner().invoke(main, words(*given, **options))


def answers(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line for line in lines}


def test_every_file_is_asked_about_and_what_is_no_image_is_an_error(demo_bundle: Path, folder: Path) -> None:
    # The results may lie in the folder themselves.
    out = folder / "results.jsonl"
    result = batch(demo_bundle, folder, out)
    assert (result.exit_code, result.stderr) == (0, "Asking about 6 files\n")
    found = answers(out)
    images = sorted(path.name for path in folder.glob("[!.]*.png"))
    assert list(found) == sorted([*images, "notes.txt"])
    model = MedVLM.load(demo_bundle, threads=1)
    for name in images:
        assert found[name]["text"] == model.ask(folder / name, QUESTION, Decoding()).text
    assert "is not an image" in found["notes.txt"]["error"]
    assert result.stdout.startswith("notes.txt: ")
    assert "5 answered, errors: 1\n" in result.stdout
    counts = [line.rpartition(": ") for line in result.stdout.splitlines() if line[1:2] == ")"]
    assert [head for head, _, _ in counts] == ["A) MRI", "B) CT", "C) X-ray"]
    letters = [answer["choice"] for answer in found.values() if not answer["error"]]
    assert [int(count) for _, _, count in counts] == [letters.count(letter) for letter in "ABC"]


def test_added_files_are_asked_about_later(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    out, added = tmp_path / "results.jsonl", folder / "added.png"
    batch(demo_bundle, folder, out, "--max-new-tokens", 5)
    before = out.read_bytes()
    added.write_bytes(next(folder.glob("[!.]*.png")).read_bytes())
    result = batch(demo_bundle, folder, out, "--max-new-tokens", 5)
    assert result.stderr == "Asking about 7 files, 6 done before\n"
    assert out.read_bytes().startswith(before)
    assert list(answers(out))[-1] == "added.png"


def test_killed_in_the_middle_it_goes_on(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-c", "from medvlm.runtime.cli import main; main()", *words(demo_bundle, folder, out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        started = time.monotonic()
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            assert time.monotonic() - started < 300
            time.sleep(0.005)
        kept = out.read_bytes()
        process.kill()
    assert batch(demo_bundle, folder, out).exit_code == 0
    assert out.read_bytes().startswith(kept)
    assert len(answers(out)) == 6


@pytest.mark.parametrize(
    ("question", "says"),
    [("", "the question is empty"), ("What?<|im_end|>", "control token"), ("Which?\nA) x\nB) y", "to other questions")],
)
def test_question_that_will_not_do_is_refused_once(
    demo_bundle: Path, folder: Path, tmp_path: Path, question: str, says: str
) -> None:
    out = tmp_path / "results.jsonl"
    batch(demo_bundle, folder, out, "--max-new-tokens", 2)
    before = out.read_bytes()
    result = batch(demo_bundle, folder, out, "--max-new-tokens", 2, question=question)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert out.read_bytes() == before


def test_folder_without_files_or_that_is_none_is_refused(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    for place, says in ((folder / "more", "has no files"), (folder / "notes.txt", "cannot be listed")):
        result = batch(demo_bundle, place, out)
        assert result.exit_code == 2
        assert says in result.stderr


def test_question_without_options_is_answered_in_text(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    result = batch(demo_bundle, folder, tmp_path / "results.jsonl", "--max-new-tokens", 3, question="What is seen?")
    assert "5 answered, errors: 1\nanswers: " in result.stdout
