"""Sampling beside transformers' own logits processors, and against what probability says."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from medvlm.runtime import MedVLMError
from medvlm.runtime.errors import InputError
from medvlm.runtime.sampling import Sampler, Sampling, penalized, probabilities
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

DRAWS = 20_000
SAID_NOTHING = np.array([], np.int64)


def make_logits(size: int, scale: float = 3.0, seed: int = 0, decimals: int | None = None) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(scale=scale, size=size)
    return (logits if decimals is None else logits.round(decimals)).astype(np.float32)


def of_all(logits: NDArray[np.float32], sampling: Sampling, said: Sequence[int] = ()) -> NDArray[np.float64]:
    """The probability of every token."""
    ids, shares = probabilities(penalized(logits, np.array(said, np.int64), sampling.repetition_penalty), sampling)
    dense = np.zeros(logits.size)
    dense[ids] = shares
    return dense


def of_transformers(logits: NDArray[np.float32], sampling: Sampling, said: Sequence[int]) -> NDArray[np.float64]:
    """The same from transformers' processors, in the order of GenerationMixin._get_logits_processor."""
    processors = [
        RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)),
        TemperatureLogitsWarper(float(sampling.temperature)),
        *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
        *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
    ]
    ids: Any = torch.tensor([said], dtype=torch.int64)
    scores: Any = torch.from_numpy(logits.copy())[None]
    for processor in processors:
        scores = processor(ids, scores)
    return torch.softmax(scores.double(), dim=-1)[0].numpy()


def has_ties(logits: NDArray[np.float32], sampling: Sampling, said: Sequence[int]) -> bool:
    """Whether equal tokens may be on both sides of top-p's cut: torch.sort leaves open which of them."""
    scores = penalized(logits, np.array(said, np.int64), sampling.repetition_penalty) / np.float32(sampling.temperature)
    return np.unique(scores).size < scores.size


def cut_is_clear(logits: NDArray[np.float32], sampling: Sampling, said: Sequence[int]) -> bool:
    """Whether no sum of probabilities is so close to top-p that the order of adding decides."""
    whole = Sampling(sampling.temperature, sampling.top_k, 1.0, sampling.repetition_penalty)
    sums = np.cumsum(np.sort(of_all(logits, whole, said)))
    return bool((np.abs(sums - (1 - sampling.top_p)) > 1e-5).all())


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], Sampling, list[int]]:
    size = draw(st.integers(1, 300))
    scale, decimals = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0])), draw(st.sampled_from([None, 1, 0]))
    logits = make_logits(size, scale, draw(st.integers(0, 10**6)), decimals)
    for token_id in draw(st.lists(st.integers(0, size - 1), max_size=3)):
        logits[token_id] = -np.inf
    assume(np.isfinite(logits.max()))
    sampling = Sampling(
        temperature=draw(st.floats(0.05, 5)),
        top_k=draw(st.just(0) | st.integers(1, size + 5)),
        top_p=draw(st.just(1.0) | st.floats(0.01, 0.999)),
        repetition_penalty=draw(st.just(1.0) | st.floats(0.5, 2)),
    )
    said = draw(st.lists(st.integers(0, size - 1), max_size=20))
    return logits, sampling, said


@given(cases())
@example((np.zeros(8, np.float32), Sampling(1.0, top_k=3), []))
@example((np.zeros(8, np.float32), Sampling(1.0, top_p=0.3), []))
@example((np.array([1, 2, 2, 1, 2], np.float32), Sampling(1.0, top_k=2, top_p=0.5), [1]))
@example((np.array([-1, 0, 1, 1e-30, 2e-30], np.float32), Sampling(1.0, top_p=0.7), [0, 0, 2]))
def test_same_tokens_are_possible_as_in_transformers_and_as_likely(
    case: tuple[NDArray[np.float32], Sampling, list[int]],
) -> None:
    logits, sampling, said = case
    assume(sampling.top_p == 1 or cut_is_clear(logits, sampling, said))
    before = logits.copy()
    ours, theirs = of_all(logits, sampling, said), of_transformers(logits, sampling, said)
    if sampling.top_p < 1 and has_ties(logits, sampling, said):
        ours, theirs = np.sort(ours), np.sort(theirs)
    assert np.flatnonzero(ours).tolist() == np.flatnonzero(theirs).tolist()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7),
        Sampling(0.7, top_k=50),
        Sampling(1.0, top_p=0.9),
        Sampling(1.0, top_k=1000, top_p=0.99, repetition_penalty=1.05),
    ],
)
def test_whole_vocabulary_gives_what_transformers_gives(sampling: Sampling) -> None:
    logits, said = make_logits(151_936), list(range(0, 151_936, 97))
    ours, theirs = of_all(logits, sampling, said), of_transformers(logits, sampling, said)
    assert np.flatnonzero(ours).tolist() == np.flatnonzero(theirs).tolist()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_top_p_keeps_the_token_that_reaches_it_and_none_after() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    assert probabilities(logits, Sampling(1.0, top_p=0.6))[0].tolist() == [1, 3]
    assert probabilities(logits, Sampling(1.0, top_p=0.75))[0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(probabilities(logits, Sampling(1.0, top_p=0.6))[1], [4 / 7, 3 / 7], rtol=1e-6)


@pytest.mark.parametrize("top_p", [1e-300, 1e-17, 0.001])
@pytest.mark.parametrize("size", [1, 3, 49])
def test_smallest_top_p_leaves_the_first_of_the_most_likely(top_p: float, size: int) -> None:
    assert probabilities(np.zeros(size, np.float32), Sampling(1.0, top_p=top_p))[0].tolist() == [0]


def test_top_p_keeps_the_first_of_equals() -> None:
    logits = np.array([0, 1, 0, 1, 1, 0], np.float32)
    assert probabilities(logits, Sampling(1.0, top_p=0.4))[0].tolist() == [1, 3]
    assert probabilities(logits, Sampling(1.0, top_p=0.8))[0].tolist() == [0, 1, 3, 4]


def test_penalty_counts_a_token_once_and_one_beyond_the_logits_not_at_all() -> None:
    logits = np.array([4, -4, 0, 4], np.float32)
    assert penalized(logits, np.array([0, 0, 1, 2, 9]), 2).tolist() == [2, -8, 0, 4]


def draws(sampler: Sampler, logits: NDArray[np.float32], count: int) -> list[int]:
    return [sampler(logits, ()) for _ in range(count)]


@pytest.mark.parametrize("sampling", [Sampling(1.0, seed=7), Sampling(2.0, top_k=9, top_p=0.9, repetition_penalty=1.3)])
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling) -> None:
    logits, said = make_logits(12, scale=1.0), [0, 5, 5]
    expected = of_all(logits, sampling, said) * DRAWS
    counts = np.bincount(draws(Sampler(sampling, np.array(said)), logits, DRAWS), minlength=logits.size)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert expected[possible].min() > 5
    chi_square = float((((counts - expected) ** 2)[possible] / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    # Mean and variance of chi-square are its degrees of freedom and twice that: four deviations above.
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_draws_are_those_of_the_seed_and_the_stream() -> None:
    logits = make_logits(1000, scale=0.1)

    def drawn(seed: int, stream: int) -> list[int]:
        return draws(Sampler(Sampling(1.0, seed=seed), SAID_NOTHING, stream), logits, 20)

    assert drawn(3, 1) == drawn(3, 1)
    others = [drawn(0, 0), drawn(3, 0), drawn(3, 1), drawn(1, 3), drawn(3 + 2**32, 0), drawn(3, 2**32)]
    assert len({tuple(tokens) for tokens in others}) == len(others)


def test_stream_is_0_unless_told() -> None:
    logits, sampling = make_logits(1000, scale=0.1), Sampling(1.0)
    assert draws(Sampler(sampling, SAID_NOTHING), logits, 9) == draws(Sampler(sampling, SAID_NOTHING, 0), logits, 9)


def test_each_draw_takes_one_random_number_whatever_the_logits() -> None:
    logits, sampling = make_logits(1000, scale=0.1), Sampling(1.0, top_k=500)
    one, other = Sampler(sampling, SAID_NOTHING), Sampler(sampling, SAID_NOTHING)
    one(np.zeros(3, np.float32), ())
    other(logits, ())
    assert draws(one, logits, 9) == draws(other, logits, 9)


def test_token_of_no_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    assert set(draws(Sampler(Sampling(1.0), SAID_NOTHING), logits, 200)) == {1, 3}


@given(st.integers(1, 200), st.integers(0, 10**6), st.sampled_from([None, 0]))
def test_greedy_is_argmax_and_takes_the_first_of_equals(size: int, seed: int, decimals: int | None) -> None:
    logits = make_logits(size, seed=seed, decimals=decimals)
    token_id = Sampler(Sampling(top_k=3, top_p=0.5), np.array([0]))(logits, [0])
    assert logits[token_id] == logits.max()
    assert (logits[:token_id] < logits.max()).all()


def test_greedy_with_a_penalty_turns_from_what_prompt_and_answer_said() -> None:
    logits = np.array([1, 5, 6, 4.5], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), np.array([2]))
    assert sampler(logits, []) == 1
    assert sampler(logits, [1]) == 3
    assert sampler(logits, [1, 3]) == 2
    assert logits.tolist() == [1, 5, 6, 4.5]


def test_logits_and_prompt_are_left_as_they_are() -> None:
    logits, prompt = make_logits(50), np.array([3, 1, 3])
    logits.setflags(write=False)
    prompt.setflags(write=False)
    for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, 5, 0.5, 1.5), Sampling(repetition_penalty=1.5)):
        assert 0 <= Sampler(sampling, prompt)(logits, [4]) < 50


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 5, 0.5, 1.5), Sampling(0, 5, 0.5, 1.5)])
@pytest.mark.parametrize("at", [0, 25, 49])
def test_logits_that_are_no_numbers_are_a_failure(sampling: Sampling, at: int) -> None:
    """An answer picked from NaN would look like any other."""
    for value, name in ((np.nan, "NaN"), (np.inf, "infinity")):
        logits = make_logits(50)
        logits[at] = value
        with pytest.raises(MedVLMError, match=f"the decoder computed {name} instead of numbers; verify the bundle"):
            Sampler(sampling, np.array([at]))(logits, [])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)])
def test_logits_that_allow_nothing_are_a_failure(sampling: Sampling) -> None:
    with pytest.raises(MedVLMError, match="infinity"):
        Sampler(sampling, SAID_NOTHING)(np.full(9, -np.inf, np.float32), [])


NAMES = ["temperature", "top_k", "top_p", "repetition_penalty", "seed"]
NO_NUMBERS = [math.nan, math.inf, -math.inf, True, False, "1", None, -1, -0.5, 1j]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(NAMES, NO_NUMBERS),
        ("temperature", 1e-9),
        ("temperature", 1e9),
        ("top_k", 1.0),
        ("top_p", 0),
        ("top_p", 1.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e9),
        ("seed", 0.5),
    ],
)
def test_bad_value_is_refused_in_one_line(name: str, value: object) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=f"^{name} is .*; give .+$") as caught:
        Sampling(**settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "sampling", [Sampling(0.001), Sampling(1000, top_k=10**9), Sampling(1, top_p=1), Sampling(1, seed=2**70)]
)
def test_values_at_the_bounds_are_taken(sampling: Sampling) -> None:
    assert 0 <= Sampler(sampling, SAID_NOTHING)(make_logits(50), []) < 50
