"""Answers that always parse, over scripted choices: no model, three vocabularies."""

import re
from collections.abc import Sequence
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.demo.random_checkpoint import make_tokenizer
from medvlm.runtime.answer import parse_answer
from medvlm.runtime.constrain import MAX_BLANKS, MAX_ENDING, AnswerForm
from medvlm.runtime.detokenize import TextStream
from numpy.typing import NDArray
from tokenizers import Tokenizer

BYTES = make_tokenizer()
DEMO = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
LETTERS = "ABCD"
END = "<|im_end|>"
STRICT = re.compile(r"<answer>\s*([A-D])\s*</answer>")
UNLIMITED = 10_000


@pytest.fixture(params=["bytes", "demo", "qwen"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return {"bytes": BYTES, "demo": DEMO}.get(request.param) or request.getfixturevalue("qwen")


def token(tokenizer: Tokenizer, piece: str) -> int | None:
    """The one token that is `piece`, if there is one."""
    return tokenizer.token_to_id(piece.replace(" ", "Ġ").replace("\n", "Ċ").replace("\t", "ĉ"))


def spell(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    """One token for each piece that is one; other pieces as the tokenizer writes them."""
    ids: list[int] = []
    for piece in pieces:
        one = token(tokenizer, piece)
        ids += tokenizer.encode(piece).ids if one is None else [one]
    return ids


def make_form(tokenizer: Tokenizer, budget: int = UNLIMITED, letters: Sequence[str] = LETTERS) -> AnswerForm:
    return AnswerForm(tokenizer, letters, spell(tokenizer, END), budget)


def prefer_b(tokenizer: Tokenizer) -> NDArray[np.float32]:
    logits = np.zeros(tokenizer.get_vocab_size() + 9, np.float32)
    logits[[one for piece in (">B", "B", " B") if (one := token(tokenizer, piece)) is not None]] = 3
    return logits


def write(tokenizer: Tokenizer, form: AnswerForm, plain: Sequence[int], limit: int) -> list[int]:
    """What `form` makes of a model that chooses `plain` whatever was said before, then its end token for ever."""
    logits, stream, text = prefer_b(tokenizer), TextStream(tokenizer), ""
    ids: list[int] = []
    for choice in chain(plain, repeat(*spell(tokenizer, END))):
        ids.append(form.choose(logits, choice))
        assert form.forced[:1] in ([], ids[-1:])
        new = stream.feed(ids[-1])
        form.accept(ids[-1], new)
        text += new
        if "</answer>" in text:
            break
        assert len(ids) < limit
    assert tokenizer.decode(ids) == text
    return ids


def complete(tokenizer: Tokenizer, plain: Sequence[int], budget: int = UNLIMITED) -> str:
    """The text of `write`, after checks that hold for every one."""
    ids = write(tokenizer, make_form(tokenizer, budget), plain, min(budget, len(plain)) + MAX_ENDING)
    text = tokenizer.decode(ids)
    assert parse_answer(text, dict.fromkeys(LETTERS, "text")).strict_choice in list(LETTERS)
    assert len(STRICT.findall(text)) == 1
    return text


WELL_FORMED = [
    ["<think>\nIt is bright.</think>\n\n<answer>A</answer>"],
    ["<think>", "x", "</", "think", ">\n\n", "<answer", ">", "A", "</answer>"],
    ["<think>", "x", "</", "think", ">\n\n", "<answer", ">A", "</", "answer", ">"],
    ["<think>", "x", ".</", "think", ">", "\n", "<answer", ">", " A", " ", "</", "answer", ">"],
    ["<think>", "x", "</think>", " ", " <", "answer", ">", " A", " </", "answer", ">"],
    ["<think>", "x", "</think>", "<answer", ">\n", "A", "\n", "</answer>"],
    ["<think>", "x", "</think>", "<answer", ">", "\n", "\tA", "\n\n", "</answer>"],
    ["<think>", "x", "<answer", ">D", "</answer>"],
    ["x", "<answer", ">", "D", "</answer>"],
    ["<think>", "the <answer", " key is <an", " </ think", "</", "think", ">", "<answer", ">A", "</answer>"],
    ["<think>", "</think>", *repeat("\n", MAX_BLANKS), "<answer", ">A", "</answer>"],
    ["<think>", "é€😀", "<|image_pad|>", "</think>", "<answer", ">A", "</answer>"],
]


@pytest.mark.parametrize("pieces", WELL_FORMED, ids="|".join)
def test_well_formed_text_passes_token_by_token(tokenizer: Tokenizer, pieces: list[str]) -> None:
    plain = spell(tokenizer, *pieces)
    assert write(tokenizer, make_form(tokenizer), plain, UNLIMITED) == plain


@pytest.mark.parametrize(
    ("before", "letter", "after"),
    [
        ("<answer", ">A", "</answer>"),
        ("<answer", ">\nA</", "answer>"),
        ("<answer", ">A </answer>", ""),
        ("<answer>", " A", "</answer>"),
        ("<answer>", "A<", "/answer>"),
        ("<answer>", "A</", "answer>"),
        ("<answer>", "A</answer>, for certain", ""),
    ],
)
def test_letter_may_share_its_token_with_what_stands_around_it(before: str, letter: str, after: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([letter])
    plain = [*BYTES.encode(before).ids, tokenizer.token_to_id(letter), *BYTES.encode(after).ids]
    form = make_form(tokenizer)
    assert write(tokenizer, form, plain, UNLIMITED) == plain
    assert list(form.probabilities) == list(LETTERS)


def test_whole_answer_in_one_token_passes_without_probabilities() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<answer>A</answer>"])
    plain = [*BYTES.encode("ab").ids, tokenizer.token_to_id("<answer>A</answer>")]
    form = make_form(tokenizer)
    assert write(tokenizer, form, plain, UNLIMITED) == plain
    assert form.probabilities == {}


def test_what_the_last_token_holds_behind_the_answer_stays(qwen: Tokenizer) -> None:
    plain = spell(qwen, "<answer", ">A", "</", "answer", ">\n\n")
    assert write(qwen, make_form(qwen), plain, UNLIMITED) == plain


@given(st.text(max_size=30).filter(lambda text: "<" not in text), st.sampled_from(["", " ", "\n", "\u3000"]))
def test_any_thinking_passes(thought: str, blank: str) -> None:
    plain = BYTES.encode(f"<think>{thought}</think>\n<answer>C{' ' if blank else ''}</answer>").ids
    assert write(BYTES, make_form(BYTES), plain, UNLIMITED) == plain


THINKING = [
    ("<think>abc", "</think>\n\n<answer>B</answer>"),
    ("<think>abc<", "/think>\n\n<answer>B</answer>"),
    ("<think>abc</th", "ink>\n\n<answer>B</answer>"),
    ("<think>abc</think", ">\n\n<answer>B</answer>"),
    ("<think>abc<answ", "er>B</answer>"),
    ("<think>abc<answer", ">B</answer>"),
    ("<think>", "</think>\n\n<answer>B</answer>"),
    ("<thi", "nk></think>\n\n<answer>B</answer>"),
    ("", "<think></think>\n\n<answer>B</answer>"),
]
CLOSED = [
    ("<think>abc</think>", "\n\n<answer>B</answer>"),
    ("<think>abc</think>\n", "\n<answer>B</answer>"),
    ("<think>abc</think>\n\n", "<answer>B</answer>"),
    ("<think>abc</think> ", "<answer>B</answer>"),
    ("<think>abc</think> <", "answer>B</answer>"),
    ("<think>abc</think>\n\n<answ", "er>B</answer>"),
    ("<think>abc</think>\n\n<answer", ">B</answer>"),
    ("<think>abc</think>\n\n<answer>", "B</answer>"),
    ("<think>abc</think>\n\n<answer>\n", "B</answer>"),
    ("<think>abc</think>\n\n<answer>A", "</answer>"),
    ("<think>abc</think>\n\n<answer>A ", "</answer>"),
    ("<think>abc</think>\n\n<answer>A</ans", "wer>"),
    ("<think>abc<answer>", "B</answer>"),
    ("<answer>A", "</answer>"),
]


@pytest.mark.parametrize(("said", "missing"), THINKING + CLOSED)
def test_end_token_is_answered_with_what_is_missing(tokenizer: Tokenizer, said: str, missing: str) -> None:
    assert complete(tokenizer, spell(tokenizer, said)) == said + missing


@pytest.mark.parametrize(("said", "missing"), THINKING)
def test_spent_budget_ends_thinking(tokenizer: Tokenizer, said: str, missing: str) -> None:
    plain = spell(tokenizer, said)
    more = spell(tokenizer, "y" * 200)
    assert complete(tokenizer, plain + more, len(plain)) == said + missing


@pytest.mark.parametrize("said", [said for said, _ in CLOSED])
def test_budget_does_not_touch_what_follows_thinking(tokenizer: Tokenizer, said: str) -> None:
    plain = spell(tokenizer, "<think>abc</think>", "\n", "<answer>", "C", "</answer>")
    thinking = len(spell(tokenizer, "<think>abc</think>"))
    assert write(tokenizer, make_form(tokenizer, thinking), plain, UNLIMITED) == plain


@pytest.mark.parametrize(
    ("said", "kept", "rest"),
    [
        ("<think>ab</think> The answer is A.", "<think>ab</think>", r"\s+<answer>B</answer>"),
        ("<think>ab</think>\nx<answer>A</answer>", "<think>ab</think>\n", r"\n?<answer>[AB]</answer>"),
        ("<think>ab</think></think>", "<think>ab</think>", r"(\n\n)?<answer>B</answer>"),
        ("<think>ab</think>\n<answer key>", "<think>ab</think>\n<answer", r">B</answer>"),
        ("<think>ab</think>\n<answer >A</answer>", "<think>ab</think>\n<answer", r">B</answer>"),
        ("<think>ab</answer>A", "<think>ab</answer", r"</think>\n\n<answer>B</answer>"),
        ("<answer>E</answer>", "<answer", r">B</answer>"),
        ("<answer>b</answer>", "<answer", r">B</answer>"),
        ("<answer>Aorta</answer>", "<answer", r">[AB]</answer>"),
        ("<answer>The aorta</answer>", "<answer", r">B</answer>"),
        ("<answer>\nE</answer>", "<answer>\n", r"B</answer>"),
        ("<answer></answer>", "<answer>", r"B</answer>"),
        ("<answer><answer>A</answer>", "<answer>", r"B</answer>"),
        ("<answer>A, since it is bright", "<answer>A", "</answer>"),
        ("<answer>A and B</answer>", "<answer>A", r"\s?</answer>"),
        ("<answer>A</think>", "<answer>A</", "answer>"),
        ("<answer>A\nbright", "<answer>A\n", "</answer>"),
        ("<answer>é</answer>", "<answer>", "B</answer>"),
    ],
)
def test_what_is_not_well_formed_is_replaced(tokenizer: Tokenizer, said: str, kept: str, rest: str) -> None:
    text = complete(tokenizer, spell(tokenizer, said))
    assert text.startswith(kept)
    assert re.fullmatch(rest, text[len(kept) :])


@pytest.mark.parametrize(
    ("before", "after"), [("</think>", "<answer>B</answer>"), ("<answer>", "B</answer>"), ("<answer>A", "</answer>")]
)
def test_blanks_for_ever_are_cut(tokenizer: Tokenizer, before: str, after: str) -> None:
    plain = spell(tokenizer, "<think>ab", before, *repeat("\n", 99))
    assert complete(tokenizer, plain) == "<think>ab" + before + "\n" * MAX_BLANKS + after


def test_blanks_are_counted_over_the_whole_ending(tokenizer: Tokenizer) -> None:
    plain = spell(tokenizer, "</think>", *repeat("\n", 5), "<answer", ">", *repeat("\n", 9))
    assert complete(tokenizer, plain) == "</think>" + "\n" * 5 + "<answer>" + "\n" * (MAX_BLANKS - 5) + "B</answer>"


@pytest.mark.parametrize("place", ["<answer>", "<think>a</think>", "<answer>A"])
def test_tokens_without_text_do_not_stall_an_ending(tokenizer: Tokenizer, place: str) -> None:
    nothing = [tokenizer.token_to_id("<|image_pad|>"), tokenizer.get_vocab_size() + 3]
    for silent in nothing:
        complete(tokenizer, [*spell(tokenizer, place), *[silent] * 50])


def test_character_cut_by_the_budget_hides_no_tag() -> None:
    said = [*BYTES.encode("<think>a</th").ids, *BYTES.encode("€").ids[:2]]
    text = complete(BYTES, [*said, *BYTES.encode("ink>").ids], len(said))
    assert text == "<think>a</th\ufffd</think>\n\n<answer>B</answer>"


def test_character_cut_within_a_tag_makes_it_none() -> None:
    said = [*BYTES.encode("<answer").ids, BYTES.encode("€").ids[0], *BYTES.encode(">A").ids]
    assert complete(BYTES, said) == "<answer\ufffd>A</think>\n\n<answer>B</answer>"


def test_forced_tokens_may_be_accepted_without_asking(tokenizer: Tokenizer) -> None:
    plain = spell(tokenizer, "<think>ab")
    form, stream = make_form(tokenizer, len(plain)), TextStream(tokenizer)
    for one in plain:
        assert form.forced == []
        form.accept(form.choose(np.empty(0, np.float32), one), stream.feed(one))
    draft = form.forced
    assert tokenizer.decode(draft) == "</think>\n\n<answer"
    for one in draft:
        form.accept(one, stream.feed(one))
    assert form.forced == []
    assert tokenizer.decode([form.choose(prefer_b(tokenizer), plain[0])]) in (">", ">B")


def test_logits_are_read_only_where_the_letter_may_come(tokenizer: Tokenizer) -> None:
    form, stream = make_form(tokenizer), TextStream(tokenizer)
    for one in spell(tokenizer, "<think>a < b > c</think>\n\n<answer"):
        assert form.choose(np.empty(0, np.float32), one) == one
        form.accept(one, stream.feed(one))


def test_finished_answer_demands_nothing_more(tokenizer: Tokenizer) -> None:
    form, stream = make_form(tokenizer), TextStream(tokenizer)
    for one in write(tokenizer, make_form(tokenizer), spell(tokenizer, "<answer>A</answer>"), UNLIMITED):
        form.accept(form.choose(prefer_b(tokenizer), one), stream.feed(one))
    assert form.choose(np.empty(0, np.float32), 5) == 5
    assert form.forced == []


PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<answer",
    "</",
    "<",
    ">",
    ">A",
    "A",
    " B",
    "E",
    "\n",
    " ",
    "x",
]


@st.composite
def choices(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    """Random tokens, and pieces of tags more often than chance has them. Some ids stand for no token."""
    pieces = st.sampled_from([*PIECES, END, "<|image_pad|>"]).map(lambda piece: spell(tokenizer, piece))
    any_token = st.integers(0, tokenizer.get_vocab_size() + 8).map(lambda one: [one])
    return list(chain.from_iterable(draw(st.lists(pieces | any_token, max_size=40))))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), budget=st.integers(0, 60))
def test_any_choices_end_in_an_answer(tokenizer: Tokenizer, data: st.DataObject, budget: int) -> None:
    complete(tokenizer, data.draw(choices(tokenizer)), budget)


FORM = re.compile(r"(?:(?!</think>|</?answer>).)*(?:</think>\s*)?<answer>\s*[A-D]\s*</answer>.*", re.DOTALL)


def can_become_well_formed(text: str) -> bool:
    """Whether some end of the shortest ending makes `text` whole."""
    ending = "</think><answer>A</answer>"
    return any(FORM.fullmatch(text + ending[start:]) for start in range(len(ending) + 1))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), budget=st.integers(0, 60))
def test_choices_are_kept_up_to_the_first_fault(tokenizer: Tokenizer, data: st.DataObject, budget: int) -> None:
    plain = data.draw(choices(tokenizer))
    ids = write(tokenizer, make_form(tokenizer, budget), plain, UNLIMITED)
    first = next((at for at, (said, choice) in enumerate(zip(ids, plain, strict=False)) if said != choice), None)
    if first is not None:
        before, refused = tokenizer.decode(ids[:first]), tokenizer.decode([*ids[:first], plain[first]])
        # Thinking that is cut is ended up to the letter, though the choices may agree with a part of that.
        spent = first >= budget and not re.search("</think>|<answer>", tokenizer.decode(ids[:budget]))
        cut = refused.endswith("\ufffd")
        assert spent or cut or not refused[len(before) :].strip() or not can_become_well_formed(refused)


def test_thinking_cut_within_its_closing_tag_is_ended_up_to_the_letter() -> None:
    """The choices agree with the rest of the tag; what they say behind it comes too late."""
    plain = BYTES.encode("</think><think>").ids
    ids = write(BYTES, make_form(BYTES, 2), plain, UNLIMITED)
    assert BYTES.decode(ids).startswith("</think>\n\n<answer")


@given(st.lists(st.sampled_from([*BYTES.encode("<>/thinkaswer AB\n\u20ac").ids]), max_size=60), st.integers(0, 60))
@example(BYTES.encode("</think>\n\n\n\n\n\n\n\n<answer>").ids, 8)
def test_any_bytes_end_in_an_answer(plain: list[int], budget: int) -> None:
    complete(BYTES, plain, budget)


def test_longest_ending_takes_what_is_stated() -> None:
    """Nothing thought, every tag a byte at a time, and all the blanks that are allowed."""
    forced = BYTES.encode("<think></think>\n\n<answer").ids
    plain = [*forced, *BYTES.encode(">" + "\n" * 99).ids]
    ids = write(BYTES, make_form(BYTES, 0), plain, UNLIMITED)
    assert len(ids) == MAX_ENDING
