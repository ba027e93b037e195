"""Block-wise integer quantization in the layout of onnxruntime's `MatMulNBits`.

A weight `[out_features, in_features]` is cut along `in_features` into blocks of `block_size`, the last one padded with
zeros. Each block has one float32 scale and one zero point, and an element's value is

    value = (code - zero_point) * scale          code in 0 .. 2**bits - 1

Symmetric blocks keep the zero point at `2**(bits - 1)` and store none; asymmetric ones store theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chunks import each_chunk, rows_at_once
from .grid import Grid, nearest_codes, range_grid, to_blocks
from .search import search_grid

BLOCK_SIZES = (16, 32, 64, 128, 256)
BITS = (4, 8)


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


def quantize(
    weight: NDArray[np.float32],
    bits: int,
    block_size: int,
    *,
    symmetric: bool = True,
    search: bool = False,
    importance: NDArray[np.float32] | None = None,
) -> Blockwise:
    """Round `weight` `[out_features, in_features]` to the nearest code of its block.

    The grid of a block spans its range (see `range_grid`), or with `search` is the one of least squared error among
    clipped ones (see `search_grid`). importance: [in_features] float32, not negative, the weights of the squared error
    of each input channel, such as its mean square E[x^2]; only a search takes them.

    Raises ValueError for `bits` or `block_size` that the operator does not know, for weights that are not finite, and
    for importance of another shape, below zero, not finite or without a search.
    """
    weights = None
    if importance is not None:
        if not search:
            raise ValueError("importance steers the search for a grid; give search=True with it")
        weights = _importance_blocks(importance, weight.shape[1], block_size)
    elif search and weight.shape[1] % block_size:
        # The padding has no part in the error.
        weights = _importance_blocks(np.ones(weight.shape[1], np.float32), weight.shape[1], block_size)

    def make_grid(x: NDArray[np.float32], _: slice) -> Grid:
        if search:
            return search_grid(x, bits, symmetric=symmetric, importance=weights)
        return range_grid(x, bits, symmetric=symmetric)

    return quantize_by(make_grid, weight, bits, block_size, symmetric=symmetric)


def encode(weight: NDArray[np.float32], grid: Grid, bits: int, block_size: int, *, symmetric: bool) -> Blockwise:
    """Round `weight` `[out_features, in_features]` to the nearest code of a given grid.

    Raises ValueError as `quantize` does, and for a grid of another shape or with zero points that it cannot have.
    """
    check(bits, block_size)
    rows, columns = weight.shape
    shape = (rows, -(-columns // block_size))
    if grid.scales.shape != shape or grid.zero_points.shape != shape:
        raise ValueError(
            f"the grid is {grid.scales.shape}; a weight {weight.shape} in blocks of {block_size} has {shape}"
        )
    if symmetric and (grid.zero_points != 1 << (bits - 1)).any():
        raise ValueError(f"a symmetric grid has {1 << (bits - 1)} as every zero point")
    if (grid.zero_points > (1 << bits) - 1).any():
        raise ValueError(f"a zero point is above {(1 << bits) - 1}, the largest code of {bits} bits")

    def make_grid(_: NDArray[np.float32], chunk: slice) -> Grid:
        return Grid(grid.scales[chunk], grid.zero_points[chunk])

    return quantize_by(make_grid, weight, bits, block_size, symmetric=symmetric)


def quantize_by(
    make_grid: Callable[[NDArray[np.float32], slice], Grid],
    weight: NDArray[np.float32],
    bits: int,
    block_size: int,
    *,
    symmetric: bool,
) -> Blockwise:
    """Round `weight` `[out_features, in_features]` to the grids that `make_grid` gives, on all cores.

    make_grid: from the blocks `[n, blocks, block_size]` of some rows, and which rows they are, to their grid. Raises
    ValueError as `quantize` does.
    """
    check(bits, block_size)
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    packed = np.empty((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.empty((rows, blocks), np.uint8)

    def work(chunk: slice) -> None:
        x = to_blocks(weight[chunk], block_size)
        if not np.isfinite(x).all():
            raise ValueError("the weight holds values that are not finite")
        grid = make_grid(x, chunk)
        scales[chunk], zeros[chunk] = grid.scales, grid.zero_points
        packed[chunk] = pack(nearest_codes(x, grid, bits), bits)

    each_chunk(work, rows, rows_at_once(blocks * block_size))
    return Blockwise(packed, scales, None if symmetric else pack(zeros, bits), bits, block_size, columns)


def dequantize(weight: Blockwise) -> NDArray[np.float32]:
    """The float32 values `[out_features, in_features]` that the kernel multiplies by at accuracy_level 0."""
    rows = weight.scales.shape[0]
    codes = unpack(weight.packed, weight.bits).astype(np.float32)
    codes -= grid_of(weight).zero_points[..., None].astype(np.float32)
    codes *= weight.scales[..., None]
    return codes.reshape(rows, -1)[:, : weight.in_features]


def grid_of(weight: Blockwise) -> Grid:
    """The scales and the unpacked zero points of a quantized weight."""
    shape = weight.scales.shape
    if weight.zero_points is None:
        return Grid(weight.scales, np.full(shape, 1 << (weight.bits - 1), np.uint8))
    return Grid(weight.scales, unpack(weight.zero_points, weight.bits)[:, : shape[1]])


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


def check(bits: int, block_size: int) -> None:
    """Raise ValueError for `bits` or `block_size` that the operator does not know."""
    if bits not in BITS:
        raise ValueError(f"bits is {bits}; MatMulNBits takes {BITS} here")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}; it must be one of {BLOCK_SIZES}")


def _importance_blocks(importance: NDArray[np.float32], in_features: int, block_size: int) -> NDArray[np.float32]:
    """Importance [in_features] as [blocks, block_size], none for the padding, and at most 1."""
    if importance.shape != (in_features,):
        raise ValueError(f"importance is {importance.shape}; the weight has {in_features} input channels")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("importance must be finite and not negative")
    # Only ratios matter; sums of squares of large activations times large weights might overflow.
    largest = float(importance.max(initial=0.0)) or 1.0
    return to_blocks((importance / largest)[None], block_size)[0]
