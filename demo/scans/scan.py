"""What a synthetic scan is: its picture, and the truth about it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .canvas import Array, Canvas, Rng


@dataclass(frozen=True)
class Drawing:
    """image: [height, width] float32, 0 black to 1 white. mask: the same shape, 0 to 1, where the finding is."""

    image: Array
    mask: Array


class Draw(Protocol):
    """Draws one kind of scan with one finding, or none, at a place where the finding has places."""

    def __call__(self, rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
        """Draw it on `canvas`; all that varies comes from `rng`."""
        ...


@dataclass(frozen=True)
class Kind:
    """One kind of scan: how it is made, what it shows, and its findings with the places that each can have."""

    name: str
    modality: str
    body: str
    findings: dict[str, tuple[str, ...]]
    draw: Draw


@dataclass(frozen=True)
class Scan:
    """pixels: [height, width] uint8. mask: [height, width] bool, all False where `finding` is None."""

    kind: str
    finding: str | None
    place: str | None
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
