"""The OpenAPI description is true: schemathesis writes requests from it and compares the answers with it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from medvlm.runtime import MedVLM

pytest.importorskip("schemathesis", reason="needs schemathesis")
pytest.importorskip("uvicorn", reason="needs the extra serve")

# Not: that whatever the description allows is answered. No pattern tells bytes that are an image from others.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
OPERATIONS = 8


@pytest.fixture(scope="module")
def server(serving: Any, demo_bundle: Path) -> Iterator[Any]:
    """A server whose answers are short: hundreds of questions that mean nothing would else be answered at length."""
    with serving(model=MedVLM.load(demo_bundle, threads=1, max_length=100)) as running:
        yield running


def test_it_is_a_sound_description_with_this_servers_limits(server: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator")
    description = server.send("GET", "/openapi.json").json
    validator.validate(description)
    assert len(description["paths"]) == OPERATIONS
    request = description["components"]["schemas"]["ChatRequest"]["properties"]
    assert request["model"]["const"] == server.service.model
    assert request["n"]["maximum"] == server.service.settings.limits.answers
    assert "{" not in request["messages"]["description"]


@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
def test_requests_written_from_it_are_answered_as_it_says(server: Any, phase: str, tmp_path: Path) -> None:
    """No 500, no status, type or form that it does not name, and what it forbids is refused."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--phases", phase]
    command += ["--checks", ",".join(CHECKS), "--max-examples", "10", "--generation-deterministic", "--no-color"]
    result = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert result.returncode == 0, result.stdout
    assert f"Tested: {OPERATIONS}" in result.stdout
    assert server.send("GET", "/healthz").status == 200
