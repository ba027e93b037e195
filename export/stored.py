"""What became of a weight, for who looks on while a bundle is written."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .recipe import Precision


@dataclass(frozen=True)
class Stored:
    """A product's weight as it is stored: its precision, the values that it stands for [out, in], and its bytes."""

    precision: Precision
    values: NDArray[np.float32]
    nbytes: int


Observe = Callable[[str, NDArray[np.float32], Stored], None]
"""Called with a product's scope, its weight [out, in] and what was stored for it."""
