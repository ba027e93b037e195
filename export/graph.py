"""An ONNX graph under construction."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

# onnxruntime 1.23, the last for Python 3.10, has no QuantizeLinear of a later opset. com.microsoft holds onnxruntime's
# own operators.
OPSET = 21
# CUDA's kernels are registered for an operator's version exactly or for a closed range. Of 1.23 to 1.32 not all have
# Identity-21, Unsqueeze-21 or any ReduceMax behind 18: such a node goes to the CPU, and takes the whole graph's capture
# with it.
CUDA_OPSET = 17
IR_VERSION = 10
MICROSOFT = "com.microsoft"

# onnxruntime maps external data into memory; a page boundary lets it map without a copy.
_ALIGNMENT = 4096
Places = dict[bytes, tuple[str, int]]
"""Where weights stand, by the sha256 of their bytes: a data file's name, and an offset in it."""

# Sizes, axes and scalars, which stay in the graph itself.
INLINE_BYTES = 64


class Graph:
    """Collects nodes and initializers, which stay in memory.

    Values are named after the module and the operator that makes them (`/layers.0/attn/o_proj/MatMulNBits`), so that a
    profile or an error reads like the model.
    """

    def __init__(self, name: str, opset: int = OPSET) -> None:
        self._name, self._opset = name, opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def add_input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def add_output(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Declare a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def add_weight(self, name: str, array: NDArray[Any]) -> str:
        """Add an initializer."""
        self._initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add_shared(self, name: str, array: NDArray[Any]) -> str:
        """Add an initializer that several may want: the same name is added once."""
        return name if self.has_weight(name) else self.add_weight(name, array)

    def has_weight(self, name: str) -> bool:
        """Whether an initializer of this name was added."""
        return any(tensor.name == name for tensor in self._initializers)

    def add_node(
        self, op: str, inputs: Sequence[str], scope: str, outputs: Sequence[str] = (), domain: str = "", **attrs: Any
    ) -> str:
        """Add a node and return its first output, named `/scope/op` unless `outputs` names them all."""
        name = f"/{scope}/{op}"
        outputs = outputs or [f"{name}/output"]
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attrs))
        return outputs[0]

    def model(self) -> ModelProto:
        """The whole model."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="medvlm")

    def serialize(self) -> bytes:
        """The model as onnxruntime reads it."""
        return self.model().SerializeToString()


class GraphBuilder(Graph):
    """A graph whose weights go straight to a data file; `save` writes NAME.onnx beside NAME.onnx.data."""

    def __init__(self, path: Path, opset: int = OPSET, *, known: Places | None = None, remember: bool = False) -> None:
        """known: weights that stand in another graph's data file, and are read from there. remember: note `places`."""
        super().__init__(path.stem, opset)
        self._known = known or {}
        self._hashing = remember or bool(known)
        self.places: Places = {}
        self.path = path
        self.data_path = path.with_name(path.name + ".data")
        self._data = self.data_path.open("wb")
        self._digest = hashlib.sha256()
        self._offset = 0

    def __enter__(self) -> "GraphBuilder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._data.close()

    def add_weight(self, name: str, array: NDArray[Any]) -> str:
        """Add an initializer. All but the smallest are written to the data file at once and not kept."""
        array = np.ascontiguousarray(array)
        if array.nbytes <= INLINE_BYTES:
            return super().add_weight(name, array)
        location, offset = self._place(array)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers.append(tensor)
        return name

    def save(self) -> dict[Path, str]:
        """Write the graph; the sha256 of the graph and of its data file, by path."""
        blob = self.serialize()
        self.path.write_bytes(blob)
        self._data.close()
        return {self.path: hashlib.sha256(blob).hexdigest(), self.data_path: self._digest.hexdigest()}

    def _place(self, array: NDArray[Any]) -> tuple[str, int]:
        """Where an array stands: in another graph's data file already, or at the end of this one's from now on."""
        data = array.data.cast("B")
        digest = hashlib.sha256(data).digest() if self._hashing else b""
        if digest in self._known:
            return self._known[digest]
        self._write(b"\0" * (-self._offset % _ALIGNMENT))
        place = self.data_path.name, self._offset
        self._write(data)
        if digest:
            self.places[digest] = place
        return place

    def _write(self, data: bytes | memoryview) -> None:
        self._data.write(data)
        self._digest.update(data)
        self._offset += len(data)
