"""`MedVLM`: what may be asked, what comes back, and what is refused before any work."""

import dataclasses
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime import InputError, MedVLM, MedVLMError
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.vision import VisionEncoder
from PIL import Image

Say = Callable[[str], None]
QUESTION = "Which is it?\nA) MRI\nB) CT\nC) X-ray"
PLAIN = Decoding(constrained=False)


@pytest.fixture
def model(tiny_bundle: Path) -> MedVLM:
    """A model that was asked nothing yet, so that nothing is kept from before."""
    return MedVLM.load(tiny_bundle, threads=1)


def refusal(ask: Callable[..., object], *args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        ask(*args, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_answer_is_what_the_stream_gives(model: MedVLM, image_path: Path) -> None:
    stream = model.stream(image_path, QUESTION, Decoding(40))
    pieces = list(stream)
    answer = model.ask(image_path, QUESTION, Decoding(40))
    assert answer.token_ids == stream.answer.token_ids
    assert answer.text == stream.answer.text == "".join(pieces)
    assert len(pieces) > 1
    assert "" not in pieces


def test_a_stopped_stream_ends_behind_its_last_piece(model: MedVLM, image_path: Path) -> None:
    whole = model.ask(image_path, QUESTION, Decoding(40))
    stream = model.stream(image_path, QUESTION, Decoding(40))
    with pytest.raises(MedVLMError, match="being read"):
        stream.stop()
    pieces = [next(stream) for _ in range(5)]
    answer = stream.stop()
    assert answer.text == "".join(pieces)
    assert whole.text.startswith(answer.text)
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    assert answer.finish_reason == "stop"
    assert list(stream) == []
    with pytest.raises(MedVLMError, match="being read"):
        stream.stop()
    assert model.ask(image_path, QUESTION, Decoding(40)).token_ids == whole.token_ids


def test_asking_twice_gives_the_same_tokens(model: MedVLM, image_path: Path) -> None:
    first, other, again = (
        model.ask(image_path, question, Decoding(40)).token_ids for question in (QUESTION, "What?", QUESTION)
    )
    assert first == again
    assert first != other


def test_question_without_image_is_answered(model: MedVLM) -> None:
    answers = [model.ask(image, "How are you?", Decoding(8)) for image in (None, [], ())]
    assert {answer.visual_tokens for answer in answers} == {0}
    assert len({answer.token_ids for answer in answers}) == 1


def test_image_may_be_given_in_any_form(model: MedVLM, image_path: Path) -> None:
    with Image.open(image_path) as file:
        image = file.copy()
    array = np.asarray(image)
    forms = [image_path, str(image_path), image_path.read_bytes(), image, image.convert("RGB"), array, [image_path]]
    answers = [model.ask(form, QUESTION, Decoding(40)) for form in forms]
    assert len({answer.token_ids for answer in answers}) == 1
    assert {answer.visual_tokens for answer in answers} == {64}


def test_several_images_are_read_in_their_order(model: MedVLM, image_path: Path) -> None:
    small, white = Image.new("L", (56, 84), 30), Image.new("L", (56, 84), 255)
    ask = lambda images: model.ask(images, "Compare.", Decoding(40))  # noqa: E731
    listed, in_a_tuple = ask([image_path, small, white]), ask((image_path, small, white))
    assert listed.token_ids == in_a_tuple.token_ids
    assert listed.visual_tokens == 64 + 6 + 6
    assert ask([image_path, white, small]).token_ids != listed.token_ids


def test_prompt_counts_every_token(model: MedVLM, image_path: Path) -> None:
    shorter, longer = (model.ask(image_path, question, Decoding(1)) for question in ("Why?", "Why so?"))
    assert longer.prompt_tokens == shorter.prompt_tokens + len(" so")
    two = model.ask([image_path] * 2, "Why?", Decoding(1))
    # The second image's tokens, between vision_start and vision_end.
    assert two.prompt_tokens == shorter.prompt_tokens + 64 + 2


def test_what_the_model_says_is_read(model: MedVLM, image_path: Path, say: Say) -> None:
    say("<think>\nA dark ring.\n</think>\n<answer> B </answer>, certainly")
    answer = model.ask(image_path, QUESTION)
    assert answer.text == "<think>\nA dark ring.\n</think>\n<answer> B </answer>"
    assert answer.reasoning.strip() == "A dark ring."
    assert (answer.choice, answer.choice_text, answer.strict_choice) == ("B", "CT", "B")
    assert (answer.finish_reason, answer.flags, answer.notes) == ("answer", (), ())
    assert answer.new_tokens == len(answer.token_ids) == len(answer.text)


def test_end_token_is_counted_and_not_shown(model: MedVLM, say: Say) -> None:
    say("Hm.")
    answer = model.ask(None, QUESTION, PLAIN)
    assert (answer.text, answer.finish_reason, answer.new_tokens) == ("Hm.", "end", 4)
    assert answer.token_ids[-1] in model.manifest.generation.eos_token_ids


def test_letter_that_was_not_offered_is_no_choice(model: MedVLM, say: Say) -> None:
    say("<answer>D</answer>")
    answer = model.ask(None, QUESTION, PLAIN)
    assert (answer.choice, answer.choice_text) == (None, None)
    assert answer.text == "<answer>D</answer>"
    assert (answer.options, answer.margin) == ({}, None)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Hm.", "Hm.</think>\n\n<answer>A</answer>"),
        ("<think>Hm.", "<think>Hm.</think>\n\n<answer>A</answer>"),
        ("<think>Hm.</think> So", "<think>Hm.</think> <answer>A</answer>"),
        ("<answer>D</answer>", "<answer>A</answer>"),
        ("<answer>B or C</answer>", "<answer>B </answer>"),
    ],
)
def test_answer_that_is_not_well_formed_is_repaired(model: MedVLM, say: Say, said: str, text: str) -> None:
    """The scripted model finds every letter but the one it says as likely as any other: the first is taken."""
    say(said)
    answer = model.ask(None, QUESTION)
    assert (answer.text, answer.finish_reason) == (text, "answer")
    letter, option = ("B", "CT") if "<answer>B" in text else ("A", "MRI")
    assert (answer.choice, answer.strict_choice, answer.choice_text) == (letter, letter, option)
    assert sum(answer.options.values()) == pytest.approx(1)


def test_multi_byte_characters_are_streamed_whole(model: MedVLM, say: Say) -> None:
    say("5 µm, 😀€")
    pieces = list(model.stream(None, "How large?"))
    assert pieces == list("5 µm, 😀€")


def test_max_new_tokens_cuts_the_same_answer(model: MedVLM, image_path: Path) -> None:
    whole = model.ask(image_path, QUESTION, Decoding(30, constrained=False))
    cut = model.ask(image_path, QUESTION, Decoding(5, constrained=False))
    assert whole.new_tokens == 30
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:5], "length")


def test_full_context_cuts_the_same_answer(model: MedVLM, tiny_bundle: Path, image_path: Path) -> None:
    whole = model.ask(image_path, QUESTION, Decoding(30, constrained=False))
    narrow = MedVLM.load(tiny_bundle, threads=1, max_length=whole.prompt_tokens + 4)
    # Four slots are left, and the last token needs none.
    cut = narrow.ask(image_path, QUESTION)
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:5], "context")
    assert narrow.ask(image_path, QUESTION).token_ids == cut.token_ids


def test_prompt_may_leave_a_single_slot(model: MedVLM, tiny_bundle: Path) -> None:
    prompt = model.ask(None, QUESTION, Decoding(1)).prompt_tokens
    narrow = MedVLM.load(tiny_bundle, threads=1, max_length=prompt + 1)
    assert narrow.ask(None, QUESTION).new_tokens == 2
    too_narrow = MedVLM.load(tiny_bundle, threads=1, max_length=prompt)
    assert f"the prompt has {prompt} tokens" in refusal(too_narrow.ask, None, QUESTION)


def test_prompt_longer_than_one_chunk_of_the_prefill_is_answered(model: MedVLM, image_path: Path) -> None:
    answer = model.ask([image_path] * 12, QUESTION, Decoding(3))
    assert answer.prompt_tokens > 1024
    assert answer.new_tokens == 3


@pytest.mark.usefixtures("no_work")
def test_prompt_that_cannot_fit_is_refused_with_the_numbers_before_any_work(
    tiny_bundle: Path, image_path: Path
) -> None:
    model = MedVLM.load(tiny_bundle, threads=1, max_length=100)
    said = refusal(model.ask, image_path, "Why?")
    assert "(64 of them visual)" in said
    assert "the context holds 100" in said
    assert "--max-pixels" in said
    # The stream is refused when it is made, not when it is read.
    assert refusal(model.stream, image_path, "Why?") == said


@pytest.mark.usefixtures("no_work")
def test_images_or_text_beyond_any_context_are_refused_before_they_are_prepared(model: MedVLM) -> None:
    white = Image.new("L", (1400, 1400))
    said = refusal(model.ask, [white, white], "Why?")
    assert "5000 tokens" in said
    assert "holds 4096" in said
    assert "2000000 characters" in refusal(model.ask, None, "x" * 2_000_000)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("question", ["", " \n\t", "a<|im_end|>b", "<|image_pad|>", "a\0", "\ud800"])
def test_bad_question_is_refused_before_any_work(model: MedVLM, image_path: Path, question: str) -> None:
    assert "question" in refusal(model.ask, image_path, question)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("count", [0, -1])
def test_no_new_tokens_are_refused(model: MedVLM, image_path: Path, count: int) -> None:
    assert f"max_new_tokens is {count}" in refusal(lambda: model.ask(image_path, QUESTION, Decoding(count)))


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_pixels": 783}, "784"),
        ({"max_pixels": -1}, "-1"),
        ({"min_pixels": 0}, "0"),
        ({"min_pixels": 10_000, "max_pixels": 5_000}, "above max_pixels"),
    ],
)
def test_bad_pixel_limits_are_refused(model: MedVLM, image_path: Path, limits: dict[str, int], says: str) -> None:
    assert says in refusal(model.ask, image_path, QUESTION, **limits)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("image", [b"no image", "absent.png", 7, np.zeros((2, 2)), [None], iter(())])
def test_bad_image_is_refused(model: MedVLM, image: Any) -> None:
    refusal(model.ask, image, QUESTION)


def test_pixel_limits_set_the_number_of_visual_tokens(model: MedVLM, image_path: Path) -> None:
    ask = lambda **limits: model.ask(image_path, QUESTION, Decoding(1), **limits).visual_tokens  # noqa: E731
    assert ask() == 64
    assert ask(max_pixels=16 * 28 * 28) == 16
    assert ask(min_pixels=784, max_pixels=784) == 1
    assert ask(min_pixels=100 * 28 * 28) == 100


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_bad_number_of_threads_is_refused(tiny_bundle: Path, threads: int) -> None:
    assert f"threads is {threads}" in refusal(MedVLM.load, tiny_bundle, threads=threads)


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "CPU", ""])
def test_unknown_device_is_refused_with_the_known_ones(tiny_bundle: Path, device: str) -> None:
    assert "choose one of auto, cpu" in refusal(MedVLM.load, tiny_bundle, device)


def test_every_device_of_this_version_gives_the_same_tokens(model: MedVLM, tiny_bundle: Path) -> None:
    on_cpu = MedVLM.load(str(tiny_bundle), "cpu", 1)
    assert on_cpu.ask(None, "Hm?", Decoding(9)).token_ids == model.ask(None, "Hm?", Decoding(9)).token_ids


@pytest.mark.parametrize("length", [-1, 0, 1, 4097])
def test_context_that_the_model_does_not_hold_is_refused(tiny_bundle: Path, length: int) -> None:
    assert f"max_length is {length}; this model takes 2 to 4096" in refusal(MedVLM.load, tiny_bundle, max_length=length)


def test_context_is_by_default_what_the_model_holds_where_that_is_less(model: MedVLM, tiny_bundle: Path) -> None:
    assert model.max_length == 4096
    assert MedVLM.load(tiny_bundle, threads=1, max_length=4096).max_length == 4096


# Streams


def test_stream_does_nothing_until_it_is_read(model: MedVLM, image_path: Path, no_work: None) -> None:
    assert model.stream(image_path, QUESTION)


def test_answer_before_the_end_is_an_error(model: MedVLM, image_path: Path) -> None:
    stream = model.stream(image_path, QUESTION, Decoding(40))
    with pytest.raises(MedVLMError, match="read the stream to its end"):
        _ = stream.answer
    next(stream)
    with pytest.raises(MedVLMError, match="read the stream to its end"):
        _ = stream.answer
    list(stream)
    assert stream.answer.text
    assert list(stream) == []


def test_another_question_ends_the_stream_before_it(model: MedVLM, image_path: Path) -> None:
    alone = model.ask(image_path, "Newer?", Decoding(40)).token_ids
    older = model.stream(image_path, "Older?", Decoding(40))
    next(older)
    newer = model.stream(image_path, "Newer?", Decoding(40))
    next(newer)
    with pytest.raises(MedVLMError, match="another question was asked"):
        next(older)
    list(newer)
    assert newer.answer.token_ids == alone
    with pytest.raises(MedVLMError):
        _ = older.answer


def test_stream_that_was_not_begun_ends_too(model: MedVLM) -> None:
    older = model.stream(None, "Older?")
    model.ask(None, "Newer?", Decoding(2))
    with pytest.raises(MedVLMError, match="another question was asked"):
        next(older)


def test_refused_question_leaves_the_stream_before_it_alone(model: MedVLM) -> None:
    expected = model.ask(None, "Older?", Decoding(20)).token_ids
    older = model.stream(None, "Older?", Decoding(20))
    next(older)
    refusal(model.ask, None, "")
    list(older)
    assert older.answer.token_ids == expected


def test_answer_stays_when_another_question_is_asked(model: MedVLM) -> None:
    stream = model.stream(None, "Older?", Decoding(5))
    list(stream)
    model.ask(None, "Newer?", Decoding(5))
    assert stream.answer.new_tokens == 5


# Timings


def test_timings_are_of_what_happened(model: MedVLM, image_path: Path) -> None:
    started = time.perf_counter()
    answer = model.ask(image_path, QUESTION, Decoding(30))
    wall = time.perf_counter() - started
    times = answer.timings
    assert min(value for value in dataclasses.asdict(times).values() if value is not None) > 0
    assert times.first_token_s == pytest.approx(times.preprocess_s + times.vision_s + times.prefill_s)
    assert times.total_s == pytest.approx(times.first_token_s + times.decode_s)
    assert times.total_s <= wall
    assert times.load_s == model.load_s
    assert times.prefill_tokens_per_s == pytest.approx(answer.prompt_tokens / times.prefill_s)
    assert answer.cached_tokens == 0
    assert times.decode_tokens_per_s == pytest.approx((answer.new_tokens - 1) / times.decode_s)


def test_single_token_has_no_decoding_speed(model: MedVLM) -> None:
    times = model.ask(None, QUESTION, Decoding(1)).timings
    assert times.decode_tokens_per_s is None
    assert min(times.vision_s, times.decode_s) >= 0


def test_slow_stage_is_the_one_that_was_slow(
    model: MedVLM, image_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    say("abc")
    encode = VisionEncoder.encode
    monkeypatch.setattr(VisionEncoder, "encode", lambda *args: time.sleep(0.2) or encode(*args))
    times = model.ask(image_path, QUESTION).timings
    assert times.vision_s >= 0.2 > max(times.preprocess_s, times.prefill_s, times.decode_s)


# Failures


@pytest.mark.parametrize(("part", "method"), [(VisionEncoder, "encode"), (Decoder, "prefill"), (Decoder, "extend")])
def test_failure_in_onnxruntime_is_one_line_and_does_not_harm_the_next_question(
    model: MedVLM,
    tiny_bundle: Path,
    image_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: type,
    method: str,
) -> None:
    sound = MedVLM.load(tiny_bundle, threads=1).ask(image_path, QUESTION, Decoding(9)).token_ids

    def fail(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : out of memory\nbacktrace\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(part, method, fail)
        with pytest.raises(MedVLMError) as error:
            model.ask(image_path, QUESTION, Decoding(9))
    assert str(error.value).startswith("onnxruntime failed at")
    assert str(error.value).endswith("out of memory")
    assert error.value.exit_code == 1
    assert model.ask(image_path, QUESTION, Decoding(9)).token_ids == sound


def test_without_onnxruntime_both_extras_are_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refusal(MedVLM.load, tiny_bundle)
    assert "medvlm[cpu]" in said
    assert "medvlm[gpu]" in said


WITHOUT_ONNXRUNTIME = """
import importlib.machinery
real = importlib.machinery.PathFinder.find_spec

def hidden(name, path=None, target=None):
    return None if name.partition(".")[0] == "onnxruntime" else real(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(hidden)
from medvlm.runtime.cli import main
main()
"""


def test_commands_without_onnxruntime_say_so_in_one_line(tiny_bundle: Path, image_path: Path) -> None:
    run = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-c", WITHOUT_ONNXRUNTIME, *words], capture_output=True, text=True, check=False, timeout=60
    )
    asked = run("ask", str(tiny_bundle), str(image_path), "-q", QUESTION)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert len(asked.stderr.splitlines()) == 1
    assert "medvlm[cpu]" in asked.stderr
    assert "medvlm[gpu]" in asked.stderr
    # What needs no onnxruntime works without it.
    assert run("verify", str(tiny_bundle)).returncode == 0
    assert run("info", str(tiny_bundle)).returncode == 0


# Scoring a given answer


def test_scores_are_what_the_answer_was_chosen_from(model: MedVLM, image_path: Path) -> None:
    request = model.processor.prepare([image_path], QUESTION)
    answer = model.run(request, Decoding(40, constrained=False, max_draft=0)).finish()
    scores = model.score(request, answer.token_ids)
    assert scores.shape == (40, model.manifest.text.vocab_size)
    np.testing.assert_array_equal(scores.argmax(axis=1), answer.token_ids)


def test_scoring_ends_the_stream_that_is_being_read(model: MedVLM, image_path: Path) -> None:
    request = model.processor.prepare([image_path], QUESTION)
    stream = model.run(request, PLAIN)
    next(stream)
    model.score(request, [1, 2])
    with pytest.raises(MedVLMError, match="ended when another question"):
        next(stream)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("token_ids", "says"),
    [
        ([], "the answer has 0 tokens"),
        ([-1], "not in the vocabulary of 304"),
        ([1, 304, 2], "not in the vocabulary of 304"),
        ([1] * 9000, "the answer has 9000 tokens"),
    ],
    ids=["none", "negative", "too large", "too many"],
)
def test_answer_that_cannot_be_scored_is_refused(model: MedVLM, token_ids: list[int], says: str) -> None:
    request = model.processor.prepare([], QUESTION)
    assert says in refusal(model.score, request, token_ids)
