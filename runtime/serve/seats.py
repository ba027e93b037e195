"""How much is taken in at a time: requests from the end of their bodies until they are answered, and bodies' bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import busy, stopping

# When to try again where only bytes were too many: bodies come and go.
_BODY_RETRY_S = 1.0


class Seats:
    """Counts who is here. For the event loop's thread alone."""

    def __init__(self, most: int, retry_s: Callable[[], float]) -> None:
        """retry_s: after how many seconds who found no seat may try again."""
        self._most, self._retry_s = most, retry_s
        self.taken = 0
        self.closed = False

    def check(self) -> None:
        """Raise `ApiError`: 429 where no seat is left, 503 once they are closed."""
        if self.closed:
            raise stopping()
        if self.taken >= self._most:
            raise busy(self._retry_s())

    @contextmanager
    def seat(self) -> Iterator[None]:
        """A seat while it lasts. Raises as `check`."""
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Bodies:
    """Bounds the bytes of all bodies that are being read and taken apart. For the event loop's thread alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        # How many bytes of each are there.
        self.reading: dict[object, int] = {}

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """What is called with the number of bytes of each piece while it lasts; it raises `ApiError` for too many."""
        this = object()

        def grow(size: int) -> None:
            if sum(self.reading.values()) + size > self._most:
                raise busy(_BODY_RETRY_S)
            self.reading[this] += size

        self.reading[this] = 0
        try:
            yield grow
        finally:
            del self.reading[this]
