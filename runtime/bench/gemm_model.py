"""A graph of one matrix product, written as protobuf without the onnx package, which the runtime does not need.

Field numbers are those of onnx.proto.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "x", "y"

# MatMul as it is since opset 13, in a format that every onnxruntime of the last years reads.
_OPSET, _IR_VERSION = 13, 8
_FLOAT = 1
_VARINT, _BYTES = 0, 2

Field = tuple[int, int | str | bytes]


def gemm_model(rows: int, weight: NDArray[np.float32]) -> bytes:
    """An ONNX model that computes y [rows, n] = x [rows, k] @ weight [k, n].

    The weight is an initializer, so that onnxruntime packs it once, at loading.
    """
    k, n = weight.shape
    node = _message([(1, INPUT), (1, "weight"), (2, OUTPUT), (3, "product"), (4, "MatMul")])
    tensor = _message(
        [(1, k), (1, n), (2, _FLOAT), (8, "weight"), (9, np.ascontiguousarray(weight, np.dtype("<f4")).tobytes())]
    )
    graph = _message(
        [(1, node), (2, "gemm"), (5, tensor), (11, _value_info(INPUT, (rows, k))), (12, _value_info(OUTPUT, (rows, n)))]
    )
    opset = _message([(1, ""), (2, _OPSET)])
    return _message([(1, _IR_VERSION), (2, "medvlm"), (7, graph), (8, opset)])


def _value_info(name: str, shape: Iterable[int]) -> bytes:
    """ValueInfoProto of a float32 tensor."""
    dims = _message([(1, _message([(1, size)])) for size in shape])
    tensor_type = _message([(1, _FLOAT), (2, dims)])
    return _message([(1, name), (2, _message([(1, tensor_type)]))])


def _message(fields: Iterable[Field]) -> bytes:
    """A protobuf message of the fields (number, value): a number as varint, text and bytes with their length."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3 | _VARINT), _varint(value)]
        else:
            data = value.encode() if isinstance(value, str) else value
            parts += [_varint(number << 3 | _BYTES), _varint(len(data)), data]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    """`value`, not negative, seven bits a byte from the lowest; the high bit says that more follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
