"""NF4 against bitsandbytes' own dequantization and onnxruntime's own kernel, bit for bit."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Callable, Iterator

import bitsandbytes.functional as bnb
import numpy as np
import onnxruntime
import pytest
import torch
from medvlm.export import recipe
from medvlm.quant import NF4, NF4_BLOCK_SIZES, dequantize, dequantize_nf4, nf4, quantize, quantize_nf4
from medvlm.quant.nf4 import LEVELS
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Make = Callable[[tuple[int, int]], NDArray[np.float32]]

# Even and odd sizes, rows that blocks run over the ends of, a last block that is short, one row and one element.
SHAPES = [(24, 64), (24, 96), (7, 31), (3, 257), (16, 1536), (1, 1), (1, 255)]


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """Where rows are odd bitsandbytes has torch compile its formula, for seconds: here it runs as it is written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def gaussian(shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def heavy_tails(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Student's t with 1.5 degrees of freedom: a few weights are thousands of times the rest."""
    return np.random.default_rng(shape).standard_t(1.5, shape).astype(np.float32)


def mostly_zeros(shape: tuple[int, int]) -> NDArray[np.float32]:
    weight = gaussian(shape)
    weight[: shape[0] // 2] = 0
    return weight


def tiny_values(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Down to the smallest numbers that have a reciprocal, and below."""
    return gaussian(shape) * np.float32(10.0) ** np.random.default_rng(shape).integers(-42, -30, shape).astype(
        np.float32
    )


KINDS = [gaussian, heavy_tails, mostly_zeros, tiny_values]


def bitsandbytes_values(weight: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """What bitsandbytes makes of the whole weight, there and back."""
    packed, state = bnb.quantize_4bit(torch.tensor(weight), blocksize=block_size, quant_type="nf4")
    return bnb.dequantize_4bit(packed, state).numpy()


def kernel_values(weight: NF4) -> NDArray[np.float32]:
    """The weight [out, in] that onnxruntime's MatMulBnb4 multiplies by: its product with ones."""
    rows, columns = weight.shape
    node = helper.make_node(
        "MatMulBnb4",
        ["x", "B", "absmax"],
        ["y"],
        domain="com.microsoft",
        N=rows,
        K=columns,
        block_size=weight.block_size,
        quant_type=1,
        transB=1,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])],
        [numpy_helper.from_array(weight.packed, "B"), numpy_helper.from_array(weight.absmax, "absmax")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    return np.asarray(product).T


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", NF4_BLOCK_SIZES)
def test_dequantized_values_are_those_of_bitsandbytes_bit_for_bit(
    block_size: int, shape: tuple[int, int], make: Make
) -> None:
    weight = make(shape)
    values = dequantize_nf4(quantize_nf4(weight, block_size))
    expected = bitsandbytes_values(weight, block_size)
    assert values.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", NF4_BLOCK_SIZES)
def test_dequantized_values_are_those_of_the_kernel(block_size: int, shape: tuple[int, int], make: Make) -> None:
    packed = quantize_nf4(make(shape), block_size)
    np.testing.assert_array_equal(dequantize_nf4(packed), kernel_values(packed))


def test_the_levels_are_those_of_bitsandbytes() -> None:
    np.testing.assert_array_equal(LEVELS, bnb.get_4bit_type("nf4", device="cpu").numpy())


def test_the_first_of_two_elements_takes_the_high_half_of_the_byte() -> None:
    weight = LEVELS[None, [0, 15, 7, 9, 3]] * np.float32(4)
    packed = quantize_nf4(weight)
    assert packed.absmax.tolist() == [4.0]
    assert [byte >> 4 for byte in packed.packed] == [0, 7, 3]
    assert [byte & 15 for byte in packed.packed[:2]] == [15, 9]
    np.testing.assert_array_equal(dequantize_nf4(packed), weight)


def test_blocks_run_over_the_ends_of_rows() -> None:
    weight = np.full((3, 48), 0.5, np.float32)
    weight[1, 15:17] = [2, 8]
    # Elements 63 and 64 of the long row: the last of the first block of 64, and the first of the second.
    assert quantize_nf4(weight, 64).absmax.tolist() == [2.0, 8.0, 0.5]


@pytest.mark.parametrize("shape", [(40, 64), (9, 257)], ids=str)
@pytest.mark.parametrize("block_size", NF4_BLOCK_SIZES)
def test_a_weight_cut_into_pieces_gives_what_bitsandbytes_gives_for_the_whole(
    block_size: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4, "_PIECE_ELEMENTS", 256)
    weight = heavy_tails(shape)
    packed = quantize_nf4(weight, block_size)
    codes, state = bnb.quantize_4bit(torch.tensor(weight), blocksize=block_size, quant_type="nf4")
    np.testing.assert_array_equal(packed.packed, codes.numpy().reshape(-1))
    np.testing.assert_array_equal(packed.absmax, state.absmax.numpy())


def test_a_transposed_view_is_quantized_as_the_matrix_that_it_shows() -> None:
    weight = gaussian((24, 96))
    np.testing.assert_array_equal(
        dequantize_nf4(quantize_nf4(np.asfortranarray(weight))), dequantize_nf4(quantize_nf4(weight))
    )


def test_zeros_stay_zeros() -> None:
    assert not dequantize_nf4(quantize_nf4(np.zeros((3, 100), np.float32))).any()


def test_nf4_loses_less_of_normal_weights_than_codes_evenly_spaced_around_zero() -> None:
    weight = gaussian((64, 512))
    losses = [
        np.linalg.norm(dequantize_nf4(quantize_nf4(weight, 64)) - weight),
        np.linalg.norm(dequantize(quantize(weight, 4, 64)) - weight),
    ]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", NF4_BLOCK_SIZES)
def test_size_is_what_a_recipe_foretells(block_size: int, shape: tuple[int, int]) -> None:
    assert quantize_nf4(gaussian(shape), block_size).nbytes == recipe.NF4(block_size).weight_bytes(*shape)


@pytest.mark.parametrize("block_size", [0, 16, 48, 512])
def test_block_sizes_that_either_side_does_not_know_are_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match="block_size is"):
        quantize_nf4(np.ones((1, 64), np.float32), block_size)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = np.ones((2, 64), np.float32)
    weight[1, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize_nf4(weight)
