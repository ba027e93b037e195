"""How many requests are taken in at a time, from before they are read until they are answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import busy, stopping


class Seats:
    """Counts who is here. For the event loop's thread alone."""

    def __init__(self, most: int, retry_s: Callable[[], float]) -> None:
        """retry_s: after how many seconds who found no seat may try again."""
        self._most, self._retry_s = most, retry_s
        self._taken = 0
        self.closed = False

    @contextmanager
    def seat(self) -> Iterator[None]:
        """A seat while it lasts. Raises `ApiError`: 429 where none is left, 503 once they are closed."""
        if self.closed:
            raise stopping()
        if self._taken >= self._most:
            raise busy(self._retry_s())
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
