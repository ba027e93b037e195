"""int8 quantization of weights with one scale per output channel, in the layout of `MatMulIntegerToFloat`.

    value[k, n] = codes[k, n] * scales[n]          codes in -127 .. 127

-128 is left out, so that a channel's range is symmetric. Activations are quantized by the graph itself, per row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE = 127

# Rows are worked on in pieces of about this many elements, so that the temporaries stay in the cache.
_CHUNK_ELEMENTS = 1 << 17


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
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        x = weight[chunk]
        if not np.isfinite(x).all():
            raise ValueError("the weight holds values that are not finite")
        scales[chunk] = np.maximum(x.max(axis=1), -x.min(axis=1)) / np.float32(LARGEST_CODE)
        with np.errstate(divide="ignore", over="ignore"):
            reciprocal = np.float32(1) / scales[chunk]
        # A scale of zero, or too small to have a reciprocal, has nothing to round.
        reciprocal[~np.isfinite(reciprocal)] = 0
        codes[:, chunk] = np.clip(np.rint(x * reciprocal[:, None]), -LARGEST_CODE, LARGEST_CODE).T
    return Channelwise(codes, scales)


def dequantize_channels(weight: Channelwise) -> NDArray[np.float32]:
    """The float32 values [out_features, in_features] that the product multiplies by."""
    return weight.codes.T.astype(np.float32) * weight.scales[:, None]
