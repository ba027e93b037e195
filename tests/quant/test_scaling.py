"""Scales of input channels: some 50 times the others, two of them by hand, and those that must scale together."""

import numpy as np
import pytest
from medvlm.quant import dequantize, outlier_scales, quantize, quantize_hqq, search_scales, squared_error
from numpy.typing import NDArray

Weight = NDArray[np.float32]


def rounded(weight: Weight) -> Weight:
    return dequantize(quantize(weight, 4, 128, symmetric=False))


def stressed(rows: int = 96, columns: int = 256) -> tuple[Weight, Weight, NDArray[np.intp]]:
    """A weight and its inputs, in which a few channels carry 50 times as much and are multiplied by a 50th."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, columns)).astype(np.float32)
    weight = (rng.standard_normal((rows, columns)) * 0.02).astype(np.float32)
    few = np.flatnonzero(np.isin(np.arange(columns) % 64, [7, 20, 21, 50]))
    x[:, few] *= 50
    weight[:, few] /= 50
    return weight, x, few


@pytest.mark.parametrize("diagonal", [True, False])
def test_channels_far_larger_than_others_no_longer_cost_accuracy(diagonal: bool) -> None:
    weight, x, few = stressed()
    gram = x.T @ x
    found = search_scales([weight], np.diag(gram) if diagonal else gram, rounded, rows=None)
    error = squared_error(weight, rounded(weight * found.scales) / found.scales, gram)
    plain = squared_error(weight, rounded(weight), gram)
    assert error < plain / 5
    # As good as if nothing had been blown up.
    x[:, few] /= 50
    weight[:, few] *= 50
    assert error < 1.1 * squared_error(weight, rounded(weight), x.T @ x)
    assert found.scales[few].min() > 10 * np.delete(found.scales, few).max()
    if not diagonal:
        assert found.error == pytest.approx(error, rel=1e-4)
        assert found.unscaled_error == pytest.approx(plain, rel=1e-4)


def test_the_product_stays_what_it_is() -> None:
    weight, x, _ = stressed()
    scales = search_scales([weight], x.T @ x, rounded).scales
    before = x @ weight.T
    np.testing.assert_allclose((x / scales) @ (weight * scales).T, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("method", ["hqq", "search"])
def test_any_quantizer_gains(method: str) -> None:
    weight, x, _ = stressed()

    def quantizer(w: Weight) -> Weight:
        return dequantize(quantize_hqq(w, 4, 64) if method == "hqq" else quantize(w, 4, 64, search=True))

    found = search_scales([weight], x.T @ x, quantizer)
    assert found.error < found.unscaled_error / 5


def test_two_channels_by_hand() -> None:
    """Rounding to integers, inputs of size 16 and 1 that are not correlated.

    Unscaled, 0.3 becomes 0: an error of 16^2 * 0.3^2 = 23.04, and 10 stays. Of alpha 0, 1/2, 1 the first form scales by
    (1, 1), (2, 1/2) and (4, 1/4). (2, 1/2): 0.6 -> 1, 1/2 - 0.3 = 0.2 and 5 stays: 256 * 0.04 = 10.24. (4, 1/4): 1.2 ->
    1, 1/4 - 0.3 = -0.05, and 2.5 -> 2, 8 - 10 = -2: 0.64 + 4 = 4.64. The second form divides by the largest weights
    (0.3, 10), whose ratio is 33.3: alpha 0 scales by (5.77, 0.173), 1.73 -> 2, 0.3464 - 0.3 = 0.0464, and 1.73 -> 2,
    11.547 - 10 = 1.547: 0.55 + 2.39 = 2.94, and alpha 1/2 by (16 * 33.3)^(1/4) = 4.805: 1.44 -> 1, 0.2081 - 0.3 =
    -0.0919, and 2.08 -> 2, 9.61 - 10 = -0.39: 2.16 + 0.15 = 2.31. That is the least.
    """
    weight = np.array([[0.3, 10.0]], np.float32)
    found = search_scales([weight], np.array([256.0, 1.0]), np.rint, steps=2)
    scale = (16 * 10 / 0.3) ** 0.25
    np.testing.assert_allclose(found.scales, [scale, 1 / scale], rtol=1e-5)
    assert found.unscaled_error == pytest.approx(23.04, rel=1e-5)
    assert found.error == pytest.approx(256 * (1 / scale - 0.3) ** 2 + (2 * scale - 10) ** 2, rel=1e-4)


def test_weights_without_need_of_scales_keep_ones() -> None:
    """Integers round to themselves, so nothing can be better."""
    weight = np.array([[1, -2, 3], [4, 0, -7]], np.float32)
    found = search_scales([weight], np.array([9.0, 1.0, 4.0]), np.rint)
    assert found.scales.tolist() == [1, 1, 1]
    assert found.scales.dtype == np.float32
    assert found.error == found.unscaled_error == 0


def test_scales_are_good_for_all_weights_together() -> None:
    weight, x, _ = stressed()
    other = np.random.default_rng(5).standard_normal((32, 256)).astype(np.float32)
    gram = x.T @ x
    found = search_scales([weight, other], gram, rounded, rows=None)
    total = sum(squared_error(w, rounded(w * found.scales) / found.scales, gram) for w in (weight, other))
    assert found.error == pytest.approx(total, rel=1e-4)
    assert found.error < found.unscaled_error


def test_channels_of_a_group_share_a_scale() -> None:
    weight, x, _ = stressed()
    groups = np.where(np.arange(256) % 64 < 32, 9, 3) + np.arange(256) // 128
    groups[np.arange(256) % 64 == 7] = 1
    found = search_scales([weight], x.T @ x, rounded, groups=groups, rows=None)
    for group in np.unique(groups):
        assert len(np.unique(found.scales[groups == group])) == 1
    assert found.scales[7] > 10 * found.scales[8]
    # What a whole group has in common helps less than a scale of one's own.
    assert found.unscaled_error > found.error > search_scales([weight], x.T @ x, rounded, rows=None).error


def test_a_group_goes_by_its_mean_energy_and_largest_weight() -> None:
    """The same as one channel of that energy and weight: by hand, (1 + 49) / 2 = 25, and max(2, 4) = 4."""
    seen: list[Weight] = []

    def quantizer(w: Weight) -> Weight:
        seen.append(w.copy())
        return np.rint(w)

    weight = np.array([[2, -4, 1]], np.float32)
    search_scales([weight], np.array([1.0, 49.0, 4.0]), quantizer, groups=np.array([0, 0, 1]), steps=1)
    ratios = sorted({round(float(w[0, 0] / w[0, 2] / 2), 4) for w in seen})
    # Ones; alpha 1: sqrt(25) / sqrt(4), in both forms; alpha 0 of the second form: 1 / 4.
    assert ratios == [0.25, 1.0, 2.5]


def test_channels_without_inputs_or_weights_have_finite_scales() -> None:
    weight, x, _ = stressed()
    x[:, 3], weight[:, 4] = 0, 0
    found = search_scales([weight], x.T @ x, rounded)
    assert np.isfinite(found.scales).all()
    assert (found.scales > 0).all()
    nothing = search_scales([np.zeros_like(weight)], np.zeros(256), rounded)
    assert (nothing.scales == 1).all()


def test_some_rows_choose_as_well_as_all() -> None:
    weight, x, _ = stressed(rows=2000)
    gram = x.T @ x
    rows = search_scales([weight], gram, rounded, rows=200).scales
    whole = search_scales([weight], gram, rounded, rows=None)
    assert squared_error(weight, rounded(weight * rows) / rows, gram) < 1.05 * whole.error


@pytest.mark.parametrize(
    ("shapes", "gram", "groups", "message"),
    [
        ([(2, 8), (2, 9)], (8,), None, "share their input channels"),
        ([(2, 8)], (8, 9), None, r"\(8, 9\)"),
        ([(2, 8)], (8,), np.zeros(7, int), r"\(7,\)"),
    ],
)
def test_arrays_that_do_not_match_are_refused(
    shapes: list[tuple[int, int]],
    gram: tuple[int, ...],
    groups: NDArray[np.int64] | None,
    message: str,
) -> None:
    weights = [np.ones(shape, np.float32) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        search_scales(weights, np.ones(gram), np.rint, groups=groups)


def test_outlier_channels_get_what_others_have_and_others_are_left_alone() -> None:
    """By hand: roots of the moments 1, over largest weights 1, but for two channels 100 times out of proportion."""
    weight = np.array([[1, 1, 0.1, 1, 10, 1], [-1, 1, -0.1, 1, 2, 1]], np.float32)
    moments = np.array([1, 1, 100, 1, 1e-2, 1.5], np.float32)
    scales = outlier_scales([weight], moments, np.arange(6))
    # sqrt(10 / 0.1) and sqrt(0.1 / 10).
    np.testing.assert_allclose(scales, [1, 1, 10, 1, 0.1, 1], rtol=1e-6)
    np.testing.assert_allclose(np.abs(weight * scales).max(axis=0), 1, rtol=1e-6)


def test_random_weights_have_no_outliers() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 512), np.float32)
    moments = np.square(1 + 0.3 * rng.standard_normal(512, np.float32))
    assert (outlier_scales([weight], np.maximum(moments, 0.1), np.arange(512)) == 1).all()


def test_stressed_channels_are_found_in_a_group_of_columns() -> None:
    """Channel 5 feeds two columns of each weight; the stress is undone up to the channel's own proportion."""
    rng = np.random.default_rng(1)
    columns = np.tile(np.arange(32), 2)
    weights = [rng.standard_normal((48, 64)).astype(np.float32) for _ in range(2)]
    moments = np.ones(32, np.float32)
    for weight in weights:
        weight[:, columns == 5] /= 50
    moments[5] *= 50**2
    scales = outlier_scales(weights, moments, columns)
    assert scales[5] == pytest.approx(50, rel=0.3)
    assert (np.delete(scales, 5) == 1).all()


def test_channels_that_carry_nothing_have_finite_scales() -> None:
    weight, moments = np.ones((4, 8), np.float32), np.ones(8, np.float32)
    weight[:, 2], moments[3] = 0, 0
    for scales in (
        outlier_scales([weight], moments, np.arange(8)),
        outlier_scales([0 * weight], 0 * moments, np.arange(8)),
    ):
        assert np.isfinite(scales).all()
        assert (scales > 0).all()
