"""No image outlives its request, however that ended: they are large, and Python's collector of cycles does not know."""

import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from medvlm.runtime import decoded
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.images import LoadedImage, decode_image

pytest.importorskip("uvicorn", reason="needs the extra serve")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[LoadedImage]]:
    """Every image that the server decodes; none is kept for the next question."""
    images: list[weakref.ref[LoadedImage]] = []

    def decode(*arguments: Any) -> LoadedImage:
        image = decode_image(*arguments)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr(decoded, "decode_image", decode)
    monkeypatch.setattr(decoded, "_MOST_BYTES", 0)
    return images


def forgotten(images: list[weakref.ref[LoadedImage]], server: Any) -> bool:
    """Whether all are gone, once the model has had another question."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert server.chat([{"role": "user", "content": "?"}], max_tokens=1).status == 200
        if not [image for image in images if image() is not None]:
            return True
        time.sleep(0.05)
    return False


def test_an_image_is_forgotten_with_its_request(
    serving: Any,
    asked: list[Any],
    loaded: list[weakref.ref[LoadedImage]],
    no_collector: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = asked[0]
    image = one.messages[0]["content"][1]
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with serving(pixels=200_000) as server:

        def content(*parts: Any) -> list[dict[str, Any]]:
            return [{"role": "user", "content": [*parts, {"type": "text", "text": one.question}]}]

        assert server.chat(one.messages).status == 200
        assert server.chat(one.messages, stream=True).status == 200
        # Refused after the image was decoded: for another, for their sum, for the prompt.
        assert server.chat(content(image, broken)).status == 400
        assert server.chat(content(*[image] * 6)).status == 400
        assert server.chat(content(image, {"type": "text", "text": "<|im_end|>"})).status == 400
        # Left while it waits or is answered.
        body = json.dumps({"messages": one.messages, "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for _ in range(3):
            with server.connect() as connection:
                connection.sendall(whole)
                connection.recv(1)
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "prefill", lambda *_: 1 / 0)
            assert server.chat(one.messages).status == 500
            assert b"error" in server.chat(one.messages, stream=True).body
            left = threading.Event()
            patch.setattr(Decoder, "prefill", lambda *_: left.wait(60) / 0)
            with server.connect() as connection:
                connection.sendall(whole)
                connection.recv(1)
            # Failed when its client had left, of which the free seat tells.
            deadline = time.monotonic() + 30
            while server.service.questions.taken and time.monotonic() < deadline:
                time.sleep(0.01)
            left.set()
            while not server.service.line.idle:
                time.sleep(0.01)
        assert len(loaded) >= 10
        assert forgotten(loaded, server)
