"""Clients that mean no good, or that fail half-way: the server lives, and the next one is answered."""

import contextlib
import gc
import http.client
import json
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("uvicorn", reason="needs the extra serve")

LENGTH = (
    b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 999\r\n\r\n"
)


@pytest.fixture(scope="module")
def impatient(serving: Any) -> Any:
    """A server with short limits."""
    with serving(header_s=0.5, chunk_s=0.5, body_s=1.5, connections=20, body_bytes=100_000) as running:
        yield running


def ended(connection: socket.socket) -> bool:
    """Whether the server ended it, by a goodbye or without one."""
    connection.settimeout(5)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def alive(server: Any) -> bool:
    return server.send("GET", "/healthz").json == {"status": "ok"}


def test_headers_that_come_slowly_are_given_up(impatient: Any) -> None:
    with impatient.connect() as connection:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 99:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert 0.4 < time.monotonic() - started < 4
    assert alive(impatient)


def test_headers_of_a_second_request_have_their_time_too(impatient: Any) -> None:
    with impatient.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HT")
        started = time.monotonic()
        assert ended(connection)
        assert time.monotonic() - started < 4


def test_a_connection_that_says_nothing_is_closed(impatient: Any) -> None:
    with impatient.connect() as connection:
        assert ended(connection)


# Python 3.10's asyncio says so of a handshake that it gave up, once it is collected.
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_a_handshake_that_does_not_come_is_not_waited_for(serving: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serving(tls=(cert, key), header_s=0.5) as server:
        with server.connect() as connection:
            assert ended(connection)
        trusting = ssl.create_default_context(cafile=str(cert))
        with contextlib.closing(http.client.HTTPSConnection("localhost", server.port, context=trusting)) as client:
            client.request("GET", "/healthz")
            assert client.getresponse().status == 200
    gc.collect()


def test_a_body_that_comes_slowly_is_given_up(impatient: Any) -> None:
    with impatient.connect() as connection:
        connection.sendall(LENGTH)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    with impatient.connect() as connection:
        connection.sendall(LENGTH)
        connection.settimeout(0.2)
        answer, started = b"", time.monotonic()
        while not answer and time.monotonic() - started < 5:
            with contextlib.suppress(socket.timeout):
                connection.sendall(b"x")
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert alive(impatient)


def test_an_upload_that_breaks_off_is_dropped(impatient: Any) -> None:
    for part in (b"", b"--b\r\n", b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nxx'):
        with impatient.connect() as connection:
            connection.sendall(LENGTH + part)
    assert alive(impatient)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(impatient: Any) -> None:
    with impatient.connect() as connection:
        connection.sendall(LENGTH.replace(b"999", b"100001"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    with impatient.connect() as connection:
        connection.sendall(LENGTH.replace(b"Content-Length: 999", b"Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert alive(impatient)


def test_a_client_that_is_refused_may_finish_its_upload(serving: Any) -> None:
    """Many read no answer before all that they send is sent."""
    with serving(header_s=0.3, chunk_s=2.0) as server, server.connect() as connection:
        connection.sendall(LENGTH.replace(b"/ask", b"/nothing"))
        for _ in range(9):
            time.sleep(0.1)
            connection.sendall(b"x" * 111)
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    with serving(header_s=0.3, chunk_s=0.3) as server, server.connect() as connection:
        connection.sendall(LENGTH.replace(b"/ask", b"/nothing"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"x")
        assert ended(connection), "it has its time as well"


def test_uploads_together_are_bounded(serving: Any) -> None:
    with serving(body_bytes=100_000) as server, contextlib.ExitStack() as held:
        head = LENGTH.replace(b"999", b"100000")
        for _ in range(2):
            held.enter_context(server.connect()).sendall(head + b"x" * 99_000)
        deadline = time.monotonic() + 10
        while sum(server.service.bodies.reading.values()) < 198_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        with server.connect() as third:
            third.sendall(head + b"x" * 99_000)
            answer = third.recv(65536)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer.lower()
    assert not server.service.bodies.reading


def test_slow_uploads_take_no_seat_from_others(serving: Any, asked: list[Any]) -> None:
    with serving(queue=1) as server, contextlib.ExitStack() as held:
        for _ in range(5):
            held.enter_context(server.connect()).sendall(LENGTH + b"-")
        assert server.chat(asked[0].messages).status == 200


@pytest.mark.parametrize(
    "request_line",
    [b"GET /healthz", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: \0", b"\x16\x03\x01\x02", b"GET / HTTP/1.1\r\n : x"],
)
def test_what_is_no_request_is_refused_as_all_is(server: Any, request_line: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(request_line + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Content-Security-Policy: default-src 'none'" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"9" * 40, b"0x10"])
def test_lengths_that_are_none_are_refused(impatient: Any, length: bytes) -> None:
    with impatient.connect() as connection:
        connection.sendall(LENGTH.replace(b"999", length))
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")
    assert alive(impatient)


def test_headers_without_end_are_refused(impatient: Any) -> None:
    with impatient.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10**6)
        assert ended(connection)
    assert alive(impatient)


@given(st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_request_do_no_harm(impatient: Any, content: bytes) -> None:
    with impatient.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        connection.recv(65536)


def test_after_all_of_that_it_lives(impatient: Any) -> None:
    assert alive(impatient)


def test_ten_thousand_idle_connections_are_refused_beyond_the_limit(serving: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 500)
    if count < 10_000:
        pytest.skip("needs the right to open 10,500 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    try:
        with serving(connections=50, header_s=3.0) as server, contextlib.ExitStack() as held:
            connections = [held.enter_context(server.connect()) for _ in range(count)]
            refused = 0
            for connection in connections:
                connection.setblocking(False)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and refused < count - 50:
                time.sleep(0.2)
                refused = sum(map(was_refused, connections))
            assert refused >= count - 60
            time.sleep(3.5)
            # Those that were let in have said nothing for too long.
            assert alive(server)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def was_refused(connection: socket.socket) -> bool:
    try:
        return connection.recv(12, socket.MSG_PEEK) in (b"", b"HTTP/1.1 503")
    except BlockingIOError:
        return False
    except OSError:
        return True


def form(fields: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A multipart body as urllib3 writes it."""
    body, kind = urllib3.encode_multipart_formdata(fields, boundary="b0undary")
    return body, {"Content-Type": kind}


def test_a_whole_form_is_answered(server: Any, asked: list[Any]) -> None:
    body, headers = form({"image": ("p.png", asked[0].png), "question": asked[0].question})
    assert server.send("POST", "/ask", body, headers).status == 200


def test_a_form_cut_anywhere_is_refused(server: Any, asked: list[Any]) -> None:
    body, headers = form({"question": asked[0].question, "image": ("p.png", asked[0].png)})
    cuts = [*range(0, 400, 23), *range(400, len(body), 4999), *range(len(body) - 14, len(body) - 4)]
    for cut in cuts:
        reply = server.send("POST", "/ask", body[:cut], headers)
        assert reply.status == 400, cut
        assert reply.error["type"] == "invalid_request_error"


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_form_that_was_changed_anywhere_is_answered_or_refused(server: Any, data: st.DataObject) -> None:
    body, headers = form({"question": "What?", "image": ("p.png", b"\x89PNG" + b"x" * 40), "frame": "1"})
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    kind = data.draw(
        st.sampled_from([headers["Content-Type"], "multipart/form-data", "multipart/form-data; boundary="])
    )
    assert server.send("POST", "/ask", bytes(changed), {"Content-Type": kind}).status in (200, 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b0undary--\r\n",
        b"--b0undary\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b0undary--\r\n",
        b'--b0undary\r\nContent-Disposition: form-data; name="question"\r\n\r\n\xff\xfe\r\n--b0undary--\r\n',
        b'--b0undary\r\nContent-Disposition: form-data; name="image"\r\n\r\nnot a file\r\n--b0undary--\r\n',
        b'--b0undary\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b0undary--\r\n',
        b'--b0undary\r\nContent-Disposition: form-data; name="question"\r\n\r\nx\r\n' * 2 + b"--b0undary--\r\n",
        b'--b0undary\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 500 + b"--b0undary--\r\n",
        b"--b0undary\r\n" + b"X: y\r\n" * 5000 + b"\r\n\r\n--b0undary--\r\n",
    ],
)
def test_forms_that_are_none_are_refused(server: Any, body: bytes) -> None:
    reply = server.send("POST", "/ask", body, {"Content-Type": "multipart/form-data; boundary=b0undary"})
    assert reply.status == 400
    assert "\n" not in reply.error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"\xff",
        b'{"n": NaN}',
        b'{"n": 1' + b"0" * 5000 + b"}",
        b'{"messages": [' + b"{}," * 50_000 + b"{}]}",
        b'{"messages": "\\ud800"}',
        '{"messages": []}'.encode("utf-16"),
        b'{"\\ud800": 1}',
    ],
)
def test_json_that_is_none_is_refused(server: Any, body: bytes) -> None:
    reply = server.send("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert reply.status == 400
    assert "\n" not in reply.error["message"]
