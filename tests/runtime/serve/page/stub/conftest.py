"""A small server that speaks to the page as the real one does, with recorded answers."""

import base64
import contextlib
import email.message
import email.policy
import functools
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import medvlm.runtime.serve
import pytest
from medvlm.runtime.dicom.child import decode_file
from medvlm.runtime.dicom.view import PRESETS, read_view
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import decode_image
from PIL import Image

PAGE = Path(medvlm.runtime.serve.__file__).parent / "page"
ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text(encoding="utf-8"))
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BUNDLE = "5e8f" * 16


@dataclass
class Stub:
    """What the stub does, which a test may change at any time, and what it saw.

    seconds_each: between two tokens. place: where who asks stands in the line, until it is None. refusal: (status,
    headers, message) in place of an answer. cut_after: pieces after which it breaks off. hold: while it is set, answers
    wait behind `hold_after` pieces. answers: recorded ones, that are given in turn. requests: the bodies of the
    questions. previews: the views asked for. bundle: the digest of its bundle. bearer: the token that it wants.
    stopped: answers of which the client went away.
    """

    seconds_each: float = 0.0
    place: tuple[int, float] | None = None
    refusal: tuple[int, dict[str, str], str] | None = None
    cut_after: int | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    hold_after: int = 0
    answers: list[dict[str, Any]] = field(default_factory=lambda: list(ANSWERS))
    demo: bool = True
    bundle: str = BUNDLE
    bearer: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    previews: list[tuple[str | None, str | None]] = field(default_factory=list)
    stopped: int = 0
    url: str = ""
    server: "_Server | None" = None

    def start(self, port: int = 0) -> None:
        stub = self

        class Handler(_Handler):
            pass

        Handler.stub = stub
        self.server = _Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Go away, as a server that was killed."""
        if self.server is not None:
            self.server.shutdown()
            self.server.close_all()
            self.server = None

    @property
    def info(self) -> dict[str, Any]:
        return {
            "model": "MedVLM demo",
            "bundle": self.bundle,
            "recipe": "int4",
            "version": "0.1.0",
            "demo": self.demo,
            "limits": {"images": 8, "image_bytes": 64_000_000, "text": 8000},
            "presets": {name: [window.center, window.width] for name, window in PRESETS.items()},
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def close_all(self) -> None:
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away: that is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"
    # Or each of the page's files waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/":
            return self.file("index.html")
        if path.startswith("/page/"):
            return self.file(path.removeprefix("/page/"))
        if path == "/healthz":
            return self.reply(200, {"status": "ok"})
        if path == "/info":
            return self.reply(200, self.stub.info) if self.allowed() else None
        return self.reply(404, error("there is no such path"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.allowed():
            return
        if self.path == "/preview":
            self.preview(parts(self.headers["Content-Type"], body))
        else:
            self.answer(json.loads(body))

    def allowed(self) -> bool:
        if self.stub.bearer and self.headers.get("Authorization") != f"Bearer {self.stub.bearer}":
            self.reply(401, error("a token is wanted"))
            return False
        return True

    def file(self, name: str) -> None:
        path = PAGE / Path(name).name
        if not path.is_file():
            return self.reply(404, error("there is no such file"))
        return self.send(200, path.read_bytes(), {"Content-Type": TYPES[path.suffix], "Content-Security-Policy": CSP})

    def preview(self, form: dict[str, bytes]) -> None:
        window, frame = (form[name].decode() if name in form else None for name in ("window", "frame"))
        self.stub.previews.append((window, frame))
        try:
            self.reply(200, make_preview(form["image"], window, frame))
        except InputError as refused:
            self.reply(400, error(str(refused)))

    def answer(self, request: dict[str, Any]) -> None:
        stub = self.stub
        stub.requests.append(request)
        if stub.refusal is not None:
            status, headers, message = stub.refusal
            return self.reply(status, error(message), headers)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        recorded = stub.answers[(len(stub.requests) - 1) % len(stub.answers)]
        try:
            self.play(recorded)
        except OSError:
            stub.stopped += 1
        return None

    def play(self, recorded: dict[str, Any]) -> None:
        stub = self.stub
        while (place := stub.place) is not None:
            self.event({"choices": [], "medvlm": {"queue": {"position": place[0], "wait_s": place[1]}}})
            time.sleep(0.02)
        pieces = [("reasoning_content", text) for text in recorded["reasoning"]]
        pieces += [("content", text) for text in recorded["content"]]
        for index, (name, text) in enumerate(pieces):
            while stub.hold.is_set() and index >= stub.hold_after:
                self.event({"choices": []})
                time.sleep(0.02)
            if index == stub.cut_after:
                return
            self.event({"choices": [{"index": 0, "delta": {name: text}, "finish_reason": None}]})
            time.sleep(stub.seconds_each)
        told = {**recorded["medvlm"], "bundle": stub.bundle}
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": recorded["usage"], "medvlm": told})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, body: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps({"object": "chat.completion.chunk", **body}).encode() + b"\n\n")
        self.wfile.flush()

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None, "param": None}}


def parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a multipart body by name."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    assert isinstance(message, email.message.EmailMessage)
    found = {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found[part.get_param("name", header="content-disposition")] = content
    return found


@functools.lru_cache
def make_preview(content: bytes, window: str | None, frame: str | None) -> dict[str, Any]:
    """As the server's /preview, but that DICOM is decoded in this process, which is sooner."""
    view = read_view(window, int(frame) if frame else None)
    told: dict[str, Any] = {"frames": 1, "window": None, "window_range": None, "inverted": False}
    dicom = content[128:132] == b"DICM"
    if dicom:
        decoded = decode_file(io.BytesIO(content), view)
        (shown,), notes = decoded.frames, decoded.notes
        pixels = Image.fromarray(shown.pixels)
        told = {"frames": shown.header.frames, "window": shown.window, "window_range": shown.extent}
        told["inverted"] = shown.inverted
    else:
        loaded = decode_image(content, "the image", view)
        pixels, notes = loaded.pixels, loaded.notes
    png = io.BytesIO()
    pixels.save(png, "PNG")
    told |= {"width": pixels.width, "height": pixels.height, "dicom": dicom, "notes": list(notes)}
    return {**told, "png": base64.b64encode(png.getvalue()).decode()}


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A stub server that is up."""
    stub = Stub()
    stub.start()
    yield stub
    stub.stop()


@pytest.fixture(scope="module")
def stub_of_module() -> Iterator[Stub]:
    """A stub server for tests that leave it as it is."""
    stub = Stub()
    stub.start()
    yield stub
    stub.stop()


@pytest.fixture
def open_page(open_at: Callable[..., Any], stub: Stub) -> Callable[..., Any]:
    """Call it, with an address's end if need be, for the page at the stub."""
    return lambda address="", **options: open_at(stub.url + address, **options)


@pytest.fixture
def held_previews() -> Callable[[Any], list[Any]]:
    """Call it with a page: previews are held from then on, and come into the list that it gives."""

    def hold(page: Any) -> list[Any]:
        held: list[Any] = []
        page.route("**/preview", lambda route: held.append(route))
        return held

    return hold
