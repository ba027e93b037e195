"""One request between the event loop and the worker's thread: what is asked, and what has come of it so far."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

from ..decoded import pixel_bytes
from ..decoding import Decoding
from ..processor import Request
from ..result import Answer
from .errors import ClientGone, stopping
from .logprobs import TokenLikelihood


@dataclass(frozen=True)
class Begun:
    """It waits no longer."""


@dataclass(frozen=True)
class Piece:
    """Text that came, of the `index`-th answer."""

    index: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The `index`-th answer is complete; the last one ends the job. likelihoods: of its tokens, where asked for."""

    index: int
    answer: Answer
    likelihoods: list[TokenLikelihood] | None = None


@dataclass(frozen=True)
class Failed:
    """There will be no more."""

    error: Exception


Event: TypeAlias = Begun | Piece | Ended | Failed


class Job:
    """Made and read by the event loop's thread; the worker's calls `emit`, and looks at `cancelled` at every token.

    client: who asks, for the fairness of the line. nbytes: of the decoded images. top_logprobs: how many of the
    likeliest tokens are to be told beside each of the answer's; None asks for no likelihoods.
    """

    def __init__(
        self,
        request: Request,
        decoding: Decoding,
        *,
        answers: int = 1,
        stops: tuple[str, ...] = (),
        top_logprobs: int | None = None,
        preprocess_s: float = 0.0,
        client: str = "",
    ) -> None:
        self.request, self.decoding, self.answers, self.stops = request, decoding, answers, stops
        self.top_logprobs, self.preprocess_s, self.client = top_logprobs, preprocess_s, client
        self.nbytes = sum(pixel_bytes(picture.image) for picture in request.images)
        self.cancelled = threading.Event()
        self.entered = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    def emit(self, event: Event) -> None:
        """Tell the reader, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:
            # The loop is closed: the server was told twice to stop, and nobody reads any more.
            self.cancelled.set()

    def _put(self, event: Event) -> None:
        # A failure that nobody reads would hold the job by its traceback, as the job holds it: images with no end.
        if not self.cancelled.is_set():
            self._events.put_nowait(event)

    def close(self) -> None:
        """Nobody reads any more: the worker stops within a token."""
        self.cancelled.set()
        self._events = asyncio.Queue()

    def refuse(self) -> None:
        """Tell the reader that the server stops before this was answered."""
        self._events.put_nowait(Failed(stopping()))

    def abandon(self) -> None:
        """The client is gone: the worker stops within a token, and the reader at once."""
        self.cancelled.set()
        self._events.put_nowait(None)

    async def next_event(self, timeout_s: float | None = None) -> Event:
        """The next event. Raises `ClientGone`, the `error` of `Failed`, and `asyncio.TimeoutError`."""
        event = await asyncio.wait_for(self._events.get(), timeout_s)
        if event is None:
            raise ClientGone
        if isinstance(event, Failed):
            error, event = event.error, None
            try:
                raise error
            finally:
                # Its traceback holds this frame: a frame that held it would keep the images.
                del error
        return event

    async def events(self) -> AsyncIterator[Event]:
        """All events up to the end of the last answer. Raises as `next_event`."""
        while True:
            event = await self.next_event()
            yield event
            if isinstance(event, Ended) and event.index == self.answers - 1:
                return
