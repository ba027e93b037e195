"""Half-quadratic quantization: its objective by its definition, its steps, and what a step does worked out by hand."""

from itertools import pairwise

import hypothesis.extra.numpy as st_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlm.quant import BLOCK_SIZES, dequantize, hqq_objective, quantize, quantize_hqq
from medvlm.quant.blockwise import unpack
from numpy.typing import NDArray

Weight = NDArray[np.float32]


def drawn(kind: str, shape: tuple[int, int]) -> Weight:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape) if kind == "normal" else rng.standard_t(3, shape)
    return (values * 0.02).astype(np.float32)


def test_the_objective_is_the_sum_of_powers_of_each_block() -> None:
    weight = drawn("normal", (3, 40))
    packed = quantize(weight, 4, 16)
    error = np.abs(weight.astype(np.float64) - dequantize(packed))
    expected = [[sum(e**0.7 for e in row[start : start + 16]) for start in (0, 16, 32)] for row in error.tolist()]
    np.testing.assert_allclose(hqq_objective(weight, packed), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_step_raises_the_objective_of_any_block(bits: int, symmetric: bool, kind: str) -> None:
    weight = drawn(kind, (48, 500))
    history = [
        hqq_objective(weight, quantize_hqq(weight, bits, 64, symmetric=symmetric, steps=steps)) for steps in range(13)
    ]
    for before, after in pairwise(history):
        # The last few units of float32 are not told apart.
        assert (after <= before * (1 + 1e-4)).all()
        assert after.sum() <= before.sum()
    # It falls at once, and again and again.
    totals = [float(values.sum()) for values in history]
    assert totals[0] > totals[1] > totals[2] > totals[6] > totals[12]


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_the_objective_ends_well_below_that_of_rounding_to_nearest(block_size: int, kind: str) -> None:
    weight = drawn(kind, (32, 1024))
    plain = hqq_objective(weight, quantize(weight, 4, block_size, symmetric=False)).sum()
    assert hqq_objective(weight, quantize_hqq(weight, 4, block_size)).sum() < 0.97 * plain


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_steps_round_to_nearest(symmetric: bool) -> None:
    weight = drawn("normal", (20, 200))
    packed, plain = (
        quantize_hqq(weight, 4, 32, symmetric=symmetric, steps=0),
        quantize(weight, 4, 32, symmetric=symmetric),
    )
    np.testing.assert_array_equal(packed.packed, plain.packed)
    np.testing.assert_array_equal(packed.scales, plain.scales)
    np.testing.assert_array_equal(dequantize(packed), dequantize(plain))


def test_a_grid_that_only_outlying_rounding_hides_is_found() -> None:
    """By hand: all weights but one are codes of scale 1 and zero point 5; the one makes the range a little too long.

    From the range's scale 15.4 / 15 the codes are already right, so the fit finds scale 1, and only the one is off.
    """
    weight = np.array([[-5, 10.4, 3, -2, 1, 7, -4, 6, 9, 2, -1, 8, 4, 5, -3, 0]], np.float32)
    packed = quantize_hqq(weight, 4, 16)
    assert packed.zero_points is not None
    assert packed.zero_points.tolist() == [[5]]
    assert packed.scales[0, 0] == pytest.approx(1, abs=5e-3)
    assert unpack(packed.packed, 4)[0, 0].tolist() == [0, 15, 8, 3, 6, 12, 1, 11, 14, 7, 4, 13, 9, 10, 2, 5]


def test_most_codes_are_used() -> None:
    weight = drawn("normal", (64, 256))
    for symmetric in (True, False):
        codes = unpack(quantize_hqq(weight, 4, 256, symmetric=symmetric).packed, 4)
        used = [len(np.unique(block)) for block in codes.reshape(-1, 256)]
        assert np.mean(used) > 14.5


@pytest.mark.parametrize("symmetric", [True, False])
@given(weight=st_numpy.arrays(np.float32, (3, 40), elements=st.floats(-1e4, 1e4, width=32)))
@settings(max_examples=40)
def test_any_weight_comes_back_no_worse_than_rounded_to_nearest(symmetric: bool, weight: Weight) -> None:
    packed = quantize_hqq(weight, 4, 16, symmetric=symmetric)
    assert np.isfinite(dequantize(packed)).all()
    plain = hqq_objective(weight, quantize(weight, 4, 16, symmetric=symmetric))
    size = hqq_objective(weight, quantize(np.zeros_like(weight), 4, 16))
    assert (hqq_objective(weight, packed) <= plain * (1 + 1e-3) + 1e-4 * size + 1e-20).all()


def test_rows_quantized_together_come_out_as_well_as_alone() -> None:
    """Sums of another order round differently, so not to the last code."""
    weight = drawn("heavy", (600, 1024))
    whole = hqq_objective(weight, quantize_hqq(weight, 4, 128))
    for i in range(0, 600, 97):
        alone = hqq_objective(weight[i : i + 1], quantize_hqq(weight[i : i + 1], 4, 128))
        np.testing.assert_allclose(whole[i].sum(), alone.sum(), rtol=5e-3)


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = np.ones((600, 1024), np.float32)
    weight[599, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        quantize_hqq(weight, 4, 32)
