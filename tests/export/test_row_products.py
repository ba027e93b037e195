"""Products of int8 by int8 in a real graph, run by onnxruntime, against the same arithmetic in numpy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medvlm.export.graph import GraphBuilder
from medvlm.export.layers import Layers
from medvlm.export.recipe import W8A8
from medvlm.runtime.session import open_session
from numpy.typing import NDArray

Array = NDArray[np.float32]
Build = Callable[[Layers], str]
STEP = np.float32(1 / 127)
LOWEST = -0.17


def run_graph(folder: Path, x: Array, build: Build) -> Array:
    """What the graph that `build` makes of an input `x` gives."""

    def absent(name: str) -> Array:
        raise KeyError(name)

    with GraphBuilder(folder / "product.onnx") as graph:
        graph.add_input("x", [*["rows"] * (x.ndim - 1), x.shape[-1]])
        y = build(Layers(graph, absent, W8A8()))
        output = graph.add_output("y", ["rows"] * x.ndim)
        graph.add_node("Identity", [y], "end", [output])
        graph.save()
    (result,) = open_session(folder / "product.onnx", 1).run(["y"], {"x": x})
    return np.asarray(result)


def row_codes(x: Array, lowest: float | None = None) -> tuple[NDArray[np.int32], Array]:
    """Each row as codes -127..127, halves to the even one, and the largest magnitude of each row."""
    low = -x.min(axis=-1, keepdims=True) if lowest is None else np.float32(-lowest)
    scale = np.maximum(np.maximum(x.max(axis=-1, keepdims=True), low), np.finfo(np.float32).tiny)
    return np.rint(x / scale / STEP).astype(np.int32), scale


def emulated(x: Array, weight: Array, lowest: float | None = None) -> Array:
    """x @ weight.T in integers: rows and output channels each by their own largest magnitude."""
    codes, scale = row_codes(x, lowest)
    largest = np.abs(weight).max(axis=1, keepdims=True)
    channels = largest / np.float32(127)
    weights = np.rint(weight / np.where(channels == 0, 1, channels)).astype(np.int32)
    return (codes @ weights.T).astype(np.float32) * (STEP * channels[:, 0]) * scale


def uneven(rows: int, width: int, out: int, seed: int = 0) -> tuple[Array, Array]:
    """Rows and weights that one scale for all would ruin: a row of zeros, one 20 times the rest, a channel 30 times."""
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((rows, width), np.float32), rng.standard_normal((out, width), np.float32)
    x[rows // 2] = 0
    x[rows - 1] *= 20
    weight[out // 3] *= 30
    return x, weight


SHAPES = [(3, 8, 5), (17, 96, 64), (64, 160, 96), (5, 1000, 33)]


@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_integers(shape: tuple[int, int, int], tmp_path: Path) -> None:
    x, weight = uneven(*shape)
    y = run_graph(tmp_path, x, lambda layers: layers.product("x", weight, "layer", W8A8()))
    np.testing.assert_allclose(y, emulated(x, weight), rtol=1e-5, atol=0)
    assert not y[shape[0] // 2].any(), "a row of zeros gives zeros"


def test_rows_and_channels_do_not_lose_by_their_neighbours(tmp_path: Path) -> None:
    """Every row and every channel is as close to the float32 product as if it stood alone."""
    x, weight = uneven(33, 256, 48)
    y = run_graph(tmp_path, x, lambda layers: layers.product("x", weight, "layer", W8A8()))
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    errors = np.abs(y - exact) / np.linalg.norm(weight, axis=1)
    sizes = np.maximum(np.linalg.norm(x, axis=1), 1e-9)
    assert (errors.max(axis=1) / sizes).max() < 0.02
    assert (errors / sizes[:, None]).max(axis=0).max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_bias_is_added_in_float32(shape: tuple[int, int, int], tmp_path: Path) -> None:
    x, weight = uneven(*shape, seed=1)
    bias = np.random.default_rng(2).standard_normal(shape[2], np.float32)
    y = run_graph(tmp_path, x, lambda layers: layers.product("x", weight, "layer", W8A8(), bias))
    product = emulated(x, weight)
    np.testing.assert_allclose(y, product + bias, rtol=1e-5, atol=1e-5 * np.abs(product).max())
    np.testing.assert_array_equal(y[shape[0] // 2], bias)


def test_batches_have_rows_of_their_own(tmp_path: Path) -> None:
    x, weight = uneven(12, 32, 24)
    y = run_graph(tmp_path, x.reshape(2, 6, 32), lambda layers: layers.product("x", weight, "layer", W8A8()))
    np.testing.assert_allclose(y.reshape(12, 24), emulated(x, weight), rtol=1e-5, atol=0)


def test_known_lower_bound_stands_for_the_minimum(tmp_path: Path) -> None:
    """As behind QuickGelu, where rows that are negative throughout are scaled by the bound."""
    x, weight = uneven(9, 64, 16)
    x = np.maximum(x, np.float32(LOWEST))
    x[0] = np.minimum(x[0], 0)
    y = run_graph(tmp_path, x, lambda layers: layers.product("x", weight, "layer", W8A8(), lowest=LOWEST))
    np.testing.assert_allclose(y, emulated(x, weight, LOWEST), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("width", "out", "pieces"), [(96, 32, 3), (96, 96, 1), (100, 30, 2), (70, 40, 1)])
def test_sum_over_pieces_has_scales_for_each_piece(width: int, out: int, pieces: int, tmp_path: Path) -> None:
    """Each piece of the hidden layer is a product of its own, and so is each piece of the weight behind it."""
    x, up = uneven(11, 24, width)
    _, down = uneven(2, width, out, seed=3)
    bias = np.random.default_rng(4).standard_normal(out, np.float32)
    made: list[slice] = []

    def build(layers: Layers) -> str:
        def hidden(piece: slice, scope: str) -> str:
            made.append(piece)
            return layers.product("x", up[piece], f"{scope}/up", W8A8())

        return layers.summed_products(hidden, down, "mlp", "down", bias)

    y = run_graph(tmp_path, x, build)
    assert [(piece.start, piece.stop) for piece in made] == [
        (i * width // pieces, (i + 1) * width // pieces) for i in range(pieces)
    ]
    parts = [emulated(emulated(x, up[piece]), down[:, piece]) for piece in made]
    expected = np.sum(parts, axis=0) + bias
    # One code more or less where rounding of the hidden layer differs in its last bit.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-2 * np.abs(expected).max())
    assert np.median(np.abs(y - expected)) < 1e-5 * np.abs(expected).max()


def test_rows_are_quantized_once_for_products_of_the_same_input(tmp_path: Path) -> None:
    x, weight = uneven(7, 40, 20)
    other = weight[::-1].copy()

    def build(layers: Layers) -> str:
        first, second = (
            layers.product("x", values, name, W8A8()) for values, name in ((weight, "first"), (other, "second"))
        )
        return layers.graph.add_node("Sub", [first, second], "difference")

    y = run_graph(tmp_path, x, build)
    np.testing.assert_allclose(y, emulated(x, weight) - emulated(x, other), rtol=1e-4, atol=1e-3)
