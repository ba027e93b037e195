"""Stored values of a monochrome image to 8-bit greys, as DICOM says they are shown (PS3.4 2024, N.2).

    stored -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 turned round -> 0..255

A stored value is one of at most 65,536, so all of it is one table here, applied to the pixels at the end. What the
table holds follows PS3.3 2024: C.11.1 (modality), C.11.2.1.2 and C.11.2.1.3 (VOI), C.7.5.1.1.2 (padding).
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Function: TypeAlias = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

_AT_ONCE = 2**20


@dataclass(frozen=True)
class Rescale:
    """value = stored * slope + intercept, both finite."""

    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Lut:
    """A lookup table: `entries[0]` for `first` and all below it, `entries[-1]` for all beyond the end.

    bits: how wide an entry is; the largest entry that a VOI LUT may hold, 2**bits - 1, is white.
    """

    first: int
    entries: tuple[int, ...]
    bits: int


@dataclass(frozen=True)
class VoiWindow:
    """The values around `center` that are shown, by one of the standard's three functions. width > 0."""

    center: float
    width: float
    function: Function = "LINEAR"


@dataclass(frozen=True)
class Greys:
    """How an image's stored values become greys.

    voi: None shows all values that the image has, the least black and the largest white. padding: stored values, both
    ends included, that are no part of the image: they are black, and do not count where voi is None.
    """

    modality: Rescale | Lut = Rescale()
    voi: VoiWindow | Lut | None = None
    padding: tuple[int, int] | None = None
    inverted: bool = False


def grey_levels(stored: NDArray[Any], greys: Greys) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The uint8 levels of `stored`, integers of any shape within 65,536 of each other, 0 black and 255 white.

    Also the least and the largest value in the image after the modality LUT, padding left out; (0, 0) of nothing.
    """
    least = int(stored.min())
    candidates = np.arange(least, int(stored.max()) + 1)
    values = modality_values(candidates, greys.modality)
    shown = np.ones(len(candidates), bool)
    if greys.padding is not None:
        shown = (candidates < greys.padding[0]) | (candidates > greys.padding[1])
    present = values[shown & _present(stored, least, len(candidates))]
    extent = (float(present.min()), float(present.max())) if len(present) else (0.0, 0.0)
    shares = full_range(values, *extent) if greys.voi is None else voi_shares(values, greys.voi)
    levels = np.rint(255 * (1 - shares if greys.inverted else shares)).astype(np.uint8)
    return _look_up(stored, least, np.where(shown, levels, np.uint8(0))), extent


def modality_values(stored: NDArray[Any], modality: Rescale | Lut) -> NDArray[np.float64]:
    """What the stored values mean: HU for CT, optical density, or whatever the modality measures."""
    if isinstance(modality, Rescale):
        return stored * np.float64(modality.slope) + modality.intercept
    return _lut_values(stored, modality)


def voi_shares(values: NDArray[np.float64], voi: VoiWindow | Lut) -> NDArray[np.float64]:
    """Shares of white, 0 to 1, of values after the modality LUT."""
    if isinstance(voi, Lut):
        return np.clip(_lut_values(np.rint(values), voi) / (2**voi.bits - 1), 0, 1)
    center, width = voi.center, voi.width
    if voi.function == "SIGMOID":
        # Beyond 700 the exponential leaves float64; the share is 0 long before.
        return 1 / (1 + np.exp(np.minimum(-4 * (values - center) / width, 700)))
    if voi.function == "LINEAR":
        center, width = center - 0.5, width - 1
    # A LINEAR window of width 1 is a step: all up to its center is black.
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def full_range(values: NDArray[np.float64], least: float, largest: float) -> NDArray[np.float64]:
    """Shares of white from the least value to the largest; one value alone is black."""
    return np.clip((values - least) / (largest - least or 1), 0, 1)


def colour_levels(stored: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unsigned samples of 1 to 16 `bits` as uint8: `round(value * 255 / (2**bits - 1))`."""
    if bits == 8:
        return stored.astype(np.uint8)
    table = np.rint(np.arange(2**bits) * 255 / (2**bits - 1)).astype(np.uint8)
    return _look_up(np.minimum(stored, 2**bits - 1), 0, table)


def palette_levels(stored: NDArray[Any], palette: tuple[Lut, Lut, Lut]) -> NDArray[np.uint8]:
    """The RGB levels [..., 3] of indices into a palette (PS3.3, C.7.6.3.1.5)."""
    least = int(stored.min())
    candidates = np.arange(least, int(stored.max()) + 1)
    tables = [np.rint(255 * voi_shares(candidates.astype(np.float64), lut)).astype(np.uint8) for lut in palette]
    return np.stack([_look_up(stored, least, table) for table in tables], axis=-1)


def _lut_values(values: NDArray[Any], lut: Lut) -> NDArray[np.float64]:
    last = len(lut.entries) - 1
    return np.array(lut.entries, np.float64)[np.clip(values - lut.first, 0, last).astype(np.int64)]


def _present(stored: NDArray[Any], least: int, count: int) -> NDArray[np.bool_]:
    """Which of the `count` values from `least` on occur."""
    found, flat = np.zeros(count, bool), stored.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        found[flat[start : start + _AT_ONCE].astype(np.int64) - least] = True
    return found


def _look_up(stored: NDArray[Any], least: int, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`table[stored - least]`, in steps: numpy turns indices into eight bytes each."""
    flat, levels = stored.reshape(-1), np.empty(stored.size, np.uint8)
    for start in range(0, flat.size, _AT_ONCE):
        levels[start : start + _AT_ONCE] = table[flat[start : start + _AT_ONCE].astype(np.int64) - least]
    return levels.reshape(stored.shape)
