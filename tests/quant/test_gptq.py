"""GPTQ against Optimal Brain Quantization by explicit inverses, one column after the other, and against rounding."""

import numpy as np
import pytest
from medvlm.quant import Grid, dequantize, encode, quantize, quantize_gptq, squared_error
from medvlm.quant.blockwise import grid_of, unpack
from medvlm.quant.factor import inverse_factor, invert_upper
from numpy.typing import NDArray

Weight = NDArray[np.float32]
Gram = NDArray[np.float64]


def correlated(columns: int, samples: int = 2000, seed: int = 0) -> Gram:
    """The Gram matrix of inputs that are mixed with their neighbours, and of very different size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, columns)) @ (np.eye(columns) + 0.2 * rng.standard_normal((columns, columns)))
    x *= rng.lognormal(0, 0.8, columns)
    return x.T @ x


def drawn(rows: int, columns: int) -> Weight:
    return (np.random.default_rng(1).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def brain_surgeon(
    weight: Weight, gram: Gram, bits: int, size: int, *, symmetric: bool, act_order: bool, damping: float, search: bool
) -> tuple[Grid, NDArray[np.uint8]]:
    """Grids and codes [rows, in] by the published equations: H^-1 outright, each column taken out of it once done."""
    columns = weight.shape[1]
    damped = gram + damping * np.trace(gram) / columns * np.eye(columns)
    inverse = np.linalg.inv(damped)
    w = weight.astype(np.float64)
    blocks = -(-columns // size)
    scales, zeros = np.empty((len(w), blocks), np.float32), np.empty((len(w), blocks), np.uint8)
    codes = np.empty(w.shape, np.uint8)

    def set_grid(block: int) -> None:
        part = slice(block * size, min(columns, (block + 1) * size))
        importance = np.diag(damped)[part].astype(np.float32) if search else None
        packed = quantize(
            w[:, part].astype(np.float32), bits, size, symmetric=symmetric, search=search, importance=importance
        )
        grid = grid_of(packed)
        scales[:, block], zeros[:, block] = grid.scales[:, 0], grid.zero_points[:, 0]

    if act_order:
        for block in range(blocks):
            set_grid(block)
    for j in np.argsort(-np.diag(gram), kind="stable") if act_order else range(columns):
        block = j // size
        if j % size == 0 and not act_order:
            set_grid(block)
        code = np.clip(np.rint(w[:, j] / scales[:, block] + zeros[:, block]), 0, 2**bits - 1)
        codes[:, j] = code
        error = w[:, j] - (code - zeros[:, block]) * scales[:, block].astype(np.float64)
        w -= np.outer(error, inverse[j]) / inverse[j, j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        # Taken out: later columns no longer touch this one.
        inverse[j], inverse[:, j] = 0, 0
    return Grid(scales, zeros), codes


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block_size", "columns"), [(4, 16, 144), (4, 32, 150), (4, 128, 200), (8, 256, 300)])
def test_codes_are_those_of_the_published_equations(
    bits: int, block_size: int, columns: int, symmetric: bool, act_order: bool, search: bool
) -> None:
    weight, gram = drawn(24, columns), correlated(columns)
    packed = quantize_gptq(
        weight, gram, bits, block_size, symmetric=symmetric, act_order=act_order, damping=0.02, search=search
    )
    grid, codes = brain_surgeon(
        weight, gram, bits, block_size, symmetric=symmetric, act_order=act_order, damping=0.02, search=search
    )
    # A row in which one value lies half way between two codes may go another way from there on.
    same = (unpack(packed.packed, bits).reshape(24, -1)[:, :columns] == codes).all(axis=1)
    assert same.mean() >= 0.95
    np.testing.assert_allclose(packed.scales[same], grid.scales[same], rtol=1e-4)
    np.testing.assert_array_equal(grid_of(packed).zero_points[same], grid.zero_points[same])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_output_loses_much_less_than_by_rounding(
    symmetric: bool, act_order: bool, dtype: type[np.float32 | np.float64]
) -> None:
    weight, gram = drawn(64, 384), correlated(384)
    importance = np.diag(gram).astype(np.float32)
    plain = quantize(weight, 4, 128, symmetric=symmetric, search=True, importance=importance)
    packed = quantize_gptq(weight, gram, 4, 128, symmetric=symmetric, act_order=act_order, dtype=dtype)
    assert squared_error(weight, dequantize(packed), gram) < 0.7 * squared_error(weight, dequantize(plain), gram)


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_inputs_that_are_not_correlated_are_rounded_to_nearest(act_order: bool, search: bool) -> None:
    weight = drawn(40, 300)
    gram = np.eye(300, dtype=np.float32) * 7
    packed = quantize_gptq(weight, gram, 4, 64, act_order=act_order, search=search, dtype=np.float32)
    plain = quantize(weight, 4, 64, symmetric=False, search=search)
    if not search:
        np.testing.assert_array_equal(packed.scales, plain.scales)
    nearest = encode(weight, grid_of(packed), 4, 64, symmetric=False)
    np.testing.assert_array_equal(packed.packed, nearest.packed)
    np.testing.assert_allclose(packed.scales, plain.scales, rtol=1e-5)


@pytest.mark.parametrize("act_order", [True, False])
def test_outputs_of_other_inputs_are_aimed_at_by_least_squares(act_order: bool) -> None:
    """The unrounded weight that comes closest is numpy's solution of the damped problem; from there on it is GPTQ."""
    rng, weight, columns, damping = np.random.default_rng(5), drawn(24, 150), 150, 0.02
    x = rng.standard_normal((400, columns)) * rng.lognormal(0, 0.8, columns)
    exact = x + 0.1 * rng.standard_normal(x.shape)
    gram, missing = x.T @ x, (exact - x) @ weight.T
    ridge = np.sqrt(damping * np.trace(gram) / columns) * np.eye(columns)
    moved = np.linalg.lstsq(np.vstack([x, ridge]), np.vstack([missing, 0 * ridge[:, :24]]))[0].T
    closest = (weight + moved).astype(np.float32)
    found = quantize_gptq(weight, gram, 4, 32, drift=(exact - x).T @ x, act_order=act_order, damping=damping)
    grid, codes = brain_surgeon(
        closest, gram, 4, 32, symmetric=False, act_order=act_order, damping=damping, search=True
    )
    # A row in which one value lies half way between two codes may go another way from there on.
    same = (unpack(found.packed, 4).reshape(24, -1)[:, :columns] == codes).all(axis=1)
    assert same.mean() >= 0.9
    np.testing.assert_allclose(found.scales[same], grid.scales[same], rtol=1e-4)


def test_outputs_of_other_inputs_are_met_better_than_without_looking_at_them() -> None:
    rng, weight = np.random.default_rng(6), drawn(64, 256)
    exact = rng.standard_normal((2000, 256)) @ (np.eye(256) + 0.2 * rng.standard_normal((256, 256)))
    # What layers before lost leans the same way all along, as rounding errors of weights do.
    x = exact @ (np.eye(256) + 0.005 * rng.standard_normal((256, 256)))
    gram, drift = x.T @ x, (exact - x).T @ x
    losses = [
        np.square(exact @ weight.T - x @ dequantize(packed).T).sum()
        for packed in (quantize_gptq(weight, gram, 4, 128), quantize_gptq(weight, gram, 4, 128, drift=drift))
    ]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("drift", [np.zeros((32, 31)), np.full((32, 32), np.nan)])
def test_a_drift_that_makes_no_sense_is_refused(drift: Gram) -> None:
    with pytest.raises(ValueError, match=r"drift is \(32, 3\d\) and should be \(32, 32\), and finite"):
        quantize_gptq(drawn(4, 32), np.eye(32), 4, 16, drift=drift)


def test_rows_do_not_touch_each_other() -> None:
    """More rows than are worked on at once: each comes out as it does among others."""
    weight, gram = drawn(1100, 64), correlated(64)
    whole = dequantize(quantize_gptq(weight, gram, 4, 32))
    part = dequantize(quantize_gptq(weight[500:530], gram, 4, 32))
    same = np.isclose(whole[500:530], part, rtol=1e-5).all(axis=1)
    assert same.mean() > 0.9


def test_channels_that_no_input_reaches_are_rounded_to_nearest() -> None:
    weight, gram = drawn(32, 128), correlated(128)
    dead = np.zeros(128, bool)
    dead[[0, 5, 64, 127]] = True
    gram[dead], gram[:, dead] = 0, 0
    for act_order in (False, True):
        packed = quantize_gptq(weight, gram, 4, 64, act_order=act_order)
        values = dequantize(packed)
        nearest = dequantize(encode(weight, grid_of(packed), 4, 64, symmetric=False))
        np.testing.assert_array_equal(values[:, dead], nearest[:, dead])
        alive = ~dead
        plain = dequantize(quantize(weight, 4, 64, symmetric=False))
        assert squared_error(weight, values, gram) < 0.7 * squared_error(weight, plain, gram)
        assert (values[:, alive] != nearest[:, alive]).any()


def test_no_inputs_at_all_round_to_nearest() -> None:
    weight = drawn(8, 64)
    packed = quantize_gptq(weight, np.zeros((64, 64)), 4, 32, search=False)
    np.testing.assert_allclose(dequantize(packed), dequantize(quantize(weight, 4, 32, symmetric=False)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_fewer_samples_than_channels_are_enough(damping: float, dtype: type[np.float32 | np.float64]) -> None:
    """A singular Gram matrix, which without damping has no factor."""
    weight, gram = drawn(32, 256), correlated(256, samples=40)
    packed = quantize_gptq(weight, gram.astype(np.float32), 4, 128, damping=damping, dtype=dtype)
    plain = quantize(weight, 4, 128, symmetric=False)
    assert squared_error(weight, dequantize(packed), gram) < 0.5 * squared_error(weight, dequantize(plain), gram)


def test_a_matrix_that_is_no_gram_matrix_is_refused() -> None:
    gram = np.ones((32, 32)) - np.eye(32) * 0.5
    gram[3, 4] = gram[4, 3] = -100
    with pytest.raises(ValueError, match=r"could not be factorized.*float64"):
        quantize_gptq(drawn(4, 32), gram, 4, 16)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (np.eye(31), "31"),
        (np.full((32, 32), np.nan), "not finite"),
        (-np.eye(32), "negative diagonal"),
    ],
)
def test_gram_matrices_that_make_no_sense_are_refused(gram: Gram, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_gptq(drawn(4, 32), gram, 4, 16)


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = drawn(4, 32)
    weight[1, 2] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        quantize_gptq(weight, np.eye(32), 4, 16)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 129, 500])
def test_triangles_are_inverted(size: int) -> None:
    triangle = np.triu(np.random.default_rng(0).standard_normal((size, size)) / np.sqrt(size)) + 2 * np.eye(size)
    inverse = triangle.copy()
    invert_upper(inverse)
    np.testing.assert_allclose(inverse, np.linalg.inv(triangle), atol=1e-12)
    assert not np.tril(inverse, -1).any()


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    gram = correlated(200)
    factor = inverse_factor(gram, 0.01)
    damped = gram + 0.01 * np.trace(gram) / 200 * np.eye(200)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(damped), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(factor, np.linalg.cholesky(np.linalg.inv(damped)).T, rtol=1e-6, atol=1e-10)


def test_damping_is_raised_no_further_than_needed() -> None:
    """By hand: the eigenvalues of [[1, 2], [2, 1]] are 3 and -1; a damping above 1 makes both positive."""
    gram = np.array([[1.0, 2.0], [2.0, 1.0]])
    factor = inverse_factor(gram, 0.02)
    # 0.02 and 0.2 are too little.
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(gram + 2 * np.eye(2)), rtol=1e-12)


def test_squared_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 30))
    weight, approx = drawn(2500, 30), drawn(2500, 30) * np.float32(1.1)
    outputs = x @ (weight.astype(np.float64) - approx).T
    assert squared_error(weight, approx, x.T @ x) == pytest.approx(np.square(outputs).sum(), rel=1e-9)
    diagonal = np.square(x).sum(axis=0)
    assert squared_error(weight, approx, diagonal) == pytest.approx(
        squared_error(weight, approx, np.diag(diagonal)), rel=1e-9
    )
