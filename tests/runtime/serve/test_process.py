"""`medvlm serve` as a process: its signals, its silence, its memory, and what it says of wrong options."""

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from click.testing import CliRunner
from medvlm.runtime import MedVLM
from medvlm.runtime.cli import main
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.sampling import Sampling

pytest.importorskip("uvicorn", reason="needs the extra serve")

PROGRAM = "from medvlm.runtime.cli import main; main()"
MARK = "xylophone"


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


Start = Callable[..., contextlib.AbstractContextManager[Process]]


@pytest.fixture(scope="module")
def start(demo_bundle: Path) -> Start:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_without_a_word(start: Start, number: int) -> None:
    with start() as process:
        assert process.send("GET", "/healthz")[0] == 200
        assert process.end(number) == (0, "")


def test_sigterm_finishes_the_answer_begun(start: Start, demo_model: MedVLM) -> None:
    """A long one: tokens drawn from all alike, of a question that has no options."""
    question = "What is it?"
    seeds = {seed: Decoding(2000, Sampling(1000.0, seed=seed)) for seed in range(40)}
    texts = ((seed, demo_model.ask(None, question, decoding)) for seed, decoding in seeds.items())
    seed, expected = next((seed, answer) for seed, answer in texts if answer.new_tokens > 700)
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "temperature": 1000,
            "seed": seed,
            "max_tokens": 2000,
        }
    ).encode()
    with start() as process:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        lines = [response.readline() for _ in range(6)]
        process.popen.send_signal(signal.SIGTERM)
        lines += response.readlines()
        assert process.popen.wait(30) == 0
        connection.close()
    assert lines[-2] == b"data: [DONE]\n"
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert events[-1]["medvlm"]["finish_reason"] == expected.finish_reason
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    text = "".join(delta.get("content", "") + delta.get("reasoning_content", "") for delta in deltas)
    assert text.replace(" ", "") in expected.text.replace(" ", "").replace("<think>", "").replace("</think>", "")
    assert len(text) > 0.9 * len(expected.text.strip())


def resident_mb(process: Process) -> float:
    text = process.send("GET", "/metrics")[1].decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1]) / 1e6


def test_under_load_every_answer_is_that_of_its_own_image(start: Start, asked: list[Any], demo_model: MedVLM) -> None:
    """8 clients, 200 requests, cancelled and broken off in between."""
    expected = [demo_model.ask(one.png, one.question) for one in asked]
    counts = dict.fromkeys(("whole", "streamed", "cancelled", "vanished", "form"), 0)

    def send(process: Process, client: int, path: str, body: bytes, kind: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
        connection.request("POST", path, body, {"Content-Type": kind})
        return connection

    def ask(process: Process, client: int, way: str, chance: random.Random) -> None:
        one, answer = asked[client], expected[client]
        stream = way in ("streamed", "cancelled")
        body, path, kind = json.dumps({"messages": one.messages, "stream": stream}).encode(), "/v1/chat/completions", ""
        if way == "form":
            fields: dict[str, Any] = {"image": ("x", one.png), "question": one.question}
            (body, kind), path = urllib3.encode_multipart_formdata(fields), "/ask"
        with contextlib.closing(send(process, client, path, body, kind or "application/json")) as connection:
            if way == "vanished":
                time.sleep(chance.random() * 0.1)
                return
            response = connection.getresponse()
            assert response.status == 200
            if way == "cancelled":
                for _ in range(chance.randrange(1, 30)):
                    response.readline()
                return
            content = response.read()
        if way == "form":
            assert json.loads(content)["text"] == answer.text
        elif way == "whole":
            assert json.loads(content)["choices"][0]["message"]["reasoning_content"] == answer.reasoning
        else:
            events = [json.loads(line[6:]) for line in content.splitlines() if line.startswith(b"data: {")]
            deltas = [choice["delta"] for event in events for choice in event["choices"]]
            assert "".join(delta.get("reasoning_content", "") for delta in deltas) == answer.reasoning
            assert events[-1]["medvlm"]["choice"] == answer.choice

    def run(process: Process, client: int, requests: int) -> None:
        chance = random.Random(client)  # noqa: S311 - nothing is secret about it
        for _ in range(requests):
            way = chance.choice(list(counts))
            ask(process, client, way, chance)
            counts[way] += 1

    with start("--max-queue", "40") as process, concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda client: run(process, client, 5), range(8)))
        before = resident_mb(process)
        list(pool.map(lambda client: run(process, client, 20), range(8)))
        assert sum(counts.values()) == 200
        assert min(counts.values()) > 10
        assert resident_mb(process) < before + 25
        text = process.send("GET", "/metrics")[1].decode()
        assert re.search(r"^medvlm_queue_length 0\.0$", text, re.MULTILINE)
        assert re.search(r'^medvlm_requests_total\{path="/ask",status="200"\} \d', text, re.MULTILINE)
        assert not re.search(r'status="5', text)
        assert process.end() == (0, "")


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
    assert "TLS" in err
    assert len(err.splitlines()) == 1
    assert answers[0][0] == 200, "asked with the token"


def test_nothing_is_written_and_no_word_of_a_question_is_said(
    start: Start, asked: list[Any], large_png: bytes, tmp_path: Path
) -> None:
    log, temporary = tmp_path / "log", tmp_path / "temporary"
    temporary.mkdir()
    before = traced("openat,open,creat,mkdir,mkdirat,rename,renameat,unlink,unlinkat,memfd_create", log)
    question = f"What is this {MARK}?"
    with start(before=before, environment={"TMPDIR": str(temporary)}) as process:
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


def test_the_audit_log_has_a_line_for_each_answer_and_no_word_of_them(
    start: Start, asked: list[Any], tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    with start("--audit", str(log)) as process:
        answers = [process.chat(asked[0].messages), process.chat([{"role": "user", "content": MARK}], max_tokens=2)]
        answers.append(process.chat(asked[0].messages, stop="slice", user=MARK))
        assert process.end() == (0, "")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["outcome"] for entry in entries] == ["answer", "length", "stop"]
    assert [entry["choice"] for entry in entries] == [answer["medvlm"]["choice"] for answer in answers]
    assert MARK not in log.read_text()
    assert CliRunner().invoke(main, ["audit", "verify", str(log)]).exit_code == 0


def test_it_speaks_tls(start: Start, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(words, check=True, capture_output=True)
    with start("--tls-cert", str(cert), "--tls-key", str(key)) as process:
        assert process.said.startswith("Serving at https://")
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("localhost", process.port, context=context, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/healthz", headers={"Origin": f"https://localhost:{process.port}"})
            assert connection.getresponse().status == 200
        assert process.end() == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "example.org"], "no address"),
        (["--token", "short"], "at least 16"),
        (["--token", "with a blank in it"], "no blanks"),
        (["--tls-cert", "x"], "both"),
        (["--tls-cert", "x", "--tls-key", "y"], "certificate"),
        (["--host", "203.0.113.1"], "cannot listen"),
    ],
)
def test_options_that_will_not_do_are_refused_in_one_line(demo_bundle: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["serve", str(demo_bundle), *words])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_a_port_that_is_taken_is_said(demo_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(main, ["serve", str(demo_bundle), "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "give --port another" in result.stderr


def test_without_the_extra_one_line_says_what_to_install(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else find(name, *more)
    )
    result = CliRunner().invoke(main, ["serve", str(demo_bundle)])
    assert (result.exit_code, result.stderr) == (2, "Error: serving needs uvicorn; pip install 'medvlm[serve]'\n")


def test_the_command_line_imports_no_server() -> None:
    program = (
        "import sys, medvlm.runtime.cli; print([n for n in ('starlette', 'uvicorn', 'asyncio') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.strip() == "[]"
