"""Decoding over a made-up model: what ends it, which text comes when, and that drafts change nothing."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from medvlm.demo.random_checkpoint import make_tokenizer
from medvlm.runtime import MedVLMError
from medvlm.runtime.detokenize import TextStream
from medvlm.runtime.generate import Limits, Token, generate, generate_alone
from medvlm.runtime.logits import Logits
from medvlm.runtime.lookup import PromptLookup
from medvlm.runtime.sampling import most_likely
from numpy.typing import NDArray
from tokenizers import Tokenizer

# One token a byte, and six special tokens after the 256.
BYTES = make_tokenizer()
END = 258
# As many again as no token stands for: padding of the embedding table.
VOCABULARY = 524


def ids_of(data: str | bytes) -> list[int]:
    """The tokens of `data`, one a byte: byte-level vocabularies write what does not print as letters from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    text = data.encode() if isinstance(data, str) else data
    vocabulary = BYTES.get_vocab()
    return [vocabulary[symbols[byte]] for byte in text]


def one_hot(token_id: int) -> NDArray[np.float32]:
    return np.eye(VOCABULARY, dtype=np.float32)[token_id]


class Script:
    """A model that says `ids` whatever happens, and remembers what it was given."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.steps: list[int] = []
        self.calls = 0

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.calls += 1
        said = len(self.steps)
        self.steps += token_ids
        return np.stack([one_hot(self.ids[min(i, len(self.ids) - 1)]) for i in range(said + 1, len(self.steps) + 1)])

    def rewind(self, tokens: int) -> None:
        assert 0 <= tokens <= len(self.steps)
        del self.steps[len(self.steps) - tokens :]

    def run(
        self,
        max_new_tokens: int = 100,
        free_slots: int = 1000,
        tokenizer: Tokenizer = BYTES,
        lookup: PromptLookup | None = None,
    ) -> list[Token]:
        limits = Limits((END, 256), max_new_tokens, free_slots)
        first = one_hot(self.ids[0])
        generation = generate(first, likeliest, tokenizer=tokenizer, limits=limits, lookup=lookup)
        return list(generate_alone(generation, self))


def likeliest(logits: Logits, new_ids: Sequence[int]) -> int:
    return most_likely(np.asarray(logits))


def reasons(tokens: Sequence[Token]) -> set[str | None]:
    """The reasons of all tokens but the last, which alone may have one."""
    return {token.finish_reason for token in tokens[:-1]}


@pytest.mark.parametrize("end", [END, 256])
def test_any_end_token_ends_it_and_adds_no_text(end: int) -> None:
    script = Script([*ids_of("ab"), end])
    tokens = script.run()
    assert [token.id for token in tokens] == [*ids_of("ab"), end]
    assert [token.text for token in tokens] == ["a", "b", ""]
    assert tokens[-1].finish_reason == "end"
    assert reasons(tokens) == {None}
    assert script.steps == ids_of("ab")


def test_first_token_may_be_the_end() -> None:
    script = Script([END])
    assert script.run() == [Token(END, "", "end")]
    assert script.steps == []


def test_closed_answer_ends_it_though_its_tag_is_many_tokens() -> None:
    script = Script(ids_of("<answer>B</answer> and more"))
    tokens = script.run()
    assert "".join(token.text for token in tokens) == "<answer>B</answer>"
    assert tokens[-1].finish_reason == "answer"
    assert reasons(tokens) == {None}


def test_closed_answer_within_one_longer_token_ends_it() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["B</answer>, for certain"])
    script = Script([*ids_of("<answer>"), tokenizer.get_vocab()["B</answer>, for certain"], END])
    tokens = script.run(tokenizer=tokenizer)
    assert tokens[-1].finish_reason == "answer"
    assert tokens[-1].text == "B</answer>, for certain"


@pytest.mark.parametrize("text", ["</answer >", "</ answer>", "<answer>", "</answe r>", "</Answer>", "/answer>"])
def test_what_is_no_closing_tag_does_not_end_it(text: str) -> None:
    assert Script([*ids_of(text), END]).run()[-1].finish_reason == "end"


def test_max_new_tokens_ends_it_without_another_step() -> None:
    script = Script(ids_of("abcdef"))
    tokens = script.run(max_new_tokens=3)
    assert [token.text for token in tokens] == ["a", "b", "c"]
    assert tokens[-1].finish_reason == "length"
    assert script.steps == ids_of("ab")


def test_full_cache_ends_it_and_the_last_token_takes_no_slot() -> None:
    script = Script(ids_of("abcdef"))
    tokens = script.run(free_slots=2)
    assert [token.text for token in tokens] == ["a", "b", "c"]
    assert tokens[-1].finish_reason == "context"
    assert script.steps == ids_of("ab")


def test_full_cache_still_gives_the_token_after_the_prompt() -> None:
    assert Script(ids_of("a")).run(free_slots=0) == [Token(ids_of("a")[0], "a", "context")]


@pytest.mark.parametrize(
    ("ids", "limit", "slots", "reason"),
    [
        ([*ids_of("ab"), END], 3, 2, "end"),
        (ids_of("</answer>"), 9, 8, "answer"),
        (ids_of("abc"), 3, 2, "length"),
        (ids_of("abc"), 4, 2, "context"),
    ],
)
def test_model_s_own_end_goes_before_a_limit(ids: list[int], limit: int, slots: int, reason: str) -> None:
    assert Script(ids).run(limit, slots)[-1].finish_reason == reason


def test_characters_of_several_tokens_come_whole() -> None:
    tokens = Script([*ids_of("a€😀é"), END]).run()
    assert [token.text for token in tokens] == ["a", "", "", "€", "", "", "", "😀", "", "é", ""]


def test_character_that_is_never_finished_is_shown_at_the_end() -> None:
    tokens = Script([*ids_of(b"a\xe2\x82"), END]).run()
    assert [token.text for token in tokens][:3] == ["a", "", ""]
    assert "".join(token.text for token in tokens) == "a\ufffd"


@pytest.mark.parametrize("limit", [2, 3])
def test_character_cut_by_a_limit_is_shown_at_the_end(limit: int) -> None:
    tokens = Script(ids_of("a€b")).run(max_new_tokens=limit)
    assert "".join(token.text for token in tokens) == "a\ufffd"


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40))
@example([*ids_of(b"\xe2\x82\xe2\x82\xac\xff\xf0"), 400, *ids_of("</answer>")])
def test_pieces_add_up_to_the_decoding_of_all_ids(ids: list[int]) -> None:
    tokens = Script([*ids, END]).run()
    said = [token.id for token in tokens]
    assert said == [*ids, END][: len(said)]
    assert "".join(token.text for token in tokens) == BYTES.decode(said)
    assert tokens[-1].finish_reason in ("end", "answer")


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), st.data())
def test_stream_of_text_forgets_nothing_when_flushed_anywhere(ids: list[int], data: st.DataObject) -> None:
    stream = TextStream(BYTES)
    cut = data.draw(st.integers(0, len(ids)))
    first = "".join(map(stream.feed, ids[:cut])) + stream.flush()
    second = "".join(map(stream.feed, ids[cut:])) + stream.flush()
    assert first == BYTES.decode(ids[:cut])
    assert second == BYTES.decode(ids[cut:])
    assert stream.flush() == ""


@given(st.text(max_size=30))
def test_text_is_streamed_as_it_was_said(text: str) -> None:
    tokens = Script([*ids_of(text), END]).run(max_new_tokens=200)
    assert "".join(token.text for token in tokens) == text


def test_byte_table_is_the_tokenizer_s() -> None:
    assert ids_of("Aé€😀 \n") == BYTES.encode("Aé€😀 \n").ids


def test_most_likely_token_is_taken_and_of_equals_the_first() -> None:
    logits = np.full(VOCABULARY, -5, np.float32)
    logits[[ids_of("b")[0], ids_of("c")[0]]] = -1
    (token,) = generate_alone(generate(logits, likeliest, tokenizer=BYTES, limits=Limits((), 1, 9)), Script([]))
    assert token.text == "b"


@pytest.mark.parametrize("step", [0, 2])
def test_logits_that_are_no_numbers_are_a_failure(step: int) -> None:
    """An answer picked from NaN would look like any other."""

    class Broken(Script):
        def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
            logits = super().extend(token_ids)
            if len(self.steps) == step:
                logits[:, -1] = np.nan
            return logits

    script = Broken(ids_of("abc"))
    first = one_hot(script.ids[0])
    if step == 0:
        first[-1] = np.nan
    tokens = generate_alone(generate(first, likeliest, tokenizer=BYTES, limits=Limits((), 3, 9)), script)
    assert [next(tokens).text for _ in range(step)] == ["a", "b"][:step]
    with pytest.raises(MedVLMError, match="NaN"):
        next(tokens)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_end_ids_may_be_any_collection(kind: Callable[[list[int]], list[int]]) -> None:
    limits = Limits(kind([END]), 9, 9)
    tokens = generate_alone(generate(one_hot(END), likeliest, tokenizer=BYTES, limits=limits), Script([]))
    assert next(tokens).finish_reason == "end"


REPEATING = "the option that fits is the option that fits is the option that fits is not that option"


@pytest.mark.parametrize("text", [REPEATING, "nothing in here comes twice: xyz", "abababababababababab", "a"])
@pytest.mark.parametrize("max_draft", range(8))
def test_drafts_change_no_token(text: str, max_draft: int) -> None:
    plain = Script([*ids_of(text), END])
    expected = plain.run()
    drafted = Script([*ids_of(text), END])
    lookup = PromptLookup(ids_of("which option fits"), max_draft)
    assert drafted.run(lookup=lookup) == expected
    assert drafted.steps[: len(plain.steps)] == plain.steps, "what was drafted in vain is taken back"
    # What a draft holds beyond the end stays: nothing is read after it.
    assert len(drafted.steps) <= len(plain.steps) + max_draft
    if max_draft and text == REPEATING:
        assert lookup.accepted > 0
        assert drafted.calls < plain.calls


@given(st.text("ab", max_size=40), st.integers(1, 40), st.integers(0, 40), st.integers(1, 7))
def test_drafts_respect_every_limit(text: str, limit: int, slots: int, max_draft: int) -> None:
    expected = Script([*ids_of(text), END]).run(limit, slots)
    drafted = Script([*ids_of(text), END])
    full: list[int] = []
    extend = drafted.extend

    def watched(token_ids: Sequence[int]) -> NDArray[np.float32]:
        logits = extend(token_ids)
        full.append(len(drafted.steps))
        return logits

    drafted.extend = watched  # type: ignore[method-assign]
    assert drafted.run(limit, slots, lookup=PromptLookup(ids_of("abab"), max_draft)) == expected
    assert max(full, default=0) <= slots, "the cache holds no more"
