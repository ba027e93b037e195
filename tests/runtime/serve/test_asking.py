"""Turns at the one model: who waits is told, who goes away is no longer answered, who is one too many is refused."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from medvlm.runtime import decoded
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.images import LoadedImage, decode_image
from medvlm.runtime.preprocess import Patches
from medvlm.runtime.vision import VisionEncoder
from numpy.typing import NDArray

pytest.importorskip("uvicorn", reason="needs the extra serve")

# So that what a test does between two calls falls between them on a busy machine; and once that is done.
STEP_S, QUICK_S = 0.1, 0.005


class Steps:
    """Calls of the decoder, each of which takes at least `step_s`."""

    def __init__(self) -> None:
        self.count = 0
        self.step_s = STEP_S
        self.begun = threading.Event()

    def hurry(self) -> None:
        """What had to be seen was seen."""
        self.step_s = QUICK_S


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps, extend = Steps(), Decoder.extend

    def slowed(decoder: Decoder, token_ids: Sequence[int]) -> NDArray[np.float32]:
        time.sleep(steps.step_s)
        steps.count += 1
        steps.begun.set()
        return extend(decoder, token_ids)

    monkeypatch.setattr(Decoder, "extend", slowed)
    return steps


def post(server: Any, messages: Any, *, tail: bytes = b"", **parameters: Any) -> socket.socket:
    """A question on a connection of its own, with bytes behind it."""
    body = json.dumps({"messages": messages, **parameters}).encode()
    connection = server.connect()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body + tail)
    return connection


def events(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """The events of a streamed reply, as they come."""
    with connection.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
            if line.startswith((b"data: [DONE]", b'data: {"error"')):
                return


def eventually(true: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_answer_within_a_token(
    serving: Any, asked: list[Any], steps: Steps, stream: bool
) -> None:
    with serving() as server:
        connection = post(server, asked[0].messages, stream=stream)
        assert eventually(lambda: steps.count >= 3)
        connection.close()
        before = steps.count
        assert eventually(lambda: server.service.line.idle)
        assert steps.count <= before + 2, "the call that ran, and one between"
        time.sleep(3 * STEP_S)
        assert steps.count <= before + 2
        steps.hurry()
        assert server.chat(asked[0].messages).status == 200


PIPELINED = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("surplus", [b"\r\n", PIPELINED], ids=["a blank line", "another request"])
@pytest.mark.parametrize("apart", [True, False], ids=["behind the request", "with it"])
def test_a_client_that_goes_away_behind_surplus_bytes_is_noticed_too(
    serving: Any, asked: list[Any], steps: Steps, surplus: bytes, apart: bool
) -> None:
    with serving() as server:
        connection = post(server, asked[0].messages, tail=b"" if apart else surplus)
        assert eventually(lambda: steps.count >= 2)
        if apart:
            connection.sendall(surplus)
        time.sleep(STEP_S)
        connection.close()
        before = steps.count
        assert eventually(lambda: server.service.line.idle)
        assert steps.count <= before + 2
        steps.hurry()


def test_requests_behind_each_other_are_answered_in_their_order(serving: Any, asked: list[Any]) -> None:
    with serving() as server:
        for apart in (True, False):
            with post(server, asked[0].messages, tail=b"" if apart else PIPELINED) as connection:
                if apart:
                    connection.sendall(PIPELINED)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            first, second = answer.split(b"HTTP/1.1 200 OK")[1:]
            assert b"chat.completion" in first
            assert b'{"status":"ok"}' in second
        with post(server, asked[0].messages) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * 20_000)
            assert not connection.recv(65536), "no end of it is kept"


def test_images_of_clients_who_went_away_are_not_decoded_and_text_waits_for_none(
    serving: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, decoding = threading.Event(), []

    def slow(*arguments: Any) -> LoadedImage:
        decoding.append(arguments)
        release.wait(60)
        return decode_image(*arguments)

    monkeypatch.setattr(decoded, "decode_image", slow)
    several = [{"role": "user", "content": [*asked[0].messages[0]["content"], *asked[1].messages[0]["content"][1:]]}]
    with serving() as server:
        connections = [post(server, several) for _ in range(4)]
        assert eventually(lambda: len(decoding) == 2 and server.service.questions.taken == 4)
        for connection in connections:
            connection.close()
        assert eventually(lambda: server.service.questions.taken == 0)
        assert server.chat([{"role": "user", "content": "What is it?"}], max_tokens=2).status == 200
        release.set()
        assert server.chat(asked[2].messages).status == 200
    assert len(decoding) == 3, "the two that were being decoded, and the one that somebody waited for"


def test_an_image_that_is_read_for_a_client_who_went_away_is_given_up(
    serving: Any, asked: list[Any], large_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is given the work of hours."""
    begun, encode = threading.Event(), VisionEncoder.encode

    def again_and_again(encoder: VisionEncoder, patches: Patches) -> None:
        while True:
            begun.set()
            encode(encoder, patches)

    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(VisionEncoder, "encode", again_and_again)
            unknown = dataclasses.replace(asked[0], png=large_png)
            connection = post(server, unknown.messages)
            assert begun.wait(30)
            connection.close()
            assert eventually(lambda: server.service.line.idle)
        assert server.chat(asked[0].messages).json["medvlm"]["choice"]


def test_a_client_that_goes_away_while_it_waits_is_never_answered(serving: Any, asked: list[Any], steps: Steps) -> None:
    with serving() as server:
        first = post(server, asked[0].messages, stream=True)
        assert steps.begun.wait(10)
        second = post(server, asked[1].messages)
        assert eventually(lambda: server.service.line.length == 1)
        second.close()
        assert eventually(lambda: server.service.line.length == 0)
        steps.hurry()
        answered = list(events(first))
        assert answered[-1]["choices"][0]["finish_reason"] == "stop"
        assert eventually(lambda: server.service.line.idle)
        first.close()


def test_who_waits_is_told_its_place(serving: Any, asked: list[Any], steps: Steps) -> None:
    with serving() as server, contextlib.ExitStack() as held:
        connections = []
        for one in asked[:3]:
            connections.append(held.enter_context(post(server, one.messages, stream=True)))
            assert eventually(
                lambda: server.service.line.length == max(0, len(connections) - 1) and steps.begun.is_set()
            )
        steps.hurry()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            replies = list(pool.map(lambda connection: list(events(connection)), connections))
        queues = [
            [event["medvlm"]["queue"] for event in reply if "queue" in event.get("medvlm", {})] for reply in replies
        ]
        assert queues[0] == []
        for place in (1, 2):
            positions = [queue["position"] for queue in queues[place]]
            assert positions[0] == place
            assert positions == sorted(positions, reverse=True)
            assert all(queue["wait_s"] >= 0 for queue in queues[place])
            # A chunk of a place is one without choices: OpenAI's clients know those.
            assert all(event["choices"] == [] for event in replies[place] if "queue" in event.get("medvlm", {}))
            assert replies[place][-1]["medvlm"]["choice"]


def test_one_too_many_is_told_when_to_try_again(serving: Any, asked: list[Any], steps: Steps) -> None:
    with serving(queue=1) as server, post(server, asked[0].messages), post(server, asked[1].messages):
        assert eventually(lambda: server.service.line.length == 1)
        for _ in range(2):
            reply = server.chat(asked[2].messages)
            assert (reply.status, reply.error["code"]) == (429, "queue_full")
            assert reply.error["type"] == "rate_limit_error"
            assert int(reply.headers["Retry-After"]) >= 1
        steps.hurry()
        assert eventually(lambda: server.service.line.idle, 20)
        assert server.chat(asked[2].messages).status == 200


def test_who_waited_too_long_is_refused(serving: Any, asked: list[Any], steps: Steps) -> None:
    with serving(wait_s=0.3) as server, post(server, asked[0].messages) as first:
        assert steps.begun.wait(10)
        started = time.monotonic()
        reply = server.chat(asked[1].messages)
        assert (reply.status, reply.error["code"]) == (429, "waited_too_long")
        assert 0.2 < time.monotonic() - started < 5
        with post(server, asked[1].messages, stream=True) as connection:
            *_, last = events(connection)
        assert last["error"]["code"] == "waited_too_long"
        steps.hurry()
        assert first.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_stopping_finishes_the_answer_begun_and_refuses_the_others(
    serving: Any, asked: list[Any], steps: Steps
) -> None:
    with serving() as server, post(server, asked[0].messages, stream=True) as running:
        assert steps.begun.wait(10)
        with post(server, asked[1].messages) as waiting:
            assert eventually(lambda: server.service.line.length == 1)
            server.stop()
            assert waiting.recv(65536).startswith(b"HTTP/1.1 503 ")
        refused = server.chat(asked[2].messages)
        assert (refused.status, refused.error["code"]) == (503, "stopping")
        assert server.send("GET", "/healthz").status == 503
        steps.hurry()
        *_, last = events(running)
        assert last["medvlm"]["choice"]
        server.thread.join(10)
        assert not server.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_stopping_refuses_what_is_uploaded_or_decoded(
    serving: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, decoding = threading.Event(), threading.Event()
    monkeypatch.setattr(decoded, "decode_image", lambda *_: (decoding.set(), release.wait(60)))
    with serving() as server:
        reading = post(server, asked[0].messages)
        assert decoding.wait(10)
        uploading = server.connect()
        uploading.sendall(
            b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 999\r\n\r\n--b"
        )
        assert eventually(lambda: len(server.service.bodies.reading) == 2)
        server.stop()
        for connection in (reading, uploading):
            with connection:
                answer = b"".join(iter(functools.partial(connection.recv, 65536), b""))
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"stopping"' in answer
        release.set()
        server.thread.join(10)
        assert not server.thread.is_alive()


@pytest.mark.parametrize("stream", [True, False])
def test_a_second_stop_is_told_to_who_is_being_answered(
    serving: Any, asked: list[Any], steps: Steps, stream: bool
) -> None:
    with serving() as server, post(server, asked[0].messages, stream=stream) as connection:
        assert eventually(lambda: steps.count >= 2)
        server.stop()
        assert eventually(lambda: server.service.line.closed)
        server.stop()
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 " if stream else b"HTTP/1.1 503 ")
    assert b'"stopping"' in answer


def test_a_second_stop_ends_the_answer_within_a_token(serving: Any, asked: list[Any], steps: Steps) -> None:
    with serving() as server, post(server, asked[0].messages, stream=True):
        assert eventually(lambda: steps.count >= 2)
        server.stop()
        time.sleep(2 * STEP_S)
        before = steps.count
        server.stop()
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert steps.count < before + 15, "a whole answer takes more"


def test_a_reader_that_reads_nothing_holds_up_nobody(serving: Any, asked: list[Any], steps: Steps) -> None:
    with serving(chunk_s=1.0) as server:
        lazy = post(server, asked[0].messages, stream=True)
        assert steps.begun.wait(10)
        steps.hurry()
        assert server.chat(asked[1].messages).status == 200
        lazy.close()


class Panic(BaseException):
    """As Rust's are in Python."""


@pytest.mark.parametrize("error", [RuntimeError, Panic])
def test_a_failure_is_told_and_the_next_question_answered(
    error: type[BaseException],
    serving: Any,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error("the patient is DOE^JOHN")

    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "prefill", fail)
            reply = server.chat(asked[0].messages)
            with post(server, asked[0].messages, stream=True) as connection:
                *_, last = events(connection)
        assert (reply.status, reply.error["type"]) == (500, "server_error")
        assert last["error"]["type"] == "server_error"
        assert server.chat(asked[0].messages).status == 200
        assert server.send("GET", "/healthz").status == 200
    assert "DOE" not in capfd.readouterr().err
