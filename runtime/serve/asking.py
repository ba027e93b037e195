"""A job's way through the line: it is entered, its turn is waited for, and it is given up when its client goes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request

from .errors import ApiError
from .job import Begun, Job
from .line import Place
from .service import Service

# How often a client that waits is told its place, seconds.
_TELL_EVERY_S = 1.0


def client_of(request: Request, user: str) -> str:
    """Whose turn it is: the address, and the user whom the client names."""
    host = request.client.host if request.client else ""
    return f"{host} {user}"


@contextlib.contextmanager
def entered(service: Service, request: Request, job: Job) -> Iterator[None]:
    """While it lasts the job is in the line or being answered, unless its client goes away."""
    service.line.enter(job)
    watcher = asyncio.create_task(_watch(request, job))
    try:
        yield
    finally:
        watcher.cancel()
        job.close()
        service.worker.interrupt(job)
        service.line.leave(job)


async def _watch(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.abandon()


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
