"""Grids of least squared error: what clipping a block's range a little gains over spanning all of it."""

import numpy as np
from numpy.typing import NDArray

from .grid import Grid, range_grid
from .refine import Buffers, Floats, Lattice, columns_of, fit, grid_of, lattice_of, round_to

# Shares of a block's range that are tried. Blocks of 32 to 256 normal weights want 0.75 to 0.95 of it, blocks whose
# largest weights are of little importance less.
_SHARES = np.linspace(1.0, 0.24, 20, dtype=np.float32)
# Fits of the scale and zero point to the best share's codes, each to the codes that the one before it led to.
_FITS = 3


def search_grid(x: Floats, bits: int, *, symmetric: bool, importance: Floats | None = None) -> Grid:
    """The grid of each block of `x` [rows, blocks, block_size] with the least squared error found.

    Shrinks the range step by step (the clip search of AWQ: Lin et al., 2023), then fits scale and zero point to the
    codes by least squares (as llama.cpp's quantizers do). importance: [blocks, block_size] float32, not negative: the
    weights of the squared error. Never worse than `range_grid`, which is the first one tried.
    """
    columns = columns_of(x)
    weights = None if importance is None else np.tile(importance.T, (1, x.shape[0]))
    count = float(x.shape[-1]) if weights is None else weights.sum(axis=0)
    whole = lattice_of(range_grid(x, bits, symmetric=symmetric))
    room = Buffers.like(columns)
    best, least = whole, _error(whole, columns, weights, bits, room)
    for share in _SHARES[1:]:
        # Low and high end shrink alike, so the zero point stays.
        tried = Lattice(whole.scale * share, whole.zero)
        best, least = _better(tried, _error(tried, columns, weights, bits, room), best, least)
    for _ in range(_FITS):
        round_to(best, columns, bits, room)
        tried = fit(best, room.codes, room.values, count, bits, symmetric=symmetric, weights=weights)
        best, least = _better(tried, _error(tried, columns, weights, bits, room), best, least)
    return grid_of(best, x.shape[:-1])


def _error(lattice: Lattice, x: Floats, weights: Floats | None, bits: int, room: Buffers) -> Floats:
    """The (weighted) squared error [blocks] of rounding `x`."""
    round_to(lattice, x, bits, room)
    error = room.residual if weights is None else np.multiply(room.residual, weights, out=room.spare)
    return np.einsum("ij,ij->j", error, room.residual) * lattice.scale * lattice.scale


def _better(tried: Lattice, error: Floats, best: Lattice, least: Floats) -> tuple[Lattice, Floats]:
    lower: NDArray[np.bool_] = error < least
    return tried.where(lower, best), np.where(lower, error, least)
