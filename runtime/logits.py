"""One row of logits that stays on a GPU: which token is the likeliest is known, the rest only if somebody asks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class DeviceLogits:
    """Logits [vocab_size] on a GPU, which numpy takes for an array: reading them copies them here.

    likeliest: the token of the largest of them. largest: its logit, by which NaN and infinity are known. To be read
    before the decoder's next call.
    """

    def __init__(self, likeliest: int, largest: float, fetch: Callable[[], NDArray[np.float32]]) -> None:
        self.likeliest, self.largest = likeliest, largest
        self._fetch, self._values = fetch, None

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The logits, here."""
        if self._values is None:
            self._values = self._fetch()
        return np.asarray(self._values, dtype)


Logits = NDArray[np.float32] | DeviceLogits
"""A row [vocab_size], wherever it is."""
