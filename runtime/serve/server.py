"""The server as a process: its socket, its signals, its end."""

import asyncio
import contextlib
import errno
import functools
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import uvicorn

from ..errors import InputError
from .app import make_app
from .protocol import limited_protocol
from .service import Service
from .settings import Access, Settings

# How long who reads the last answer may take for it, and how often the end is looked for.
_DELIVERY_S, _LOOK_EVERY_S = 10, 0.05
_KEEP_ALIVE_S = 15
# Headers of one request, in bytes: uvicorn keeps what is incomplete.
_HEADER_BYTES = 16 * 1024


def open_socket(access: Access) -> socket.socket:
    """A socket bound to the address, which listens only once it is served. Raises `InputError`."""
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            # On Windows the other option would let two servers share a port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((access.host, access.port))
    except OSError as error:
        bound.close()
        taken = error.errno == errno.EADDRINUSE
        advice = "give --port another one, or 0 for any that is free" if taken else "give --host and --port others"
        raise InputError(f"cannot listen on {access.host} port {access.port}: {error.strerror}; {advice}") from None
    return bound


Stop: TypeAlias = Callable[[], None]


def serve(service: Service, bound: socket.socket, ready: Callable[[Stop], None]) -> None:
    """Serve until SIGTERM or SIGINT; the answer begun is finished then, unless a second signal comes.

    ready: called once requests are taken, with what ends the server as a signal does, from any thread.
    """
    asyncio.run(_serve(service, bound, ready))
    # It is at its end, or a token away from it.
    service.worker.join(_DELIVERY_S)


async def _serve(service: Service, bound: socket.socket, ready: Callable[[Stop], None]) -> None:
    server = uvicorn.Server(_config(service))
    # uvicorn's own way would end the process by the signal, not with code 0, and cut off who waits.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    if service.settings.access.secure:
        _limit_handshakes(service.settings.limits.header_s)
    told = asyncio.Event()
    with _signals(told) as stop:
        ending = asyncio.create_task(_end(service, server, told))
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not (server.started or serving.done()):
            await asyncio.sleep(_LOOK_EVERY_S)
        ready(stop)
        await serving
        ending.cancel()
    service.preparer.close()


def _limit_handshakes(seconds: float) -> None:
    """Give TLS's handshakes less than asyncio's minute: connections are not counted before they are through."""
    loop = asyncio.get_running_loop()
    # uvicorn has no option that it would hand on.
    loop.create_server = functools.partial(loop.create_server, ssl_handshake_timeout=seconds)  # type: ignore[method-assign]


async def _end(service: Service, server: uvicorn.Server, told: asyncio.Event) -> None:
    """Wait for the signal, for the answer begun, and let uvicorn deliver it."""
    await told.wait()
    told.clear()
    service.drain()
    while not service.line.idle and not told.is_set():
        await asyncio.sleep(_LOOK_EVERY_S)
    server.should_exit = True
    await told.wait()
    service.cut_off()
    server.force_exit = True


@contextlib.contextmanager
def _signals(told: asyncio.Event) -> Iterator[Stop]:
    """What sets the event; while it lasts, SIGTERM and SIGINT do, where this is the thread that signals reach."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_soon_threadsafe(told.set)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda _number, _frame: stop()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _config(service: Service) -> uvicorn.Config:
    settings: Settings = service.settings
    tls: dict[str, Any] = {}
    if settings.access.secure:
        tls = {"ssl_certfile": settings.access.tls_cert, "ssl_keyfile": settings.access.tls_key}
    return uvicorn.Config(
        make_app(service),
        http=limited_protocol(settings.limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        interface="asgi3",
        # What it would log are requests, and errors with what they were about.
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DELIVERY_S,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        **tls,
    )
