"""Distances of distributions and p-values, against torch and against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medvlm.runtime.statistics import kl_divergence, majority_share, mcnemar_exact, wilson_interval
from numpy.typing import NDArray

Logits = NDArray[np.float32]
LOGITS = arrays(np.float32, (3, 7), elements=st.floats(-50, 50, width=32))


def by_torch(a: Logits, b: Logits) -> NDArray[np.float64]:
    log_a, log_b = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (a, b))
    return torch.nn.functional.kl_div(log_b, log_a, reduction="none", log_target=True).sum(-1).numpy()


def row(*probabilities: float) -> Logits:
    return np.log(np.array([probabilities], np.float64)).astype(np.float32)


@given(LOGITS, LOGITS)
def test_divergence_is_that_of_torch(a: Logits, b: Logits) -> None:
    np.testing.assert_allclose(kl_divergence(a, b), by_torch(a, b), rtol=1e-9, atol=1e-13)


def test_divergence_of_a_large_vocabulary_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 6, (4, 151_936)).astype(np.float32)
    b = (a + rng.normal(0, 0.1, a.shape)).astype(np.float32)
    np.testing.assert_allclose(kl_divergence(a, b), by_torch(a, b), rtol=1e-9)


def test_divergence_worked_out_by_hand_and_its_direction() -> None:
    even, uneven = row(0.5, 0.5), row(0.25, 0.75)
    # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4), and 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2).
    there = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    back = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    assert kl_divergence(even, uneven) == pytest.approx([there], rel=1e-6)
    assert kl_divergence(uneven, even) == pytest.approx([back], rel=1e-6)


@given(LOGITS)
def test_divergence_from_itself_is_exactly_nothing(a: Logits) -> None:
    assert kl_divergence(a, a.copy()).tolist() == [0, 0, 0]


def test_divergence_is_right_where_exponentials_overflow() -> None:
    a = np.array([[3e4, 3e4 - 1, -3e4]], np.float32)
    b = np.array([[-3e4, -3e4 + 1, -9e4]], np.float32)
    # Probabilities e / (e + 1) and 1 / (e + 1), then the other way round: the logits differ by 1.
    p = math.e / (math.e + 1)
    assert kl_divergence(a, b) == pytest.approx([2 * p - 1])


def test_tokens_that_cannot_come_count_only_where_b_excludes_what_a_allows() -> None:
    excluded = np.array([[0, 0, -np.inf]], np.float32)
    allowed = np.zeros((1, 3), np.float32)
    assert kl_divergence(excluded, allowed) == pytest.approx([math.log(3 / 2)])
    assert kl_divergence(allowed, excluded).tolist() == [math.inf]
    assert kl_divergence(excluded, excluded).tolist() == [0]


@pytest.mark.parametrize("broken", [0, 1])
def test_what_is_no_number_stays_none(broken: int) -> None:
    pair = [np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)]
    pair[broken][0, 1] = np.nan
    assert np.isnan(kl_divergence(*pair)).all()


def test_logits_of_different_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        kl_divergence(np.zeros((1, 3), np.float32), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1.0),
        # Both tails of one in 2^5.
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        # 2 (1 + 10) / 2^10.
        (1, 9, 22 / 1024),
        # 2 (1 + 12 + 66) / 2^12.
        (10, 2, 158 / 4096),
    ],
)
def test_mcnemar(lost: int, won: int, p: float) -> None:
    assert mcnemar_exact(lost, won) == pytest.approx(p)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # R. Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_that_of_the_literature(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_are_1_96_standard_errors_from_the_share(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        distance = abs(successes / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert distance == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_of_no_share_is_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(*counts)


def test_majority_share() -> None:
    assert majority_share(["A", "B", "B", "C"]) == 0.5
