"""How far a quantized weight is from the weight that it stands for."""

import numpy as np
from numpy.typing import NDArray

from .chunks import each_chunk, rows_at_once


def relative_error(weight: NDArray[np.float32], approx: NDArray[np.float32]) -> float:
    """The relative error of `approx` in the Frobenius norm: ||weight - approx|| / ||weight||.

    Both `[out_features, in_features]`. 0 where they are equal, infinite where only `weight` is all zeros. Squares are
    added in float64, and a few rows at a time, so that the head takes no more memory than they do. Raises ValueError
    for different shapes.
    """
    if weight.shape != approx.shape:
        raise ValueError(f"a weight {weight.shape} has no approximation {approx.shape}")
    rows, columns = weight.shape
    squares = np.zeros((2, rows))

    def work(chunk: slice) -> None:
        exact = weight[chunk].astype(np.float64)
        lost = exact - approx[chunk]
        np.einsum("ij,ij->i", lost, lost, out=squares[0, chunk])
        np.einsum("ij,ij->i", exact, exact, out=squares[1, chunk])

    each_chunk(work, rows, rows_at_once(columns))
    lost, whole = (float(value) for value in np.sqrt(squares.sum(axis=1)))
    if lost == 0:
        return 0.0
    return lost / whole if whole else float("inf")
