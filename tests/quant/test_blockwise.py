"""Block-wise quantization against onnxruntime's own kernel, and against values worked out by hand."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import hypothesis.extra.numpy as st_numpy
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlm.quant import BLOCK_SIZES, Blockwise, dequantize, quantize
from medvlm.quant.blockwise import pack, unpack
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def kernel_values(weight: Blockwise) -> NDArray[np.float32]:
    """The weight [out, in] that onnxruntime's MatMulNBits multiplies by at accuracy_level 0: its product with ones."""
    arrays = {"B": weight.packed, "scales": weight.scales, "zero_points": weight.zero_points}
    present = {name: array for name, array in arrays.items() if array is not None}
    rows, columns = weight.scales.shape[0], weight.in_features
    node = helper.make_node(
        "MatMulNBits",
        ["x", *present],
        ["y"],
        domain="com.microsoft",
        N=rows,
        K=columns,
        bits=weight.bits,
        block_size=weight.block_size,
        accuracy_level=0,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])],
        [numpy_helper.from_array(array, name) for name, array in present.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    return np.asarray(product).T


def rounded(weight: NDArray[np.float32], bits: int, block_size: int, *, symmetric: bool) -> NDArray[np.float32]:
    return dequantize(quantize(weight, bits, block_size, symmetric=symmetric))


@pytest.mark.parametrize("columns", [8, 31, 96, 200, 257, 1536])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantized_values_are_those_of_the_kernel(bits: int, block_size: int, symmetric: bool, columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((24, columns), np.float32) * rng.exponential(1, (24, 1)).astype(np.float32)
    weight[0] = 0
    weight[1] = np.abs(weight[1])
    weight[2] = -np.abs(weight[2]) - 5
    weight[3, 0] = 1e4
    packed = quantize(weight, bits, block_size, symmetric=symmetric)
    np.testing.assert_array_equal(dequantize(packed), kernel_values(packed))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@given(weight=st_numpy.arrays(np.float32, (3, 40), elements=st.floats(-1e4, 1e4, width=32)))
@settings(max_examples=60)
def test_no_element_is_further_off_than_a_scale_allows(bits: int, symmetric: bool, weight: NDArray[np.float32]) -> None:
    packed = quantize(weight, bits, 16, symmetric=symmetric)
    error = np.abs(dequantize(packed) - weight)
    scale = np.repeat(np.abs(packed.scales), 16, axis=1)[:, :40]
    # Symmetric codes end one short on the side opposite to the extreme: there, up to one scale is cut off. Asymmetric
    # ones round the zero point too, by up to half a scale at each end.
    limit = 1.0 + 1e-4
    assert (error <= limit * scale + np.abs(weight) * 1e-5 + 1e-35).all()


def test_symmetric_scale_maps_the_extreme_to_code_zero() -> None:
    weight = np.array([[4.0, -1.0, 0.5, 2.0] + [0.0] * 12], np.float32)
    packed = quantize(weight, 4, 16)
    assert packed.scales.tolist() == [[-0.5]]
    # value / -0.5 + 8, and the first of each pair in the low half of the byte.
    assert unpack(packed.packed, 4)[0, 0, :4].tolist() == [0, 10, 7, 4]
    assert packed.packed[0, 0, :2].tolist() == [10 << 4 | 0, 4 << 4 | 7]
    np.testing.assert_array_equal(dequantize(packed), weight)


def test_asymmetric_blocks_reach_both_ends_of_their_range() -> None:
    weight = np.array([[-1.0, 14.0, 0.0, 6.0] + [0.0] * 12], np.float32)
    packed = quantize(weight, 4, 16, symmetric=False)
    assert packed.scales.tolist() == [[1.0]]
    assert packed.zero_points is not None
    assert packed.zero_points.tolist() == [[1]]
    np.testing.assert_array_equal(dequantize(packed), weight)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros(symmetric: bool) -> None:
    weight = np.zeros((2, 64), np.float32)
    assert not rounded(weight, 4, 32, symmetric=symmetric).any()


def test_fewer_weights_a_scale_and_more_bits_lose_less() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    losses = [
        np.linalg.norm(rounded(weight, bits, size, symmetric=False) - weight)
        for bits, size in [(8, 32), (8, 256), (4, 32), (4, 128), (4, 256)]
    ]
    assert losses == sorted(losses)


def test_a_zero_point_loses_less_where_weights_are_off_centre() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 512), np.float32) + 3
    losses = [np.linalg.norm(rounded(weight, 4, 128, symmetric=s) - weight) for s in (False, True)]
    assert losses[0] < losses[1] / 1.5


@given(codes=st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 33)), elements=st.integers(0, 15)))
def test_unpacking_gives_back_what_was_packed(codes: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(unpack(pack(codes, 4), 4)[:, : codes.shape[1]], codes)


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (4, 512), (4, 0), (8, 100)])
def test_bits_and_block_sizes_that_the_operator_does_not_know_are_refused(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="is"):
        quantize(np.ones((1, 64), np.float32), bits, block_size)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_are_not_finite_are_refused(value: float, symmetric: bool) -> None:
    weight = np.ones((2, 64), np.float32)
    weight[1, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, 4, 32, symmetric=symmetric)
