"""The `medvlm` command: what it prints where, and what it exits with."""

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from medvlm.runtime import Answer, Timings
from medvlm.runtime import graphs as graphs_module
from medvlm.runtime.cli import main
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.manifest import Manifest
from medvlm.runtime.vision import VisionEncoder
from PIL import Image

Say = Callable[[str], None]
QUESTION = "Which is it?\nA) MRI\nB) CT\nC) X-ray"
SAID = "<think>\nA dark ring.\n</think>\n<answer>B</answer>"
TIMINGS = re.compile(
    r"load \d+\.\d\d s, preprocess \d+\.\d\d s, vision \d+\.\d\d s \(64 visual tokens\), "
    r"prefill \d+\.\d\d s \(\d+ tokens\), decode \d+\.\d\d s \(\d+\.\d tokens/s\); "
    r"(\d+) new tokens, stopped by: (\w+)"
)


def run(*words: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin)


def ask(bundle: Path, *words: object, question: str = QUESTION, stdin: bytes | None = None) -> Result:
    return run("ask", bundle, *words, "-q", question, "--threads", 1, stdin=stdin)


def refusal(result: Result, exit_code: int = 2) -> str:
    """The line on stderr of a command that refuses: nothing else is printed, and no exception gets through."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (exit_code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.isprintable()
    return line


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a session is opened, which takes seconds with a real bundle."""

    def open_sessions(*_: object) -> None:
        pytest.fail("a session was opened")

    monkeypatch.setattr(graphs_module, "open_sessions", open_sessions)


# What it says


def test_ask_prints_the_reasoning_then_the_choice_then_the_timings(
    tiny_bundle: Path, image_path: Path, say: Say
) -> None:
    say(SAID)
    result = ask(tiny_bundle, image_path)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.strip().splitlines()
    # The scripted logits are 1 for what is said and 0 for the rest: e / (e + 2), and 1 / (e + 2) for the others.
    answer = "Answer: B) CT  [57.6%; next A 21.2%; margin 36.4%]"
    assert [line for line in lines[:-1] if line] == ["A dark ring.", answer]
    match = TIMINGS.fullmatch(lines[-1])
    assert match
    assert match.groups() == (str(len(SAID)), "answer")


def test_reasoning_comes_while_the_answer_is_being_made(
    tiny_bundle: Path, image_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(SAID)
    seen: list[str] = []
    extend = Decoder.extend
    monkeypatch.setattr(Decoder, "extend", lambda *args: seen.append("extend") or extend(*args))
    monkeypatch.setattr("click.echo", lambda text="", **_: seen.append(str(text)))
    ask(tiny_bundle, image_path)
    assert seen.index("A") < seen.index("k") < len(seen) - 1 - seen[::-1].index("extend")


def test_flags_of_the_reading_are_shown_with_the_choice(tiny_bundle: Path, image_path: Path, say: Say) -> None:
    say("It is the second: b)")
    result = ask(tiny_bundle, image_path, "--unconstrained")
    assert result.exit_code == 0
    data = json.loads(ask(tiny_bundle, image_path, "--json", "--unconstrained").stdout)
    if data["choice"]:
        assert f"({', '.join(data['flags'])})" in result.stdout
    else:
        assert "none of the options could be read" in result.stdout


def test_answer_without_a_choice_says_so(tiny_bundle: Path, image_path: Path, say: Say) -> None:
    say("<think>Hm.</think>")
    assert (
        "Answer: none of the options could be read from the text (stopped by: end)"
        in ask(tiny_bundle, image_path, "--unconstrained").stdout
    )


def test_answer_that_lacks_a_choice_is_given_one_unless_unconstrained(
    tiny_bundle: Path, image_path: Path, say: Say
) -> None:
    say("<think>Hm.</think>")
    result = ask(tiny_bundle, image_path)
    assert "Answer: A) MRI  [33.3%; next B 33.3%; margin 0.0%]" in result.stdout
    data = json.loads(ask(tiny_bundle, image_path, "--json").stdout)
    assert data["text"] == "<think>Hm.</think>\n\n<answer>A</answer>"
    assert list(data["options"]) == ["A", "B", "C"]


def test_question_without_options_is_answered_in_text(tiny_bundle: Path, image_path: Path, say: Say) -> None:
    say("A knee.")
    result = ask(tiny_bundle, image_path, question="What is it?")
    assert result.stdout.startswith("A knee.\n")
    assert "offered no options" in result.stdout


def test_control_characters_of_the_model_do_not_reach_the_terminal(
    tiny_bundle: Path, image_path: Path, say: Say
) -> None:
    say("a\x1b[2J\x07\x9b\tb\nc")
    assert ask(tiny_bundle, image_path, question="What?").stdout.startswith("a\ufffd[2J\ufffd\ufffd\tb\nc\n")


def test_json_is_one_object_with_the_fields_of_answer_and_nothing_else(
    tiny_bundle: Path, image_path: Path, say: Say
) -> None:
    say(SAID.replace("dark", "\x1b ½ 😀"))
    result = ask(tiny_bundle, image_path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    data = json.loads(result.stdout)
    assert list(data) == [field.name for field in dataclasses.fields(Answer)]
    assert list(data["timings"]) == [field.name for field in dataclasses.fields(Timings)]
    assert data["text"] == SAID.replace("dark", "\x1b ½ 😀")
    assert (data["choice"], data["choice_text"], data["strict_choice"]) == ("B", "CT", "B")
    assert (data["finish_reason"], data["visual_tokens"]) == ("answer", 64)
    assert len(data["token_ids"]) == data["new_tokens"]


def test_several_images_are_asked_about_in_their_order(tiny_bundle: Path, image_path: Path, tmp_path: Path) -> None:
    Image.new("L", (56, 56)).save(tmp_path / "small.png")
    options = ("--json", "--max-new-tokens", 9)
    one, other = (
        json.loads(ask(tiny_bundle, *images, *options).stdout)
        for images in ((image_path, tmp_path / "small.png"), (tmp_path / "small.png", image_path))
    )
    assert one["visual_tokens"] == other["visual_tokens"] == 64 + 4
    assert one["token_ids"] != other["token_ids"]


def test_options_reach_the_model(tiny_bundle: Path, image_path: Path) -> None:
    def data(*words: object) -> dict[str, Any]:
        return json.loads(ask(tiny_bundle, image_path, "--json", "--max-new-tokens", 3, *words).stdout)

    plain = data()
    assert (plain["new_tokens"], plain["finish_reason"]) == (3, "length")
    assert data("--raw")["prompt_tokens"] < plain["prompt_tokens"]
    assert data("--max-pixels", 12544)["visual_tokens"] == 16
    assert data("--min-pixels", 100 * 784)["visual_tokens"] == 100
    assert data("--max-length", plain["prompt_tokens"] + 1)["finish_reason"] == "context"
    assert data("--device", "cpu", "--hash-files")["token_ids"] == plain["token_ids"]


# The question on standard input


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        "\n" + QUESTION + "\n\n",
        QUESTION.replace("\n", "\r\n"),
        "\ufeff" + QUESTION.replace("\n", "\r\n") + "\r\n",
    ],
    ids=["as it is", "blank lines around", "Windows lines", "Windows file"],
)
def test_question_is_read_from_standard_input(tiny_bundle: Path, image_path: Path, text: str) -> None:
    options = ("--json", "--max-new-tokens", 9)
    piped = ask(tiny_bundle, image_path, *options, question="-", stdin=text.encode())
    given = ask(tiny_bundle, image_path, *options)
    assert json.loads(piped.stdout)["token_ids"] == json.loads(given.stdout)["token_ids"]


def test_question_on_standard_input_is_utf_8(tiny_bundle: Path, image_path: Path) -> None:
    options = ("--json", "--max-new-tokens", 1)
    piped = ask(tiny_bundle, image_path, *options, question="-", stdin="größer als 5 µm?".encode())
    given = ask(tiny_bundle, image_path, *options, question="größer als 5 µm?")
    assert json.loads(piped.stdout)["token_ids"] == json.loads(given.stdout)["token_ids"]


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ("größer?".encode("latin-1"), "not UTF-8"),
        (QUESTION.encode("utf-16"), "not UTF-8"),
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"a\0b", "NUL"),
    ],
)
def test_bad_question_on_standard_input_is_one_line(
    tiny_bundle: Path, image_path: Path, stdin: bytes, says: str
) -> None:
    assert says in refusal(ask(tiny_bundle, image_path, question="-", stdin=stdin))


# What is refused, before any session is opened


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` pixels and has none."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.fixture
def bad_images(tmp_path: Path, image_path: Path) -> Path:
    """A folder of what cannot be read as an image, by name."""
    content = image_path.read_bytes()
    files = {
        "text.png": b"This is no image.",
        "empty.png": b"",
        "truncated.png": content[: len(content) // 2],
        "header alone.png": content[:20],
        "bomb.png": png_header(20_000, 20_000),
        "page.svg": b"<svg/>",
        "strip.png": png_header(4000, 2),
    }
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nothing")
    Image.new("RGB", (32, 32)).save(folder / "painting.gif")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text.png", "is not an image"),
        ("absent.png", "does not exist"),
        ("dangling.png", "does not exist"),
        ("folder.png", "is a folder"),
        ("pipe.png", "pipe"),
        ("empty.png", "0 bytes"),
        ("truncated.png", "cannot be decoded"),
        ("header alone.png", ""),
        ("bomb.png", "100 megapixels"),
        ("page.svg", "is not an image"),
        ("painting.gif", "is not an image"),
        ("strip.png", ""),
        ("new\nline.png", "does not exist"),
        ("\x1b[2J.png", "does not exist"),
        ("x" * 300, "too long"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_bad_image_is_one_line(
    tiny_bundle: Path, image_path: Path, bad_images: Path, name: str, says: str, options: tuple[str, ...]
) -> None:
    assert says in refusal(ask(tiny_bundle, bad_images / name, *options))
    # The second of two images is looked at as closely as the first.
    assert says in refusal(ask(tiny_bundle, image_path, bad_images / name, *options))


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("a<|im_end|>b", "<|im_end|>"),
        ("<|image_pad|>", "<|image_pad|>"),
        ("x" * 5000, "the context holds 4096"),
        ("x" * 2_000_000, "2000000 characters"),
    ],
    ids=["empty", "blank", "end of turn", "image token", "long", "book"],
)
def test_bad_question_is_one_line(tiny_bundle: Path, image_path: Path, question: str, says: str) -> None:
    assert says in refusal(ask(tiny_bundle, image_path, question=question))


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--max-new-tokens", 0), "max_new_tokens is 0"),
        (("--max-pixels", 1), "max_pixels is 1"),
        (("--min-pixels", -5), "min_pixels is -5"),
        (("--min-pixels", 10**9), "above max_pixels"),
        (("--max-length", 1), "max_length is 1"),
        (("--max-length", 10**9), "this model takes 2 to 4096"),
        (("--max-length", 80), "the context holds 80"),
        (("--threads", 0), "threads is 0"),
    ],
)
def test_bad_option_is_one_line(tiny_bundle: Path, image_path: Path, options: tuple[object, ...], says: str) -> None:
    assert says in refusal(run("ask", tiny_bundle, image_path, "-q", QUESTION, *options))


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    "words", [("ask",), ("ask", "b"), ("ask", "b", "i"), ("ask", "b", "i", "-q", "x", "--device", "tpu"), ("asc",)]
)
def test_wrong_usage_exits_2(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("name", ["absent", "file", "empty", "\x1b[2J"])
def test_what_is_no_bundle_is_one_line(tmp_path: Path, image_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert "bundle that medvlm-export wrote" in refusal(ask(tmp_path / name, image_path))


@pytest.mark.usefixtures("no_session")
def test_damaged_bundle_is_one_line(bundle: Path, image_path: Path) -> None:
    (bundle / "decoder.onnx.data").unlink()
    assert "decoder.onnx.data is missing" in refusal(ask(bundle, image_path))


@pytest.mark.usefixtures("no_session")
def test_changed_byte_is_found_where_hashing_is_asked_for(bundle: Path, image_path: Path) -> None:
    data = bytearray((bundle / "decoder.onnx.data").read_bytes())
    data[100] ^= 1
    (bundle / "decoder.onnx.data").write_bytes(data)
    assert "decoder.onnx.data has changed" in refusal(ask(bundle, image_path, "--hash-files"))


# Animated files, and failures


@pytest.mark.parametrize("kind", ["webp", "png", "tiff"])
def test_animated_image_is_answered_with_a_note_of_the_frame(
    tiny_bundle: Path, image_path: Path, tmp_path: Path, kind: str, say: Say
) -> None:
    say(SAID)
    path = tmp_path / f"frames.{kind}"
    with Image.open(image_path) as first:
        first.save(path, save_all=True, append_images=[Image.new("L", first.size)], lossless=True)
    note = f"{path} has 2 frames; frame 1 was used"
    result = ask(tiny_bundle, path)
    assert (result.exit_code, result.stderr) == (0, f"Note: {note}\n")
    assert "Answer: B) CT" in result.stdout
    as_json = ask(tiny_bundle, path, "--json")
    assert as_json.stderr == ""
    assert json.loads(as_json.stdout)["notes"] == [note]


def fail(*_: object) -> None:
    raise RuntimeError("[ONNXRuntimeError] : 6 : no memory\nbacktrace")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(("part", "method"), [(VisionEncoder, "encode"), (Decoder, "prefill")])
def test_failure_in_onnxruntime_exits_1_with_one_line(
    tiny_bundle: Path,
    image_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: type,
    method: str,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setattr(part, method, fail)
    assert refusal(ask(tiny_bundle, image_path, *options), exit_code=1).endswith("no memory")


def test_failure_in_the_middle_of_an_answer_exits_1_with_one_line(
    tiny_bundle: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    say(SAID)
    extend = Decoder.extend

    def fail_late(decoder: Decoder, token_ids: Sequence[int]) -> object:
        # The fixture notes where the answer starts; the token that would follow is the fourteenth.
        return fail() if decoder.length - vars(decoder)["start"] == 12 else extend(decoder, token_ids)

    monkeypatch.setattr(Decoder, "extend", fail_late)
    result = ask(tiny_bundle, image_path)
    assert result.exit_code == 1
    assert result.stdout.strip() == "A dar"
    assert len(result.stderr.splitlines()) == 1


def change_graph(bundle: Path, name: str, how: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph behind the dimensions that are checked; the manifest agrees."""
    model = onnx.load(bundle / name, load_external_data=False)
    how(model)
    (bundle / name).write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name]["size"] = (bundle / name).stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_graph_that_onnxruntime_cannot_load_exits_1_with_one_line(bundle: Path, image_path: Path) -> None:
    def how(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Unheard"

    change_graph(bundle, "decoder.onnx", how)
    assert "onnxruntime cannot load decoder.onnx" in refusal(ask(bundle, image_path), exit_code=1)


# info, help, and the commands as they are installed


def test_info_tells_what_a_bundle_holds(tiny_bundle: Path) -> None:
    manifest = Manifest.from_json((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    said = run("info", tiny_bundle).stdout
    for word in (manifest.created_by, "2 layers", "width 96", "vocabulary 304", "up to 4096 tokens", "28 x 28 pixels"):
        assert word in said
    for name, entry in manifest.files.items():
        assert f"{entry.sha256}  {name}" in said


def info(bundle: Path, **fields: Any) -> str:
    """What `info` says of a bundle whose manifest has these fields."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, **fields}), encoding="utf-8")
    result = run("info", bundle)
    assert result.exit_code == 0
    return result.stdout


def test_info_says_how_each_part_was_quantized(tiny_bundle: Path) -> None:
    said = run("info", tiny_bundle).stdout
    assert (
        "recipe    int4: decoder and head 4 bits by rtn-search in blocks of 32, asymmetric; vision and prompts W8A8 "
        "(int8 weights and activations); embeddings float16\n" in said
    )


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({}, "recipe    unnamed: it says no more"),
        ({"name": "fp32", "decoder": {"kind": "fp32"}, "prefill": None}, "fp32: decoder fp32; prompts through the dec"),
        ({"decoder": {"kind": "blockwise", "bits": 4, "method": "hqq"}}, "decoder 4 bits by hqq\n"),
        ({"method": "awq", "head": {"kind": "blockwise", "bits": 8, "symmetric": True}}, "head 8 bits by awq, symm"),
        ({"head": {"kind": "nf4", "block_size": 64}}, "head nf4 in blocks of 64\n"),
        ({"head": {"kind": "nf4"}, "eight_bits": ["lm_head", "x"]}, "head nf4; 2 of the tensors at 8 bits\n"),
        ({"vision": {}, "decoder": 7, "head": [4]}, "vision of unknown precision\n"),
        ({"name": "a\x1b[2Jb\nc"}, r"recipe    a\x1b[2Jb\nc: "),
    ],
    ids=str,
)
def test_info_says_what_it_can_of_any_recipe(bundle: Path, recipe: dict[str, Any], says: str) -> None:
    assert says in info(bundle, recipe=recipe)


def test_info_says_what_the_bundle_lost(bundle: Path) -> None:
    loss = {
        "dataset": "held out\x1b",
        "questions": 600,
        "tokens": 23456,
        "kl": 0.01234,
        "top1_agreement": 0.987,
        "flips": 12,
        "accuracy": 0.91,
        "reference_accuracy": 0.92,
    }
    assert (
        "lost      KL divergence 0.0123 nats, top-1 agreement 98.7% over 23456 tokens; accuracy 91.0% (fp32 92.0%), "
        "12 of 600 letters changed (held out\\x1b)\n" in info(bundle, loss=loss)
    )


def test_info_says_where_the_loss_was_not_measured(tiny_bundle: Path) -> None:
    assert "lost      not measured: medvlm-export --report measures it\n" in run("info", tiny_bundle).stdout


def test_help_lists_the_commands_and_says_what_this_is_not() -> None:
    said = run("--help").stdout
    assert "no medical device" in " ".join(said.split())
    for command in ("ask", "compare", "info", "verify", "demo"):
        assert re.search(rf"^  {command} +\S", said, re.MULTILINE)


def medvlm(*words: object, encoding: str = "utf-8", **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed console script."""
    command = Path(sys.executable).with_name("medvlm")
    if not command.exists():
        pytest.skip("needs the installed medvlm command, which is not beside this Python")
    return subprocess.run(
        [command, *map(str, words)],
        capture_output=True,
        check=False,
        timeout=60,
        encoding=encoding,
        **options,
    )


def test_installed_command_answers(tiny_bundle: Path, image_path: Path) -> None:
    result = medvlm("ask", tiny_bundle, image_path, "-q", QUESTION, "--max-new-tokens", 9)
    assert (result.returncode, result.stderr) == (0, "")
    assert TIMINGS.fullmatch(result.stdout.splitlines()[-1])


def test_installed_command_refuses_in_one_line(tiny_bundle: Path) -> None:
    result = medvlm("ask", tiny_bundle, "absent.png", "-q", QUESTION)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: absent.png does not exist; check the path\n"


def test_installed_command_fails_in_one_line_without_onnxruntime_s_own_log(bundle: Path, image_path: Path) -> None:
    def how(model: onnx.ModelProto) -> None:
        shape = next(weight for weight in model.graph.initializer if weight.name == "merged_shape")
        shape.raw_data = np.array([7, np.frombuffer(shape.raw_data, np.int64)[1]]).tobytes()

    change_graph(bundle, "vision_encoder.onnx", how)
    result = medvlm("ask", bundle, image_path, "-q", QUESTION)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: onnxruntime failed at the vision encoder")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_standard_output_is_no_fault(tiny_bundle: Path, image_path: Path, closing: str) -> None:
    ask_there = [sys.executable, "-c", "from medvlm.runtime.cli import main; main()", "ask", tiny_bundle, image_path]
    shell = ["sh", "-c", f'"$@" {closing}', "sh", *ask_there, "-q", QUESTION, "--max-new-tokens", "4"]
    result = subprocess.run([*map(str, shell)], capture_output=True, text=True)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)


def test_closed_standard_input_is_one_line(tiny_bundle: Path, image_path: Path) -> None:
    words = [Path(sys.executable).with_name("medvlm"), "ask", tiny_bundle, image_path, "-q", "-"]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: standard input is closed; give the question with -q\n"


def test_question_that_is_no_text_is_one_line(tiny_bundle: Path, image_path: Path) -> None:
    command = Path(sys.executable).with_name("medvlm")
    words = [os.fsencode(command), b"ask", os.fsencode(tiny_bundle), os.fsencode(image_path), b"-q", b"gr\xf6sser?"]
    result = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (2, b"")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_terminal_that_lacks_a_character_still_gets_the_answer(
    tiny_bundle: Path, image_path: Path, options: tuple[str, ...]
) -> None:
    """As on Windows, where a pipe's encoding is not UTF-8. The tiny model writes what is no text at all."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    result = medvlm("ask", tiny_bundle, image_path, "-q", "Hm?", *options, env=environment, encoding="cp1252")
    assert (result.returncode, result.stderr) == (0, "")
    assert "?" in result.stdout.splitlines()[0] or options
    if options:
        assert "\ufffd" in json.loads(result.stdout)["text"]
