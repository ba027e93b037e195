"""Results files: whatever they are cut at, they are gone on with, and never mixed with answers of something else."""

import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvlm.runtime import InputError, MedVLMError
from medvlm.runtime.evaluation.outcome import Outcome, is_well_formed
from medvlm.runtime.evaluation.results import Header, open_results

FullDisk = Callable[[int], AbstractContextManager[None]]
HEADER = Header("eval", "b" * 64, "d" * 64, "/images", {"max_new_tokens": 512, "temperature": 0.0, "sizes": [1, 2]})
OUTCOMES = [
    Outcome(
        "0", text="<think>é\n</think>", choice="A", flags=("no_tags",), options={"A": 0.75, "B": 0.25}, seconds=1.5
    ),
    Outcome("1", error="there is no image \ud800"),
    Outcome("2 blank", text="…", seconds=0.25),
]


def write(path: Path, outcomes: list[Outcome] = OUTCOMES, header: Header = HEADER) -> bytes:
    with open_results(path, header) as results:
        for outcome in outcomes:
            results.append(outcome, {"subset": "CT"})
    return path.read_bytes()


def read(path: Path, header: Header = HEADER) -> dict[str, Outcome]:
    with open_results(path, header) as results:
        return dict(results.outcomes)


def refusal(path: Path, header: Header = HEADER) -> str:
    # Not Path.is_file, which a name that is too long is an error for.
    before = path.read_bytes() if os.path.isfile(path) else None  # noqa: PTH113
    with pytest.raises(InputError) as error, open_results(path, header):
        pass
    assert before is None or path.read_bytes() == before, "what is refused stays as it is"
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_what_was_written_is_read(path: Path) -> None:
    write(path)
    assert read(path) == {outcome.key: outcome for outcome in OUTCOMES}


def test_a_line_is_json_that_says_what_it_is_about(path: Path) -> None:
    first, answer, error, _ = map(json.loads, write(path).splitlines())
    assert (first["medvlm_results"], first["bundle"], first["settings"]["sizes"]) == (1, "b" * 64, [1, 2])
    assert (answer["key"], answer["subset"], answer["choice"], answer["error"]) == ("0", "CT", "A", None)
    assert error == {"key": "1", "subset": "CT", "error": "there is no image \ud800"}


def test_every_line_is_on_the_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    with open_results(path, HEADER) as results:
        monkeypatch.setattr(os, "fsync", watch)
        for outcome in OUTCOMES:
            results.append(outcome)
            assert synced[-1] == path.stat().st_size
    assert len(synced) == len(OUTCOMES)


@given(cut=st.integers(0, 3000), garbage=st.sampled_from([b"", b"\0" * 40, b'{"key": "7'[:7]]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_file_cut_anywhere_is_gone_on_with(path: Path, cut: int, garbage: bytes) -> None:
    path.unlink(missing_ok=True)
    whole = write(path)
    path.write_bytes(whole[:cut] + (garbage if b"\n" in whole[:cut] else b""))
    kept = whole[:cut].count(b"\n") - 1
    found = read(path)
    assert list(found) == [outcome.key for outcome in OUTCOMES[: max(kept, 0)]]
    assert write(path, [outcome for outcome in OUTCOMES if outcome.key not in found]) == whole


def test_line_of_empty_blocks_after_a_power_cut_is_dropped(path: Path) -> None:
    whole = write(path)
    path.write_bytes(whole + b"\0" * 512 + b"\n")
    assert list(read(path)) == ["0", "1", "2 blank"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "batch"}, "holds answers of medvlm eval"),
        ({"bundle": "c" * 64}, "holds answers of another bundle"),
        ({"questions": "c" * 64}, "holds answers to other questions"),
        ({"images": "/elsewhere"}, "holds answers about images in /images"),
        (
            {"settings": {**HEADER.settings, "max_new_tokens": 64, "raw": True}},
            "holds answers with other settings (max_new_tokens 512, raw None)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_results_of_something_else_are_refused_by_one_line(path: Path, change: dict[str, Any], says: str) -> None:
    write(path)
    assert says in refusal(path, dataclasses.replace(HEADER, **change))


def test_results_of_another_version_of_medvlm_are_gone_on_with(path: Path) -> None:
    path.write_bytes(write(path).replace(b'"created_by": "medvlm ', b'"created_by": "medvlm 99.'))
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    "content", [b"[\n{}]", b"notes", b"{}\n", b'{"medvlm_results"', b"\0", b"\xff\n", b"[" * 100_000 + b"\n", b"7\n"]
)
def test_file_of_something_else_is_never_touched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    if content == b'{"medvlm_results"':
        # The beginning of its own first line, and of nothing else.
        assert read(path) == {}
        return
    assert "holds no results of medvlm" in refusal(path)


def test_other_format_is_refused(path: Path) -> None:
    path.write_bytes(write(path).replace(b'"medvlm_results": 1', b'"medvlm_results": 2'))
    assert "has the format 2" in refusal(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"choice": "A"', b'"choice": 7', "line 2 of {} is damaged (choice is missing, or of another type)"),
        (b'{"key": "0"', b'{"key": 0', "line 2 of {} is damaged (key"),
        (b'"seconds": 1.5', b'"seconds": true', "line 2 of {} is damaged (seconds"),
        (b'{"key": "0"', b'"key": "0"', "line 2 of {} is damaged (key"),
        (b'{"key": "1"', b'{"key": "0"', "line 3 of {} answers 0 again"),
    ],
)
def test_damage_in_the_middle_is_refused(path: Path, old: bytes, new: bytes, says: str) -> None:
    whole = write(path)
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    assert says.format(path) in refusal(path)


def test_what_was_answered_is_not_answered_again(path: Path) -> None:
    write(path)
    with open_results(path, HEADER) as results, pytest.raises(ValueError, match="has been answered"):
        results.append(OUTCOMES[0])


def test_file_that_is_being_written_is_refused(path: Path) -> None:
    with open_results(path, HEADER):
        assert "is being written by another process" in refusal(path)
    assert read(path) == {}


def test_places_that_hold_no_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "file")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/full"), tmp_path / "dangling"):
        assert "is not a file" in refusal(place)
    assert "is not a directory; create it first" in refusal(tmp_path / "absent" / "results.jsonl")
    assert "cannot be opened" in refusal(tmp_path / ("x" * 300))
    assert "cannot be opened" in refusal(tmp_path / ("x" * 300) / "results.jsonl")


def test_full_disk_is_one_line_and_what_was_written_stays_whole(path: Path, full_disk: FullDisk) -> None:
    whole = write(path, OUTCOMES[:1])
    with full_disk(len(whole) + 20), pytest.raises(MedVLMError) as error:
        write(path, OUTCOMES[1:])
    assert str(error.value) == (
        f"{path} cannot be written (File too large); make room and give the same command again: its 1 answers are kept"
    )
    assert path.read_bytes() == whole
    assert list(read(path)) == ["0"]


def test_after_a_full_disk_the_work_goes_on_where_it_was(path: Path, full_disk: FullDisk) -> None:
    with full_disk(len(write(path, OUTCOMES[:1])) + 20), pytest.raises(MedVLMError):
        write(path, OUTCOMES[1:])
    write(path, OUTCOMES[1:])
    assert list(read(path)) == ["0", "1", "2 blank"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nA ring < 5 mm.\n</think>\n\n<answer>B</answer>\n", True),
        ("<think>x</think><answer> B </answer>", True),
        ("<think>x</think><answer>B) CT</answer>", False),
        ("<think>x</think><answer>b</answer>", False),
        ("<think></think><answer>B</answer>", False),
        ("<think>x</think>So <answer>B</answer>", False),
        ("<think>x</think><answer>B</answer>.", False),
        ("<think>x<think>y</think><answer>B</answer>", False),
        ("<think>x</think><answer>A</answer><answer>B</answer>", False),
        ("<answer>B</answer>", False),
        ("<think>" * 20_000, False),
    ],
)
def test_form_is_reasoning_and_one_letter_and_nothing_else(text: str, expected: bool) -> None:
    assert is_well_formed(text) is expected
