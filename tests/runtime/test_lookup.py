"""Prompt lookup: which tokens are drafted, and what drafting saves and costs in a simulated decoding loop."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime.lookup import DECODE_COSTS, PromptLookup, best_draft_length

# Where a call of 8 tokens takes no longer than a call of 1, every draft is as long as it may be.
FREE = [1.0] * 8
IMAGE = 9

Draft = list[int]
Next = Callable[[int, Draft], int]
"""The model: its token at a place of its answer, given what is drafted from there on."""


class Loop:
    """A decoding loop that counts the time of its calls, in calls of 1 token."""

    def __init__(self, prompt: Sequence[int], costs: Sequence[float] = DECODE_COSTS) -> None:
        self.lookup = PromptLookup(prompt, len(costs) - 1, costs=costs)
        self.costs = costs
        self.cost = 0.0
        self.said: list[int] = []

    def run(self, model: Next, tokens: int) -> float:
        """Let `model` say about `tokens` more tokens; returns the speed-up over one call a token."""
        start, cost = len(self.said), self.cost
        while len(self.said) - start < tokens:
            self.call(model)
        return (len(self.said) - start) / (self.cost - cost)

    def call(self, model: Next) -> None:
        draft = self.lookup.draft()
        accepted = 0
        while accepted < len(draft) and model(len(self.said) + accepted, draft[accepted:]) == draft[accepted]:
            accepted += 1
        own = model(len(self.said) + accepted, draft[accepted:])
        self.lookup.record(len(draft), accepted)
        self.cost += self.costs[len(draft)]
        for token_id in [*draft[:accepted], own]:
            self.lookup.feed(token_id)
            self.said.append(token_id)


def says(ids: Sequence[int]) -> Next:
    return lambda place, draft: ids[place % len(ids)]


def spites(vocabulary: int) -> Next:
    """A model of few tokens, so that nearly any two stood before, which never says what is drafted."""
    rng = np.random.default_rng(0)

    def model(place: int, draft: Draft) -> int:
        token_id = int(rng.integers(vocabulary))
        return (token_id + 1) % vocabulary if draft and draft[0] == token_id else token_id

    return model


def random_ids(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(vocabulary, size=count).tolist()


def partly_quoted(prompt: Sequence[int], count: int) -> list[int]:
    """A text of which 40 % is quoted from `prompt`, 12 tokens at a time, and the rest random."""
    rng = np.random.default_rng(1)
    text: list[int] = []
    while len(text) < count:
        start = int(rng.integers(len(prompt) - 12))
        text += [*prompt[start : start + 12], *rng.integers(1000, size=18).tolist()]
    return text


def brute_force(history: Sequence[int], length: int) -> Draft:
    """What followed the latest earlier occurrence of the last 3 tokens, else of the last 2."""
    for size in (3, 2):
        tail = history[-size:]
        for end in range(len(history) - 1, size - 1, -1):
            if history[end - size : end] == tail and IMAGE not in (*tail, history[end]):
                text = list(history)
                while len(text) < len(history) + length:
                    text.append(text[end + len(text) - len(history)])
                draft = text[len(history) :]
                return draft[: draft.index(IMAGE)] if IMAGE in draft else draft
    return []


def test_what_followed_the_last_tokens_in_the_prompt_is_drafted() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8], 4, costs=FREE)
    assert lookup.draft() == []
    lookup.feed(2)
    assert lookup.draft() == []
    lookup.feed(3)
    assert lookup.draft() == [4, 5, 6, 7]


def test_what_was_fed_is_looked_up_too() -> None:
    lookup = PromptLookup([], 2, costs=FREE)
    for token_id in [1, 2, 3, 4, 1, 2]:
        lookup.feed(token_id)
    assert lookup.draft() == [3, 4]


def test_a_single_token_is_no_match() -> None:
    assert PromptLookup([1, 2, 3, 1], 2, costs=FREE).draft() == []


def test_longest_ngram_wins_over_a_later_shorter_one() -> None:
    assert PromptLookup([1, 2, 3, 4, 0, 2, 3, 5, 1, 2, 3], 1, costs=FREE).draft() == [4]


def test_latest_occurrence_wins() -> None:
    assert PromptLookup([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1, costs=FREE).draft() == [5]


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_loop_is_drafted_on_and_on(period: int) -> None:
    loop = list(range(period)) * 10
    assert PromptLookup(loop[: period + 3], 6, costs=FREE).draft() == loop[period + 3 : period + 9]


@pytest.mark.parametrize("length", [0, 1, 5])
def test_draft_is_no_longer_than_allowed(length: int) -> None:
    assert PromptLookup([1, 2, 3, 4, 5, 6, 7, 1, 2], length, costs=FREE).draft() == [3, 4, 5, 6, 7][:length]


def test_run_of_image_tokens_is_not_drafted() -> None:
    assert PromptLookup([1, 2, *[IMAGE] * 300], 4, ignored=IMAGE, costs=FREE).draft() == []


def test_draft_ends_before_an_image() -> None:
    lookup = PromptLookup([1, 2, 3, 4, *[IMAGE] * 300, 5, 1, 2], 4, ignored=IMAGE, costs=FREE)
    assert lookup.draft() == [3, 4]


def test_text_before_an_image_is_looked_up_where_text_follows_it() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2, IMAGE, IMAGE, 1, 2], 1, ignored=IMAGE, costs=FREE)
    assert lookup.draft() == [3]


def test_text_behind_an_image_is_looked_up_without_it() -> None:
    lookup = PromptLookup([IMAGE, IMAGE, 1, 2, IMAGE, IMAGE, 1], 1, ignored=IMAGE, costs=FREE)
    assert lookup.draft() == []


def test_arrays_are_prompts_like_lists() -> None:
    draft = PromptLookup(np.array([1, 2, 3, 1, 2]), 1, costs=FREE).draft()
    assert draft == [3]
    assert type(draft[0]) is int


@given(st.lists(st.integers(0, 4) | st.just(IMAGE), max_size=40), st.integers(0, 40), st.integers(1, 7))
def test_drafts_are_those_of_a_search_through_the_whole_history(ids: list[int], cut: int, length: int) -> None:
    lookup = PromptLookup(ids[:cut], length, ignored=IMAGE, costs=FREE)
    assert lookup.draft() == brute_force(ids[:cut], length)
    for end in range(cut, len(ids)):
        lookup.feed(ids[end])
        assert lookup.draft() == brute_force(ids[: end + 1], length)


@pytest.mark.parametrize(
    ("acceptance", "length"),
    # At 0.2 a draft of 1 token yields 1.2 tokens in 1.2 calls. At 0.5: 1.5 / 1.2 = 1.25, then 1.75 / 1.45 = 1.21.
    # At 0.8: 2.44 / 1.45 = 1.68, 2.952 / 1.7 = 1.74, 3.36 / 2 = 1.68.
    [(0.0, 0), (0.2, 0), (0.21, 1), (0.5, 1), (0.8, 3), (1.0, 7)],
)
def test_length_is_the_one_of_most_tokens_per_time(acceptance: float, length: int) -> None:
    assert best_draft_length(acceptance, DECODE_COSTS) == length


@given(st.floats(0, 0.99), st.lists(st.floats(1, 10), min_size=1, max_size=8))
def test_no_other_length_yields_more(acceptance: float, costs: list[float]) -> None:
    rates = [(1 - acceptance ** (k + 1)) / (1 - acceptance) / cost for k, cost in enumerate(costs)]
    assert rates[best_draft_length(acceptance, costs)] == pytest.approx(max(rates))


def test_drafts_grow_while_they_are_right_and_shrink_while_they_are_wrong() -> None:
    lookup = PromptLookup([1, 2, 3] * 9, 7)
    lengths: list[int] = []
    for _ in range(9):
        lengths.append(len(lookup.draft()))
        lookup.record(lengths[-1], lengths[-1])
    assert lengths == sorted(lengths)
    assert lengths[-1] == 7
    for _ in range(30):
        lengths.append(len(lookup.draft()))
        lookup.record(lengths[-1], 0)
    assert lengths[9:] == sorted(lengths[9:], reverse=True)
    assert lengths[-1] == 0


def test_drafts_of_which_half_is_right_settle_in_between() -> None:
    lookup = PromptLookup([1, 2, 3] * 9, 7)
    for right in (1.0, 0.5):
        for _ in range(30):
            length = len(lookup.draft())
            lookup.record(length, math.ceil(right * length))
    assert 1 <= len(lookup.draft()) <= 3


def test_unit_of_the_costs_does_not_matter() -> None:
    model = says(partly_quoted(random_ids(400, 1000), 2000))
    loops = [Loop(random_ids(400, 1000), [unit * cost for cost in DECODE_COSTS]) for unit in (1, 32)]
    assert loops[0].run(model, 1000) == pytest.approx(32 * loops[1].run(model, 1000))


@pytest.mark.parametrize("vocabulary", [2, 3, 10, 30, 1000])
def test_drafts_that_are_never_right_take_less_than_2_percent(vocabulary: int) -> None:
    loop = Loop(random_ids(200, vocabulary))
    assert loop.run(spites(vocabulary), 1000) > 1 / 1.02
    assert loop.lookup.accepted == 0
    assert loop.lookup.drafted > 0 or vocabulary == 1000


@pytest.mark.parametrize("vocabulary", [5, 10, 100])
def test_random_text_takes_less_than_2_percent_more(vocabulary: int) -> None:
    assert Loop([]).run(says(random_ids(1100, vocabulary)), 1000) > 1 / 1.02


def test_text_that_repeats_after_a_long_random_stretch_is_drafted_again() -> None:
    loop = Loop([])
    loop.run(spites(10), 5000)
    assert loop.run(says(random_ids(20, 1000)), 200) > 1.5
    assert len(loop.lookup.draft()) == 7


def test_random_stretch_after_a_long_repeating_one_is_noticed() -> None:
    loop = Loop([])
    loop.run(says(random_ids(20, 1000)), 5000)
    assert loop.run(spites(10), 1000) > 1 / 1.02


def test_long_stretch_without_a_match_pays_for_no_long_bad_one() -> None:
    loop = Loop(range(100))
    loop.run(says(range(100, 10_100)), 10_000)
    assert loop.lookup.drafted == 0
    assert loop.run(spites(10), 1000) > 1 / 1.02


def test_repeating_text_is_more_than_twice_as_fast() -> None:
    assert Loop([]).run(says([1, 2, 3, 4, 5]), 1000) > 2


def test_text_quoted_from_the_prompt_is_more_than_twice_as_fast() -> None:
    prompt = random_ids(500, 150_000)
    assert Loop(prompt).run(says(prompt), 490) > 2


def test_text_of_which_two_fifths_are_quoted_is_faster() -> None:
    prompt = random_ids(400, 1000)
    assert Loop(prompt).run(says(partly_quoted(prompt, 2000)), 1900) > 1.15


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=300),
    st.lists(st.floats(0.5, 5), max_size=7).map(lambda costs: [1.0, *costs]),
)
def test_no_text_and_no_costs_make_it_slower_than_promised(ids: list[int], costs: list[float]) -> None:
    loop = Loop([], costs)
    loop.run(says(ids), len(ids))
    assert loop.cost <= 1.01 * len(loop.said) + 3 + 1e-6
    assert loop.said == [ids[place % len(ids)] for place in range(len(loop.said))]


def test_totals_are_those_recorded() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 1, 2], 3, costs=FREE)
    assert (lookup.drafted, lookup.accepted) == (0, 0)
    assert lookup.draft() == [3, 4, 5]
    lookup.record(3, 2)
    assert lookup.draft() == [3, 4, 5]
    lookup.record(2, 0)
    assert (lookup.drafted, lookup.accepted) == (5, 2)


def test_call_without_a_draft_may_be_recorded() -> None:
    lookup = PromptLookup([], 3)
    assert lookup.draft() == []
    lookup.record(0, 0)
    assert (lookup.drafted, lookup.accepted) == (0, 0)


@pytest.mark.parametrize(("drafted", "accepted"), [(3, 0), (2, 3), (2, -1), (-1, -1)])
def test_record_of_what_was_not_drafted_is_refused(drafted: int, accepted: int) -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2], 2, costs=FREE)
    assert len(lookup.draft()) == 2
    with pytest.raises(ValueError, match="cannot be right"):
        lookup.record(drafted, accepted)


def test_draft_is_recorded_once() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2], 2, costs=FREE)
    lookup.record(len(lookup.draft()), 2)
    with pytest.raises(ValueError, match="draft of 0"):
        lookup.record(2, 2)


@pytest.mark.parametrize("length", [-1, 8])
def test_length_without_costs_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="need the costs"):
        PromptLookup([], length)
