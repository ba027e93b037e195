"""Many clients at once, some of whom go away: nothing is mixed up, and memory stays flat."""

import concurrent.futures
import contextlib
import http.client
import json
import random
import re
import time
from typing import Any

import pytest
import urllib3
from medvlm.runtime import MedVLM

pytest.importorskip("uvicorn", reason="needs the extra serve")


def resident_mb(process: Any) -> float:
    text = process.send("GET", "/metrics")[1].decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1]) / 1e6


def test_under_load_every_answer_is_that_of_its_own_image(start: Any, asked: list[Any], demo_model: MedVLM) -> None:
    """8 clients, 200 requests, cancelled and broken off in between."""
    expected = [demo_model.ask(one.png, one.question) for one in asked]
    counts = dict.fromkeys(("whole", "streamed", "cancelled", "vanished", "form"), 0)

    def send(process: Any, client: int, path: str, body: bytes, kind: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
        connection.request("POST", path, body, {"Content-Type": kind})
        return connection

    def ask(process: Any, client: int, way: str, chance: random.Random) -> None:
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

    def run(process: Any, client: int, requests: int) -> None:
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
