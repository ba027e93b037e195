"""How far the option probabilities can be believed: what is said against what is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError

BINS = 10
# Of the palette of Okabe and Ito.
_COLORS = ("#0072B2", "#D55E00", "#009E73")


@dataclass(frozen=True)
class Bin:
    """The answers whose probability lies in one interval.

    confidence: the mean probability of the letters chosen. accuracy: the share of them that is right, 0 to 1.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """The answers [answers] in `bins` equal intervals of (0, 1] of their probability; empty ones are left out."""
    where = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        Bin(i / bins, (i + 1) / bins, int(mask.sum()), float(confidence[mask].mean()), float(right[mask].mean()))
        for i in range(bins)
        if (mask := where == i).any()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of accuracy and confidence, weighted by the bins' counts.

    Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015).
    """
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / total


def calibration_table(bins: Sequence[Bin]) -> str:
    """The reliability diagram as Markdown."""
    rows = ["| probability | answers | mean probability | right |", "|---|---|---|---|"]
    rows += [
        f"| {100 * one.low:.0f}-{100 * one.high:.0f} % | {one.count} | {100 * one.confidence:.1f} % "
        f"| {100 * one.accuracy:.1f} % |"
        for one in bins
    ]
    return "\n".join(rows)


def draw(curves: Mapping[str, Sequence[Bin]], out: Path) -> None:
    """Reliability diagrams, by name, as one picture. Raises `InputError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError("matplotlib is not installed; pip install 'medvlm[plot]'") from None
    figure = Figure(figsize=(4.6, 4.2), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="perfectly calibrated")
    for (name, bins), color, mark in zip(curves.items(), _COLORS, "os^", strict=False):
        error = expected_calibration_error(bins)
        confidence, accuracy = [one.confidence for one in bins], [one.accuracy for one in bins]
        axes.plot(confidence, accuracy, f"{mark}-", color=color, label=f"{name}: error {error:.3f}")
        for one in bins:
            offset = (-6, -11) if mark == "o" else (5, 5)
            place = (one.confidence, one.accuracy)
            axes.annotate(
                str(one.count), place, offset, textcoords="offset points", fontsize=7, color=color, ha="right"
            )
    axes.set(xlim=(0, 1.04), ylim=(0, 1.06), xlabel="probability of the chosen letter", ylabel="share that is right")
    axes.set_title("numbers: answers; error: expected calibration error", fontsize=8, color="#555555")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(out)
