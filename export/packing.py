"""Weights to blocks: which method makes the codes of which product."""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..quant import blockwise
from ..quant.gptq import quantize_gptq
from ..quant.hqq import quantize_hqq
from .recipe import CALIBRATED, Blockwise

Pack = Callable[[str, NDArray[np.float32], Blockwise], blockwise.Blockwise]
"""Quantizes the weight [out, in] of the product of a scope."""


def pack_blocks(scope: str, weight: NDArray[np.float32], precision: Blockwise) -> blockwise.Blockwise:
    """The blocks that need nothing but the weight: rounded to the nearest, or by HQQ.

    Raises ValueError for a method that looks at activations.
    """
    if precision.method in CALIBRATED:
        raise ValueError(f"{scope} has no blocks: {precision.method} makes them from activations")
    bits, size, symmetric = precision.bits, precision.block_size, precision.symmetric
    if precision.method == "hqq":
        return quantize_hqq(weight, bits, size, symmetric=symmetric)
    return blockwise.quantize(weight, bits, size, symmetric=symmetric, search=precision.method == "rtn-search")


def pack_calibrated(
    weight: NDArray[np.float32], precision: Blockwise, gram: NDArray[np.float32], drift: NDArray[np.float32]
) -> blockwise.Blockwise:
    """The blocks for inputs X of which `gram` is X^T X [in, in]. drift: as `quantize_gptq` takes it."""
    bits, size, symmetric = precision.bits, precision.block_size, precision.symmetric
    if "gptq" in precision.method:
        act_order = precision.act_order
        return quantize_gptq(weight, gram, bits, size, symmetric=symmetric, drift=drift, act_order=act_order)
    importance = np.ascontiguousarray(np.diagonal(gram), np.float32)
    return blockwise.quantize(weight, bits, size, symmetric=symmetric, search=True, importance=importance)


def without_calibration(precision: Blockwise) -> Blockwise:
    """What stands for a precision where no activations were collected: the nearest that needs none."""
    if precision.method not in CALIBRATED:
        return precision
    return dataclasses.replace(precision, method="rtn-search", act_order=False)
