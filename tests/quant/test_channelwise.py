"""Quantization per output channel against torch's own, against float64, and against values worked out by hand."""

import hypothesis.extra.numpy as st_numpy
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from medvlm.export.recipe import W8A8
from medvlm.quant.channelwise import dequantize_channels, quantize_channels
from numpy.typing import NDArray

# A channel whose largest value is below this has a scale that has no reciprocal in float32.
SMALLEST = 1e-36

WEIGHTS = st_numpy.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.one_of(
        st.floats(-(2.0**10), 2.0**10, width=32),
        st.just(0.0),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
)


def naive_scales(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """One at a time, in float64."""
    return np.array([max(abs(float(value)) for value in channel) / 127 for channel in weight])


@given(WEIGHTS)
@example(np.array([[np.finfo(np.float32).max, 1], [-np.finfo(np.float32).max, 0]], np.float32))
def test_a_weight_comes_back_within_half_a_step(weight: NDArray[np.float32]) -> None:
    packed = quantize_channels(weight)
    scales = naive_scales(weight)
    np.testing.assert_allclose(packed.scales, scales, rtol=1e-6, atol=1e-44)
    values = packed.codes.T.astype(np.float64) * packed.scales.astype(np.float64)[:, None]
    error = np.abs(values - weight.astype(np.float64))
    assert np.all(error <= np.maximum(0.5 * scales * (1 + 1e-5), SMALLEST)[:, None])


@given(WEIGHTS)
def test_codes_are_symmetric_and_the_largest_value_has_the_largest(weight: NDArray[np.float32]) -> None:
    codes = quantize_channels(weight).codes
    assert codes.shape == weight.T.shape
    assert codes.min() >= -127
    for channel, values in zip(codes.T, weight, strict=True):
        largest = int(np.argmax(np.abs(values)))
        if abs(values[largest]) > SMALLEST:
            assert channel[largest] == (127 if values[largest] > 0 else -127)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 512), (300, 1200)])
def test_codes_are_those_of_torch(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    weight[0] *= 30
    packed = quantize_channels(weight)
    scales = torch.from_numpy(packed.scales).double()
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    expected = torch.quantize_per_channel(torch.from_numpy(weight), scales, zeros, 0, torch.qint8)
    np.testing.assert_array_equal(packed.codes.T, expected.int_repr().numpy())
    np.testing.assert_allclose(dequantize_channels(packed), expected.dequantize().numpy(), rtol=1e-6)


def test_halves_go_to_the_even_code() -> None:
    weight = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.4]], np.float32)
    packed = quantize_channels(weight)
    assert packed.scales.tolist() == [1.0]
    assert packed.codes[:, 0].tolist() == [127, 0, 2, 2, 0, -2, 126]


def test_a_channel_of_zeros_has_no_scale_and_stays_zero() -> None:
    packed = quantize_channels(np.array([[0, -0.0, 0], [1, 0, -2]], np.float32))
    assert packed.scales.tolist() == [0.0, np.float32(2 / 127)]
    assert packed.codes[:, 0].tolist() == [0, 0, 0]
    assert packed.codes[:, 1].tolist() == [64, 0, -127]


def test_a_channel_too_small_to_have_a_step_becomes_zeros() -> None:
    packed = quantize_channels(np.array([[1e-44, -1e-39], [1, -1]], np.float32))
    assert packed.codes.tolist() == [[0, 127], [0, -127]]
    assert np.abs(dequantize_channels(packed)[0]).max() == 0


def test_channels_do_not_touch_each_other() -> None:
    """Worked on in pieces of a few channels: each comes out as it does alone."""
    weight = np.random.default_rng(1).standard_normal((200, 3000), np.float32)
    whole = quantize_channels(weight)
    for i in range(0, 200, 7):
        alone = quantize_channels(weight[i : i + 1])
        np.testing.assert_array_equal(whole.codes[:, i], alone.codes[:, 0])
        assert whole.scales[i] == alone.scales[0]


def test_size_is_what_a_recipe_foretells() -> None:
    packed = quantize_channels(np.ones((6, 10), np.float32))
    assert packed.nbytes == W8A8().weight_bytes(6, 10) == 6 * 14


@pytest.mark.parametrize("row", [0, 99])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float, row: int) -> None:
    weight = np.ones((100, 4096), np.float32)
    weight[row, 17] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize_channels(weight)
