"""What is wrong with one of a bundle's graphs, found from its bytes before onnxruntime sees them."""

from collections.abc import Mapping
from pathlib import Path

from .external_data import external_tensors, tensor_fault
from .graph_signature import Signature, declared, signature_fault

# The full-size model's graphs have less than a megabyte: their weights are in the data files. Of many empty nodes
# onnxruntime makes five hundred times their size.
_MAX_GRAPH_BYTES = 1 << 21


def graph_fault(path: Path, data: Mapping[str, int], wanted: Signature) -> str:
    """The first fault of a graph, or nothing. Raises OSError where it cannot be read.

    data: the files that it may take weights from, only from within them, with their bytes; its own is the first.
    wanted: what must go in and come out.
    """
    with path.open("rb") as file:
        graph = memoryview(file.read(_MAX_GRAPH_BYTES + 1))
    if len(graph) > _MAX_GRAPH_BYTES:
        return f"{path.name} is too large for a graph"
    try:
        faults = (tensor_fault(tensor, data) for tensor in external_tensors(graph))
        fault = next(filter(None, faults), "") or signature_fault(declared(graph), wanted)
    except ValueError as error:
        return f"{path.name} is not an ONNX graph ({error})"
    return fault and f"{path.name} {fault}"
