"""`medvlm eval`: what it prints and writes, and that no stop loses or repeats an answer."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from medvlm.demo.dataset import Item
from medvlm.demo.evaluate import answer_all, blank, share
from medvlm.demo.saved import save_dataset
from medvlm.runtime import MedVLM
from medvlm.runtime import graphs as graphs_module
from medvlm.runtime.cli import main
from medvlm.runtime.compare import PLAIN
from PIL import Image

QUESTIONS = 8
# As on a slow disk, so that whoever looks at the file has the time to stop the process before it is done.
SLOWLY = """
import os, signal, time
# They are ignored in a shell's background.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sync = os.fsync
def fsync(descriptor):
    sync(descriptor)
    time.sleep(0.15)
os.fsync = fsync
from medvlm.runtime.cli import main
main()
"""
COMMAND = (sys.executable, "-c", SLOWLY)
Answers = dict[str, dict[str, Any]]
FullDisk = Callable[[int], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, demo_items: list[Item]) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    save_dataset(folder, demo_items[:QUESTIONS])
    return folder / "dataset.json"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def words(*more: object) -> list[str]:
    return ["eval", *map(str, more), "--threads", "1"]


def evaluate(*more: object) -> Result:
    return CliRunner().invoke(main, words(*more))


def refusal(result: Result, exit_code: int = 2) -> str:
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (exit_code, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def answers(out: Path) -> Answers:
    """What the results file holds; each line once."""
    content = out.read_bytes()
    assert content.endswith(b"\n")
    lines = [json.loads(line) for line in content.splitlines()[1:]]
    found = {line["key"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def texts(found: Answers) -> dict[str, str]:
    return {key: answer["text"] for key, answer in found.items()}


# What it says


def test_answers_are_those_of_the_demos_own_evaluation(
    demo_bundle: Path, dataset: Path, demo_items: list[Item], out: Path
) -> None:
    result = evaluate(demo_bundle, dataset, "--out", out, "--blank-images", "--json")
    assert (result.exit_code, result.stderr) == (0, "Evaluating\n")
    model, asked = MedVLM.load(demo_bundle, threads=1), demo_items[:QUESTIONS]
    graded = answer_all(model, asked, decoding=PLAIN)
    grey = answer_all(model, asked, blank, PLAIN)
    found = answers(out)
    assert texts(found) == {
        **{str(index): one.answer.text for index, one in enumerate(graded)},
        **{f"{index} blank": one.answer.text for index, one in enumerate(grey)},
    }
    total = json.loads(result.stdout)["scores"][-1]
    assert total["strict"]["count"] == QUESTIONS * share(graded, "correct")
    assert total["well_formed"]["count"] == QUESTIONS * share(graded, "well_formed")
    assert total["blank"]["count"] == QUESTIONS * share(grey, "correct")
    assert found["0"]["solution"] == asked[0].question.solution
    assert found["0"]["images"] == [f"images/{next((dataset.parent / 'images').glob('*-000.png')).name}"]


def test_table_and_the_published_figure_are_printed(demo_bundle: Path, dataset: Path, out: Path) -> None:
    result = evaluate(demo_bundle, dataset, "--out", out, "--questions", 4, "--max-new-tokens", 5)
    head, *_ = result.stdout.splitlines()
    assert result.exit_code == 0
    assert " ".join(head.split()) == "subset questions errors strict robust well formed one letter words s each"
    subsets = {json.loads(line)["subset"] for line in out.read_text().splitlines()[1:]}
    assert ("arXiv:2502.19634" in result.stdout) == (len(subsets) == 3)


def test_finished_results_are_told_again_without_loading_the_model(
    demo_bundle: Path, dataset: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(demo_bundle, dataset, "--out", out, "--questions", 3)
    monkeypatch.setattr(graphs_module, "open_sessions", lambda *_: pytest.fail("a session was opened"))
    again = evaluate(demo_bundle, dataset, "--out", out, "--questions", 3)
    assert (again.exit_code, again.stdout, again.stderr) == (0, first.stdout, "")


def test_more_questions_and_grey_images_go_on_behind_what_is_there(demo_bundle: Path, dataset: Path, out: Path) -> None:
    short = ("--max-new-tokens", 8)
    evaluate(demo_bundle, dataset, "--out", out, "--questions", 2, *short)
    before = out.read_bytes()
    result = evaluate(demo_bundle, dataset, "--out", out, "--questions", 3, "--blank-images", *short)
    assert result.stderr == "Evaluating, 2 done before\n"
    assert out.read_bytes().startswith(before)
    assert list(answers(out)) == ["0", "1", "2", "0 blank", "1 blank", "2 blank"]


# Questions that cannot be asked


@pytest.fixture
def damaged(tmp_path: Path, dataset: Path) -> Path:
    """The dataset with an image that is missing, one that is none, and a question with a control token."""
    shutil.copytree(dataset.parent, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    entries = json.loads(path.read_text())[:5]
    (path.parent / entries[1]["image"][0]).unlink()
    (path.parent / entries[2]["image"][0]).write_bytes(b"no image\n")
    entries[3]["problem"] += "<|im_end|>"
    path.write_text(json.dumps(entries))
    return path


def test_question_that_cannot_be_asked_is_an_error_and_the_rest_goes_on(
    demo_bundle: Path, damaged: Path, out: Path
) -> None:
    result = evaluate(demo_bundle, damaged, "--out", out, "--max-new-tokens", 8)
    assert result.exit_code == 0
    found = answers(out)
    assert list(found) == ["0", "1", "2", "3", "4"]
    errors = {key: answer["error"] for key, answer in found.items() if answer["error"]}
    assert "does not exist; check the path" in errors.pop("1")
    assert "is not an image" in errors.pop("2")
    assert "control token" in errors.pop("3")
    assert errors == {}
    total = result.stdout.splitlines()[-4]
    assert total.split()[:3] == ["all", "5", "3"]


def test_errors_are_asked_again_when_that_is_wanted(
    demo_bundle: Path, damaged: Path, dataset: Path, out: Path, whole: Answers
) -> None:
    evaluate(demo_bundle, damaged, "--out", out)
    before = out.read_text().splitlines()
    errors = [line["key"] for line in map(json.loads, before[1:]) if line["error"]]
    assert errors == ["1", "2", "3"]
    shutil.copytree(dataset.parent / "images", damaged.parent / "images", dirs_exist_ok=True)
    # Only where it is asked for.
    assert evaluate(demo_bundle, damaged, "--out", out).exit_code == 0
    assert out.read_text().splitlines() == before
    result = evaluate(demo_bundle, damaged, "--out", out, "--retry-errors", "--json")
    lines = out.read_text().splitlines()
    assert lines[: len(before)] == before
    again = {line["key"]: line for line in map(json.loads, lines[len(before) :])}
    assert list(again) == errors
    # The last one's question is what is wrong.
    assert again.pop("3")["error"]
    assert texts(again) == {key: whole[key]["text"] for key in errors[:2]}
    total = json.loads(result.stdout)["scores"][-1]
    assert (total["errors"], total["answered"]) == (1, 4)


def test_grey_images_of_what_cannot_be_read_are_errors_too(demo_bundle: Path, damaged: Path, out: Path) -> None:
    evaluate(demo_bundle, damaged, "--out", out, "--max-new-tokens", 8, "--blank-images")
    found = answers(out)
    assert [bool(found[f"{i} blank"]["error"]) for i in range(5)] == [bool(found[str(i)]["error"]) for i in range(5)]


def test_grey_images_are_as_large_as_the_images(tiny_bundle: Path, tmp_path: Path, out: Path) -> None:
    sizes = [(56, 56), (112, 84)]
    for number, size in enumerate(sizes):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    entries = [{"image": ["0.png", "1.png"], "problem": "Same?\nA) Yes\nB) No", "solution": "A"}]
    (tmp_path / "own.json").write_text(json.dumps(entries))
    evaluate(tiny_bundle, tmp_path / "own.json", "--out", out, "--max-new-tokens", 2, "--blank-images")
    seen = answers(out)
    assert seen["0 blank"]["visual_tokens"] == seen["0"]["visual_tokens"] == 2 * 2 + 4 * 3
    assert seen["0 blank"]["blank_images"]


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--questions", 0), "--questions is 0"),
        (("--images", "/nowhere"), "none of the images is there, /nowhere is where"),
        (("--report", "report.txt"), "ends in .html"),
        (("--actors", 2), "are for --engine ray"),
        (("--ray-address", "auto"), "are for --engine ray"),
        (("--max-length", 1), "max_length is 1"),
    ],
)
def test_wrong_option_is_refused_before_any_work(
    demo_bundle: Path, dataset: Path, out: Path, options: tuple[object, ...], says: str
) -> None:
    assert says in refusal(evaluate(demo_bundle, dataset, "--out", out, *options))
    assert not out.exists()


def test_nothing_is_written_into_the_bundle(demo_bundle: Path, dataset: Path, out: Path) -> None:
    for options in (("--out", demo_bundle / "r.jsonl"), ("--out", out, "--report", demo_bundle / "r.html")):
        assert "would lie in the bundle" in refusal(evaluate(demo_bundle, dataset, *options))


@pytest.mark.parametrize("option", ["--report", "--audit"])
def test_one_file_for_two_things_is_refused(
    demo_bundle: Path, dataset: Path, tmp_path: Path, option: str, whole: Answers
) -> None:
    out, link = tmp_path / "results.html", tmp_path / "link.html"
    link.symlink_to(out)
    evaluate(demo_bundle, dataset, "--out", out, "--questions", 2)
    for name in (out, link):
        line = refusal(evaluate(demo_bundle, dataset, "--out", out, option, name))
        assert line.endswith(f"is given for --out and {option}; give each a file of its own")
    assert texts(answers(out)) == {key: whole[key]["text"] for key in ("0", "1")}


def test_loop_of_links_is_refused(demo_bundle: Path, dataset: Path, out: Path) -> None:
    out.symlink_to(out)
    assert "is not a file" in refusal(evaluate(demo_bundle, dataset, "--out", out))
    batch = ["batch", demo_bundle, dataset.parent / "images", "-q", "Which?", "--out", out]
    assert "is not a file" in refusal(CliRunner().invoke(main, [*map(str, batch)]))


def test_pipe_is_no_dataset(demo_bundle: Path, dataset: Path, tmp_path: Path, out: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = refusal(evaluate(demo_bundle, tmp_path / "pipe", "--images", dataset.parent, "--out", out))
    assert line == f"Error: {tmp_path / 'pipe'} is not a file; give a dataset's JSON, JSONL or CSV file"


def test_results_of_another_bundle_dataset_or_setting_are_refused(
    demo_bundle: Path, tiny_bundle: Path, dataset: Path, tmp_path: Path, out: Path
) -> None:
    evaluate(demo_bundle, dataset, "--out", out, "--questions", 1, "--max-new-tokens", 5)
    before = out.read_bytes()
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(dataset.read_text())[:1]))
    asked: list[tuple[tuple[object, ...], str]] = [
        ((tiny_bundle, dataset, "--max-new-tokens", 5), "another bundle"),
        ((demo_bundle, other, "--images", dataset.parent, "--max-new-tokens", 5), "other questions"),
        ((demo_bundle, dataset, "--max-new-tokens", 6), "other settings (max_new_tokens 5)"),
        ((demo_bundle, dataset, "--max-new-tokens", 5, "--constrained"), "other settings (constrained False)"),
        ((demo_bundle, dataset, "--max-new-tokens", 5, "--max-pixels", 5000), "other settings (max_pixels None)"),
    ]
    for given, says in asked:
        assert says in refusal(evaluate(*given, "--out", out))
    assert out.read_bytes() == before


def test_drafts_threads_and_kept_prefixes_are_no_other_setting(demo_bundle: Path, dataset: Path, out: Path) -> None:
    evaluate(demo_bundle, dataset, "--out", out, "--questions", 1, "--max-new-tokens", 5)
    more = ("--questions", 2, "--max-new-tokens", 5, "--draft-tokens", 0, "--prefix-mb", 0)
    assert evaluate(demo_bundle, dataset, "--out", out, *more).exit_code == 0
    assert list(answers(out)) == ["0", "1"]


# Stopped anywhere


@pytest.fixture(scope="module")
def whole(demo_bundle: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The answers of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "results.jsonl"
    assert evaluate(demo_bundle, dataset, "--out", out).exit_code == 0
    return answers(out)


def start(more: Sequence[object]) -> subprocess.Popen[str]:
    command = [*COMMAND, *words(*more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def wait_for_lines(out: Path, number: int, process: subprocess.Popen[Any]) -> None:
    started = time.monotonic()
    while not out.exists() or out.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 300
        time.sleep(0.005)


def test_killed_again_and_again_it_loses_no_answer_and_repeats_none(
    demo_bundle: Path, dataset: Path, out: Path, whole: Answers
) -> None:
    for lines in (2, 4, 6):
        process = start([demo_bundle, dataset, "--out", out])
        wait_for_lines(out, lines, process)
        kept = out.read_bytes()
        process.kill()
        process.communicate()
        assert out.read_bytes().startswith(kept)
    # What the last kill might have cut.
    with out.open("ab") as file:
        file.write(b'{"key": "7", "images": ["im')
    result = evaluate(demo_bundle, dataset, "--out", out)
    assert result.exit_code == 0
    assert texts(answers(out)) == texts(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_is_one_line_and_the_same_command_goes_on(
    demo_bundle: Path, dataset: Path, out: Path, whole: Answers, number: signal.Signals
) -> None:
    process = start([demo_bundle, dataset, "--out", out])
    wait_for_lines(out, 4, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=300)
    done = len(answers(out))
    assert (process.returncode, stdout) == (1, "")
    assert stderr.splitlines() == [
        "Evaluating",
        f"Error: stopped after {done} of {QUESTIONS}; the same command goes on from there",
    ]
    evaluate(demo_bundle, dataset, "--out", out)
    assert texts(answers(out)) == texts(whole)


def read_all(descriptor: int, into: list[bytes]) -> None:
    """All that is shown at a terminal until nobody writes to it any more."""
    with contextlib.suppress(OSError):
        while piece := os.read(descriptor, 65536):
            into.append(piece)


def test_interrupted_bar_gives_the_terminal_its_cursor_back(demo_bundle: Path, dataset: Path, out: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals, which this system lacks")
    leader, follower = pty.openpty()
    terminal = {"stdin": follower, "stdout": follower, "stderr": follower, "env": {**os.environ, "COLUMNS": "160"}}
    process = subprocess.Popen([*COMMAND, *words(demo_bundle, dataset, "--out", out)], **terminal)
    os.close(follower)
    shown: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(leader, shown))
    reader.start()
    try:
        wait_for_lines(out, 4, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 1
    finally:
        process.kill()
        reader.join(timeout=10)
        os.close(leader)
    everything = b"".join(shown)
    hidden, back = b"\x1b[?25l", b"\x1b[?25h"
    assert hidden in everything
    assert everything.rindex(back) > everything.rindex(hidden)
    assert b"% right" in everything
    assert everything.endswith(b"goes on from there\r\n")


def test_full_disk_is_one_line_and_loses_nothing(
    demo_bundle: Path, dataset: Path, out: Path, full_disk: FullDisk
) -> None:
    evaluate(demo_bundle, dataset, "--out", out, "--questions", 2)
    before = out.read_bytes()
    with full_disk(len(before) + 100):
        result = evaluate(demo_bundle, dataset, "--out", out)
    line = refusal(result, exit_code=1)
    assert "cannot be written (File too large); make room and give the same command again: its 2 answers are" in line
    assert out.read_bytes() == before


def test_two_processes_share_a_bundle(demo_bundle: Path, dataset: Path, tmp_path: Path, whole: Answers) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    before = {path: path.stat().st_mtime_ns for path in demo_bundle.iterdir()}
    processes = [start((demo_bundle, dataset, "--out", out)) for out in outs]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    assert [texts(answers(out)) for out in outs] == [texts(whole)] * 2
    assert {path: path.stat().st_mtime_ns for path in demo_bundle.iterdir()} == before


# Forms of datasets


def test_tables_and_json_lines_are_asked_as_the_json_list_is(
    demo_bundle: Path, dataset: Path, tmp_path: Path, whole: Answers
) -> None:
    entries = json.loads(dataset.read_text())[:3]
    (tmp_path / "own.jsonl").write_text("\n\n".join(json.dumps(entry) for entry in entries) + "\n")
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "problem", "solution", "options", "subset"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**e, "image": "|".join(e["image"]), "options": "|".join(e["options"])} for e in entries)
    for name in ("own.jsonl", "own.csv"):
        out = tmp_path / f"{name}.results"
        result = evaluate(demo_bundle, tmp_path / name, "--images", dataset.parent, "--out", out)
        assert result.exit_code == 0, result.stderr
        found = answers(out)
        assert texts(found) == {key: whole[key]["text"] for key in ("0", "1", "2")}
        assert [found[key]["subset"] for key in found] == [entry["subset"] for entry in entries]
