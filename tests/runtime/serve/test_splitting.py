"""Text in pieces is what it would be whole, wherever it is cut."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime.serve.splitting import StopFilter, ThinkSplitter

TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "<", "</", "think", ">", "a", "B", " ", "\n", "<t"]
    ),
    max_size=12,
).map("".join)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


def split(text: str, cuts: list[int]) -> tuple[str, str]:
    splitter = ThinkSplitter()
    parts = [part for piece in pieces(text, cuts) for part in splitter.feed(piece)] + splitter.flush()
    reasoning, rest = ("".join(part.text for part in parts if part.reasoning == kind) for kind in (True, False))
    return reasoning, rest


def reference(text: str) -> tuple[str, str]:
    """The same by a regular expression over the whole."""
    found: dict[bool, list[str]] = {True: [], False: []}
    thinking = False
    for part in re.split(r"(<think>|</think>|<answer>)", text):
        if part == "<think>" and not thinking:
            thinking = True
        elif part == "</think>":
            thinking = False
        else:
            thinking = thinking and part != "<answer>"
            found[thinking].append(part)
    return "".join(found[True]).strip(), "".join(found[False]).strip()


@given(TEXTS, st.lists(st.integers(0, 99), max_size=8))
def test_reasoning_and_the_rest_are_the_same_wherever_the_text_is_cut(text: str, cuts: list[int]) -> None:
    assert split(text, cuts) == reference(text)


@pytest.mark.parametrize("cuts", [[], list(range(99))])
def test_an_answer_of_the_models_form(cuts: list[int]) -> None:
    assert split("<think>It is a < b.\nSo A.</think>\n\n<answer>A</answer>", cuts) == (
        "It is a < b.\nSo A.",
        "<answer>A</answer>",
    )
    assert split("<think>Never closed <answer>A</answer>", cuts) == ("Never closed", "<answer>A</answer>")
    assert split("No tags, 3 <", cuts) == ("", "No tags, 3 <")


@given(
    st.text("ab<", max_size=12),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 99), max_size=8),
)
def test_a_text_ends_before_the_first_of_the_words(text: str, words: list[str], cuts: list[int]) -> None:
    stops, shown, ended = StopFilter(words), "", False
    for piece in pieces(text, cuts):
        more, ended = stops.feed(piece)
        shown += more
        if ended:
            break
    # A longer piece may hold a word that begins earlier than one that ends earlier: both are ends before a word.
    places = [place for place in map(text.find, words) if place >= 0]
    assert ended == bool(places)
    if not ended:
        assert shown + stops.flush() == text
    else:
        assert any(text[len(shown) :].startswith(word) for word in words)
        assert min(places) <= len(shown) <= min(text.find(word) + len(word) for word in words if word in text)
