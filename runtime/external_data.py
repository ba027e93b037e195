"""Where an ONNX graph keeps its weights, read from the file's bytes without the onnx package.

onnxruntime follows whatever path the graph names: 1.23 to any file of the disk, later versions only inside the graph's
folder. A bundle's graph may name its own data file, one for CUDA its like's for CPUs too, and there only what lies
within it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .protobuf import read_fields, read_integer, read_integers, read_messages, read_text

# The fields of onnx.proto through which a tensor can be reached: message -> field number -> the message it holds.
_FIELDS = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
# Of these a message has one. Protobuf merges several into one tensor, with the dimensions of both.
_ONCE = {("Attribute", 5), ("Attribute", 22), ("SparseTensor", 1), ("SparseTensor", 2)}
# No weight has more. The product of a million would take minutes.
_MOST_DIMS = 8
# Protobuf itself reads no deeper by default, and so neither does onnxruntime.
_DEEPEST = 100
_DIMS, _DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 13, 14
_KEY, _VALUE = 1, 2
_KEYS = {"location", "offset", "length"}
# Bytes of an element of each TensorProto.DataType that a bundle's weights may have.
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 16: 2}
_WHOLE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor that stands in another file: what the graph says of the place, and how many bytes it should take.

    entries: the keys and values of its external_data. nbytes: None for a type or dimensions that no bundle has.
    """

    entries: tuple[tuple[str, str], ...]
    nbytes: int | None

    @property
    def locations(self) -> set[str]:
        """The files that it names; there should be one."""
        return {value for key, value in self.entries if key == "location"}


def external_tensors(graph: memoryview) -> Iterator[ExternalTensor]:
    """Every tensor of the serialized model `graph` that another file holds. Raises ValueError where it is no model."""
    # A stack of what is still to be read, because a hostile graph nests deeper than Python recurses.
    waiting = [_inner("Model", graph)]
    while waiting:
        following = next(waiting[-1], None)
        if following is None:
            waiting.pop()
            continue
        kind, message = following
        if kind == "Tensor":
            tensor = _external_tensor(message)
            if tensor is not None:
                yield tensor
        elif len(waiting) == _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} messages")
        else:
            waiting.append(_inner(kind, message))


def tensor_fault(tensor: ExternalTensor, files: Mapping[str, int]) -> str:
    """What is wrong with where a tensor stands, or nothing. files: where it may stand, with their bytes."""
    elsewhere = sorted(tensor.locations - files.keys())
    if elsewhere:
        return f"takes weights from {elsewhere[0]!r} and not from {' or '.join(files)}"
    data = next(iter(tensor.locations), next(iter(files)))
    size = files[data]
    values = dict(tensor.entries)
    if len(tensor.entries) != len(_KEYS) or values.keys() != _KEYS:
        return f"does not say in the usual way where in {data} a weight stands"
    if not (_WHOLE.fullmatch(values["offset"]) and _WHOLE.fullmatch(values["length"])):
        return f"has a weight in {data} whose place is no number"
    offset, length = int(values["offset"]), int(values["length"])
    if offset + length > size:
        return f"takes weights from beyond the end of {data} (offset {offset}, length {length} of {size} bytes)"
    if length != tensor.nbytes:
        return f"has a weight in {data} of {length} bytes, which its dimensions do not give"
    return ""


def _inner(kind: str, message: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The messages in a message through which tensors can be reached."""
    seen: set[tuple[str, int]] = set()
    for number, value in read_fields(message):
        if (kind, number) in seen:
            raise ValueError("a tensor stands twice")
        seen |= {(kind, number)} & _ONCE
        inner = _FIELDS[kind].get(number)
        if inner is not None and isinstance(value, memoryview):
            yield inner, value


def _external_tensor(tensor: memoryview) -> ExternalTensor | None:
    entries = tuple((read_text(e, _KEY), read_text(e, _VALUE)) for e in read_messages(tensor, _EXTERNAL_DATA))
    if not entries and not any(read_integers(tensor, _DATA_LOCATION)):
        return None
    item, dims = _ITEM_BYTES.get(read_integer(tensor, _DATA_TYPE) or 0), read_integers(tensor, _DIMS)
    return ExternalTensor(entries, item * math.prod(dims) if item and len(dims) <= _MOST_DIMS else None)
