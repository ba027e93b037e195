"""GPTQ: each column's rounding error is made up for by the columns that are still to come.

Frantar et al., 2022, after Optimal Brain Quantization (Frantar & Alistarh, 2022). The error of a layer's output is
tr(E H E^T) for E = W - W_hat and H = X^T X. When column j is rounded, the best that the later columns can do is

    W[:, k] -= (W[:, j] - W_hat[:, j]) / U[j, j] * U[j, k]          k > j,  H^-1 = U^T U, U upper triangular

Where X are not the inputs X* that W was made for, because layers before are quantized too, the outputs to come close to
are X* W^T (GPTAQ, Li et al., 2025; Qronos, Zhang et al., 2025). The unrounded weight that comes closest is

    W' = W + W (X* - X)^T X H^-1

and since what it leaves is orthogonal to X, the problem that remains is the one above for W'.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blockwise import Blockwise, check, pack
from .chunks import each_chunk
from .factor import Real, inverse_factor
from .grid import Grid, range_grid, reciprocal
from .search import search_grid

# So many columns are updated one by one; those after them by a product of matrices.
_LEAF = 32
# Rows of the weight that are worked on at once: enough for numpy's calls, a dozen a column, to be cheap.
_ROWS = 512
# Rows of E that are multiplied by the Gram matrix at once.
_ERROR_ROWS = 1024


@dataclass(frozen=True)
class _Layer:
    """What all rows of a weight share.

    order: [in] the column that is processed as the i-th. upper: [in, in], U in that order. importance: [in] float32,
    the damped diagonal of the Gram matrix, of about 1 at most. static: whether all grids are fixed before any column is
    rounded.
    """

    order: NDArray[np.intp]
    upper: NDArray[Real]
    importance: NDArray[np.float32]
    bits: int
    block_size: int
    symmetric: bool
    search: bool
    static: bool

    def corrected(self, weight: NDArray[np.float32], drift: NDArray[Real]) -> NDArray[np.float32]:
        """Rows [rows, in] of the weight that comes closest to the outputs wanted, before it is rounded."""
        missing = (weight @ drift)[:, self.order].astype(self.upper.dtype, copy=False)
        moved = missing @ self.upper.T @ self.upper
        weight = weight.copy()
        weight[:, self.order] += moved
        return weight


def quantize_gptq(
    weight: NDArray[np.float32],
    gram: NDArray[Real],
    bits: int,
    block_size: int,
    *,
    symmetric: bool = False,
    drift: NDArray[Real] | None = None,
    act_order: bool = False,
    damping: float = 0.01,
    search: bool = True,
    dtype: type[Real] = np.float64,
) -> Blockwise:
    """Quantize `weight` [out_features, in_features] for inputs X of which `gram` = X^T X [in_features, in_features].

    drift: [in_features, in_features], (X* - X)^T X for the inputs X* whose outputs are wanted, where they are not X.
    act_order: round the columns in descending order of the inputs' energy. They are stored in their own order all the
    same, which asks for grids that are fixed in advance; otherwise a block's grid is set when its turn comes, on
    weights that carry the errors of the columns before. search: grids of least squared error, weighted by the inputs'
    energy, instead of the range. damping: a share of the mean energy, added to each channel's. dtype: of the
    factorization and the updates; float32 takes half the memory, four matrices the size of the Gram matrix at its peak.

    A channel that no input reaches is rounded to nearest. Raises ValueError as `quantize` does, for a Gram matrix of
    another shape, not finite or with a negative diagonal, where it cannot be factorized (see `inverse_factor`), and for
    a drift of another shape or not finite.
    """
    check(bits, block_size)
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds values that are not finite")
    rows, columns = weight.shape
    energy = _energy(gram, columns)
    if drift is not None and (drift.shape != gram.shape or not np.isfinite(drift).all()):
        raise ValueError(f"the drift is {drift.shape} and should be {gram.shape}, and finite")
    order = np.argsort(-energy, kind="stable") if act_order else np.arange(columns)
    layer = _Layer(
        order=order,
        upper=inverse_factor(_reached(gram, energy, order), damping, dtype),
        importance=((energy + damping * energy.mean()) / (energy.max(initial=0) or 1)).astype(np.float32),
        bits=bits,
        block_size=block_size,
        symmetric=symmetric,
        search=search,
        static=act_order,
    )
    blocks = -(-columns // block_size)
    packed = np.empty((rows, blocks, block_size * bits // 8), np.uint8)
    grid = Grid(np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.uint8))

    def work(chunk: slice) -> None:
        piece = _Rows(layer, weight[chunk] if drift is None else layer.corrected(weight[chunk], drift))
        piece.settle(0, 1 << max(columns - 1, 0).bit_length())
        packed[chunk] = pack(piece.codes.T.reshape(-1, blocks, block_size), bits)
        grid.scales[chunk], grid.zero_points[chunk] = piece.scales.T, piece.zeros.T

    each_chunk(work, rows, _ROWS)
    zeros = None if symmetric else pack(grid.zero_points, bits)
    return Blockwise(packed, grid.scales, zeros, bits, block_size, columns)


def squared_error(weight: NDArray[np.float32], approx: NDArray[np.float32], gram: NDArray[Real]) -> float:
    """tr(E H E^T) for E = weight - approx [out, in]: the squared error of the layer's output, summed over all inputs.

    gram: H = X^T X [in, in], or its diagonal [in], as if input channels were not correlated. The products are float32
    if the Gram matrix is, their sum is float64.
    """
    total = 0.0
    for start in range(0, len(weight), _ERROR_ROWS):
        chunk = slice(start, start + _ERROR_ROWS)
        error = (weight[chunk] - approx[chunk]).astype(gram.dtype, copy=False)
        passed = error * gram if gram.ndim == 1 else error @ gram
        total += float(np.multiply(passed, error, out=passed).sum(dtype=np.float64))
    return total


class _Rows:
    """Some rows of a weight on their way to codes.

    work: [in, rows], in the order of processing: weights that are still to be rounded, or the errors of those that have
    been, over U[i, i]. codes: [blocks * block_size, rows] uint8, in the weight's own order. scales, zeros: [blocks,
    rows].
    """

    def __init__(self, layer: _Layer, weight: NDArray[np.float32]) -> None:
        self.layer = layer
        rows, columns = weight.shape
        blocks = -(-columns // layer.block_size)
        self.work = np.ascontiguousarray(weight.T[layer.order], layer.upper.dtype)
        self.codes = np.empty((blocks * layer.block_size, rows), np.uint8)
        self.scales, self.zeros = np.empty((blocks, rows), np.float32), np.empty((blocks, rows), np.uint8)
        if layer.static:
            for block in range(blocks):
                start = block * layer.block_size
                self._set_grid(block, weight.T[start : start + layer.block_size])

    def settle(self, start: int, size: int) -> None:
        """Round the columns start .. start + size, having each one's error made up for by the later ones among them.

        By halves, size being a power of two: the second half takes all errors of the first at once. So whenever a block
        begins, all its columns are up to date, whatever its size.
        """
        stop = min(start + size, len(self.work))
        if size <= _LEAF:
            for i in range(start, stop):
                self._round(i, stop)
            return
        middle = start + size // 2
        self.settle(start, size // 2)
        if middle < stop:
            self.work[middle:stop] -= self.layer.upper[start:middle, middle:stop].T @ self.work[start:middle]
            self.settle(middle, size // 2)

    def _round(self, i: int, stop: int) -> None:
        """Round the i-th column, and make up for its error in those before `stop`."""
        layer, values = self.layer, self.work[i]
        column = int(layer.order[i])
        block, inside = divmod(column, layer.block_size)
        if inside == 0 and not layer.static:
            self._set_grid(block, self.work[i : i + layer.block_size])
        codes = values * reciprocal(self.scales[block])
        codes += self.zeros[block]
        np.rint(codes, out=codes)
        np.clip(codes, 0, (1 << layer.bits) - 1, out=codes)
        self.codes[column] = codes
        codes -= self.zeros[block]
        codes *= self.scales[block]
        values -= codes
        values /= layer.upper[i, i]
        self.work[i + 1 : stop] -= layer.upper[i, i + 1 : stop, None] * values

    def _set_grid(self, block: int, values: NDArray[Real]) -> None:
        """Set the grid of a block from its weights [block_size or fewer, rows]; padding takes the code of zero."""
        layer, start = self.layer, block * self.layer.block_size
        x = np.ascontiguousarray(values.T, np.float32)[:, None]
        importance = layer.importance[None, start : start + len(values)]
        grid = (
            search_grid(x, layer.bits, symmetric=layer.symmetric, importance=importance)
            if layer.search
            else range_grid(x, layer.bits, symmetric=layer.symmetric)
        )
        self.scales[block], self.zeros[block] = grid.scales[:, 0], grid.zero_points[:, 0]
        self.codes[start + len(values) : start + layer.block_size] = self.zeros[block]


def _energy(gram: NDArray[Real], columns: int) -> NDArray[np.float64]:
    """The diagonal of a Gram matrix [columns, columns], checked."""
    if gram.shape != (columns, columns):
        raise ValueError(f"the Gram matrix is {gram.shape}; the weight has {columns} input channels")
    energy = np.diagonal(gram).astype(np.float64)
    if not np.isfinite(gram).all() or (energy < 0).any():
        raise ValueError("the Gram matrix holds values that are not finite, or a negative diagonal")
    return energy


def _reached(gram: NDArray[Real], energy: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[Real]:
    """The Gram matrix in `order`, with a channel that no input reaches set apart from the others."""
    dead = energy == 0
    if not dead.any() and (np.diff(order) == 1).all():
        return gram
    gram = gram[np.ix_(order, order)]
    unreached = np.flatnonzero(dead[order])
    gram[unreached], gram[:, unreached] = 0, 0
    gram[unreached, unreached] = energy.mean() or 1
    return gram
