"""One step of fitting grids to blocks, for methods that look for better ones than the block's range gives.

Blocks are the *columns* here: arrays are [block_size, blocks], so that whatever belongs to a block lies along the last
axis, and numpy works on long rows however small the blocks are. Values are in units of the block's scale, and codes are
counted from its zero point (`code - zero`): the grid is then the integers of `-zero .. 2**bits - 1 - zero`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import Grid, reciprocal

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Lattice:
    """The grids of blocks while they are fitted: scale and zero, [blocks] float32, the latter integers."""

    scale: Floats
    zero: Floats

    def where(self, mask: NDArray[np.bool_], other: "Lattice") -> "Lattice":
        """These grids where `mask` holds, `other` elsewhere."""
        return Lattice(np.where(mask, self.scale, other.scale), np.where(mask, self.zero, other.zero))

    def of(self, blocks: NDArray[np.intp] | NDArray[np.bool_]) -> "Lattice":
        """Those of some blocks."""
        return Lattice(self.scale[blocks], self.zero[blocks])

    def put(self, blocks: NDArray[np.intp], other: "Lattice") -> None:
        """Overwrite those of some blocks."""
        self.scale[blocks], self.zero[blocks] = other.scale, other.zero

    def copy(self) -> "Lattice":
        """One that shares no memory with this one."""
        return Lattice(self.scale.copy(), self.zero.copy())


@dataclass(frozen=True)
class Buffers:
    """Room for the arrays of one evaluation, each [block_size, blocks] float32."""

    values: Floats
    codes: Floats
    residual: Floats
    spare: Floats

    @classmethod
    def like(cls, x: Floats) -> "Buffers":
        """Room for blocks as many and as large as those of `x`."""
        return cls(*(np.empty_like(x) for _ in range(4)))


def columns_of(x: Floats) -> Floats:
    """Blocks [rows, blocks, block_size] as columns [block_size, rows * blocks]."""
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)


def lattice_of(grid: Grid) -> Lattice:
    """The grids of [rows, blocks] in one row [rows * blocks]."""
    return Lattice(grid.scales.reshape(-1), grid.zero_points.reshape(-1).astype(np.float32))


def grid_of(lattice: Lattice, shape: tuple[int, ...]) -> Grid:
    """The grids as [rows, blocks] again."""
    return Grid(lattice.scale.reshape(shape), lattice.zero.astype(np.uint8).reshape(shape))


def round_to(lattice: Lattice, x: Floats, bits: int, room: Buffers) -> None:
    """Round `x` [block_size, blocks] to the nearest codes; fills values, codes and residual = values - codes."""
    np.multiply(x, reciprocal(lattice.scale), out=room.values)
    np.rint(room.values, out=room.codes)
    np.maximum(room.codes, -lattice.zero, out=room.codes)
    np.minimum(room.codes, np.float32((1 << bits) - 1) - lattice.zero, out=room.codes)
    np.subtract(room.values, room.codes, out=room.residual)


def fit(
    lattice: Lattice,
    codes: Floats,
    target: Floats,
    count: Floats | float,
    bits: int,
    *,
    symmetric: bool,
    weights: Floats | None = None,
) -> Lattice:
    """The grids whose values at `codes` come closest to `target` in (weighted) least squares.

    codes, target, weights: [block_size, blocks]. count: the weights' sum of each block. A straight line through (code,
    target) gives the zero point, which is rounded; the best scale for the rounded one follows. A block whose codes do
    not determine a line keeps its grid.
    """
    weighted = codes if weights is None else codes * weights
    plain = target if weights is None else target * weights
    sum_c, sum_cc = weighted.sum(axis=0), np.einsum("ij,ij->j", weighted, codes)
    sum_t, sum_ct = plain.sum(axis=0), np.einsum("ij,ij->j", weighted, target)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zero = lattice.zero
        if not symmetric:
            slope = (count * sum_ct - sum_c * sum_t) / (count * sum_cc - sum_c * sum_c)
            offset = (sum_t - slope * sum_c) / count
            zero = np.clip(np.rint(zero - offset / slope), 0, (1 << bits) - 1)
        shift = lattice.zero - zero
        factor = (sum_ct + shift * sum_t) / (sum_cc + 2 * shift * sum_c + count * shift * shift)
        fitted = Lattice(lattice.scale * factor, zero.astype(np.float32))
        usable = np.isfinite(zero) & np.isfinite(fitted.scale) & (factor > 0)
    return fitted.where(usable, lattice)
