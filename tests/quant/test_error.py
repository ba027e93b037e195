"""The relative error against numpy's norm and values worked out by hand."""

import numpy as np
import pytest
from medvlm.quant.error import relative_error


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (700, 1536), (3, 300_000)])
def test_relative_error_is_the_ratio_of_numpys_norms(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, np.float32)
    approx = (weight + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    exact = weight.astype(np.float64)
    assert relative_error(weight, approx) == pytest.approx(np.linalg.norm(exact - approx) / np.linalg.norm(exact))


def test_relative_error_of_a_small_weight_is_that_worked_out_by_hand() -> None:
    weight, approx = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32), np.array([[3.0, 0.0], [1.0, 4.0]], np.float32)
    assert relative_error(weight, approx) == pytest.approx(1 / 5)


def test_squares_that_float32_cannot_hold_are_added_all_the_same() -> None:
    weight = np.full((2, 3), 1e30, np.float32)
    assert relative_error(weight, (weight / 2).astype(np.float32)) == pytest.approx(0.5)


def test_ten_million_small_errors_beside_a_large_weight_are_not_lost() -> None:
    """Added up in float32, each would vanish against the sum so far."""
    weight = np.zeros((10_000, 1_000), np.float32)
    weight[0, 0] = 1e4
    approx = weight + np.float32(1)
    # The large weight's own error is 1 too.
    assert relative_error(weight, approx) == pytest.approx(np.sqrt(1e7) / 1e4, rel=1e-9)


def test_zeros_lose_nothing_where_they_stay_zeros() -> None:
    zeros = np.zeros((2, 4), np.float32)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, zeros + 1) == np.inf


def test_weights_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="no approximation"):
        relative_error(np.ones((2, 4), np.float32), np.ones((2, 1), np.float32))
