"""What the server's tests share: a server in a thread over the demo model, requests, questions with their images."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from medvlm.demo.dataset import Item, make_item
from medvlm.runtime import MedVLM
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.cli_options import Asking
from medvlm.runtime.images import load_image
from PIL import Image

if TYPE_CHECKING:
    from medvlm.runtime.serve.service import Service

READY_S = 20.0


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        (name,) = self.json
        assert name == "error"
        return self.json["error"]


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process."""

    port: int
    service: "Service"
    stop: Callable[[], None]
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def chat(self, messages: Any, **parameters: Any) -> Reply:
        return self.send("POST", "/v1/chat/completions", {"messages": messages, **parameters})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)


Serving = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def served_model(demo_bundle: Path) -> MedVLM:
    """The demo model for servers; `demo_model` is for what they should answer, since a model has one user at a time."""
    return MedVLM.load(demo_bundle, threads=1)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost by itself, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(words, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="session")
def serving(served_model: MedVLM, demo_bundle: Path) -> Serving:
    """Call it with limits, and with a token or a certificate if need be, for a server over the demo model."""
    from medvlm.runtime.serve.server import open_socket, serve
    from medvlm.runtime.serve.service import start_service
    from medvlm.runtime.serve.settings import Access, Limits, Settings

    @contextlib.contextmanager
    def running(
        token: str | None = None,
        model: MedVLM = served_model,
        tls: tuple[Path | None, Path | None] = (None, None),
        **limits: Any,
    ) -> Iterator[Running]:
        access = Access("127.0.0.1", 0, token, tls_cert=tls[0], tls_key=tls[1])
        bound = open_socket(access)
        port = bound.getsockname()[1]
        settings = Settings(access, Limits(**limits))
        service = start_service(model, open_bundle(demo_bundle), Asking(False, None, None), settings)
        ready = threading.Event()
        stops: list[Callable[[], None]] = []

        def on_ready(stop: Callable[[], None]) -> None:
            stops.append(stop)
            ready.set()

        thread = threading.Thread(target=serve, args=(service, bound, on_ready), daemon=True)
        thread.start()
        assert ready.wait(READY_S)
        try:
            yield Running(port, service, stops[0], thread)
        finally:
            # Twice, so that nothing is waited for.
            for _ in range(2):
                with contextlib.suppress(RuntimeError):
                    stops[0]()
            thread.join(READY_S)
            assert not thread.is_alive()
            assert not service.worker.is_alive()

    return running


@pytest.fixture(scope="module")
def server(serving: Serving) -> Iterator[Running]:
    """A server with the usual limits."""
    with serving() as running:
        yield running


@dataclass(frozen=True)
class Asked:
    """A question of the demo model about an image, in the forms that it is asked in."""

    item: Item
    png: bytes

    @property
    def question(self) -> str:
        return self.item.question.problem

    @property
    def url(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def messages(self) -> list[dict[str, Any]]:
        content = [{"type": "text", "text": self.question}, {"type": "image_url", "image_url": {"url": self.url}}]
        return [{"role": "user", "content": content}]


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Eight questions, each about an image of its own."""
    folder = tmp_path_factory.mktemp("asked")
    items = []
    for index in range(8):
        item = make_item("test", index)
        item.image.save(folder / f"{index}.png")
        items.append(Asked(item, (folder / f"{index}.png").read_bytes()))
    assert len({one.png for one in items}) == 8
    return items


@pytest.fixture(scope="session")
def large_png() -> bytes:
    """Noise of 6 MB, which no compression makes smaller."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1400, 3), np.uint8)).save(content, "PNG")
    assert load_image(content.getvalue()).pixels.size == (1400, 1500)
    return content.getvalue()


PROGRAM = "from medvlm.runtime.cli import main; main()"


@dataclass(frozen=True)
class Process:
    """A server, and where it says that it is."""

    popen: subprocess.Popen[str]
    port: int
    said: str

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def chat(self, messages: Any, **parameters: Any) -> Any:
        body = json.dumps({"messages": messages, **parameters}).encode()
        status, content = self.send("POST", "/v1/chat/completions", body, **{"Content-Type": "application/json"})
        assert status == 200, content
        return json.loads(content)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and all that it said after its address."""
        self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=60)
        return self.popen.returncode, out + err


Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture(scope="session")
def start(demo_bundle: Path) -> Start:
    """Call it with options, and the words before the command if need be, for a server of its own."""

    @contextlib.contextmanager
    def started(
        *words: str, before: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> Iterator[Process]:
        command = [*before, sys.executable, "-c", PROGRAM, "serve", str(demo_bundle), "--port", "0", "--threads", "1"]
        with subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        ) as popen:
            assert popen.stdout is not None
            line = popen.stdout.readline()
            found = re.search(r":(\d+)/", line)
            try:
                assert found, line + (popen.stderr.read() if popen.stderr else "")
                yield Process(popen, int(found[1]), line)
            finally:
                popen.kill()

    return started
