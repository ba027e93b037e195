"""The modules that both graphs are made of: linear layers and norms, from the checkpoint's tensors."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ..quant.blockwise import dequantize
from ..quant.nf4 import dequantize_nf4, quantize_nf4
from ..runtime.errors import CheckpointError
from .graph import MICROSOFT, Graph
from .packing import Pack, pack_blocks
from .recipe import NF4, W8A8, Blockwise, Float16, Float32, Precision
from .row_products import RowProducts
from .stored import Observe, Stored

ReadTensor = Callable[[str], NDArray[np.float32]]
"""Reads a tensor of the checkpoint by its name, as float32."""


Floats = Literal["float32", "float16"]
"""The type of activations, and with them of norms, biases and scales."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class Layers:
    """Adds modules to a graph, reading each tensor when its turn comes."""

    def __init__(
        self,
        graph: Graph,
        read: ReadTensor,
        precision: Precision,
        pack: Pack = pack_blocks,
        observe: Observe | None = None,
        *,
        floats: Floats = "float32",
        exact: Sequence[str] = (),
    ) -> None:
        """pack: makes the blocks of a weight, where `precision` has any. observe: sees what became of each weight.

        floats: the type of activations. exact: scopes that stay float32 all the same; see `within`.
        """
        self.graph, self.read, self.precision = graph, read, precision
        self.floats: Floats = floats
        self._pack, self._observe, self._exact = pack, observe, exact
        # What each product multiplies, by its scope.
        self.inputs: dict[str, str] = {}
        self._rows = RowProducts(graph, observe)

    @property
    def type(self) -> int:
        """The TensorProto.DataType of activations."""
        return TensorProto.FLOAT16 if self.floats == "float16" else TensorProto.FLOAT

    def within(self, scope: str) -> "Layers":
        """The layers of a scope: these, or their like in float32 where it stays exact."""
        return self.in_float32() if scope in self._exact else self

    def in_float32(self) -> "Layers":
        """The like of these over float32 activations, in the same graph. Half floats become float32 weights."""
        if self.floats == "float32":
            return self
        precision = Float32() if isinstance(self.precision, Float16) else self.precision
        return Layers(self.graph, self.read, precision, self._pack, self._observe)

    def taken(self, value: str, floats: Floats, scope: str) -> str:
        """A value of a type as these layers have it: itself, or cast under `scope`."""
        return value if floats == self.floats else self.graph.add_node("Cast", [value], scope, to=self.type)

    def linear(self, x: str, modules: Sequence[str], scope: str, *, bias: bool) -> str:
        """`x @ W.T + b` in the precision of these layers, W stacking the weights of `modules` [out, in]."""
        b = _stack([self.read(f"{module}.bias") for module in modules]) if bias else None
        weight = _stack([self._flat(f"{module}.weight") for module in modules])
        return self.product(x, weight, scope, self.precision, b)

    def product(
        self,
        x: str,
        weight: NDArray[np.float32],
        scope: str,
        precision: Precision,
        bias: NDArray[np.float32] | None = None,
        *,
        lowest: float | None = None,
        scaled: bool = True,
    ) -> str:
        """`x @ weight.T + bias` for a weight [out, in] and a bias [out], in `precision`.

        lowest: what no value of x is below, if that is known; it saves looking for it. scaled: False leaves it to the
        caller to multiply rows by their scales, where they have some: see `scaled`.
        """
        self.inputs[scope] = x
        b = "" if bias is None else self._float_weight(f"{scope}.bias", bias)
        if isinstance(precision, W8A8):
            return self._rows.product(x, weight, scope, b, lowest, scaled=scaled)
        if isinstance(precision, Blockwise):
            return self._block_product(x, weight, scope, precision, b)
        if isinstance(precision, NF4):
            return self._nf4_product(x, weight, scope, precision, b)
        return self._float_product(x, weight, scope, b)

    def _block_product(self, x: str, weight: NDArray[np.float32], scope: str, precision: Blockwise, bias: str) -> str:
        """The product as MatMulNBits(B, scales, zero_points, bias), of 4 or 8 bits.

        In half floats MatMulNBits(B, scales, zero_points) -> Add(bias): not every CUDA kernel since 1.23 takes one.
        """
        half = self.floats == "float16"
        packed = self._pack(scope, weight, precision)
        if self._observe:
            stored = dataclasses.replace(precision, bits=packed.bits)
            self._observe(scope, weight, Stored(stored, dequantize(packed), packed.nbytes))
        zero_points = packed.zero_points
        inputs = [
            x,
            self.graph.add_weight(f"{scope}.weight", packed.packed),
            self._float_weight(f"{scope}.scales", packed.scales),
            "" if zero_points is None else self.graph.add_weight(f"{scope}.zero_points", zero_points),
            "",
            "" if half else bias,
        ]
        attributes: dict[str, Any] = {
            "N": weight.shape[0],
            "K": weight.shape[1],
            "bits": packed.bits,
            "block_size": packed.block_size,
            "accuracy_level": precision.accuracy_level,
        }
        y = self.graph.add_node("MatMulNBits", _trimmed(inputs), scope, domain=MICROSOFT, **attributes)
        return self.graph.add_node("Add", [y, bias], scope) if bias and half else y

    def _nf4_product(self, x: str, weight: NDArray[np.float32], scope: str, precision: NF4, bias: str) -> str:
        """The product as MatMulBnb4(B, absmax) -> Add(bias): the operator takes none."""
        packed = quantize_nf4(weight, precision.block_size)
        if self._observe:
            self._observe(scope, weight, Stored(precision, dequantize_nf4(packed), packed.nbytes))
        inputs = [
            x,
            self.graph.add_weight(f"{scope}.weight", packed.packed),
            self._float_weight(f"{scope}.absmax", packed.absmax),
        ]
        attributes = {"N": weight.shape[0], "K": weight.shape[1], "block_size": precision.block_size}
        # quant_type 1 is NF4; transB says that the weight is [N, K].
        y = self.graph.add_node("MatMulBnb4", inputs, scope, domain=MICROSOFT, quant_type=1, transB=1, **attributes)
        return self.graph.add_node("Add", [y, bias], scope) if bias else y

    def layer_norm(self, x: str, module: str, scope: str, epsilon: float) -> str:
        """LayerNormalization over the last axis."""
        weights = [self.vector(f"{module}.weight"), self.vector(f"{module}.bias")]
        return self.graph.add_node("LayerNormalization", [x, *weights], scope, axis=-1, epsilon=epsilon)

    def rms_norm(self, x: str, module: str, scope: str, epsilon: float) -> str:
        """RMS normalization over the last axis: that of x + 0, as ONNX's own operator wants a later opset.

        x -> Sub(x) -> SkipSimplifiedLayerNormalization(x)
        """
        nothing = self.graph.add_node("Sub", [x, x], scope)
        return self.skip_rms_norm(nothing, x, module, scope, epsilon)[0]

    def skip_rms_norm(self, x: str, skip: str, module: str, scope: str, epsilon: float) -> tuple[str, str]:
        """RMS normalization of `x + skip`; returns it and the sum."""
        op = "SkipSimplifiedLayerNormalization"
        normed, total = f"/{scope}/{op}/output", f"/{scope}/{op}/sum"
        inputs = [x, skip, self.vector(f"{module}.weight")]
        self.graph.add_node(op, inputs, scope, [normed, "", "", total], MICROSOFT, epsilon=epsilon)
        return normed, total

    def vector(self, name: str) -> str:
        """A norm's weight or bias [n], under its own name."""
        return self._float_weight(name, self.read(name))

    def constant(self, name: str, values: Sequence[int]) -> str:
        """A small int64 initializer [n]: sizes, axes, shapes. The same name is added once."""
        return self.graph.add_shared(name, np.array(values, np.int64))

    def _float_weight(self, name: str, array: NDArray[np.float32]) -> str:
        """An initializer in the type of activations. Raises `CheckpointError` for a value beyond fp16's range."""
        if self.floats == "float16" and max(array.max(), -array.min()) > _FLOAT16_MAX:
            raise CheckpointError(f"{name} has values beyond fp16's range; export the checkpoint with --device cpu")
        return self.graph.add_weight(name, array.astype(self.floats, copy=False))

    def _float_product(self, x: str, weight: NDArray[np.float32], scope: str, bias: str) -> str:
        """The product as MatMul(W.T) -> Add(bias)."""
        if self._observe:
            stored = weight.astype(self.floats)
            precision = Float32() if self.floats == "float32" else Float16()
            self._observe(scope, weight, Stored(precision, stored.astype(np.float32), stored.nbytes))
        transposed = self._float_weight(f"{scope}.weight", weight.T)
        y = self.graph.add_node("MatMul", [x, transposed], scope)
        return self.graph.add_node("Add", [y, bias], scope) if bias else y

    def summed_products(
        self,
        hidden: Callable[[slice, str], str],
        weight: NDArray[np.float32],
        scope: str,
        name: str,
        bias: NDArray[np.float32] | None = None,
        *,
        lowest: float | None = None,
    ) -> str:
        """`hidden @ weight.T + bias`, named `name`, for a hidden layer wider than its output: a sum over pieces of it.

        hidden(0:n) -> product(W[:, 0:n]) -> Add -> Add ...
        hidden(n:2n) -> product(W[:, n:2n]) --^      ^
        `hidden` makes a piece of the hidden layer under a scope. Each piece has scales of its own, stays in the cache
        until it is used, and its product runs faster than one over the whole. Only in W8A8; else there is one piece.
        """
        out_features, width = weight.shape
        pieces = _pieces(width, out_features) if isinstance(self.precision, W8A8) else 1
        total = ""
        for i in range(pieces):
            piece = slice(i * width // pieces, (i + 1) * width // pieces)
            inner = f"{scope}.{i}" if pieces > 1 else scope
            x, b = hidden(piece, inner), bias if i == 0 else None
            y = self.product(x, weight[:, piece], f"{inner}/{name}", self.precision, b, lowest=lowest)
            total = self.graph.add_node("Add", [total, y], f"{inner}/sum") if total else y
        return total

    def scaled(self, y: str, x: str, scope: str) -> str:
        """`y`, which an unscaled product of `x` went into as a factor, times the scales of x's rows."""
        if not isinstance(self.precision, W8A8):
            return y
        return self.graph.add_node("Mul", [y, self._rows.scale(x)], f"{scope}/scaled")

    def _flat(self, name: str) -> NDArray[np.float32]:
        """A weight as [out, in]; a convolution's kernel is flattened in the order in which patches are."""
        weight = self.read(name)
        return weight.reshape(weight.shape[0], -1)


def _stack(arrays: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _pieces(width: int, piece: int) -> int:
    """The largest number of equal pieces of `width` that are not narrower than `piece`."""
    return next((n for n in range(width // piece, 1, -1) if width % n == 0), 1)


def _trimmed(inputs: list[str]) -> list[str]:
    """Optional inputs at the end that are absent are left out."""
    while not inputs[-1]:
        inputs = inputs[:-1]
    return inputs
