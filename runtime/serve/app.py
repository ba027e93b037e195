"""The ASGI application: routes, and what happens to errors."""

import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..dicom.view import PRESETS
from ..errors import MedVLMError
from .ask import ask, preview
from .chat import chat, model, models
from .errors import ApiError, ClientGone, as_api_error, let_go
from .security import Security, send_error
from .service import Service, report_unexpected

PAGE = Path(__file__).parent / "page"
_OPENAPI = Path(__file__).parent / "openapi.json"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}

Handler: TypeAlias = Callable[[Service, Request, ExitStack], Awaitable[Response]]


def make_app(service: Service) -> ASGIApp:
    """The application that answers for a service."""
    page = _Page(PAGE)
    description = _description(service)

    async def describe(service: Service, request: Request, held: ExitStack) -> Response:
        return JSONResponse(description)

    handlers: list[tuple[str, str, Handler]] = [
        ("GET", "/", page.index),
        ("GET", "/page/{name:path}", page.file),
        ("GET", "/info", info),
        ("POST", "/ask", ask),
        ("POST", "/preview", preview),
        ("POST", "/v1/chat/completions", chat),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{name:path}", model),
        ("GET", "/healthz", health),
        ("GET", "/metrics", metrics),
        ("GET", "/openapi.json", describe),
    ]
    routes = [Route(path, _Endpoint(service, path, handler), methods=[method]) for method, path, handler in handlers]
    router = Router(routes, redirect_slashes=False)
    return Security(_Errors(router), service.settings.access)


async def info(service: Service, request: Request, held: ExitStack) -> Response:
    """GET /info: what the page has to know."""
    limits = service.settings.limits
    return JSONResponse(
        {
            "model": service.model,
            "bundle": service.bundle,
            "recipe": str(service.manifest.recipe.get("name", "")),
            "version": metadata.version("medvlm"),
            "demo": service.demo,
            "limits": {"images": limits.images, "image_bytes": limits.body_bytes, "text": limits.text},
            "presets": {name: [window.center, window.width] for name, window in PRESETS.items()},
        }
    )


async def health(service: Service, request: Request, held: ExitStack) -> Response:
    """GET /healthz: 200 where questions are answered."""
    if service.line.closed:
        return JSONResponse({"status": "stopping"}, 503)
    if not service.worker.is_alive():
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(service: Service, request: Request, held: ExitStack) -> Response:
    """GET /metrics, for Prometheus."""
    return Response(service.metrics.text(), headers={"Content-Type": service.metrics.CONTENT_TYPE})


class _Page:
    """The page's files, read once."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): (path.read_bytes(), _TYPES[path.suffix])
            for path in folder.rglob("*")
            if path.is_file() and path.suffix in _TYPES
        }

    async def index(self, service: Service, request: Request, held: ExitStack) -> Response:
        """GET /."""
        return self._response("index.html")

    async def file(self, service: Service, request: Request, held: ExitStack) -> Response:
        """GET /page/NAME."""
        return self._response(request.path_params["name"])

    def _response(self, name: str) -> Response:
        if name not in self._files:
            raise ApiError(404, "the page has no such file")
        content, kind = self._files[name]
        return Response(content, headers={"Content-Type": kind})


class _Endpoint:
    """A route's application: what its handler answers, counted."""

    def __init__(self, service: Service, path: str, handler: Handler) -> None:
        self._service, self._path, self._handler = service, path, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as held:
            try:
                response = await self._handler(self._service, Request(scope, receive), held)
            except ClientGone as gone:
                let_go(gone)
                self._service.metrics.requested(self._path, 499)
                return
            except Exception as error:  # noqa: BLE001 - the client is told that something failed, and no more
                if not isinstance(error, ApiError | MedVLMError):
                    report_unexpected(error)
                let_go(error)
                # Its traceback would hold this frame, which holds it.
                refusal = as_api_error(error).with_traceback(None)
                self._service.metrics.requested(self._path, refusal.status)
                await send_error(refusal, send)
                return
            self._service.metrics.requested(self._path, response.status_code)
            await response(scope, receive, send)


class _Errors:
    """Errors of routing in the form of all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Where it finds an application, Starlette's router raises instead of answering.
            await self._app({**scope, "app": self}, receive, send)
        except HTTPException as error:
            headers = dict(error.headers or {})
            await send_error(ApiError(error.status_code, f"{error.detail}: see /openapi.json", headers=headers), send)


def _description(service: Service) -> dict[str, Any]:
    """The OpenAPI description, with this server's limits."""
    limits = service.settings.limits
    text = _OPENAPI.read_text(encoding="utf-8")
    numbers = {"IMAGES": limits.images, "TEXT": limits.text, "ANSWERS": limits.answers}
    for name, number in numbers.items():
        text = text.replace(f'"{{{name}}}"', str(number)).replace(f"{{{name}}}", str(number))
    text = text.replace("{MODEL}", json.dumps(service.model)[1:-1]).replace("{VERSION}", metadata.version("medvlm"))
    return json.loads(text)
