"""Products of int8 by int8 (W8A8): the fastest of many rows on a CPU, made of onnxruntime's own operators."""

import numpy as np
from numpy.typing import NDArray

from ..quant.channelwise import LARGEST_CODE, dequantize_channels, quantize_channels
from .graph import MICROSOFT, Graph
from .recipe import W8A8
from .stored import Observe, Stored

# What a row is divided by at least, so that a row of zeros gives zeros and not 0 / 0.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# Activations become uint8 around this: MLAS multiplies unsigned by signed bytes fast, and signed by signed slowly.
_ZERO_POINT = 128


class RowProducts:
    """Adds such products to a graph; what several of them multiply is quantized once."""

    def __init__(self, graph: Graph, observe: Observe | None) -> None:
        self._graph, self._observe = graph, observe
        # What was quantized: its codes and its scales.
        self._rows: dict[str, tuple[str, str]] = {}

    def scale(self, x: str) -> str:
        """The largest magnitude of each row of x, which a product multiplied: [.., rows, 1]."""
        return self._rows[x][1]

    def product(
        self,
        x: str,
        weight: NDArray[np.float32],
        scope: str,
        bias: str,
        lowest: float | None,
        *,
        scaled: bool,
    ) -> str:
        """int8 by int8, with a scale for each row of x and one for each column of the weight.

        x -> _quantized -> codes, scale
        codes -> MatMulIntegerToFloat(W.T, column scales) -> Mul(scale) -> Add(bias)
        """
        codes, scale = self._quantized(x, lowest)
        packed = quantize_channels(weight)
        if self._observe:
            self._observe(scope, weight, Stored(W8A8(), dequantize_channels(packed), packed.nbytes))
        inputs = [
            codes,
            self._graph.add_weight(f"{scope}.weight", packed.codes),
            self._scalar("code_step", 1 / LARGEST_CODE),
            self._graph.add_weight(f"{scope}.scales", packed.scales),
            self._graph.add_shared("code_zero_point", np.array(_ZERO_POINT, np.uint8)),
            # Of its own, because it changes with the weight where onnxruntime makes that uint8 (CPUs without VNNI);
            # left out, onnxruntime before 1.30 aborts the process there.
            self._graph.add_weight(f"{scope}.zero_point", np.array(0, np.int8)),
        ]
        y = self._graph.add_node("MatMulIntegerToFloat", inputs, scope, domain=MICROSOFT)
        y = self._graph.add_node("Mul", [y, scale], scope) if scaled else y
        return self._graph.add_node("Add", [y, bias], scope) if bias else y

    def _quantized(self, x: str, lowest: float | None) -> tuple[str, str]:
        """Each row of x as uint8 codes, and the largest magnitude of each row; once for all products of x.

        x -> ReduceMax ----------> Max -> scale [.., rows, 1]
          -> ReduceMin -> Neg ------^       v
          -> Div -------------------------------> QuantizeLinear(1 / 127, 128) -> codes
        Where no value is below `lowest`, its magnitude stands for the minimum's.
        """
        if x not in self._rows:
            scope = f"{x.strip('/').rpartition('/')[0]}/rows"
            axis = self._graph.add_shared("last_axis", np.array([-1], np.int64))
            high = self._graph.add_node("ReduceMax", [x, axis], scope, keepdims=1)
            if lowest is None:
                low = self._graph.add_node("ReduceMin", [x, axis], scope, keepdims=1)
                bounds = [self._graph.add_node("Neg", [low], scope), self._scalar("smallest_scale", _SMALLEST_SCALE)]
            else:
                bounds = [self._scalar(f"{scope}/lowest", -lowest)]
            scale = self._graph.add_node("Max", [high, *bounds], scope)
            shares = self._graph.add_node("Div", [x, scale], scope)
            step = self._scalar("code_step", 1 / LARGEST_CODE)
            zero_point = self._graph.add_shared("code_zero_point", np.array(_ZERO_POINT, np.uint8))
            self._rows[x] = self._graph.add_node("QuantizeLinear", [shares, step, zero_point], scope), scale
        return self._rows[x]

    def _scalar(self, name: str, value: float) -> str:
        """A float32 initializer []. The same name is added once."""
        return self._graph.add_shared(name, np.array(value, np.float32))
