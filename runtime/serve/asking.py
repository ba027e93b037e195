"""A job's way through the line: it is entered, its turn is waited for, and it is given up when its client goes."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias, TypeVar

from starlette.requests import Request

from .body import Grow
from .errors import ApiError, ClientGone, stopping
from .job import Begun, Job
from .line import Place
from .seats import Seats
from .service import Service
from .settings import Limits

# How often a client that waits is told its place, seconds.
_TELL_EVERY_S = 1.0
T = TypeVar("T")

Read: TypeAlias = Callable[[Request, Limits, Grow], Awaitable[T]]
"""`read_json` or `read_form`."""


def client_of(request: Request, user: str) -> str:
    """Whose turn it is: the address, and the user whom the client names."""
    host = request.client.host if request.client else ""
    return f"{host} {user}"


class Presence:
    """Whether who asked is still there. For the event loop's thread; others may look at `left`."""

    def __init__(self, draining: asyncio.Event) -> None:
        self.left = threading.Event()
        self._draining, self._leaving = draining, asyncio.Event()
        self._job: Job | None = None

    async def during(self, work: Awaitable[T]) -> T:
        """What `work` gives; cancelled, and that raised, where the client leaves before or the server stops."""
        return await unless(work, (self._leaving, ClientGone()), (self._draining, stopping()))

    def wait_for(self, job: Job) -> None:
        """The job is abandoned when the client leaves."""
        self._job = job
        if self.left.is_set():
            job.abandon()

    async def watch(self, request: Request) -> None:
        """Notice the client's leaving, behind the end of its body."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left.set()
        self._leaving.set()
        if self._job is not None:
            self._job.abandon()


@contextlib.contextmanager
def present(service: Service, request: Request) -> Iterator[Presence]:
    """The client's presence, watched while it lasts. The body has been read."""
    presence = Presence(service.draining)
    watcher = asyncio.create_task(presence.watch(request))
    try:
        yield presence
    finally:
        watcher.cancel()


@contextlib.asynccontextmanager
async def taken_in(
    service: Service, request: Request, seats: Seats, held: ExitStack, read: Read[T]
) -> AsyncIterator[tuple[T, Presence]]:
    """What `read` makes of the body, and who sent it; the body counts as being read while it lasts.

    held: until the end of which a seat is taken, and the client's leaving noticed. Raises `ApiError` and `ClientGone`.
    """
    seats.check()
    with service.bodies.body() as grow:
        content = await unless(read(request, service.settings.limits, grow), (service.draining, stopping()))
        held.enter_context(seats.seat())
        yield content, held.enter_context(present(service, request))


@contextlib.contextmanager
def entered(service: Service, presence: Presence, job: Job) -> Iterator[None]:
    """While it lasts the job is in the line or being answered, unless its client goes away."""
    service.line.enter(job)
    try:
        presence.wait_for(job)
        yield
    finally:
        job.close()
        service.worker.interrupt(job)
        service.line.leave(job)


async def unless(work: Awaitable[T], *ends: tuple[asyncio.Event, Exception]) -> T:
    """What `work` gives, unless one of the events comes first: `work` is cancelled then, and the exception raised."""
    task = asyncio.ensure_future(work)
    waits = [asyncio.ensure_future(event.wait()) for event, _ in ends]
    try:
        await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise next(error for event, error in ends if event.is_set())
    finally:
        for each in (task, *waits):
            each.cancel()


async def wait_for_turn(service: Service, job: Job) -> AsyncIterator[Place]:
    """Where the job stands, at once and then every second, until it is its turn. Raises `ApiError` after too long."""
    limit_s = service.settings.limits.wait_s
    while True:
        place = service.line.place(job)
        if place is not None and place.position:
            yield place
        left_s = job.entered + limit_s - time.monotonic()
        if left_s <= 0 and service.line.leave(job):
            raise ApiError(
                429,
                f"it was not this question's turn within {limit_s:g} s; ask again later",
                code="waited_too_long",
                headers={"Retry-After": str(round(limit_s) or 1)},
            )
        with contextlib.suppress(asyncio.TimeoutError):
            event = await job.next_event(min(_TELL_EVERY_S, max(left_s, 0.01)))
            assert isinstance(event, Begun)  # noqa: S101 - it is the first
            return
