"""Who may ask, and what a browser is told. Requests are written by http.client, or by hand."""

import json
import re
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105
PATHS = ("/info", "/v1/models", "/metrics", "/openapi.json", "/nothing")


@pytest.fixture(scope="module")
def guarded(serving: Any) -> Any:
    with serving(token=TOKEN) as running:
        yield running


def raw(server: Any, request: bytes) -> bytes:
    """All that comes back before the connection is closed."""
    with server.connect() as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.", "[::2]", ""]
)
def test_a_page_that_was_rebound_to_this_address_is_refused(server: Any, host: str) -> None:
    for path in ("/", "/info", "/healthz"):
        reply = server.send("GET", path, headers={"Host": host})
        assert reply.status == 421
        assert reply.error["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}", "localhost"])
def test_the_servers_own_names_are_known(server: Any, host: str) -> None:
    assert server.send("GET", "/info", headers={"Host": host.format(server.port)}).status == 200


def test_two_hosts_are_refused(server: Any) -> None:
    answer = raw(server, b"GET /info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_origins_are_refused_before_anything_is_done(server: Any, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/info"), ("POST", "/ask"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/ask")):
        reply = server.send(method, path, headers=headers)
        assert (reply.status, reply.error["code"]) == (403, "foreign_origin")
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_the_servers_own_page_may_ask(server: Any, asked: list[Any]) -> None:
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    body = {"messages": asked[0].messages}
    assert server.send("POST", "/v1/chat/completions", body, headers).status == 200
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert server.send("GET", "/", headers=linked).status == 200
    assert server.send("GET", "/info", headers=linked).status == 403


def test_a_form_of_another_page_has_the_wrong_type(server: Any) -> None:
    """A browser sends such types without asking first, and older ones without an Origin."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
        reply = server.send("POST", "/v1/chat/completions", body, {"Content-Type": kind})
        assert reply.status == 415


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xff\xfe",
        TOKEN,
    ],
)
def test_without_the_token_nothing_is_answered(guarded: Any, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    for path in PATHS:
        reply = guarded.send("GET", path, headers=headers)
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert (reply.error["type"], reply.error["code"]) == ("authentication_error", "invalid_api_key")
    assert guarded.send("POST", "/ask", b"x", headers).status == 401
    assert guarded.send("GET", f"/info?token={TOKEN}", headers=headers).status == 401


def test_with_the_token_all_is_answered(guarded: Any) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert [guarded.send("GET", path, headers=headers).status for path in PATHS] == [200, 200, 200, 200, 404]


def test_the_page_and_the_servers_health_need_no_token(guarded: Any) -> None:
    assert guarded.send("GET", "/healthz").json == {"status": "ok"}
    assert guarded.send("GET", "/").status == 200
    assert guarded.send("GET", "/page/nothing.js").status == 404


@pytest.mark.parametrize(
    "path", ["/page/../server.py", "/page/%2e%2e/server.py", "/page//etc/passwd", "/page/", "/page/..%2fapp.py"]
)
def test_nothing_but_the_pages_files_is_served(server: Any, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("path", ["/", "/info", "/nothing", "/v1/chat/completions"])
def test_every_response_has_the_headers_that_bind_a_browser(server: Any, path: str) -> None:
    for headers in ({}, {"Host": "evil.example"}):
        got = server.send("GET", path, headers=headers).headers
        policy = dict(part.strip().split(" ", 1) for part in got["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in got["Content-Security-Policy"]
        assert got["X-Content-Type-Options"] == "nosniff"
        assert got["Cache-Control"] == "no-store"
        assert got["Referrer-Policy"] == "no-referrer"
        assert not {"Set-Cookie", "Server", "Access-Control-Allow-Origin"} & set(got)


def test_methods_that_a_path_lacks_are_named(server: Any) -> None:
    reply = server.send("DELETE", "/v1/models")
    assert reply.status == 405
    assert "GET" in reply.headers["Allow"]
    assert reply.error["type"] == "invalid_request_error"
