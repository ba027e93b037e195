"""The decoder on a GPU, with the CPU in its place: the same logits, and next to nothing over the bus."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from medvlm.demo.random_checkpoint import TEXT
from medvlm.runtime import MedVLM, MedVLMError
from medvlm.runtime import device_decoder as decoder_module
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.device_decoder import DeviceDecoder
from medvlm.runtime.logits import DeviceLogits
from medvlm.runtime.positions import mrope_tables
from medvlm.runtime.sampling import Sampler, Sampling
from numpy.typing import NDArray
from PIL import Image

TOKENS = 24
QUESTION = "What is seen?\nA) Brain\nB) Knee"
PLAIN = Decoding(max_new_tokens=12, constrained=False)
LOGITS_BYTES = 4 * TEXT.vocab_size


@pytest.fixture
def model(host_device: Any, cuda_bundle: Path) -> MedVLM:
    return MedVLM.load(cuda_bundle, "cuda", threads=1)


@pytest.fixture
def decoder(model: MedVLM) -> DeviceDecoder:
    """A sequence with room for the tokens, and the rotary rows of text."""
    decoder = model.new_sequence()
    assert isinstance(decoder, DeviceDecoder)
    decoder.reserve(TOKENS)
    decoder.write_rotary(0, *tables(TOKENS))
    return decoder


@pytest.fixture(scope="module")
def ids() -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, 256, TOKENS)


def tables(tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return mrope_tables(np.broadcast_to(np.arange(tokens), (3, tokens)), TEXT)


@pytest.fixture(scope="module")
def whole(cuda_bundle: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logits after every token, by one call of onnxruntime on arrays, into an empty cache as long as the tokens."""
    session = onnxruntime.InferenceSession(cuda_bundle / "decoder.cuda.onnx", providers=["CPUExecutionProvider"])
    table = np.fromfile(cuda_bundle / "embeddings.bin", "<f2").reshape(-1, TEXT.hidden_size)
    past = np.zeros((1, TEXT.num_kv_heads, TOKENS, TEXT.head_size), np.float16)
    cos, sin = (half.astype(np.float16) for half in tables(TOKENS))
    feeds = {
        "inputs_embeds": table[ids][None],
        "seqlens_k": np.array([TOKENS - 1], np.int32),
        "total_sequence_length": np.array(TOKENS, np.int32),
        "cos_cache": cos,
        "sin_cache": sin,
        "logit_rows": np.arange(TOKENS),
        **{f"past_key_values.{i}.{kind}": past for i in range(TEXT.layers) for kind in ("key", "value")},
    }
    logits, likeliest, largest = session.run(["logits", "likeliest", "largest"], feeds)
    np.testing.assert_array_equal(likeliest, np.asarray(logits).argmax(-1))
    np.testing.assert_array_equal(largest, np.asarray(logits).max(-1))
    return np.asarray(logits)[0]


def check_row(row: DeviceLogits, expected: NDArray[np.float32]) -> None:
    values = np.asarray(row)
    np.testing.assert_allclose(values, expected, atol=0.01 * np.abs(expected).max())
    assert (row.likeliest, row.largest) == (int(values.argmax()), values.max())


# What it computes


def test_steps_say_what_one_call_over_the_whole_sequence_says(
    model: MedVLM, decoder: DeviceDecoder, ids: NDArray[np.int64], whole: NDArray[np.float32]
) -> None:
    """Though each is told that the cache is as long as it may become, as a captured step must be."""
    check_row(decoder.prefill(model.embeddings(ids[:9])), whole[8])
    for place, token_id in enumerate(ids[9:].tolist(), start=9):
        (row,) = decoder.extend([token_id])
        check_row(row, whole[place])
    assert decoder.length == TOKENS


def test_a_prompt_in_pieces_says_the_same(
    model: MedVLM,
    decoder: DeviceDecoder,
    ids: NDArray[np.int64],
    whole: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", 7)
    check_row(decoder.prefill(model.embeddings(ids)), whole[-1])


def test_several_tokens_at_once_have_logits_each(
    model: MedVLM, decoder: DeviceDecoder, ids: NDArray[np.int64], whole: NDArray[np.float32]
) -> None:
    decoder.prefill(model.embeddings(ids[:9]))
    for place, row in enumerate(decoder.extend(ids[9:14].tolist()), start=9):
        check_row(row, whole[place])


def test_tokens_are_taken_back_by_a_number(
    model: MedVLM, decoder: DeviceDecoder, ids: NDArray[np.int64], whole: NDArray[np.float32]
) -> None:
    decoder.prefill(model.embeddings(ids[:9]))
    decoder.extend([7])
    decoder.extend([8])
    decoder.rewind(2)
    check_row(decoder.extend([int(ids[9])])[0], whole[9])


def test_a_larger_cache_keeps_what_is_filled(
    model: MedVLM, decoder: DeviceDecoder, ids: NDArray[np.int64], whole: NDArray[np.float32]
) -> None:
    decoder.prefill(model.embeddings(ids[:9]))
    decoder.extend([int(ids[9])])
    before = decoder.capacity
    decoder.reserve(before + 1)
    assert decoder.capacity > before
    decoder.write_rotary(10, *(half[10:] for half in tables(TOKENS)))
    check_row(decoder.extend([int(ids[10])])[0], whole[10])


def test_more_tokens_than_the_cache_holds_are_refused(decoder: DeviceDecoder) -> None:
    decoder.length = decoder.capacity
    with pytest.raises(ValueError, match="1025 tokens do not fit in a cache of 1024"):
        decoder.extend([1])


# What goes over the bus, and where it lies


def test_a_token_is_one_copy_to_the_gpu_and_twelve_bytes_back(decoder: DeviceDecoder, host_device: Any) -> None:
    decoder.extend([5])
    del host_device.copied[:]
    decoder.extend([6])
    # A row of 96 half floats takes 256 bytes, so that what follows is aligned; behind it is the length.
    assert host_device.copied == [256 + 4, 8 + 4]


def test_greedy_decoding_leaves_all_logits_on_the_gpu(model: MedVLM, image_path: Path, host_device: Any) -> None:
    answer = model.ask(image_path, QUESTION, PLAIN, raw=True)
    assert answer.new_tokens > 1
    assert LOGITS_BYTES not in host_device.copied


def test_logits_come_here_where_the_answer_needs_them(model: MedVLM, image_path: Path, host_device: Any) -> None:
    drawn = Decoding(max_new_tokens=6, constrained=False, sampling=Sampling(temperature=1.0))
    answer = model.ask(image_path, QUESTION, drawn)
    assert host_device.copied.count(LOGITS_BYTES) == answer.new_tokens


def test_a_step_is_bound_once_and_captured_under_a_number_of_its_own(
    model: MedVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured under a number is replayed whatever is bound: another cache must have another."""
    numbers: list[int] = []
    made = decoder_module._run_options
    monkeypatch.setattr(decoder_module, "_run_options", lambda graph: numbers.append(graph) or made(graph))
    first, second = model.new_sequence(), model.new_sequence()
    bound: list[int] = []
    for decoder in (first, second):
        assert isinstance(decoder, DeviceDecoder)
        decoder.reserve(10)
        monkeypatch.setattr(decoder, "_bind_step", counting(decoder._bind_step, bound))
        for token_id in range(3):
            decoder.extend([token_id])
    assert bound == [1, 1]
    first.reserve(first.capacity + 1)
    first.extend([1])
    assert bound == [1, 1, 1]
    captured = [number for number in numbers if number != -1]
    assert len(set(captured)) == len(captured)
    assert min(captured) > 0


def counting(bind: Callable[[], Any], calls: list[int]) -> Callable[[], Any]:
    def counted() -> Any:
        calls.append(1)
        return bind()

    return counted


def test_all_memory_is_given_back(cuda_bundle: Path, image_path: Path, host_device: Any) -> None:
    model = MedVLM.load(cuda_bundle, "cuda", threads=1)
    model.ask(image_path, QUESTION, PLAIN)
    assert host_device.held
    del model
    gc.collect()
    assert not host_device.held


def test_memory_stays_the_same_from_question_to_question(model: MedVLM, image_path: Path, host_device: Any) -> None:
    free = []
    for number in range(6):
        model.ask(image_path, f"{number}? {QUESTION}", PLAIN)
        free.append(host_device.memory()[0])
    assert len(set(free[2:])) == 1


# Full memory


def test_full_memory_is_one_line_and_a_smaller_question_is_answered(
    model: MedVLM, image_path: Path, host_device: Any
) -> None:
    model.ask(image_path, QUESTION, PLAIN)
    # As if something else had taken all but a little.
    host_device.total -= host_device.memory()[0] - 40_000
    with pytest.raises(MedVLMError) as error:
        model.ask(image_path, "Why? " * 400 + QUESTION, PLAIN)
    line = str(error.value)
    assert line.startswith("the GPU has no memory for KV cache: 1 MB more are needed, and 0 of ")
    assert line.endswith("MB are free; lower --max-pixels or --max-length")
    assert model.ask(image_path, QUESTION, PLAIN).new_tokens > 1


def test_caches_of_earlier_questions_give_way_to_one_that_needs_their_memory(
    model: MedVLM, image_path: Path, tmp_path: Path, host_device: Any
) -> None:
    others = []
    for number in range(2):
        others.append(tmp_path / f"{number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(others[-1])
        model.ask(others[-1], QUESTION, PLAIN)
    held = host_device.memory()[0]
    # Room for less than the 3072 slots that a long question takes, 256 bytes each; the others have 1024 each.
    host_device.total -= held - 770_000
    answer = model.ask(image_path, "Why? " * 400 + QUESTION, PLAIN)
    assert answer.prompt_tokens > 1024


def test_a_cache_that_does_not_fit_leaves_the_decoder_as_it_was(
    model: MedVLM, decoder: DeviceDecoder, ids: NDArray[np.int64], whole: NDArray[np.float32], host_device: Any
) -> None:
    decoder.prefill(model.embeddings(ids[:9]))
    with pytest.raises(MedVLMError, match="the GPU has no memory for KV cache"):
        decoder.reserve(1 << 30)
    check_row(decoder.extend([int(ids[9])])[0], whole[9])


# What else asks


def test_drawn_tokens_are_those_of_the_same_logits_in_an_array() -> None:
    values = np.random.default_rng(0).normal(size=300).astype(np.float32)
    there = DeviceLogits(int(values.argmax()), float(values.max()), lambda: values)
    for sampling in (Sampling(), Sampling(0.8, top_k=20), Sampling(repetition_penalty=1.3)):
        prompt = np.arange(5)
        here = [Sampler(sampling, prompt)(values, []) for _ in range(5)]
        assert [Sampler(sampling, prompt)(there, []) for _ in range(5)] == here


def test_logits_that_are_no_numbers_are_one_line() -> None:
    there = DeviceLogits(0, float("nan"), lambda: np.full(3, np.nan, np.float32))
    with pytest.raises(MedVLMError, match="the decoder computed NaN instead of numbers"):
        Sampler(Sampling(), np.arange(1))(there, [])


def test_scores_are_those_of_the_whole_sequence(model: MedVLM, image_path: Path) -> None:
    """Teacher forcing, whose calls are of several tokens: each row's likeliest token is what greedy decoding said."""
    request = model.processor.prepare([str(image_path)], QUESTION)
    answer = model.run(request, PLAIN).finish().token_ids
    scores = model.score(request, answer)
    assert scores.shape == (len(answer), TEXT.vocab_size)
    assert tuple(scores.argmax(-1).tolist()) == answer


def test_batches_and_votes_say_what_questions_one_by_one_say(model: MedVLM, image_path: Path) -> None:
    questions = [f"{number}? {QUESTION}" for number in range(3)]
    alone = [model.ask(image_path, question, PLAIN).token_ids for question in questions]
    together = model.ask_batch([(image_path, question) for question in questions], PLAIN)
    assert [answer.token_ids for answer in together] == alone
