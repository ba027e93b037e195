"""What one question leaves behind for the next: prefixes, image features, decoded files, and never a wrong token."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.demo.dataset import Item, make_item
from medvlm.runtime import MedVLM, MedVLMError
from medvlm.runtime import decoded as decoded_module
from medvlm.runtime import images as images_module
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.device_decoder import AnyDecoder
from medvlm.runtime.manifest import TextDims
from medvlm.runtime.prefix import Contents, ImageSpan, PrefixCache, find_spans
from medvlm.runtime.result import Answer
from medvlm.runtime.stream import Clock, Progress
from medvlm.runtime.vision import VisionEncoder
from numpy.typing import NDArray
from PIL import Image

IMAGE = 9
QUESTION = "Which is it?\nA) MRI\nB) CT\nC) X-ray"
OTHER = "Is the scan abnormal?\nA) Yes\nB) No"

# A prompt as a list of what stands in it: a number is a token, and a text is an image of as many tokens as characters.
Prompt = list[int | str]


def contents(prompt: Sequence[int | str]) -> Contents:
    ids = [token for piece in prompt for token in ([piece] if isinstance(piece, int) else [IMAGE] * len(piece))]
    pictures = [(piece, len(piece)) for piece in prompt if isinstance(piece, str)]
    return Contents(np.array(ids, np.int64), find_spans(np.array(ids, np.int64), IMAGE, pictures))


def slots(prompt: Sequence[int | str]) -> list[object]:
    """What each slot holds: a token, or a place in an image, which is the same only where the whole image is."""
    return [
        slot
        for piece in prompt
        for slot in ([piece] if isinstance(piece, int) else [(piece, place) for place in range(len(piece))])
    ]


# Few tokens and images, so that beginnings are often shared; "aab" and "aaa" have equally many tokens.
PROMPTS = st.lists(st.sampled_from([1, 2, 3, "aab", "aaa", "bb", "c"]), max_size=8)


# Contents


@given(PROMPTS, PROMPTS, PROMPTS)
def test_common_prefix_is_that_of_slot_by_slot(beginning: Prompt, mine: Prompt, theirs: Prompt) -> None:
    first, second = [*beginning, *mine], [*beginning, *theirs]
    pairs = list(zip(slots(first), slots(second), strict=False))
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    found = contents(first).common_prefix(contents(second))
    assert found == contents(second).common_prefix(contents(first))
    assert found == common >= len(slots(beginning))


@pytest.mark.parametrize(
    ("mine", "theirs", "common"),
    [
        ([1, "aab", 2, 3], [1, "aab", 2, 4], 5),
        ([1, "aab", 2, 3], [1, "aaa", 2, 3], 1),
        ([1, "aab", 2, "bb", 3], [1, "aab", 2, "cc", 3], 5),
        ([1, "aab"], [1, "aab", 2], 4),
        ([1, "aab", 2], [1, "aaba", 2], 1),
        (["aab", 1], ["aab", 1], 4),
        ([1, "aab"], [2, "aab"], 0),
        ([], [1], 0),
        ([1, 2], [1, 2], 2),
        # The same tokens, one image or two.
        (["aab", "bb"], ["aabbb"], 0),
    ],
)
def test_other_image_under_the_same_tokens_ends_the_prefix(mine: Prompt, theirs: Prompt, common: int) -> None:
    assert contents(mine).common_prefix(contents(theirs)) == common
    assert contents(theirs).common_prefix(contents(mine)) == common


@given(PROMPTS)
def test_spans_lie_where_the_image_tokens_are(prompt: Prompt) -> None:
    held = contents(prompt)
    for span, text in zip(held.images, [piece for piece in prompt if isinstance(piece, str)], strict=True):
        assert span.digest == text
        assert span.end - span.start == len(text)
        assert slots(prompt)[span.start : span.end] == [(text, place) for place in range(len(text))]


def test_spans_of_no_image_are_none() -> None:
    assert find_spans(np.array([1, 2], np.int64), IMAGE, []) == ()
    assert find_spans(np.array([IMAGE, 1, IMAGE, IMAGE]), IMAGE, [("a", 1), ("b", 2)]) == (
        ImageSpan("a", 0, 1),
        ImageSpan("b", 2, 4),
    )


# PrefixCache, over decoders that are never run


@pytest.fixture(scope="module")
def make_decoder(tiny_bundle: Path) -> Callable[[], AnyDecoder]:
    model = MedVLM.load(tiny_bundle, threads=1)
    return model.new_sequence


@pytest.fixture(scope="module")
def dims(tiny_bundle: Path) -> TextDims:
    return MedVLM.load(tiny_bundle, threads=1).manifest.text


@pytest.fixture
def new_cache(make_decoder: Callable[[], Decoder], dims: TextDims) -> Callable[[int], PrefixCache]:
    """A cache that has room for some sequences of up to 256 slots."""
    return lambda sequences: PrefixCache(
        sequences * 256 * dims.kv_bytes_per_token, dims.kv_bytes_per_token, make_decoder
    )


NewCache = Callable[[int], PrefixCache]


def test_sequence_goes_on_where_the_same_image_ends(new_cache: NewCache) -> None:
    cache = new_cache(3)
    first = cache.sequence(contents([1, "aab", 2, 3]), 10)
    assert first.length == 0
    again = cache.sequence(contents([1, "aab", 2, 4, 5]), 10)
    assert again is first
    assert again.length == 5


def test_last_token_is_always_run_again(new_cache: NewCache) -> None:
    cache = new_cache(3)
    prompt = contents([1, "aab", 2, 3])
    first = cache.sequence(prompt, 10)
    assert cache.sequence(prompt, 10) is first
    assert first.length == len(prompt.token_ids) - 1
    shorter = cache.sequence(contents([1, "aab", 2]), 10)
    assert shorter is first
    assert shorter.length == 4
    # What was held beyond counts as lost.
    assert cache.sequence(contents([1, "aab", 2, 3, 4]), 10).length == 5


def test_other_image_gets_a_sequence_of_its_own_while_there_is_room(new_cache: NewCache) -> None:
    cache = new_cache(2)
    first = cache.sequence(contents([1, "aab", 2]), 10)
    second = cache.sequence(contents([1, "aaa", 2]), 10)
    assert second is not first
    assert second.length == 0
    assert cache.sequence(contents([1, "aab", 3]), 10) is first
    assert first.length == 4
    assert cache.sequence(contents([1, "aaa", 3]), 10) is second


def test_least_recently_used_sequence_makes_room(new_cache: NewCache) -> None:
    cache = new_cache(2)
    a, b = (cache.sequence(contents([1, image, 2]), 10) for image in ("aab", "bb"))
    assert cache.sequence(contents([1, "aab", 3]), 10) is a
    # b is the older one now, and its memory is c's from here on.
    assert cache.sequence(contents([1, "c", 2]), 10) is b
    assert cache.sequence(contents([1, "aab", 4]), 10) is a
    assert a.length == 4
    assert cache.sequence(contents([1, "bb", 3]), 10) is b
    assert b.length == 1, "nothing of its first image is left"


def test_question_without_an_image_goes_on_from_any_beginning(new_cache: NewCache) -> None:
    cache = new_cache(2)
    first = cache.sequence(contents([1, 2, 3]), 10)
    assert cache.sequence(contents([1, 2, 4]), 10) is first
    assert first.length == 2


@given(st.lists(st.tuples(PROMPTS.filter(bool), st.integers(1, 700)), max_size=8), st.integers(0, 4))
def test_budget_is_exceeded_by_the_sequence_at_work_alone(
    make_decoder: Callable[[], Decoder], dims: TextDims, asked: list[tuple[Prompt, int]], room: int
) -> None:
    budget = room * 256 * dims.kv_bytes_per_token
    cache = PrefixCache(budget, dims.kv_bytes_per_token, make_decoder)
    for prompt, answer in asked:
        wanted = contents(prompt)
        decoder = cache.sequence(wanted, len(wanted.token_ids) + answer)
        assert decoder.capacity >= len(wanted.token_ids) + answer
        assert decoder.length < len(wanted.token_ids)
        for span in wanted.images:
            cache.features(span.digest, lambda: np.ones((40, 96), np.float32))
        others = cache.nbytes - decoder.nbytes
        assert cache.nbytes <= budget or others == 0


def test_budget_of_nothing_reuses_nothing(new_cache: NewCache) -> None:
    cache = new_cache(0)
    prompt = contents([1, "aab", 2, 3])
    calls: list[int] = []

    def encode() -> NDArray[np.float32]:
        calls.append(1)
        return np.ones((3, 96), np.float32)

    for _ in range(3):
        assert cache.sequence(prompt, 10).length == 0
        cache.features("aab", encode)
    assert len(calls) == 3
    assert cache.nbytes == cache.sequence(prompt, 10).nbytes


def test_forgotten_sequence_holds_nothing(new_cache: NewCache) -> None:
    cache = new_cache(2)
    prompt = contents([1, "aab", 2, 3])
    first = cache.sequence(prompt, 10)
    kept = cache.sequence(contents([1, "bb", 2]), 10)
    cache.forget(first)
    assert cache.sequence(prompt, 10).length == 0
    cache.forget(cache.sequence(prompt, 10))
    # The others are left alone.
    assert cache.sequence(contents([1, "bb", 3]), 10) is kept
    assert kept.length == 3


def test_features_are_encoded_once_and_the_oldest_make_room(new_cache: NewCache) -> None:
    cache = new_cache(1)
    size = cache.budget // 3
    calls: list[str] = []

    def features(digest: str) -> None:
        cache.features(digest, lambda: (calls.append(digest), np.ones(size // 4, np.float32))[1])

    for digest in ("a", "b", "c", "a", "d"):
        features(digest)
    assert calls == ["a", "b", "c", "d"]
    assert cache.nbytes <= cache.budget
    # b was used least recently.
    features("a")
    features("c")
    assert calls == ["a", "b", "c", "d"]
    features("b")
    assert calls[-1] == "b"


# Decoder.reserve


@pytest.fixture
def decoder(tiny_bundle: Path) -> Decoder:
    sequence = MedVLM.load(tiny_bundle, threads=1).new_sequence()
    assert isinstance(sequence, Decoder)
    return sequence


def rotary(rng: np.random.Generator, rows: int, dims: TextDims) -> NDArray[np.float32]:
    angles = rng.uniform(0, 6, (rows, dims.head_size // 2))
    return angles.astype(np.float32)


def test_reserve_keeps_what_is_filled(decoder: Decoder, dims: TextDims) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((60, dims.hidden_size), np.float32)
    angles = rotary(rng, 600, dims)
    decoder.reserve(62)
    small = decoder.capacity
    decoder.write_rotary(0, np.cos(angles[:62]), np.sin(angles[:62]))
    decoder.prefill(embeddings)
    expected = [decoder.extend([token])[0].copy() for token in (65, 66)]
    decoder.rewind(1)
    decoder.reserve(600)
    assert decoder.capacity >= 600 > small
    assert decoder.length == 61
    decoder.write_rotary(61, np.cos(angles[61:]), np.sin(angles[61:]))
    np.testing.assert_array_equal(decoder.extend([66])[0], expected[1])
    # The rotary rows of what is filled are kept too.
    decoder.rewind(2)
    np.testing.assert_array_equal(decoder.extend([65])[0], expected[0])


def test_reserve_of_less_changes_nothing(decoder: Decoder) -> None:
    decoder.reserve(10)
    capacity, size = decoder.capacity, decoder.nbytes
    decoder.reserve(3)
    assert (decoder.capacity, decoder.nbytes) == (capacity, size)


def test_tokens_beyond_the_capacity_are_refused(decoder: Decoder, dims: TextDims) -> None:
    decoder.reserve(1)
    tokens = decoder.capacity + 1
    with pytest.raises(ValueError, match=f"{tokens} tokens do not fit"):
        decoder.prefill(np.zeros((tokens, dims.hidden_size), np.float32))


def test_what_lies_beyond_the_length_is_never_read(tiny_bundle: Path, image_path: Path) -> None:
    """New memory may hold anything, NaN too."""
    plain = MedVLM.load(tiny_bundle, threads=1)
    poisoned = MedVLM.load(tiny_bundle, threads=1)
    make = poisoned.prefill.prefixes._make_decoder

    class Poisoned(Decoder):
        def _allocate(self, capacity: int) -> None:
            super()._allocate(capacity)
            for array in (self._cache, self._cos, self._sin):
                array.fill(np.nan)

    def make_poisoned() -> Decoder:
        sound = make()
        assert isinstance(sound, Decoder)
        return Poisoned(sound._sessions, sound._embeddings, sound._dims)

    poisoned.prefill.prefixes._make_decoder = make_poisoned
    for question in (QUESTION, "Why?", OTHER):
        asked = [model.ask(image_path, question, Decoding(30)) for model in (plain, poisoned)]
        assert asked[0].token_ids == asked[1].token_ids


# End to end


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of patches of each image that the vision encoder reads."""
    calls: list[int] = []
    encode = VisionEncoder.encode
    monkeypatch.setattr(
        VisionEncoder, "encode", lambda self, patches: calls.append(len(patches.pixel_values)) or encode(self, patches)
    )
    return calls


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each file that is decoded."""
    names: list[str] = []
    decode = images_module.decode_image
    monkeypatch.setattr(
        decoded_module, "decode_image", lambda content, name, view: names.append(name) or decode(content, name, view)
    )
    return names


@pytest.fixture
def model(demo_bundle: Path) -> MedVLM:
    return MedVLM.load(demo_bundle, threads=1)


@pytest.fixture(scope="module")
def forgetful(demo_bundle: Path) -> MedVLM:
    """The same model, which keeps nothing."""
    return MedVLM.load(demo_bundle, threads=1, prefix_mb=0)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.png"
    make_item("test", 0).image.save(path)
    return path


def image_start(model: MedVLM) -> int:
    """The slot of the first image token."""
    tokenizer, prompt = model.processor.tokenizer, model.manifest.prompt
    before, _, _ = prompt.image.partition(tokenizer.id_to_token(model.manifest.image_token_id) or "")
    return len(tokenizer.encode(prompt.prefix + before).ids)


def image_end(model: MedVLM, answer: Answer) -> int:
    """The slot after the last image token of a prompt with one image."""
    return image_start(model) + answer.visual_tokens


def test_second_question_on_the_same_image_skips_the_vision_encoder(
    model: MedVLM, scan: Path, encoded: list[int], decoded: list[str]
) -> None:
    first = model.ask(scan, QUESTION)
    assert (first.cached_tokens, len(encoded), len(decoded)) == (0, 1, 1)
    second = model.ask(scan, OTHER)
    assert image_end(model, second) <= second.cached_tokens < second.prompt_tokens
    assert (len(encoded), len(decoded)) == (1, 1)
    again = model.ask(scan, OTHER)
    assert again.cached_tokens == again.prompt_tokens - 1
    assert again.token_ids == second.token_ids


def test_model_that_keeps_nothing_reads_everything_again(forgetful: MedVLM, scan: Path, encoded: list[int]) -> None:
    for count in (1, 2, 3):
        assert forgetful.ask(scan, QUESTION).cached_tokens == 0
        assert len(encoded) == count


def pairs(items: list[Item]) -> list[tuple[Item, tuple[str, str]]]:
    """Items, and two questions about the image of each: its own, and the next one's."""
    return [(item, (item.question.problem, following.question.problem)) for item, following in pairwise(items)]


def test_40_questions_asked_in_pairs_get_exactly_the_tokens_of_a_model_that_keeps_nothing(
    model: MedVLM, forgetful: MedVLM, encoded: list[int], demo_items: list[Item]
) -> None:
    for item, questions in pairs(demo_items[:21]):
        answers = [model.ask(item.image, question) for question in questions]
        assert answers[1].cached_tokens >= image_end(model, answers[1])
        encoded.clear()
        expected = [forgetful.ask(item.image, question) for question in questions]
        assert len(encoded) == 2
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer.token_ids == wanted.token_ids
            # Logits may differ in their last bits: the rest of a prompt is a product of fewer rows.
            assert answer.options == pytest.approx(wanted.options, abs=1e-3)


def test_going_back_to_an_earlier_image_is_remembered(model: MedVLM, forgetful: MedVLM, encoded: list[int]) -> None:
    scans = [make_item("test", index).image for index in range(3)]
    for image in scans:
        model.ask(image, QUESTION)
    assert len(encoded) == 3
    for image in scans:
        answer = model.ask(image, OTHER)
        assert answer.cached_tokens >= image_end(model, answer)
        assert len(encoded) == 3
    encoded.clear()
    assert [model.ask(image, OTHER).token_ids for image in scans] == [
        forgetful.ask(image, OTHER).token_ids for image in scans
    ]


def test_prompt_may_go_on_from_the_middle_of_an_image(model: MedVLM, scan: Path) -> None:
    request = model.processor.prepare([scan, Image.new("L", (56, 84), 30)], QUESTION)
    whole = model.prefill.embed(request, 0, Progress(Clock()))
    for start in range(len(request.token_ids)):
        np.testing.assert_array_equal(model.prefill.embed(request, start, Progress(Clock())), whole[start:])


def test_features_serve_an_image_at_another_place(model: MedVLM, forgetful: MedVLM, encoded: list[int]) -> None:
    """Of two images swapped no prefix is left, but their features are."""
    first, second = (make_item("test", index).image for index in (0, 1))
    model.ask([first, second], QUESTION)
    assert len(encoded) == 2
    swapped = model.ask([second, first], QUESTION)
    assert len(encoded) == 2
    assert swapped.token_ids == forgetful.ask([second, first], QUESTION).token_ids
    one_more = model.ask([second, first, second], QUESTION)
    assert one_more.token_ids == forgetful.ask([second, first, second], QUESTION).token_ids


def test_same_file_under_another_name_is_recognized(
    model: MedVLM, scan: Path, tmp_path: Path, encoded: list[int]
) -> None:
    copy = Path(shutil.copy(scan, tmp_path / "copy.png"))
    model.ask(scan, QUESTION)
    for other in (copy, scan.read_bytes(), Image.open(scan), np.asarray(Image.open(scan))):
        answer = model.ask(other, OTHER)
        assert answer.cached_tokens >= image_end(model, answer)
    assert len(encoded) == 1


def test_file_whose_content_changed_is_not_mistaken(
    model: MedVLM, forgetful: MedVLM, scan: Path, encoded: list[int]
) -> None:
    before = model.ask(scan, QUESTION)
    with Image.open(scan) as image:
        pixels = np.asarray(image).copy()
    pixels[100, 100] ^= 1
    Image.fromarray(pixels).save(scan)
    after = model.ask(scan, QUESTION)
    assert len(encoded) == 2
    assert after.cached_tokens <= image_start(model)
    make_item("test", 3).image.save(scan)
    assert model.ask(scan, QUESTION).token_ids == forgetful.ask(scan, QUESTION).token_ids
    assert before.prompt_tokens == after.prompt_tokens


def test_other_pixel_limits_are_not_mistaken(model: MedVLM, forgetful: MedVLM, scan: Path, encoded: list[int]) -> None:
    whole = model.ask(scan, QUESTION)
    small = model.ask(scan, QUESTION, max_pixels=25 * 784)
    assert small.visual_tokens < whole.visual_tokens
    assert small.cached_tokens <= image_start(model)
    large = model.ask(scan, QUESTION, min_pixels=400 * 784, max_pixels=500 * 784)
    assert large.visual_tokens > whole.visual_tokens
    assert len(encoded) == 3
    assert small.token_ids == forgetful.ask(scan, QUESTION, max_pixels=25 * 784).token_ids
    # Limits that change no size are the same image.
    encoded.clear()
    assert model.ask(scan, OTHER, max_pixels=10**6).cached_tokens >= image_end(model, whole)
    assert encoded == []


def test_two_images_of_one_size_and_different_pixels_are_not_mistaken(model: MedVLM, forgetful: MedVLM) -> None:
    for shade in (0, 1, 255, 0):
        image = Image.new("L", (224, 224), shade)
        assert model.ask(image, QUESTION).token_ids == forgetful.ask(image, QUESTION).token_ids


def test_image_turned_on_its_side_is_not_mistaken(model: MedVLM, encoded: list[int]) -> None:
    """Of one colour, so that the bytes of its pixels are the same."""
    model.ask(Image.new("L", (112, 224), 50), QUESTION)
    model.ask(Image.new("L", (224, 112), 50), QUESTION)
    assert len(encoded) == 2


def test_decoded_files_are_kept_within_a_bound(
    model: MedVLM, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded_module, "_MOST_BYTES", 2 * 100 * 100 * 3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("L", (100, 100), i).save(path)
        model.processor.prepare([path], QUESTION)
    model.processor.prepare([paths[1], paths[2]], QUESTION)
    assert [Path(name).name for name in decoded] == ["0.png", "1.png", "2.png"]
    model.processor.prepare([paths[0]], QUESTION)
    assert len(decoded) == 4
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    for _ in range(2):
        model.processor.prepare([tmp_path / "large.png"], QUESTION)
    assert len(decoded) == 6, "what is larger than the bound is not kept"


def test_failed_prefill_leaves_nothing_to_be_taken_for_a_prefix(
    model: MedVLM, forgetful: MedVLM, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.ask(scan, QUESTION)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "prefill", fail)
        with pytest.raises(MedVLMError, match="no memory"):
            model.ask(scan, OTHER)
    after = model.ask(scan, OTHER)
    assert after.cached_tokens == 0
    assert after.token_ids == forgetful.ask(scan, OTHER).token_ids


def test_stream_left_in_the_middle_does_not_harm_the_next_question(
    model: MedVLM, forgetful: MedVLM, scan: Path
) -> None:
    expected = [forgetful.ask(scan, question).token_ids for question in (QUESTION, OTHER)]
    for read in (0, 1, 5):
        stream = model.stream(scan, QUESTION)
        for _ in range(read):
            next(stream)
        assert [model.ask(scan, question).token_ids for question in (QUESTION, OTHER)] == expected


def test_longer_answer_makes_the_cache_larger_and_changes_no_token(
    model: MedVLM, forgetful: MedVLM, scan: Path
) -> None:
    question = "Describe what you see."
    short = model.ask(scan, question, Decoding(4, constrained=False))
    long = model.ask(scan, question, Decoding(700, constrained=False))
    assert long.token_ids == forgetful.ask(scan, question, Decoding(700, constrained=False)).token_ids
    assert long.token_ids[:4] == short.token_ids


def test_bad_budget_is_refused(demo_bundle: Path) -> None:
    with pytest.raises(MedVLMError, match="prefix_mb is -1; give 0 or more"):
        MedVLM.load(demo_bundle, prefix_mb=-1)


def test_digest_covers_pixels_size_and_grid(model: MedVLM) -> None:
    image = Image.new("L", (56, 84), 7)
    (picture,) = model.processor.prepare([image], QUESTION).images
    by_hand = hashlib.sha256(repr(((56, 84), picture.grid)).encode() + b"\7" * (56 * 84 * 3)).hexdigest()
    assert picture.digest == by_hand
    assert picture.grid == (3, 2)


@pytest.mark.parametrize("capacity", [1 << 40, 1 << 60])
def test_cache_that_no_memory_holds_is_one_line_and_leaves_the_decoder_as_it_was(
    decoder: Decoder, capacity: int
) -> None:
    decoder.reserve(10)
    before = decoder.capacity
    with pytest.raises(MedVLMError, match="GB of KV cache; lower") as error:
        decoder.reserve(capacity)
    assert "\n" not in str(error.value)
    assert decoder.capacity == before
