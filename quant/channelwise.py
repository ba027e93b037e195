"""int8 quantization of weights with one scale per output channel, in the layout of `MatMulIntegerToFloat`.

    value[k, n] = codes[k, n] * scales[n]          codes in -127 .. 127

-128 is left out, so that a channel's range is symmetric. Activations are quantized by the graph itself, per row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chunks import each_chunk, rows_at_once
from .grid import reciprocal

LARGEST_CODE = 127


@dataclass(frozen=True)
class Channelwise:
    """A weight [out_features, in_features], quantized and transposed.

    codes: [in_features, out_features] int8. scales: [out_features] float32.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays together."""
        return self.codes.nbytes + self.scales.nbytes


def quantize_channels(weight: NDArray[np.float32]) -> Channelwise:
    """Round `weight` [out_features, in_features] to the nearest of 255 levels between each channel's extremes.

    A channel of zeros has scale 0. Raises ValueError for weights that are not finite.
    """
    rows, columns = weight.shape
    codes = np.empty((columns, rows), np.int8)
    scales = np.empty(rows, np.float32)

    def work(chunk: slice) -> None:
        x = weight[chunk]
        if not np.isfinite(x).all():
            raise ValueError("the weight holds values that are not finite")
        scales[chunk] = np.maximum(x.max(axis=1), -x.min(axis=1)) / np.float32(LARGEST_CODE)
        rounded = np.rint(x * reciprocal(scales[chunk])[:, None])
        codes[:, chunk] = np.clip(rounded, -LARGEST_CODE, LARGEST_CODE).T

    each_chunk(work, rows, rows_at_once(columns))
    return Channelwise(codes, scales)


def dequantize_channels(weight: Channelwise) -> NDArray[np.float32]:
    """The float32 values [out_features, in_features] that the product multiplies by."""
    return weight.codes.T.astype(np.float32) * weight.scales[:, None]
