"""Connections within limits: uvicorn bounds neither their number nor the time that a client takes for its headers."""

import asyncio
import http
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError
from .security import HEADERS
from .settings import Limits

# Of a request behind the one that is being answered.
_MOST_EARLY = 16 * 1024


class LimitedProtocol(H11Protocol):
    """Closes a connection that is one too many, that sends no whole request, or that reads nothing.

    What comes while a request is answered is kept until then: uvicorn would read no further behind it, and so not
    see that the client goes.
    """

    limits = Limits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._patience: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._drained_by: float | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse what is one too many."""
        if len(self.connections) >= self.limits.connections:
            self.transport = transport
            busy = ApiError(503, "too many connections; try again later", code="connections")
            self._refuse(busy, {"Retry-After": "5"})
            return
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._forget(self._patience)
        self._forget(self._reading)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hand on what belongs to a request, and keep what comes behind it."""
        if self.transport.is_closing():
            return
        if self._being_answered():
            self._keep(data)
            return
        super().data_received(data)
        if self._being_answered():
            self.flow.resume_reading()
        self._set_patience()

    def on_response_complete(self) -> None:
        """Turn to what was kept."""
        super().on_response_complete()
        early, self._early = self._early, b""
        if early and not self.transport.is_closing():
            self.data_received(early)

    def send_400_response(self, msg: str) -> None:
        """Refuse as everything is refused."""
        self._refuse(ApiError(400, "this is no HTTP request that can be read; check what sends it"), {})

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.chunk_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._forget(self._reading)
        self._reading = None

    def _being_answered(self) -> bool:
        """Whether a request has come whole, and its answer has not gone whole."""
        return self.cycle is not None and not (self.cycle.response_complete or self.cycle.more_body)

    def _keep(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > _MOST_EARLY:
            self.transport.abort()

    def _set_patience(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget(self._patience)
            self._patience = self._drained_by = None
        elif self.conn.their_state is h11.SEND_BODY:
            self._expect_rest()
        else:
            self._expect_request()

    def _expect_request(self) -> None:
        """Close the connection unless the headers of a request are complete in time; its first byte starts it."""
        if self._patience is None:
            self._patience = self.loop.call_later(self.limits.header_s, self.transport.abort)

    def _expect_rest(self) -> None:
        """Read on the body of a request that was refused, or its client would not read why; within the self.limits."""
        now = self.loop.time()
        self._drained_by = self._drained_by or now + self.limits.body_s
        self._forget(self._patience)
        self._patience = self.loop.call_at(min(now + self.limits.chunk_s, self._drained_by), self.transport.abort)

    def _refuse(self, error: ApiError, headers: dict[str, str]) -> None:
        self.transport.write(_written(error, headers))
        self.transport.close()

    @staticmethod
    def _forget(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def limited_protocol(limits: Limits) -> type[LimitedProtocol]:
    """The class with these limits: uvicorn makes its objects, and hands nothing over."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


def _written(error: ApiError, more: dict[str, str]) -> bytes:
    """A refusal as it goes over a connection that ends with it."""
    body = json.dumps(error.body()).encode()
    headers = HEADERS | more | {"Connection": "close", "Content-Type": "application/json"}
    lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
