"""Nothing leaves the machine, and nothing is left on it: what a whole server does, by its system calls."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3

pytest.importorskip("uvicorn", reason="needs the extra serve")

PROGRAM = "from medvlm.runtime.cli import main; main()"
MARK = "xylophone"


def without_network() -> list[str]:
    """The words before a command that runs it where there is a loopback and no other network."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare and ip")
    for option in ("-n", "-rn"):
        words = ["unshare", option, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    pytest.skip("needs the right to make a network namespace")


def traced(calls: str, log: Path) -> list[str]:
    """The words before a command whose system calls go into a log; signals reach the command itself."""
    if not shutil.which("strace") or subprocess.run(["strace", "-o", str(log), "true"], check=False).returncode:
        pytest.skip("needs strace, and the right to trace a process")
    return ["strace", "-D", "-f", "-o", str(log), "-e", f"trace={calls}"]


def whole(log: Path) -> list[str]:
    """The lines of a log, whose writer may end a moment after the command."""
    deadline = time.monotonic() + 10
    while (lines := log.read_text(encoding="utf-8").splitlines()) and "exited with" not in lines[-1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return lines


INSIDE = """
import http.client, json, re, subprocess, sys
server = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
line = server.stdout.readline()
port = int(re.search(r":([0-9]+)/", line)[1])
token = re.search("#token=(.*)", line)
headers = {"Authorization": "Bearer " + token[1]} if token else {}
answers = [line]
for method, path, body in json.load(open(sys.argv[1])):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    answers.append([response.status, response.read().decode()])
server.terminate()
out, err = server.communicate(timeout=60)
print(json.dumps([server.returncode, answers, err]))
"""


def inside(start_words: list[str], requests: list[Any], before: list[str], folder: Path) -> tuple[int, list[Any], str]:
    """A server and its client in a network of their own."""
    (folder / "requests.json").write_text(json.dumps(requests))
    words = [*without_network(), sys.executable, "-c", INSIDE, str(folder / "requests.json"), *before]
    command = [*words, sys.executable, "-c", PROGRAM, "serve", *start_words]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert result.stdout, result.stderr
    return json.loads(result.stdout)


def test_with_loopback_alone_everything_works_and_nothing_is_looked_up(
    demo_bundle: Path, asked: list[Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    body = {"messages": asked[0].messages}
    requests = [
        ["GET", "/", None],
        ["GET", "/info", None],
        ["POST", "/v1/chat/completions", body],
        ["POST", "/v1/chat/completions", {**body, "stream": True}],
        ["GET", "/metrics", None],
    ]
    code, answers, err = inside(
        [str(demo_bundle), "--port", "0", "--threads", "1"],
        requests,
        traced("socket,connect,bind,sendto,sendmsg,sendmmsg", log),
        tmp_path,
    )
    assert (code, err) == (0, "")
    assert [status for status, _ in answers[2:]] == [200] * 4
    lines = whole(log)
    assert [line for line in lines if "connect(" in line or "AF_PACKET" in line or "SOCK_DGRAM" in line] == []
    (bound,) = (line for line in lines if "bind(" in line)
    assert 'inet_addr("127.0.0.1")' in bound
    assert len([line for line in lines if "socket(AF_INET" in line]) == 1


def test_an_address_that_others_reach_has_a_token_and_a_warning(demo_bundle: Path, tmp_path: Path) -> None:
    """Where there is nobody to reach it."""
    words = [str(demo_bundle), "--port", "0", "--threads", "1", "--host", "0.0.0.0"]  # noqa: S104
    code, (line, *answers), err = inside(words, [["GET", "/info", None]], [], tmp_path)
    assert code == 0
    token = re.search("#token=([A-Za-z0-9_-]{40,})$", line.strip())
    assert token
    names, tls = err.splitlines()
    assert "--allow-host" in names
    assert "--tls-cert" in tls
    assert answers[0][0] == 200, "asked with the token"


def test_nothing_is_written_and_no_word_of_a_question_is_said(
    start: Any, asked: list[Any], large_png: bytes, tmp_path: Path
) -> None:
    log, temporary = tmp_path / "log", tmp_path / "temporary"
    temporary.mkdir()
    before = traced("openat,open,creat,mkdir,mkdirat,rename,renameat,unlink,unlinkat,memfd_create", log)
    question = f"What is this {MARK}?"
    with start("--max-pixels", "100000", before=before, environment={"TMPDIR": str(temporary)}) as process:
        fields: dict[str, Any] = {"image": (f"{MARK}.png", large_png), "question": question, "max_new_tokens": "3"}
        body, kind = urllib3.encode_multipart_formdata(fields)
        assert process.send("POST", "/ask", body, **{"Content-Type": kind})[0] == 200
        assert process.send("POST", "/ask", body[:-5], **{"Content-Type": kind})[0] == 400
        process.chat([{"role": "user", "content": question}], max_tokens=3, user=MARK)
        status, _ = process.send("POST", "/v1/chat/completions", MARK.encode(), **{"Content-Type": "application/json"})
        assert status == 400
        assert process.send("GET", f"/{MARK}?{MARK}")[0] == 404
        assert MARK not in process.send("GET", "/metrics")[1].decode()
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            connection.sendall(f"{MARK}\r\n\r\n".encode())
        assert process.end() == (0, "")
    lines = whole(log)
    assert any("manifest.json" in line for line in lines)
    changing = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TMPFILE", "creat(", "mkdir", "rename", "unlink", "memfd_create")
    written = [line for line in lines if any(call in line for call in changing) and "ENOENT" not in line]
    assert [line for line in written if "/dev/" not in line and "__pycache__" not in line] == []
    assert list(temporary.iterdir()) == []
