"""AWQ: input channels that matter are scaled up before rounding, and their inputs scaled down by as much.

    x W^T = (x / s) (W * s)^T        s [in] > 0

The product stays what it is, while the columns of W that meet large inputs are rounded finer. Lin et al., 2023, look
for s = m^alpha with m the root mean square of each input channel; Xiao et al., 2022 (SmoothQuant), for
s = m^alpha / w^(1 - alpha) with w the largest weight of each. Both are tried, for alpha on a grid, and scored by the
error of the layers' outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .factor import Real
from .gptq import squared_error

# A channel is an outlier whose inputs over weights are so many times as large, or as small, as others' (in the root).
OUTLIER = 4.0
# Channels whose inputs or weights are smaller than this share of the largest are scaled as if they had as much.
_SMALLEST_SHARE = 1e-4


@dataclass(frozen=True)
class Scaling:
    """The scales found, and what they are good for.

    scales: [in] float32, positive; all ones where none of those tried beats them. error, unscaled_error: the sum of
    tr(E H E^T) over the layers, with the scales and without, over the rows that took part.
    """

    scales: NDArray[np.float32]
    error: float
    unscaled_error: float


def search_scales(
    weights: Sequence[NDArray[np.float32]],
    gram: NDArray[Real],
    quantizer: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    groups: NDArray[np.integer] | None = None,
    steps: int = 20,
    rows: int | None = 512,
) -> Scaling:
    """The scales of the input channels that `weights`, each [out_k, in], share, with the least output error found.

    gram: X^T X [in, in] of the inputs, or only its diagonal [in]. quantizer: a weight to the values that its rounding
    has. groups: [in], channels of the same number share a scale, as they must where one channel of the module before
    feeds several (the heads of grouped-query attention, the four patches of a vision merger). steps: alpha takes 0,
    1 / steps, .. 1. rows: at most about so many output rows take part, evenly spaced; None for all.

    Raises ValueError for weights, a Gram matrix or groups that do not match.
    """
    columns = _common_width(weights, gram)
    group = _groups(columns, groups)
    chosen = _spaced(weights, rows)
    moments = gram if gram.ndim == 1 else np.diagonal(gram)
    energy = np.bincount(group, moments) / np.bincount(group)
    largest = np.zeros(len(energy))
    for weight in weights:
        np.maximum.at(largest, group, np.abs(weight).max(axis=0))
    ones = np.ones(columns, np.float32)
    unscaled = _output_error(chosen, gram, quantizer, ones)
    best, least = ones, unscaled
    for candidate in _candidates(np.sqrt(energy), largest, steps):
        scales = candidate[group].astype(np.float32)
        error = _output_error(chosen, gram, quantizer, scales)
        if error < least:
            best, least = scales, error
    return Scaling(best, least, unscaled)


def _candidates(inputs: NDArray[np.float64], weights: NDArray[np.float64], steps: int) -> Iterator[NDArray[np.float64]]:
    """Scales of each group from the root mean square of its inputs and its largest weight, around 1."""
    inputs, weights = _share(inputs), _share(weights)
    for alpha in np.linspace(0, 1, steps + 1):
        for scales in (inputs**alpha, inputs**alpha / weights ** (1 - alpha)):
            # The geometric mean of the extremes becomes 1, as in AWQ.
            scales = scales / np.sqrt(scales.max() * scales.min())
            if (scales != 1).any():
                yield scales


def _share(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values over the largest of them, none too small to divide by."""
    largest = values.max(initial=0)
    return np.maximum(values / largest, _SMALLEST_SHARE) if largest > 0 else np.ones_like(values)


def _output_error(
    weights: Sequence[NDArray[np.float32]],
    gram: NDArray[Real],
    quantizer: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    scales: NDArray[np.float32],
) -> float:
    return sum(squared_error(weight, quantizer(weight * scales) / scales, gram) for weight in weights)


def _spaced(weights: Sequence[NDArray[np.float32]], rows: int | None) -> list[NDArray[np.float32]]:
    """Evenly spaced rows of all weights, about `rows` together and at least one of each."""
    step = 1 if rows is None else max(1, -(-sum(map(len, weights)) // rows))
    return [np.ascontiguousarray(weight[::step]) for weight in weights]


def _common_width(weights: Sequence[NDArray[np.float32]], gram: NDArray[Real]) -> int:
    """The input channels of all weights, checked against the Gram matrix."""
    widths = {weight.shape[1] for weight in weights}
    if len(widths) != 1:
        raise ValueError(f"the weights must share their input channels; they have {sorted(widths)}")
    (columns,) = widths
    if gram.shape not in ((columns,), (columns, columns)):
        raise ValueError(f"the Gram matrix is {gram.shape}; the weights have {columns} input channels")
    if not np.isfinite(gram).all():
        raise ValueError("the Gram matrix holds values that are not finite")
    return columns


def _groups(columns: int, groups: NDArray[np.integer] | None) -> NDArray[np.intp]:
    """The group of each channel, numbered from 0."""
    if groups is None:
        return np.arange(columns)
    if groups.shape != (columns,):
        raise ValueError(f"groups is {groups.shape}; the weights have {columns} input channels")
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def outlier_scales(
    weights: Sequence[NDArray[np.float32]],
    moments: NDArray[np.float32],
    groups: NDArray[np.integer],
    threshold: float = OUTLIER,
) -> NDArray[np.float32]:
    """SmoothQuant's scales [channels] at alpha 1/2, for outlier channels alone.

        b = sqrt(sqrt(moment) / w)       s = b / median(b) where that is far from 1, else 1

    w is the largest weight that reads the channel. A channel of large inputs and small weights, or the reverse, gets
    what other channels have; all others are left alone, since their scales are guesses from moments that are.

    moments: [channels], E[x^2] of each, whose root stands for its largest value. groups: [in], the channel that each
    column of `weights`, each [out_k, in], reads. threshold: how many times larger or smaller than the median is far.
    """
    largest = np.zeros(len(moments))
    for weight in weights:
        np.maximum.at(largest, groups, np.abs(weight).max(axis=0))
    balance = np.sqrt(_share(np.sqrt(moments.astype(np.float64))) / _share(largest))
    scales = balance / np.median(balance)
    far = (scales > threshold) | (scales < 1 / threshold)
    return np.where(far, scales, 1).astype(np.float32)
