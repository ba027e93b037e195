"""The triangular factor of a Gram matrix's inverse, which GPTQ compensates errors by.

    gram + damping = R R^T    R upper triangular: the Cholesky factor of the gram read backwards, read backwards again
    U = R^-1                  upper triangular, so that (gram + damping)^-1 = U^T U

No inverse of the gram itself is taken: U is as exact as the gram's conditioning allows.
"""

import numpy as np
from numpy.typing import NDArray

Real = np.float32 | np.float64

# Triangles up to this size are inverted by LAPACK at once.
_SMALL = 64
# How far U (gram + damping) U^T may be from the identity on a probe vector. A factor that broke is off by far more, and
# float32 with a condition of a million by a tenth of it.
_TOLERANCE = 1e-2
# Each try damps ten times as much as the one before.
_TRIES = 4
# The first damping after none at all.
_SOME_DAMPING = 1e-4


def inverse_factor(gram: NDArray[Real], damping: float, dtype: type[Real] = np.float64) -> NDArray[Real]:
    """U, upper triangular [n, n] `dtype`, with (gram + damping * mean(diagonal) * identity)^-1 = U^T U.

    gram: [n, n], symmetric and positive semidefinite. Where the factorization breaks, the damping is raised tenfold,
    three times at most. Raises ValueError if it still breaks.
    """
    mean = float(np.mean(np.diagonal(gram), dtype=np.float64))
    shares = [(damping or _SOME_DAMPING / 10) * 10**i for i in range(_TRIES)]
    for share in [damping, *shares[1:]]:
        damped = gram.astype(dtype)
        np.einsum("ii->i", damped)[:] += dtype(share * mean)
        factor = _try(damped)
        if factor is not None:
            return factor
    raise ValueError(
        f"the Gram matrix could not be factorized in {np.dtype(dtype).name}, not even with a damping of "
        f"{shares[-1]:g}; use float64, a larger damping, or more calibration samples"
    )


def invert_upper(triangle: NDArray[Real]) -> None:
    """Invert an upper triangular matrix [n, n] in place, by halves, so that nearly all work is products of matrices.

    [A B]^-1   [A^-1  -A^-1 B C^-1]
    [0 C]    = [0             C^-1]
    """
    n = len(triangle)
    if n <= _SMALL:
        triangle[:] = np.triu(np.linalg.inv(triangle))
        return
    half = n // 2
    invert_upper(triangle[:half, :half])
    invert_upper(triangle[half:, half:])
    corner = triangle[:half, :half] @ triangle[:half, half:]
    np.matmul(corner, triangle[half:, half:], out=triangle[:half, half:])
    np.negative(triangle[:half, half:], out=triangle[:half, half:])


def _try(gram: NDArray[Real]) -> NDArray[Real] | None:
    """U, or None where it could not be had or fails its test."""
    try:
        backwards = np.linalg.cholesky(gram[::-1, ::-1])
        upper = np.ascontiguousarray(backwards[::-1, ::-1])
        del backwards
        with np.errstate(all="ignore"):
            invert_upper(upper)
    except np.linalg.LinAlgError:
        return None
    return upper if _holds(upper, gram) else None


def _holds(upper: NDArray[Real], gram: NDArray[Real]) -> bool:
    """Whether U gram U^T takes a random vector to itself, and U's diagonal is positive."""
    probe = np.random.default_rng(0).standard_normal(len(gram)).astype(gram.dtype)
    with np.errstate(all="ignore"):
        back = upper @ (gram @ (upper.T @ probe))
        off = float(np.linalg.norm(back - probe))
    diagonal = np.diagonal(upper)
    return bool(np.isfinite(diagonal).all() and (diagonal > 0).all() and off <= _TOLERANCE * np.linalg.norm(probe))
