"""Who may ask: the host by which the server is called, the page that calls, the token; and what browsers are told.

A browser on this machine runs pages of the whole web, and any of them may send requests to 127.0.0.1. So a request must
call the server by a name of its own (a page that was rebound to this address by DNS does not), must come from the
server's own page where it comes from one, and no page of another origin is ever allowed to read what it answers.
"""

import hmac
import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .settings import Access

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Answers are about patients; a page of before could speak to a server of after.
    "Cache-Control": "no-store",
}
# The page asks for the token, so it has to come without one; whoever watches the server may ask how it is.
_OPEN = ("/", "/healthz")
_OPEN_FOLDER = "/page/"
# What a browser says of a request that none of its pages on other sites made.
_OWN_SITES = ("same-origin", "none")


class Security:
    """The outermost layer: it refuses before anything of a request is read, and adds headers to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may ask."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            check(scope, self._access)
        except ApiError as error:
            await send_error(error, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def check(scope: Scope, access: Access) -> None:
    """Raise `ApiError` for a request that may not ask."""
    headers = Headers(scope=scope)
    host = headers.get("host", "").lower()
    if len(headers.getlist("host")) != 1 or _name(host) not in access.names:
        raise ApiError(421, "the server is not known by this name; see its option --allow-host", code="unknown_host")
    origins = headers.getlist("origin")
    if any(origin.lower().partition("://")[2] != host for origin in origins):
        raise ApiError(403, "pages of other origins may not ask", code="foreign_origin")
    site = headers.get("sec-fetch-site", "none")
    if site not in _OWN_SITES and not _is_link(scope, headers):
        raise ApiError(403, "pages of other sites may not ask", code="foreign_origin")
    path = scope["path"]
    if access.token is not None and path not in _OPEN and not path.startswith(_OPEN_FOLDER):
        _check_token(headers.getlist("authorization"), access.token)


def _name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person followed a link to the page, which may stand anywhere."""
    return scope["path"] == "/" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"


def _check_token(given: list[str], token: str) -> None:
    scheme, _, value = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    # Compared in a time that does not tell how much of it is right.
    right = hmac.compare_digest(value.strip().encode("utf-8", "surrogateescape"), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise ApiError(
            401,
            "give the server's token as Authorization: Bearer; it was printed where the server was started",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def send_error(error: ApiError, send: Send) -> None:
    """Send a refusal."""
    content = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
