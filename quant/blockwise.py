"""Block-wise integer quantization in the layout of onnxruntime's `MatMulNBits`.

A weight `[out_features, in_features]` is cut along `in_features` into blocks of `block_size`, the last one padded with
zeros. Each block has one float32 scale and one zero point, and an element's value is

    value = (code - zero_point) * scale          code in 0 .. 2**bits - 1

Symmetric blocks keep the zero point at `2**(bits - 1)` and store none; asymmetric ones store theirs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZES = (16, 32, 64, 128, 256)
BITS = (4, 8)

# Rows are worked on in pieces of about this many elements, so that the temporaries stay in the cache.
_CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Blockwise:
    """A quantized weight, packed for `MatMulNBits` (its inputs B, scales and zero_points).

    packed: [out_features, blocks, block_size * bits / 8] uint8, the element of the lower index in the lower bits.
    scales: [out_features, blocks] float32.
    zero_points: [out_features, ceil(blocks * bits / 8)] uint8, packed like the codes; None where symmetric.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    bits: int
    block_size: int
    in_features: int

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        zero_points = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.packed.nbytes + self.scales.nbytes + zero_points


def quantize(weight: NDArray[np.float32], bits: int, block_size: int, *, symmetric: bool = True) -> Blockwise:
    """Round `weight` `[out_features, in_features]` to the nearest code of its block.

    Symmetric scales map the block's element of largest magnitude, sign included, to code 0, so that all `2**bits`
    codes are used (as MLAS and llama.cpp's Q4_0 do). Asymmetric ones span the block's range, widened to hold zero.

    Raises ValueError for `bits` or `block_size` that the operator does not know, and for weights that are not finite.
    """
    _check(bits, block_size)
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    packed = np.empty((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = None if symmetric else np.empty((rows, blocks), np.uint8)
    step = max(1, _CHUNK_ELEMENTS // max(1, blocks * block_size))
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        x = _blocks(weight[chunk], blocks, block_size)
        if not np.isfinite(x).all():
            raise ValueError("the weight holds values that are not finite")
        scales[chunk], zero = _symmetric_grid(x, bits) if symmetric else _asymmetric_grid(x, bits)
        packed[chunk] = pack(_codes(x, scales[chunk], zero, bits), bits)
        if zeros is not None:
            zeros[chunk] = zero
    return Blockwise(packed, scales, None if zeros is None else pack(zeros, bits), bits, block_size, columns)


def dequantize(weight: Blockwise) -> NDArray[np.float32]:
    """The float32 values `[out_features, in_features]` that the kernel multiplies by at accuracy_level 0."""
    rows, blocks = weight.scales.shape
    codes = unpack(weight.packed, weight.bits).astype(np.float32)
    if weight.zero_points is None:
        zero = np.float32(1 << (weight.bits - 1))
    else:
        zero = unpack(weight.zero_points, weight.bits)[:, :blocks, None].astype(np.float32)
    codes -= zero
    codes *= weight.scales[..., None]
    return codes.reshape(rows, -1)[:, : weight.in_features]


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes `[..., n]` as bytes `[..., ceil(n * bits / 8)]`; of two 4-bit codes the first takes the low half."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack`: `[..., n * bits / 8]` to codes `[..., n]`, a padding code at the end included."""
    if bits == 8:
        return packed
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*packed.shape[:-1], -1)


def _check(bits: int, block_size: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits is {bits}; MatMulNBits takes {BITS} here")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}; it must be one of {BLOCK_SIZES}")


def _blocks(weight: NDArray[np.float32], blocks: int, block_size: int) -> NDArray[np.float32]:
    """Rows `[n, in_features]` as float32 `[n, blocks, block_size]`, the last block padded with zeros."""
    rows, columns = weight.shape
    if columns != blocks * block_size:
        weight = np.pad(weight, ((0, 0), (0, blocks * block_size - columns)))
    return np.ascontiguousarray(weight, np.float32).reshape(rows, blocks, block_size)


def _symmetric_grid(x: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    low, high = x.min(axis=-1), x.max(axis=-1)
    extreme = np.where(high > -low, high, low)
    half = 1 << (bits - 1)
    return extreme / np.float32(-half), np.full(extreme.shape, half, np.uint8)


def _asymmetric_grid(x: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    low, high = np.minimum(x.min(axis=-1), 0), np.maximum(x.max(axis=-1), 0)
    scale = (high - low) / np.float32((1 << bits) - 1)
    zero = np.rint(-low * _reciprocal(scale))
    return scale, np.clip(zero, 0, (1 << bits) - 1).astype(np.uint8)


def _codes(x: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The nearest code of each element of `x` `[rows, blocks, block_size]`."""
    codes = x * _reciprocal(scale)[..., None]
    codes += zero[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes.astype(np.uint8)


def _reciprocal(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0 or so small that its reciprocal is not finite (a block of zeros)."""
    with np.errstate(divide="ignore", over="ignore"):
        reciprocal = np.float32(1) / scale
    return np.where(np.isfinite(reciprocal), reciprocal, np.float32(0))
