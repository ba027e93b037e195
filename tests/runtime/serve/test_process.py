"""`medvlm serve` as a process: its signals, its silence, its memory, and what it says of wrong options."""

import contextlib
import http.client
import importlib.util
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from medvlm.runtime import MedVLM
from medvlm.runtime.cli import main
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.sampling import Sampling

pytest.importorskip("uvicorn", reason="needs the extra serve")

MARK = "xylophone"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_without_a_word(start: Any, number: int) -> None:
    with start() as process:
        assert process.send("GET", "/healthz")[0] == 200
        assert process.end(number) == (0, "")


def test_sigterm_finishes_the_answer_begun(start: Any, demo_model: MedVLM) -> None:
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


def test_the_audit_log_has_a_line_for_each_answer_and_no_word_of_them(
    start: Any, asked: list[Any], tmp_path: Path
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


def test_it_speaks_tls(start: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
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
        (["--max-wait", "nan"], "no number of seconds"),
        (["--max-wait", "inf"], "no number of seconds"),
        *((["--allow-host", name], "no name of a host") for name in ("ws1:8765", "http://ws1", "*", "", "a b", "ws1/")),
    ],
)
def test_options_that_will_not_do_are_refused_in_one_line(demo_bundle: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["serve", str(demo_bundle), *words])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("WS1.Ward.example", "ws1.ward.example"),
        ("10.0.0.7", "10.0.0.7"),
        ("fd00::7", "[fd00::7]"),
        ("[FD00:0::7]", "[fd00::7]"),
        ("röntgen.example", "xn--rntgen-wxa.example"),
    ],
)
def test_allowed_names_are_as_browsers_write_them(name: str, header: str) -> None:
    from medvlm.runtime.serve.settings import allowed_name

    assert allowed_name(name) == header


def test_no_warning_of_a_library_is_shown_whatever_filters_its_threads_set() -> None:
    program = (
        "import logging, warnings; from medvlm.runtime.serve import cli; cli._silence()\n"
        "with warnings.catch_warnings():\n    warnings.simplefilter('always'); warnings.warn('DOE^JOHN')\n"
        "warnings.simplefilter('always'); warnings.warn('DOE^JOHN'); logging.getLogger('x').error('DOE^JOHN')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert (result.stdout, result.stderr) == ("", "")


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
