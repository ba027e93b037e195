"""Where an ONNX graph keeps its weights, read from the file's bytes without the onnx package.

onnxruntime follows whatever path the graph names: 1.23 to any file of the disk, later versions only inside the graph's
folder. A bundle's graph may name one file, its own data file.
"""

from collections.abc import Iterator
from pathlib import Path

# The fields of onnx.proto through which a tensor can be reached: message -> field number -> the message it holds.
_FIELDS = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
}
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 63
_TAG_LIMIT = 1 << 32


def external_locations(path: Path) -> set[str]:
    """The files that the graph in `path` takes tensors from, as it names them.

    Raises ValueError where the file is not a graph, OSError where it cannot be read.
    """
    data = memoryview(path.read_bytes())
    found: set[str] = set()
    # A list of what is still to be read, because a hostile graph nests deeper than Python recurses.
    waiting = [("Model", data)]
    while waiting:
        kind, message = waiting.pop()
        fields = list(_read_fields(message))
        if kind == "ExternalData":
            texts = {number: bytes(value).decode() for number, value in fields}
            found |= {texts.get(_VALUE, "")} if texts.get(_KEY) == "location" else set()
        else:
            waiting += [(inner, value) for number, value in fields if (inner := _FIELDS[kind].get(number))]
    return found


def _read_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The number and the bytes of each length-delimited field of a protobuf message; the others are skipped."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        if tag >= _TAG_LIMIT:
            raise ValueError("a field number is too large")
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire in (_VARINT, _BYTES):
            value, at = _read_varint(message, at)
            length = value if wire == _BYTES else 0
        elif not length:
            raise ValueError(f"wire type {wire}")
        if length > len(message) - at:
            raise ValueError("a field is longer than its message")
        if wire == _BYTES:
            yield number, message[at : at + length]
        at += length


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MAX_VARINT_BITS + 1, 7):
        if at == len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")
