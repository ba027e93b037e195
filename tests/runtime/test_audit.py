"""The audit log: what a line holds, that nothing else gets in, and that every change of it shows."""

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from medvlm.runtime import InputError, MedVLM, MedVLMError
from medvlm.runtime.audit import EMPTY, MAX_LINE_BYTES, AuditLog, Entry
from medvlm.runtime.audit_verify import verify_log
from medvlm.runtime.batch_decoder import BatchDecoder
from medvlm.runtime.cli import main
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.sampling import Sampling
from PIL import Image

QUESTION = "Does Mr Quillfeather have it?\nA) Zanzibar\nB) Timbuktu"
SAID = "<think>\nThe xylophone glows.\n</think>\n<answer>B</answer>"
SHORT = Decoding(max_new_tokens=9)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_bytes().splitlines()]


def secret(log: Path) -> bytes:
    return bytes.fromhex(log.with_name(f"{log.name}.key").read_text())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def five(log: Path) -> Path:
    """A log of five lines."""
    opened = AuditLog(log)
    for i in range(5):
        opened.append(entry(i))
    assert verify_log(log).faults == ()
    return log


def entry(i: int) -> Entry:
    return Entry("2026-01-01", "ab" * 32, ("cd" * 32,), {"seed": i}, "A", {"A": 0.75, "B": 0.25}, 1.5, "answer")


# What a line holds


def test_line_says_who_answered_what_how_and_when(tiny_bundle: Path, image_path: Path, log: Path) -> None:
    decoding = Decoding(max_new_tokens=40, sampling=Sampling(temperature=0.7, seed=3))
    answer = MedVLM.load(tiny_bundle, threads=1, audit=log).ask(image_path, QUESTION, decoding, max_pixels=50_000)
    (line,) = lines(log)
    assert line["line"] == 1
    assert line["time"].endswith("+00:00")
    assert line["bundle"] == hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest()
    settings = line["settings"]
    assert (settings["sampling"]["temperature"], settings["sampling"]["seed"], settings["threads"]) == (0.7, 3, 1)
    assert settings["pixel_limits"][0][1] == 50_000
    assert (line["choice"], line["options"], line["outcome"]) == (answer.choice, answer.options, answer.finish_reason)
    assert line["seconds"] == pytest.approx(answer.timings.total_s, abs=1e-3)
    assert set(line) == {
        *("line", "time", "bundle", "images", "settings", "choice", "options"),
        *("seconds", "outcome", "previous", "seal"),
    }


def test_pixels_are_told_by_a_keyed_digest(tiny_bundle: Path, image_path: Path, tmp_path: Path) -> None:
    """The same for the same pixels whatever the file; without the key it cannot be worked out."""
    pixels = Image.open(image_path).convert("RGB")
    pixels.save(tmp_path / "same.bmp")
    logs = [tmp_path / name for name in ("a.log", "b.log")]
    for path in logs:
        model = MedVLM.load(tiny_bundle, threads=1, audit=path)
        model.ask(image_path, "x", SHORT)
        model.ask([tmp_path / "same.bmp", image_path], "y", SHORT)
    first, second = lines(logs[0])
    wanted = hmac.new(secret(logs[0]), b"(224, 224)" + pixels.tobytes(), "sha256").hexdigest()
    assert (first["images"], second["images"]) == ([wanted], [wanted, wanted])
    assert lines(logs[1])[0]["images"] != first["images"]


def test_chain_and_seals_are_those_of_the_standard_library(five: Path) -> None:
    previous = "0" * 64
    for line in five.read_bytes().splitlines():
        body, _, seal = line.rpartition(b', "seal": ')
        assert json.loads(line)["previous"] == previous
        assert json.loads(seal[:-1]) == hmac.new(secret(five), body + b"}", "sha256").hexdigest()
        previous = hashlib.sha256(line).hexdigest()
    assert verify_log(five).end.last == previous


def test_nothing_of_the_question_the_text_or_the_names_gets_in(
    tiny_bundle: Path, image_path: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    say(SAID)
    folder = tmp_path / "Quillfeather"
    folder.mkdir()
    named = shutil.copy(image_path, folder / "Quillfeather-1950-02-03.png")
    where = tmp_path / "logs"
    where.mkdir()
    words = ["ask", tiny_bundle, named, "-q", QUESTION, "--audit", where / "log"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0
    assert lines(where / "log")[0]["choice"] == "B"
    written = b"".join(path.read_bytes() for path in where.iterdir())
    for word in ("Quillfeather", "1950", "Zanzibar", "Timbuktu", "xylophone", "glows", str(tiny_bundle), "scan.png"):
        assert word in QUESTION + SAID + str(named) + str(tiny_bundle) + str(image_path)
        assert word.encode() not in written


def test_nobody_else_may_read_the_key_or_the_log(five: Path) -> None:
    assert {path.name: path.stat().st_mode & 0o77 for path in five.parent.iterdir()} == {
        "audit.log": 0,
        "audit.log.key": 0,
        "audit.log.head": 0,
    }


def test_without_the_option_nothing_is_written(tiny_bundle: Path, image_path: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    MedVLM.load(tiny_bundle, threads=1).ask(image_path, QUESTION, SHORT)
    assert sorted(tmp_path.rglob("*")) == before


# What is an answer


def test_every_answer_has_a_line(tiny_bundle: Path, image_path: Path, log: Path) -> None:
    model = MedVLM.load(tiny_bundle, threads=1, audit=log)
    model.ask(image_path, "x", SHORT)
    model.ask_batch([(image_path, "y"), (image_path, "z"), (None, "w")], SHORT)
    assert [line["outcome"] for line in lines(log)] == ["length"] * 4
    assert [len(line["images"]) for line in lines(log)].count(0) == 1
    assert verify_log(log).faults == ()


def test_votes_have_a_line_each(tiny_bundle: Path, image_path: Path, log: Path) -> None:
    words = ["ask", tiny_bundle, image_path, "-q", QUESTION, "--votes", 3, "--temperature", 1, "--max-new-tokens", 40]
    assert CliRunner().invoke(main, [*map(str, words), "--audit", str(log)]).exit_code == 0
    assert sorted(line["settings"]["vote"] for line in lines(log)) == [0, 1, 2]


def test_chat_has_a_line_for_each_question(tiny_bundle: Path, image_path: Path, log: Path) -> None:
    words = ["chat", tiny_bundle, image_path, "--max-new-tokens", 9, "--audit", log]
    assert CliRunner().invoke(main, list(map(str, words)), input="one\n\ntwo\n").exit_code == 0
    assert [line["line"] for line in lines(log)] == [1, 2]


def test_answer_that_was_stopped_is_noted_as_that(tiny_bundle: Path, image_path: Path, log: Path) -> None:
    model = MedVLM.load(tiny_bundle, threads=1, audit=log)
    next(model.stream(image_path, QUESTION, Decoding(40)))
    next(stream := model.stream(image_path, QUESTION, Decoding(40)))
    stream.close()
    model.stream(image_path, "never read")
    assert [(line["outcome"], line["choice"], line["options"]) for line in lines(log)] == [("stopped", None, {})] * 2


def test_answer_that_failed_is_noted_as_that(
    tiny_bundle: Path, image_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nothing left")

    model = MedVLM.load(tiny_bundle, threads=1, audit=log)
    monkeypatch.setattr(Decoder, "extend", fail)
    with pytest.raises(MedVLMError):
        model.ask(image_path, QUESTION, SHORT)
    assert [(line["outcome"], line["choice"]) for line in lines(log)] == [("failed", None)]


@pytest.mark.parametrize(("error", "outcome"), [(KeyboardInterrupt, "stopped"), (RuntimeError, "failed")])
def test_votes_that_were_begun_and_not_ended_have_a_line_each(
    tiny_bundle: Path,
    image_path: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    outcome: str,
) -> None:
    step, calls = BatchDecoder.step, []

    def stop(decoder: BatchDecoder, token_ids: list[int]) -> Any:
        calls.append(token_ids)
        if len(calls) == 3:
            raise error
        return step(decoder, token_ids)

    monkeypatch.setattr(BatchDecoder, "step", stop)
    model = MedVLM.load(tiny_bundle, threads=1, audit=log)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else MedVLMError):
        model.ask_batch([(image_path, f"{i}?") for i in range(3)], SHORT, batch_size=2)
    assert [(line["outcome"], line["choice"]) for line in lines(log)] == [(outcome, None)] * 2


def test_refused_question_is_no_answer(tiny_bundle: Path, log: Path) -> None:
    model = MedVLM.load(tiny_bundle, threads=1, audit=log)
    with pytest.raises(InputError):
        model.ask(b"no image", QUESTION)
    assert lines(log) == []


def test_line_is_on_the_disk_before_anyone_has_the_answer(
    tiny_bundle: Path, image_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, synced = MedVLM.load(tiny_bundle, threads=1, audit=log), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(log.stat().st_size), fsync(descriptor)))
    stream = model.stream(image_path, QUESTION, SHORT)
    for _ in stream:
        assert not synced
    assert set(synced) == {log.stat().st_size}


def test_answer_that_cannot_be_noted_is_not_given(
    tiny_bundle: Path, image_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = MedVLM.load(tiny_bundle, threads=1, audit=log).stream(image_path, QUESTION, SHORT)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MedVLMError, match=r"cannot write the audit log .*: No space left on device"):
        stream.finish()
    with pytest.raises(MedVLMError, match="not complete"):
        _ = stream.answer
    assert log.read_bytes() == b""


FILL = """
import resource, signal, sys
from pathlib import Path
from medvlm.runtime.audit import AuditLog
from medvlm.runtime.errors import MedVLMError
sys.path.insert(0, sys.argv[2])
from test_audit import entry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AuditLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    for i in range(100):
        log.append(entry(i))
except MedVLMError as error:
    print(error)
"""


def in_python(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_disk_that_holds_lines_and_no_head_ends_no_log(five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of the log has room for some lines more, and a new file needs a block of its own."""
    log, real_open = AuditLog(five), os.open

    def full(path: Any, *rest: Any) -> int:
        if str(path).endswith(".new"):
            raise OSError(28, "No space left on device")
        return real_open(path, *rest)

    with monkeypatch.context() as context:
        context.setattr(os, "open", full)
        for i in range(3):
            with pytest.raises(MedVLMError, match="No space left on device"):
                log.append(entry(i))
    assert verify_log(five).faults == ()
    log.append(entry(9))
    assert lines(five)[-1]["settings"] == {"seed": 9}
    assert [line["line"] for line in lines(five)] == [1, 2, 3, 4, 5, 6, 7]
    assert verify_log(five).faults == ()


def test_head_that_does_not_fit_leaves_nothing_of_itself(five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    log, before = AuditLog(five), sorted(five.parent.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        log._write_head(EMPTY)
    assert sorted(five.parent.iterdir()) == before


@pytest.mark.parametrize("written", [0, 1, 2])
def test_log_that_was_killed_while_it_was_begun_is_begun_again(
    log: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Before its head, before its key, and before its first line."""
    real_replace, replaced = Path.replace, []

    def killed(path: Path, target: Path) -> None:
        if len(replaced) == written:
            raise KeyboardInterrupt
        replaced.append(target)
        real_replace(path, target)

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            AuditLog(log)
    assert len(replaced) == written
    AuditLog(log).append(entry(0))
    assert verify_log(log).faults == ()


def test_question_about_a_thousand_images_leaves_a_log_that_goes_on(log: Path) -> None:
    many = dataclasses.replace(entry(0), images=("cd" * 32,) * 2000)
    AuditLog(log).append(many)
    AuditLog(log).append(entry(1))
    with pytest.raises(MedVLMError, match="too long for the audit log; ask about fewer images"):
        AuditLog(log).append(dataclasses.replace(entry(0), images=("cd" * 32,) * 20_000))
    assert [line["line"] for line in lines(log)] == [1, 2]
    assert verify_log(log).faults == ()


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_line_that_does_not_fit_leaves_nothing_of_itself(log: Path) -> None:
    said, _ = in_python(FILL, log, Path(__file__).parent).communicate(timeout=60)
    assert len(said.splitlines()) == 1
    assert said.startswith("cannot write the audit log")
    assert 2 <= len(lines(log)) <= 4
    assert verify_log(log).faults == ()


APPEND = """
import sys
from pathlib import Path
from medvlm.runtime.audit import AuditLog
sys.path.insert(0, sys.argv[2])
from test_audit import entry
log = AuditLog(Path(sys.argv[1]))
for i in range(25):
    log.append(entry(i))
"""


def test_several_processes_append_in_turn(log: Path) -> None:
    """And make the log at the same time."""
    processes = [in_python(APPEND, log, Path(__file__).parent) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    assert [line["line"] for line in lines(log)] == list(range(1, 76))
    assert verify_log(log).faults == ()


# What shows


def rewrite(log: Path, how: Callable[[list[bytes]], list[bytes]]) -> None:
    log.write_bytes(b"".join(how(log.read_bytes().splitlines(keepends=True))))


def as_before(all_lines: list[bytes]) -> list[bytes]:
    return all_lines


def forge(line: bytes) -> bytes:
    """As somebody without the key changes a line: with a new digest for the next, which the seal stops."""
    return line.replace(b'"choice": "A"', b'"choice": "B"')


def swapped(x: list[bytes]) -> list[bytes]:
    return [x[0], x[2], x[1], *x[3:]]


@pytest.mark.parametrize(
    ("how", "faults"),
    [
        (as_before, []),
        (lambda x: [x[0], x[1], forge(x[2]), x[3], x[4]], ["line 3 was changed, or added"]),
        (lambda x: [*x[:4], forge(x[4])], ["line 5 was changed, or added"]),
        (lambda x: [x[0], x[1], b"\n", x[3], x[4]], ["line 3 was changed, or added"]),
        (lambda x: [x[0], b"{}\n", *x[1:]], ["line 2 was changed, or added", "before line 3, 1 more than there were"]),
        (lambda x: [*x, b"{}\n"], ["line 6 was changed, or added"]),
        (lambda x: x[1:], ["before line 1, 1 line is missing"]),
        (lambda x: [x[0], *x[3:]], ["before line 2, 2 lines are missing"]),
        (lambda x: x[:-1], ["at the end, 1 line is missing"]),
        (lambda x: x[:-3], ["at the end, 3 lines are missing"]),
        (lambda x: [], ["at the end, 5 lines are missing"]),
        (swapped, ["before line 2, 1 line is missing", "line 3 is out of order: it was line 2"]),
        (lambda x: [*x, x[0]], ["line 6 is out of order: it was line 1"]),
        (lambda x: [*x[:2], x[2][:50], *x[3:]], ["line 3 was changed, or added", "before line 4, 1 line is missing"]),
        (lambda x: [*x[:4], x[4][:50]], ["line 5 is cut off"]),
        (lambda x: [*x[:4], x[4][:-1]], ["line 5 is cut off"]),
        (lambda x: [*x[:4], b"a" * (MAX_LINE_BYTES + 9), x[4]], ["line 5 is cut off"]),
    ],
)  # fmt: skip
def test_verify_names_what_was_done_to_a_log(
    five: Path, how: Callable[[list[bytes]], list[bytes]], faults: list[str]
) -> None:
    rewrite(five, how)
    assert [*verify_log(five).faults][: len(faults)] == faults
    assert bool(verify_log(five).faults) == bool(faults)


def test_every_changed_byte_shows(five: Path) -> None:
    whole = five.read_bytes()
    for at in range(0, len(whole), 7):
        five.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verify_log(five).faults


def test_line_of_another_log_shows(five: Path, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other.log")
    for i in range(5):
        other.append(entry(i))
    stolen = (tmp_path / "other.log").read_bytes().splitlines(keepends=True)[2]
    rewrite(five, lambda x: [*x[:2], stolen, *x[3:]])
    assert verify_log(five).faults == ("line 3 was changed, or added",)


def test_head_and_lines_cannot_take_each_other_s_place(five: Path) -> None:
    """Both are sealed with the same key."""
    head = five.with_name("audit.log.head")
    sealed_head, last = head.read_bytes(), five.read_bytes().splitlines(keepends=True)[-1]
    head.write_bytes(last)
    (fault,) = verify_log(five).faults
    assert fault.startswith("its head is missing or was changed")
    head.write_bytes(sealed_head)
    five.write_bytes(five.read_bytes() + sealed_head)
    assert verify_log(five).faults == ("line 6 was changed, or added",)
    with pytest.raises(InputError, match="does not end as it was left"):
        AuditLog(five)


@pytest.mark.parametrize("damage", ["removed", "changed", "older"])
def test_head_that_was_touched_shows(five: Path, damage: str) -> None:
    head = five.with_name("audit.log.head")
    older = head.read_bytes()
    log = AuditLog(five)
    log.append(entry(6))
    log.append(entry(7))
    if damage == "removed":
        head.unlink()
    else:
        head.write_bytes(older if damage == "older" else head.read_bytes().replace(b"7", b"4"))
    (fault,) = verify_log(five).faults
    assert fault.startswith("its head is")


def test_process_killed_before_the_head_was_written_leaves_a_whole_log(five: Path) -> None:
    head = five.with_name("audit.log.head")
    before = head.read_bytes()
    AuditLog(five).append(entry(6))
    head.write_bytes(before)
    assert verify_log(five).faults == ()
    AuditLog(five).append(entry(7))
    assert [line["line"] for line in lines(five)] == [1, 2, 3, 4, 5, 6, 7]
    assert verify_log(five).faults == ()


@pytest.mark.parametrize(
    "how", [lambda x: x[:-1], lambda x: [*x[:4], x[4][:-1]], lambda x: [*x[:4], forge(x[4])], lambda x: []]
)
def test_nothing_is_added_to_a_log_that_does_not_end_as_it_was_left(
    five: Path, how: Callable[[list[bytes]], list[bytes]]
) -> None:
    rewrite(five, how)
    with pytest.raises(InputError, match="does not end as it was left; see medvlm audit verify"):
        AuditLog(five)


@pytest.mark.parametrize("removed", [["", ".head"], ["", ".head", ".key"], [".key"], [".head"]])
def test_log_that_was_removed_while_it_is_written_is_not_begun_anew(five: Path, removed: list[str]) -> None:
    """Or its lines would be gone, and the new ones would verify under the same key."""
    opened, key = AuditLog(five), five.with_name("audit.log.key").read_bytes()
    for end in removed:
        five.with_name(f"audit.log{end}").unlink()
    with pytest.raises(InputError, match=r"does not end as it was left|put it back"):
        opened.append(entry(6))
    five.with_name("audit.log.key").write_bytes(key)
    if "" in removed:
        with pytest.raises(InputError, match="does not end as it was left"):
            AuditLog(five)
        assert verify_log(five).faults == (
            "its head is missing or was changed: lines that are missing at the end do not show",
        )


def test_log_that_others_began_anew_gets_no_line_of_the_old_key(five: Path) -> None:
    opened = AuditLog(five)
    for path in list(five.parent.iterdir()):
        path.unlink()
    AuditLog(five).append(entry(0))
    with pytest.raises(InputError, match="was begun anew by others"):
        opened.append(entry(1))
    assert verify_log(five).faults == ()


def test_faults_of_another_file_do_not_fill_the_memory(five: Path) -> None:
    five.write_bytes(b"\n" * 5000)
    faults = verify_log(five).faults
    assert faults[99:] == ("line 100 was changed, or added", "and 4900 faults more", EVERY_LINE_BROKEN)


EVERY_LINE_BROKEN = "its head is not this log's: it was put back, or the log was"


# Files


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["audit", "verify", *map(str, words)])


def test_verify_says_how_many_lines_and_exits_0(five: Path) -> None:
    result = run(five)
    assert (result.exit_code, result.stderr) == (0, "")
    last = hashlib.sha256(five.read_bytes().splitlines()[-1]).hexdigest()
    assert result.stdout == f"{five}: 5 lines, all as they were written; the last is {last}\n"


def test_verify_names_the_faults_and_exits_1(five: Path) -> None:
    rewrite(five, lambda x: x[1:3])
    result = run(five)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"{five}: before line 1, 1 line is missing",
        f"{five}: at the end, 2 lines are missing",
    ]


def test_key_may_lie_elsewhere(five: Path, tmp_path: Path) -> None:
    five.with_name("audit.log.key").rename(tmp_path / "kept")
    assert run(five).exit_code == 2
    assert run(five, "--key", tmp_path / "kept").exit_code == 0


@pytest.mark.parametrize("content", [b"", b"text", b"\xff", b"abcd"])
def test_key_that_is_none_is_refused_in_one_line(five: Path, content: bytes) -> None:
    five.with_name("audit.log.key").write_bytes(content)
    result = run(five)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    with pytest.raises(InputError, match="not the key of an audit log"):
        AuditLog(five)


def test_log_without_its_key_is_not_begun_anew(five: Path) -> None:
    five.with_name("audit.log.key").unlink()
    with pytest.raises(InputError, match=r"cannot read the audit log's key .*audit\.log\.key"):
        AuditLog(five)


@pytest.mark.parametrize("where", ["absent/log", ".", "{bundle}/log", f"{'n' * 300}", f"{'n' * 300}/log"])
@pytest.mark.usefixtures("no_work")
def test_place_where_no_log_can_be_is_refused_before_loading(
    bundle: Path, image_path: Path, tmp_path: Path, where: str
) -> None:
    place = tmp_path / where.format(bundle=bundle)
    words = ["ask", bundle, image_path, "-q", QUESTION, "--audit", place]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert not (bundle / "log").exists()
