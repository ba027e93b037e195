"""`medvlm chat`: one question after the other about the same images, and what ends it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime import graphs as graphs_module
from medvlm.runtime.chat import read_questions
from medvlm.runtime.cli import main
from medvlm.runtime.decoder import Decoder
from PIL import Image

Say = Callable[[str], None]
FIRST = "Which is it?\nA) MRI\nB) CT\nC) X-ray"
SECOND = "Is there a mass?\nA) Yes\nB) No"
KEPT = re.compile(r"prefill \d+\.\d\d s \(\d+ tokens, (\d+) of them kept from before\)")


def chat(bundle: Path, *words: object, stdin: bytes) -> Result:
    return CliRunner().invoke(main, ["chat", str(bundle), *map(str, words), "--threads", "1"], input=stdin)


def questions(*texts: str) -> bytes:
    return "\n\n".join(texts).encode() + b"\n"


def answers(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("Answer: ")]


def error_line(result: Result) -> str:
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_second_question_says_how_much_was_kept(demo_bundle: Path, image_path: Path) -> None:
    result = chat(demo_bundle, image_path, stdin=questions(FIRST, SECOND))
    assert (result.exit_code, result.stderr) == (0, "")
    timings = [line for line in result.stdout.splitlines() if line.startswith("load ")]
    assert len(timings) == len(answers(result)) == 2
    assert not KEPT.search(timings[0])
    kept = KEPT.search(timings[1])
    assert kept
    assert int(kept[1]) > 64, "the image's 64 tokens, and what is before them"


def test_with_a_budget_of_nothing_nothing_is_kept(demo_bundle: Path, image_path: Path) -> None:
    result = chat(demo_bundle, image_path, "--prefix-mb", 0, stdin=questions(FIRST, FIRST))
    assert len(answers(result)) == 2
    assert not KEPT.search(result.stdout)


def test_each_answer_is_that_of_the_question_asked_by_itself(demo_bundle: Path, image_path: Path) -> None:
    together = answers(chat(demo_bundle, image_path, stdin=questions(FIRST, SECOND, FIRST)))
    alone = [answers(chat(demo_bundle, image_path, stdin=questions(text)))[0] for text in (FIRST, SECOND)]
    # The certainty may differ in its last digit.
    letters = [line.partition("  [")[0] for line in together]
    assert letters == [line.partition("  [")[0] for line in (*alone, alone[0])]


def test_several_images_are_asked_about_together(tiny_bundle: Path, image_path: Path, tmp_path: Path) -> None:
    Image.new("L", (56, 56)).save(tmp_path / "small.png")
    result = chat(tiny_bundle, image_path, tmp_path / "small.png", "--max-new-tokens", 2, stdin=questions(FIRST))
    assert "(68 visual tokens)" in result.stdout


@pytest.mark.parametrize("bad", ["a<|im_end|>b", "x" * 5000], ids=["end of turn", "too long"])
def test_bad_question_does_not_end_it(tiny_bundle: Path, image_path: Path, say: Say, bad: str) -> None:
    say("<think>Hm.</think>\n<answer>B</answer>")
    result = chat(tiny_bundle, image_path, stdin=questions(FIRST, bad, SECOND))
    assert result.exit_code == 0
    assert [line.partition("  [")[0] for line in answers(result)] == ["Answer: B) CT", "Answer: B) No"]
    assert error_line(result).isprintable()


def test_failure_ends_it_in_one_line(tiny_bundle: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory\nbacktrace")

    monkeypatch.setattr(Decoder, "prefill", fail)
    result = chat(tiny_bundle, image_path, stdin=questions(FIRST, SECOND))
    assert (result.exit_code, result.stdout) == (1, "")
    assert error_line(result).endswith("no memory")


@pytest.mark.parametrize("stdin", [FIRST.encode("utf-16"), "größer?".encode("latin-1")])
def test_what_is_not_utf_8_is_one_line(tiny_bundle: Path, image_path: Path, stdin: bytes) -> None:
    result = chat(tiny_bundle, image_path, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not UTF-8" in error_line(result)


def test_what_is_not_utf_8_comes_after_the_answers_before_it(tiny_bundle: Path, image_path: Path, say: Say) -> None:
    say("<answer>A</answer>")
    result = chat(tiny_bundle, image_path, stdin=questions(FIRST) + b"\ngr\xf6sser?\n")
    assert result.exit_code == 2
    assert len(answers(result)) == 1
    assert "not UTF-8" in error_line(result)


def test_closed_standard_input_is_one_line(tiny_bundle: Path, image_path: Path) -> None:
    command = Path(sys.executable).with_name("medvlm")
    if not command.exists():
        pytest.skip("needs the installed medvlm command, which is not beside this Python")
    words = ["sh", "-c", 'exec "$@" <&-', "sh", command, "chat", tiny_bundle, image_path]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: standard input is closed; chat reads its questions there\n"


@pytest.mark.parametrize("stdin", [b"", b"\n\n \n"])
def test_no_question_is_no_answer(tiny_bundle: Path, image_path: Path, stdin: bytes) -> None:
    result = chat(tiny_bundle, image_path, stdin=stdin)
    assert (result.exit_code, result.output) == (0, "")


def test_options_reach_the_model(tiny_bundle: Path, image_path: Path) -> None:
    words = ("--max-new-tokens", 3, "--max-pixels", 12544, "--raw", "--unconstrained")
    result = chat(tiny_bundle, image_path, *words, stdin=questions(FIRST))
    assert "(16 visual tokens)" in result.stdout
    assert "3 new tokens, stopped by: length" in result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("absent.png",), "absent.png does not exist"),
        (("--max-length", 1), "max_length is 1"),
        (("--prefix-mb", -1), "prefix_mb is -1"),
        (("--max-new-tokens", 0), "max_new_tokens is 0"),
    ],
)
def test_what_is_wrong_from_the_start_is_one_line(
    tiny_bundle: Path, image_path: Path, words: tuple[object, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "open_sessions", lambda *_: pytest.fail("a session was opened"))
    result = chat(tiny_bundle, image_path, *words, stdin=questions(FIRST))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in error_line(result)


def test_note_on_an_image_is_given_once(tiny_bundle: Path, tmp_path: Path, say: Say) -> None:
    say("<answer>A</answer>")
    path = tmp_path / "frames.webp"
    Image.new("L", (56, 56)).save(path, save_all=True, append_images=[Image.new("L", (56, 56), 9)], lossless=True)
    result = chat(tiny_bundle, path, stdin=questions(FIRST, SECOND))
    assert result.stderr == f"Note: {path} has 2 frames; frame 1 was used\n"


# Reading questions


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        (["\n", " \t\n"], []),
        (["a?\n"], ["a?"]),
        (["a?"], ["a?"]),
        (["a?\n", "A) x\n", "\n", "b?\n"], ["a?\nA) x", "b?"]),
        (["\n", "a?\r\n", "A) x\r\n", "\r\n", "\r\n", "b?\r\n"], ["a?\nA) x", "b?"]),
        (["  a?  \n", "\n"], ["  a?  "]),
    ],
)
def test_empty_lines_end_questions(lines: list[str], expected: list[str]) -> None:
    assert list(read_questions(lines)) == expected


def test_question_is_there_as_soon_as_its_empty_line_is() -> None:
    """A person at a terminal waits for the answer before the next question."""
    lines = iter(["a?\n", "\n", "b?\n"])
    assert next(read_questions(lines)) == "a?"
    assert list(lines) == ["b?\n"]


@given(st.lists(st.lists(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1), min_size=1)))
def test_no_line_is_lost(texts: list[list[str]]) -> None:
    lines = [line + "\n" for text in texts for line in (*text, "")]
    assert list(read_questions(lines)) == ["\n".join(text) for text in texts]


def test_byte_order_mark_of_a_file_is_no_part_of_the_question(tiny_bundle: Path, image_path: Path) -> None:
    words = ("--max-new-tokens", 2)
    plain, marked = (chat(tiny_bundle, image_path, *words, stdin=b + questions(FIRST)) for b in (b"", b"\xef\xbb\xbf"))
    tokens = [re.search(r"\((\d+) tokens\)", result.stdout) for result in (plain, marked)]
    assert tokens[0]
    assert tokens[1]
    assert tokens[0][1] == tokens[1][1]
