"""Server-sent events as OpenAI's protocol uses them: a line of JSON each, and [DONE] at the end."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import MedVLMError
from .errors import ApiError, ClientGone, as_api_error, let_go
from .service import report_unexpected

# A proxy that gathers what it passes on would undo the streaming.
_HEADERS = {"X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends each object as it comes; an error becomes the last one, since the status has been sent."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(headers=_HEADERS)
        # Its length is not known.
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await _send_data(send, json.dumps(chunk))
            await _send_data(send, "[DONE]")
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            if not isinstance(error, ApiError | MedVLMError):
                report_unexpected(error)
            let_go(error)
            await _send_data(send, json.dumps(as_api_error(error).body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_data(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
