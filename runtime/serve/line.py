"""The queue before the one model: fair between clients, and never longer than it may be."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .errors import busy, stopping
from .settings import Limits

# Until an answer has been timed: about what INT4 takes at full size on two cores.
_FIRST_GUESS_S = 8.0
# How much the newest answer counts in what the next is expected to take.
_NEWEST = 0.3


class Waiting(Protocol):
    """What stands in the line: whose it is, and the bytes that it keeps meanwhile."""

    client: str
    nbytes: int


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True)
class Place:
    """position: answers that come first, the one being given included. wait_s: how long they are expected to take."""

    position: int
    wait_s: float


@dataclass(frozen=True)
class _Entry(Generic[W]):
    round: int
    number: int
    item: W


class Line(Generic[W]):
    """Requests wait here for the worker's thread; every other method is for the event loop's.

    Fair: a client's second waiting request comes behind the first of every other client, its third behind their
    second, and so on; of equals the earlier one comes first. `clock` gives seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._changed = threading.Condition()
        self._entries: list[_Entry[W]] = []
        self._running: _Entry[W] | None = None
        self._round = 0
        self._running_since = 0.0
        self._numbers = 0
        self._expected_s = _FIRST_GUESS_S
        self.closed = False

    def enter(self, item: W) -> None:
        """Wait for the worker. Raises `ApiError` where images of those that wait would take too much memory."""
        with self._changed:
            if self.closed:
                raise stopping()
            waiting = [entry.item.nbytes for entry in self._entries]
            if waiting and sum(waiting) + item.nbytes > self._limits.waiting_bytes:
                raise busy(self._expected_s)
            self._entries.append(_Entry(self._next_round(item.client), self._numbers, item))
            self._entries.sort(key=lambda entry: (entry.round, entry.number))
            self._numbers += 1
            self._changed.notify()

    def leave(self, item: W) -> bool:
        """Wait no longer; False where it does not wait any more."""
        with self._changed:
            before = len(self._entries)
            self._entries = [entry for entry in self._entries if entry.item is not item]
            return len(self._entries) < before

    def place(self, item: W) -> Place | None:
        """Where a request stands; None where it does not wait any more."""
        with self._changed:
            ahead = next((i for i, entry in enumerate(self._entries) if entry.item is item), None)
            if ahead is None:
                return None
            return Place(ahead + (self._running is not None), self._wait_s(ahead))

    @property
    def expected_s(self) -> float:
        """What an answer is expected to take, from those before it."""
        return self._expected_s

    @property
    def length(self) -> int:
        """How many wait."""
        return len(self._entries)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being answered."""
        with self._changed:
            return not self._entries and self._running is None

    def close(self) -> list[W]:
        """Take no more; those that waited, who will not be answered."""
        with self._changed:
            self.closed = True
            waited, self._entries = [entry.item for entry in self._entries], []
            self._changed.notify_all()
        return waited

    def take(self) -> W | None:
        """The worker's: wait for the next request; None once the line is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self.closed)
            if not self._entries:
                return None
            self._running, self._running_since = self._entries.pop(0), self._clock()
            self._round = self._running.round
            return self._running.item

    def finished(self, *, counts: bool) -> None:
        """The worker's: the request taken last is done; `counts` where it was answered to its end."""
        with self._changed:
            if counts:
                seconds = self._clock() - self._running_since
                self._expected_s += _NEWEST * (seconds - self._expected_s)
            self._running = None

    def _next_round(self, client: str) -> int:
        entries = [*self._entries, self._running] if self._running else self._entries
        return max([self._round - 1, *(entry.round for entry in entries if entry.item.client == client)]) + 1

    def _wait_s(self, ahead: int) -> float:
        rest = 0.0
        if self._running is not None:
            rest = max(0.0, self._expected_s - (self._clock() - self._running_since))
        return rest + ahead * self._expected_s
