"""What a client is told when its request is not answered, in OpenAI's form."""

import traceback
from typing import Any

from ..errors import AuditError, InputError, MedVLMError

_LONGEST_MESSAGE = 400
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal: its HTTP status, one line for a person, and OpenAI's `code` and `param`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}}


class ClientGone(Exception):  # noqa: N818 - nobody is left to be told of an error
    """The client went away before its answer was complete."""


def let_go(error: BaseException) -> None:
    """Drop what the functions held that an error came through: images, which Python's collector may find much later.

    Tracebacks and frames can hold each other, by `contextlib`'s own ones in newer versions.
    """
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            errors += one.__cause__, one.__context__


def busy(seconds: float) -> ApiError:
    """Refused because too many wait; `seconds` until it may be tried again."""
    return ApiError(
        429,
        "too many questions are waiting; try again later",
        code="queue_full",
        headers={"Retry-After": str(max(1, round(seconds)))},
    )


def stopping() -> ApiError:
    """Refused because the server ends."""
    return ApiError(503, "the server is stopping; ask again when it is back", code="stopping")


def _one_line(error: MedVLMError) -> str:
    """What it says, without most of a value that a client wrote."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} …"


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; of one that nobody expected, nothing but that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(400, _one_line(error))
    if isinstance(error, AuditError):
        # Its message names a file of the server's.
        return ApiError(500, "the audit log cannot be written, so no answer is given; tell who runs this server")
    if isinstance(error, MedVLMError):
        return ApiError(500, _one_line(error))
    return ApiError(500, "the server failed at this request; tell who runs it what you asked for")
