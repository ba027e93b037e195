"""Connections within limits: uvicorn bounds neither their number nor the time that a client takes for its headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .settings import Limits

_MESSAGE = (
    b'{"error": {"message": "too many connections; try again later", "type": "server_error", "code": "connections", '
    b'"param": null}}'
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol class of uvicorn with these limits, which it has no other way of handing over."""

    class LimitedProtocol(H11Protocol):
        """Closes a connection that is one too many, that sends no whole request, or that reads nothing."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._patience: asyncio.TimerHandle | None = None
            self._reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limits.connections:
                self.transport = transport
                transport.write(_FULL)
                transport.close()
                return
            super().connection_made(transport)
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget(self._patience)
            self._forget(self._reading)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_request()
            else:
                self._forget(self._patience)
                self._patience = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading = self.loop.call_later(limits.chunk_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget(self._reading)
            self._reading = None

        def _expect_request(self) -> None:
            """Close the connection unless the headers of a request are complete in time; its first byte starts it."""
            if self._patience is None:
                self._patience = self.loop.call_later(limits.header_s, self.transport.abort)

        @staticmethod
        def _forget(timer: asyncio.TimerHandle | None) -> None:
            if timer is not None:
                timer.cancel()

    return LimitedProtocol
