"""Half-quadratic quantization: scales and zero points from the weights alone, forgiving a few large errors.

HQQ (Badri & Shaji, 2023) minimizes sum |w - w_hat|^p with p = 0.7, under which a few weights may be far off if that
brings the many closer. It splits each residual into an outlier e and the rest: e by shrinkage of the residual, the grid
by least squares on w - e. The original fits a zero point in float; `MatMulNBits` is fast with integers, so here the
zero point is rounded and the scale, which the original leaves as it is, is fitted along with it. That turns a descent
into a walk that can also climb, so each block keeps the best grid that its walk came past.

The search stays near the range's grid on purpose. Taken at its word the objective asks for scales that give up the
largest weights of each block: its least value over all grids has 1.8 (normal weights) to 5 times (Student's t) the
squared error of rounding to nearest, in blocks of 128 at 4 bits.
"""

import numpy as np
from numpy.typing import NDArray

from .blockwise import Blockwise, dequantize, quantize_by
from .grid import Grid, range_grid
from .refine import Buffers, Floats, columns_of, fit, grid_of, lattice_of, round_to

POWER = 0.7

# The shrinkage weakens from step to step. In units of the scale a residual above sqrt(1 / _BETA) or so is an outlier.
_BETA, _KAPPA = 4.0, 1.1
# A block is done after so many steps none of which brought the objective below this share of the least so far.
_PATIENCE = 3
_PROGRESS = np.float32(0.999)
# Finished blocks are dropped once fewer than this share of them is still going: that copies the others.
_CROWD = 0.8
# Residuals below this, in units of the scale, count as this where a negative power is taken.
_SMALLEST = np.float32(1e-6)


def quantize_hqq(
    weight: NDArray[np.float32], bits: int, block_size: int, *, symmetric: bool = False, steps: int = 20
) -> Blockwise:
    """Quantize `weight` `[out_features, in_features]` by `steps` half-quadratic steps from its range grid.

    With no steps it is round to nearest, and no step raises `hqq_objective` of any block. Symmetric grids have their
    scale fitted only. Raises ValueError as `quantize` does.
    """

    def make_grid(x: NDArray[np.float32], _: slice) -> Grid:
        return _fitted_grid(x, weight.shape[1], bits, steps, symmetric=symmetric)

    return quantize_by(make_grid, weight, bits, block_size, symmetric=symmetric)


def hqq_objective(weight: NDArray[np.float32], approx: Blockwise, p: float = POWER) -> NDArray[np.float64]:
    """The sum of |w - w_hat|^p of each block, `[out_features, blocks]`."""
    error = np.abs(weight.astype(np.float64) - dequantize(approx))
    blocks = -(-error.shape[1] // approx.block_size)
    padded = np.pad(error**p, ((0, 0), (0, blocks * approx.block_size - error.shape[1])))
    return padded.reshape(len(error), blocks, -1).sum(axis=-1)


def _fitted_grid(x: Floats, in_features: int, bits: int, steps: int, *, symmetric: bool) -> Grid:
    """The best grid of each block of `x` [rows, blocks, block_size] within `steps` steps."""
    columns, count = columns_of(x), np.tile(_counts(in_features, x.shape[-1]), x.shape[0])
    here = lattice_of(range_grid(x, bits, symmetric=symmetric))
    best, least = here.copy(), np.full(count.shape, np.inf, np.float32)
    # Blocks leave when their walk leads nowhere; index tells which ones are left.
    index, stale = np.arange(count.size), np.zeros(count.size, np.intp)
    room = Buffers.like(columns)
    for step in range(steps + 1):
        round_to(here, columns, bits, room)
        objective = _objective(room) * np.abs(here.scale) ** np.float32(POWER)
        going = stale < _PATIENCE
        stale = np.where(going & (objective < least[index] * _PROGRESS), 0, stale + 1)
        better = going & (objective < least[index])
        best.put(index[better], here.of(better))
        least[index[better]] = objective[better]
        left = np.flatnonzero(stale < _PATIENCE)
        if step == steps or not left.size:
            break
        here = fit(here, room.codes, _target(room, step), count[index], bits, symmetric=symmetric)
        if left.size < _CROWD * index.size:
            index, stale, here, columns = index[left], stale[left], here.of(left), columns[:, left]
            room = Buffers.like(columns)
    return grid_of(best, x.shape[:-1])


def _objective(room: Buffers) -> Floats:
    """The sum of |residual|^p [blocks]; leaves |residual| in values and |residual|^(p - 1) in spare."""
    np.abs(room.residual, out=room.values)
    np.maximum(room.values, _SMALLEST, out=room.spare)
    np.log(room.spare, out=room.spare)
    np.multiply(room.spare, np.float32(POWER - 1), out=room.spare)
    np.exp(room.spare, out=room.spare)
    return np.einsum("ij,ij->j", room.values, room.spare)


def _target(room: Buffers, step: int) -> Floats:
    """Values less their outliers, in spare, from what `_objective` left.

    The outlier is sign(r) max(|r| - |r|^(p - 1) / beta, 0), so of the residual r sign(r) min(|r|, |r|^(p - 1) / beta)
    stays.
    """
    np.multiply(room.spare, np.float32(1 / (_BETA * _KAPPA**step)), out=room.spare)
    np.minimum(room.spare, room.values, out=room.spare)
    np.copysign(room.spare, room.residual, out=room.spare)
    return np.add(room.spare, room.codes, out=room.spare)


def _counts(in_features: int, block_size: int) -> Floats:
    """How many elements each block of a row has, the padding left out, [blocks]."""
    starts = np.arange(0, in_features, block_size)
    return np.minimum(in_features - starts, block_size).astype(np.float32)
