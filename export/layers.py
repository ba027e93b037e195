"""The modules that both graphs are made of: linear layers and norms, from the checkpoint's tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.blockwise import quantize
from .graph import MICROSOFT, GraphBuilder
from .recipe import FLOAT32_BITS, Precision

ReadTensor = Callable[[str], NDArray[np.float32]]
"""Reads a tensor of the checkpoint by its name, as float32."""


class Layers:
    """Adds modules to a graph, reading each tensor when its turn comes."""

    def __init__(self, graph: GraphBuilder, read: ReadTensor, precision: Precision) -> None:
        self.graph, self.read, self.precision = graph, read, precision

    def linear(self, x: str, modules: Sequence[str], scope: str, *, bias: bool) -> str:
        """`x @ W.T + b`, where W stacks the weights of `modules` [out, in] (q, k and v as one product).

        x -> MatMulNBits(B, scales, zero_points, bias)        4 or 8 bits
        x -> MatMul(W.T) -> Add(bias)                         float32
        """
        b = self._add_bias([f"{module}.bias" for module in modules], scope) if bias else ""
        weight = _stack([self._flat(f"{module}.weight") for module in modules])
        return self.product(x, weight, scope, self.precision, bias=b)

    def product(self, x: str, weight: NDArray[np.float32], scope: str, precision: Precision, *, bias: str = "") -> str:
        """`x @ weight.T + bias` for a weight [out, in], in `precision`."""
        if precision.bits == FLOAT32_BITS:
            return self._float_product(x, weight, scope, bias)
        packed = quantize(weight, precision.bits, precision.block_size, symmetric=precision.symmetric)
        zero_points = packed.zero_points
        inputs = [
            x,
            self.graph.add_weight(f"{scope}.weight", packed.packed),
            self.graph.add_weight(f"{scope}.scales", packed.scales),
            "" if zero_points is None else self.graph.add_weight(f"{scope}.zero_points", zero_points),
            "",
            bias,
        ]
        attributes: dict[str, Any] = {
            "N": weight.shape[0],
            "K": weight.shape[1],
            "bits": precision.bits,
            "block_size": precision.block_size,
            "accuracy_level": precision.accuracy_level,
        }
        return self.graph.add_node("MatMulNBits", _trimmed(inputs), scope, domain=MICROSOFT, **attributes)

    def layer_norm(self, x: str, module: str, scope: str, epsilon: float) -> str:
        """LayerNormalization over the last axis."""
        weights = [self.vector(f"{module}.weight"), self.vector(f"{module}.bias")]
        return self.graph.add_node("LayerNormalization", [x, *weights], scope, axis=-1, epsilon=epsilon)

    def skip_layer_norm(self, x: str, skip: str, module: str, scope: str, epsilon: float) -> tuple[str, str]:
        """LayerNormalization of `x + skip`; returns it and the sum."""
        inputs = [x, skip, self.vector(f"{module}.weight"), self.vector(f"{module}.bias")]
        return self._skip_norm("SkipLayerNormalization", inputs, scope, epsilon)

    def rms_norm(self, x: str, module: str, scope: str, epsilon: float) -> str:
        """RMS normalization over the last axis."""
        return self.graph.add_node(
            "RMSNormalization", [x, self.vector(f"{module}.weight")], scope, axis=-1, epsilon=epsilon
        )

    def skip_rms_norm(self, x: str, skip: str, module: str, scope: str, epsilon: float) -> tuple[str, str]:
        """RMS normalization of `x + skip`; returns it and the sum."""
        inputs = [x, skip, self.vector(f"{module}.weight")]
        return self._skip_norm("SkipSimplifiedLayerNormalization", inputs, scope, epsilon)

    def vector(self, name: str) -> str:
        """A norm's weight or bias [n], in float32 under its own name."""
        return self.graph.add_weight(name, self.read(name))

    def constant(self, name: str, values: Sequence[int]) -> str:
        """A small int64 initializer [n]: sizes, axes, shapes."""
        return self.graph.add_weight(name, np.array(values, np.int64))

    def _skip_norm(self, op: str, inputs: list[str], scope: str, epsilon: float) -> tuple[str, str]:
        normed, total = f"/{scope}/{op}/output", f"/{scope}/{op}/sum"
        self.graph.add_node(op, inputs, scope, [normed, "", "", total], MICROSOFT, epsilon=epsilon)
        return normed, total

    def _float_product(self, x: str, weight: NDArray[np.float32], scope: str, bias: str) -> str:
        transposed = self.graph.add_weight(f"{scope}.weight", weight.T)
        y = self.graph.add_node("MatMul", [x, transposed], scope)
        return self.graph.add_node("Add", [y, bias], scope) if bias else y

    def _add_bias(self, names: list[str], scope: str) -> str:
        return self.graph.add_weight(f"{scope}.bias", _stack([self.read(name) for name in names]))

    def _flat(self, name: str) -> NDArray[np.float32]:
        """A weight as [out, in]; a convolution's kernel is flattened in the order in which patches are."""
        weight = self.read(name)
        return weight.reshape(weight.shape[0], -1)


def _stack(arrays: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _trimmed(inputs: list[str]) -> list[str]:
    """Optional inputs at the end that are absent are left out."""
    while not inputs[-1]:
        inputs = inputs[:-1]
    return inputs
