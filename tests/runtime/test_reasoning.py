"""What a person sees of a model's text while it comes: the reasoning, without tags, up to the answer."""

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from medvlm.runtime.reasoning import ReasoningFilter

TAGS = ("<think>", "</think>", "<answer>")
# Texts made of tags, their pieces and what looks like them.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*TAGS, "</answer>", "<", ">", "/", "<th", "ink>", "<answer", "<<think>", "<thi<answer>", "B"]),
        st.text(max_size=4),
    ),
    max_size=12,
).map("".join)


def shown(pieces: Iterable[str]) -> str:
    reasoning = ReasoningFilter()
    return "".join([*map(reasoning.feed, pieces), reasoning.flush()])


def without_tags(text: str) -> str:
    """The specification, of a whole text: all before the first `<answer>`, each think tag taken out once."""
    return text.split("<answer>")[0].replace("<think>", "\0").replace("</think>", "\0").replace("\0", "")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>It is bright.</think><answer>B</answer>", "It is bright."),
        ("<think>\na\n</think>\n<answer>A", "\na\n\n"),
        ("no tags at all", "no tags at all"),
        ("<answer>B</answer>", ""),
        ("a < b and b > c", "a < b and b > c"),
        ("ends with <thi", "ends with <thi"),
        ("ends with <", "ends with <"),
        ("<think>a<answer>B</answer><think>c</think>", "a"),
        ("a</answer>b", "a</answer>b"),
        ("<Think>a", "<Think>a"),
        ("", ""),
    ],
)
def test_reasoning_is_the_text_without_tags_up_to_the_answer(text: str, reasoning: str) -> None:
    assert shown([text]) == reasoning
    assert shown(text) == reasoning


@given(TEXTS.filter(lambda text: "\0" not in text))
@example("<think></think><answer>")
def test_whole_text_is_shown_as_specified(text: str) -> None:
    assert shown([text]) == without_tags(text)


@given(TEXTS, st.lists(st.integers(0, 60), max_size=10))
@example("<think>a</think><answer>B</answer>", [3, 9, 12, 20])
@example("<<<think>", [1, 2, 3])
@example("<answer>x<think>y", [8, 9])
def test_any_split_shows_what_the_whole_shows(text: str, cuts: list[int]) -> None:
    ends = sorted({*cuts, len(text)})
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert "".join(pieces) == text
    assert shown(pieces) == shown([text])


@given(TEXTS)
def test_one_character_at_a_time_shows_what_the_whole_shows(text: str) -> None:
    assert shown(text) == shown([text])


@given(TEXTS, TEXTS)
def test_nothing_after_the_answer_s_tag_is_shown(before: str, after: str) -> None:
    assert shown([before, "<answer>", after]) == shown([before + "<answer>"])


def test_text_is_shown_as_soon_as_it_can_be_no_tag() -> None:
    reasoning = ReasoningFilter()
    pieces = ["a", " <", "3", "</", "thin", "g>", "</thi", "nk>", "b"]
    assert [reasoning.feed(piece) for piece in pieces] == ["a", " ", "<3", "", "", "</thing>", "", "", "b"]


def test_flush_gives_what_was_held_back_once() -> None:
    reasoning = ReasoningFilter()
    assert reasoning.feed("a<ans") == "a"
    assert reasoning.flush() == "<ans"
    assert reasoning.flush() == ""
