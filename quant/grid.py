"""The codes that the elements of a block can take: its grid, and rounding to it.

value = (code - zero_point) * scale          code in 0 .. 2**bits - 1
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """The scale and zero point of every block of a weight [rows, in_features].

    scales: [rows, blocks] float32, of either sign. zero_points: [rows, blocks] uint8, within the codes' range; a
    symmetric grid has 2**(bits - 1) everywhere.
    """

    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]


def range_grid(x: NDArray[np.float32], bits: int, *, symmetric: bool) -> Grid:
    """The grid that spans each block's range, for blocks [rows, blocks, block_size].

    Symmetric scales map the element of largest magnitude, sign included, to code 0, so that all codes are used (as MLAS
    and llama.cpp's Q4_0 do). Asymmetric grids span the range widened to hold zero.
    """
    low, high = x.min(axis=-1), x.max(axis=-1)
    if symmetric:
        half = 1 << (bits - 1)
        extreme = np.where(high > -low, high, low)
        return Grid(extreme / np.float32(-half), np.full(extreme.shape, half, np.uint8))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    top = (1 << bits) - 1
    scale = (high - low) / np.float32(top)
    zero = np.rint(-low * reciprocal(scale))
    return Grid(scale, np.clip(zero, 0, top).astype(np.uint8))


def nearest_codes(x: NDArray[np.float32], grid: Grid, bits: int) -> NDArray[np.uint8]:
    """The nearest code of each element of `x` [rows, blocks, block_size]."""
    codes = x * reciprocal(grid.scales)[..., None]
    codes += grid.zero_points[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes.astype(np.uint8)


def to_blocks(weight: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """Rows [n, in_features] as float32 [n, blocks, block_size], the last block padded with zeros."""
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    if columns != blocks * block_size:
        weight = np.pad(weight, ((0, 0), (0, blocks * block_size - columns)))
    return np.ascontiguousarray(weight, np.float32).reshape(rows, blocks, block_size)


def reciprocal(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0 or so small that its reciprocal is not finite (a block of zeros)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))
