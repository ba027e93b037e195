"""The search for grids of least squared error: against all grids, onnxruntime's own quantizer, and round to nearest."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from importlib import import_module

import hypothesis.extra.numpy as st_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlm.quant import BLOCK_SIZES, Grid, dequantize, encode, quantize
from medvlm.quant.blockwise import grid_of, unpack
from numpy.typing import NDArray

Weight = NDArray[np.float32]

# What onnxruntime.quantization.matmul_nbits_quantizer calls; it has no types.
quantize_matmul_4bits = import_module("onnxruntime.capi._pybind_state").quantize_matmul_4bits


def drawn(kind: str, shape: tuple[int, int], seed: int = 0) -> Weight:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) if kind == "normal" else rng.standard_t(3, shape)
    return (values * 0.02).astype(np.float32)


def block_errors(
    weight: Weight, approx: Weight, block_size: int, importance: Weight | None = None
) -> NDArray[np.float64]:
    """The (weighted) squared error of each block."""
    error = (weight.astype(np.float64) - approx) ** 2 * (1 if importance is None else importance)
    return np.add.reduceat(error, np.arange(0, weight.shape[1], block_size), axis=1)


def onnxruntime_values(weight: Weight, block_size: int, *, symmetric: bool) -> Weight:
    """What onnxruntime's 4-bit quantizer makes of a weight, by the formula of MatMulNBits' documentation."""
    rows, columns = weight.shape
    blocks = columns // block_size
    packed = np.zeros((rows, blocks, block_size // 2), np.uint8)
    scales, zeros = np.zeros(rows * blocks, np.float32), np.zeros((rows, (blocks + 1) // 2), np.uint8)
    quantize_matmul_4bits(packed, weight.T.copy(), scales, zeros.reshape(-1), block_size, rows, columns, symmetric)
    low_high = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, blocks, block_size).astype(np.float32)
    points = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, :blocks, None].astype(np.float32)
    values = (low_high - (8 if symmetric else points)) * scales.reshape(rows, blocks, 1)
    return values.reshape(rows, columns)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [32, 128])
def test_round_to_nearest_is_that_of_onnxruntime(block_size: int, symmetric: bool, kind: str) -> None:
    weight = drawn(kind, (48, 512))
    ours = dequantize(quantize(weight, 4, block_size, symmetric=symmetric))
    theirs = onnxruntime_values(weight, block_size, symmetric=symmetric)
    scale = np.repeat(np.abs(quantize(weight, 4, block_size, symmetric=symmetric).scales), block_size, axis=1)
    # Values half way between two codes may go either way: hardly any, and by no more than a step.
    np.testing.assert_array_less(np.abs(ours - theirs), scale * 1.001)
    assert np.mean(np.abs(ours - theirs) > scale * 1e-4) < 2e-3


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_loses_less_than_onnxruntime_does(symmetric: bool, kind: str) -> None:
    weight = drawn(kind, (48, 512))
    found = dequantize(quantize(weight, 4, 128, symmetric=symmetric, search=True))
    theirs = onnxruntime_values(weight, 128, symmetric=symmetric)
    assert np.square(found - weight).sum() < 0.95 * np.square(theirs - weight).sum()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_block_is_worse_than_rounded_to_nearest(bits: int, symmetric: bool, kind: str, weighted: bool) -> None:
    weight = drawn(kind, (40, 500))
    importance = np.random.default_rng(1).exponential(1, 500).astype(np.float32) ** 2 if weighted else None
    for size in BLOCK_SIZES:
        plain = dequantize(quantize(weight, bits, size, symmetric=symmetric))
        found = dequantize(quantize(weight, bits, size, symmetric=symmetric, search=True, importance=importance))
        before, after = (block_errors(weight, values, size, importance) for values in (plain, found))
        # float32 does not tell errors of 8 bits further apart.
        assert (after <= before * (1 + 1e-4)).all()
        assert after.sum() < before.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@given(
    weight=st_numpy.arrays(np.float32, (3, 40), elements=st.floats(-1e4, 1e4, width=32)),
    importance=st_numpy.arrays(np.float32, 40, elements=st.floats(0, 1e6, width=32)),
)
@settings(max_examples=40)
def test_no_weights_make_the_search_worse(symmetric: bool, weight: Weight, importance: Weight) -> None:
    plain = dequantize(quantize(weight, 4, 16, symmetric=symmetric))
    found = dequantize(quantize(weight, 4, 16, symmetric=symmetric, search=True, importance=importance))
    assert np.isfinite(found).all()
    before, after = (block_errors(weight, values, 16, importance) for values in (plain, found))
    # Errors below float32's rounding of the weights are not told apart.
    slack = block_errors(weight, weight * np.float32(1 + 1e-6), 16, importance)
    assert (after <= before * (1 + 1e-4) + 4 * slack + 1e-30).all()


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_the_search_comes_close_to_trying_every_grid(kind: str) -> None:
    weight = drawn(kind, (64, 64))
    plain = quantize(weight, 4, 64, symmetric=False)
    best = np.full(64, np.inf)
    for share in np.linspace(0.25, 1.05, 81, dtype=np.float32):
        for zero in range(16):
            grid = Grid(plain.scales * share, np.full((64, 1), zero, np.uint8))
            values = dequantize(encode(weight, grid, 4, 64, symmetric=False))
            best = np.minimum(best, block_errors(weight, values, 64)[:, 0])
    found = block_errors(weight, dequantize(quantize(weight, 4, 64, symmetric=False, search=True)), 64).sum()
    gap = block_errors(weight, dequantize(plain), 64).sum() - best.sum()
    assert found - best.sum() < 0.25 * gap


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    weight = drawn("normal", (64, 256))
    importance = np.where(np.arange(256) % 4 == 0, 100, 1).astype(np.float32)
    plain = dequantize(quantize(weight, 4, 128, search=True)) - weight
    steered = dequantize(quantize(weight, 4, 128, search=True, importance=importance)) - weight
    important = importance > 1
    assert np.square(steered[:, important]).sum() < 0.9 * np.square(plain[:, important]).sum()
    assert np.square(steered).sum() > np.square(plain).sum()


def test_a_weight_of_no_importance_is_clipped() -> None:
    """By hand: scale -1 holds 8 .. -7 exactly. Only the outlier, which does not count, asks for more."""
    weight = np.array([[8, -7, 3, -2, 1, 5, -6, 16] + [0] * 8], np.float32)
    importance = np.array([1] * 7 + [0] + [1] * 8, np.float32)
    packed = quantize(weight, 4, 16, search=True, importance=importance)
    assert packed.scales[0, 0] == pytest.approx(-1, abs=1e-6)
    expected = weight.copy()
    expected[0, 7] = 8
    np.testing.assert_allclose(dequantize(packed), expected, rtol=1e-6)


def test_padding_has_no_say() -> None:
    weight = drawn("normal", (16, 40)) + np.float32(0.05)
    alone = quantize(weight[:, 32:], 4, 16, symmetric=False, search=True)
    tail = quantize(weight, 4, 32, symmetric=False, search=True)
    np.testing.assert_array_equal(tail.scales[:, 1], alone.scales[:, 0])


@pytest.mark.parametrize("columns", [96, 200])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_encoding_on_the_grid_of_a_quantized_weight_gives_it_back(bits: int, symmetric: bool, columns: int) -> None:
    weight = drawn("normal", (24, columns))
    packed = quantize(weight, bits, 32, symmetric=symmetric, search=True)
    again = encode(weight, grid_of(packed), bits, 32, symmetric=symmetric)
    np.testing.assert_array_equal(again.packed, packed.packed)
    np.testing.assert_array_equal(dequantize(again), dequantize(packed))


def test_encoding_takes_the_nearest_code_of_the_grid() -> None:
    weight = np.array([[0.26, 0.24, -9.0, 9.0] + [0.0] * 12], np.float32)
    packed = encode(weight, Grid(np.array([[0.5]], np.float32), np.array([[3]], np.uint8)), 4, 16, symmetric=False)
    assert unpack(packed.packed, 4)[0, 0, :5].tolist() == [4, 3, 0, 15, 3]


def test_rows_quantized_together_come_out_as_they_do_alone() -> None:
    weight = drawn("heavy", (600, 1024))
    whole = quantize(weight, 4, 128, symmetric=False, search=True)
    for i in range(0, 600, 97):
        alone = quantize(weight[i : i + 1], 4, 128, symmetric=False, search=True)
        np.testing.assert_array_equal(whole.packed[i], alone.packed[0])
        np.testing.assert_array_equal(whole.scales[i], alone.scales[0])


@pytest.mark.parametrize(
    ("scales", "zeros", "symmetric", "message"),
    [
        (np.ones((2, 3)), np.full((2, 3), 8), True, "blocks of 16"),
        (np.ones((2, 2)), np.full((2, 2), 7), True, "symmetric"),
        (np.ones((2, 2)), np.full((2, 2), 16), False, "above 15"),
    ],
)
def test_grids_that_do_not_fit_are_refused(
    scales: NDArray[np.float64], zeros: NDArray[np.int64], symmetric: bool, message: str
) -> None:
    grid = Grid(scales.astype(np.float32), zeros.astype(np.uint8))
    with pytest.raises(ValueError, match=message):
        encode(np.ones((2, 32), np.float32), grid, 4, 16, symmetric=symmetric)


@pytest.mark.parametrize(
    ("importance", "search", "message"),
    [
        (np.ones(31), True, "31"),
        (-np.ones(32), True, "negative"),
        (np.full(32, np.nan), True, "finite"),
        (np.ones(32), False, "search=True"),
    ],
)
def test_importance_that_makes_no_sense_is_refused(importance: NDArray[np.float64], search: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(np.ones((2, 32), np.float32), 4, 16, search=search, importance=importance.astype(np.float32))
