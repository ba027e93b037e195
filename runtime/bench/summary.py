"""Many measurements of one thing as a few numbers, and those as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Quantity = Literal["time", "bytes", "bandwidth", "operations", "tokens", "ratio"]
"""What was measured, in s, bytes, bytes/s, operations/s, tokens/s, or in nothing."""

# Per quantity: from which value on (in its base unit) a unit is taken, how many of the base it is, and its name.
_UNITS: dict[Quantity, list[tuple[float, float, str]]] = {
    "time": [(0.1, 1, "s"), (0, 1e-3, "ms")],
    "bytes": [(1e9, 1e9, "GB"), (0, 1e6, "MB")],
    "bandwidth": [(0, 1e9, "GB/s")],
    "operations": [(0, 1e9, "GOP/s")],
    "tokens": [(0, 1, "tokens/s")],
    "ratio": [(0, 1, "")],
}


@dataclass(frozen=True)
class Summary:
    """The median, the 5th and 95th percentiles (interpolated between measurements), and how many there were."""

    median: float
    p5: float
    p95: float
    count: int

    @property
    def spread(self) -> float:
        """The width of the middle nine tenths, as a share of the median."""
        return (self.p95 - self.p5) / self.median

    def text(self, quantity: Quantity) -> str:
        """For people: `0.84 s (0.82-0.91)`; a single measurement has no range."""
        _, size, unit = next(row for row in _UNITS[quantity] if self.median >= row[0])
        decimals = _decimals(self.median / size)
        median, p5, p95 = (f"{value / size:.{decimals}f}" for value in (self.median, self.p5, self.p95))
        return f"{median} {unit}".rstrip() + (f" ({p5}-{p95})" if self.count > 1 else "")


def summarize(values: Sequence[float]) -> Summary:
    """The summary of at least one measurement."""
    if not len(values):
        raise ValueError("there are no measurements to summarize")
    p5, median, p95 = (float(value) for value in np.percentile(values, (5, 50, 95)))
    return Summary(median, p5, p95, len(values))


def ratio_of_pairs(a: Sequence[float], b: Sequence[float]) -> Summary:
    """The ratios a[i] / b[i] of measurements taken in turns, so that what slows the machine slows both of a pair."""
    return summarize([first / second for first, second in zip(a, b, strict=True)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _decimals(value: float) -> int:
    """As many as leave three digits, of numbers below 1 two."""
    exponent = math.floor(math.log10(value)) if value > 0 else 0
    return 1 - exponent if exponent < 0 else max(0, 2 - exponent)
