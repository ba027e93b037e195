"""Nothing leaves the machine and nothing is left on it: what a whole `medvlm ask` does, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

QUESTION = "Which is it?\nA) MRI\nB) CT"


@pytest.fixture
def words(tiny_bundle: Path, image_path: Path) -> list[str]:
    """`ask` and all that follows it on the command line."""
    return ["ask", str(tiny_bundle), str(image_path), "-q", QUESTION, "--max-new-tokens", "9", "--json"]


@pytest.fixture
def command(words: list[str]) -> list[str]:
    """The installed console script, asked a question."""
    script = Path(sys.executable).with_name("medvlm")
    if not script.exists():
        pytest.skip("needs the installed medvlm command, which is not beside this Python")
    return [str(script), *words]


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )


def answered(result: subprocess.CompletedProcess[str]) -> bool:
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout.splitlines()[0])["new_tokens"] == 9


def without_network() -> list[str]:
    """The words before a command that runs it where there is no network interface, not even a loopback that is up."""
    for option in ("-n", "-rn"):
        if shutil.which("unshare") and run(["unshare", option, "true"]).returncode == 0:
            return ["unshare", option]
    pytest.skip("needs unshare, and the right to make a network namespace")


def test_ask_answers_without_any_network_interface(command: list[str]) -> None:
    isolated = without_network()
    probe = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    assert "unreachable" in run([*isolated, sys.executable, "-c", probe]).stderr
    assert answered(run([*isolated, *command]))


GUARD = """
import json, socket, sys
attempts = []

def watch(event, arguments):
    local = event == "socket.__new__" and arguments[1] == getattr(socket, "AF_UNIX", None)
    if event.startswith("socket.") and not local:
        attempts.append(event)
        raise OSError(f"{event} is not allowed")

def refuse(name):
    def attempt(*arguments, **options):
        attempts.append(name)
        raise OSError(f"{name} is not allowed")
    return attempt

sys.addaudithook(watch)
for name in ("create_connection", "getaddrinfo", "gethostbyname", "create_server", "socketpair"):
    setattr(socket, name, refuse(name))
"""
AND_ASK = """
from medvlm.runtime.cli import main
main(standalone_mode=False)
print(json.dumps(attempts))
"""
AND_CONNECT = """
for attempt in (
    lambda: socket.socket(),
    lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    lambda: socket.create_connection(("localhost", 80)),
    lambda: socket.getaddrinfo("localhost", 80),
):
    try:
        attempt()
    except OSError:
        pass
print(json.dumps(attempts))
"""


def test_python_opens_no_socket(words: list[str]) -> None:
    result = run([sys.executable, "-c", GUARD + AND_ASK, *words])
    assert answered(result)
    assert json.loads(result.stdout.splitlines()[1]) == []


def test_guard_of_sockets_sees_every_attempt() -> None:
    """Or the test before it would prove nothing."""
    result = run([sys.executable, "-c", GUARD + AND_CONNECT])
    assert json.loads(result.stdout) == ["socket.__new__", "socket.__new__", "create_connection", "getaddrinfo"]


def trace(calls: str, command: Sequence[str], log: Path) -> list[str]:
    """The system calls of a command and of all its threads."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    if run(["strace", "-o", str(log), "true"]).returncode:
        pytest.skip("needs the right to trace a process")
    result = run(["strace", "-f", "-o", str(log), "-e", f"trace={calls}", *command])
    assert result.returncode == 0
    return log.read_text(encoding="utf-8").splitlines()


def test_no_thread_connects_or_sends_anything(command: list[str], tmp_path: Path) -> None:
    """Not onnxruntime's own either, which Python's guard does not see."""
    lines = trace("socket,connect,sendto,sendmsg,sendmmsg,bind", command, tmp_path / "log")
    assert [line for line in lines if "AF_INET" in line or "AF_PACKET" in line] == []


def test_trace_of_system_calls_sees_an_attempt(tmp_path: Path) -> None:
    probe = [sys.executable, "-c", "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"]
    lines = trace("socket,connect", probe, tmp_path / "log")
    assert any("connect(" in line and "AF_INET" in line for line in lines)


def test_no_file_is_opened_for_writing(command: list[str], tmp_path: Path) -> None:
    lines = trace("openat,open,creat,mkdir,mkdirat,rename,renameat,unlink,unlinkat", command, tmp_path / "log")
    assert any("manifest.json" in line for line in lines)
    changing = ("O_WRONLY", "O_RDWR", "O_CREAT", "creat(", "mkdir", "rename", "unlink")
    written = [line for line in lines if any(call in line for call in changing) and "ENOENT" not in line]
    # Python itself may store the modules that it compiled.
    assert [line for line in written if "/dev/" not in line and "__pycache__" not in line] == []


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_ask_leaves_nothing_behind(command: list[str], tmp_path: Path, tiny_bundle: Path, image_path: Path) -> None:
    places = [tmp_path / name for name in ("home", "work", "temporary")]
    for place in places:
        place.mkdir()
    home, work, temporary = map(str, places)
    before = snapshot(tiny_bundle), snapshot(image_path.parent)
    environment = {"HOME": home, "TMPDIR": temporary, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home}
    assert answered(run(command, environment, Path(work)))
    assert [list(place.iterdir()) for place in places] == [[], [], []]
    assert (snapshot(tiny_bundle), snapshot(image_path.parent)) == before


FOREIGN = ("torch", "transformers", "onnx", "jinja2", "medvlm.export", "medvlm.quant", "medvlm.demo")
WATCH_IMPORTS = """
import json, os, sys

class Watch:
    seen = []

    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            self.seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
"""
REPORT = """
after = os.environ["ORT_DISABLE_TELEMETRY"]
print(json.dumps({"telemetry": Watch.seen, "modules": sorted(sys.modules), "after": after}))
"""
ASK_IN_PYTHON = """
import medvlm.runtime
from medvlm.runtime import MedVLM
from medvlm.runtime.decoding import Decoding
answer = MedVLM.load(sys.argv[2]).ask(sys.argv[3], sys.argv[5], Decoding(max_new_tokens=9))
print(json.dumps({"new_tokens": answer.new_tokens}))
"""
ASK_IN_THE_SHELL = """
from medvlm.runtime.cli import main
main(standalone_mode=False)
"""


@pytest.mark.parametrize("asking", [ASK_IN_PYTHON, ASK_IN_THE_SHELL], ids=["library", "command"])
def test_runtime_imports_neither_torch_nor_the_exporter(words: list[str], asking: str) -> None:
    result = run([sys.executable, "-c", WATCH_IMPORTS + asking + REPORT, *words])
    assert answered(result)
    modules = json.loads(result.stdout.splitlines()[1])["modules"]
    assert "onnxruntime" in modules
    assert "medvlm.runtime.model" in modules
    assert [name for name in modules if name in FOREIGN or name.startswith(tuple(f"{name}." for name in FOREIGN))] == []


def test_import_of_the_runtime_imports_no_onnxruntime_yet() -> None:
    """It takes a while, and whoever only reads an answer needs none."""
    report = json.loads(run([sys.executable, "-c", WATCH_IMPORTS + "import medvlm.runtime\n" + REPORT]).stdout)
    assert report["telemetry"] == []


@pytest.mark.parametrize("asking", [ASK_IN_PYTHON, ASK_IN_THE_SHELL], ids=["library", "command"])
@pytest.mark.parametrize("was_set", [None, "0", ""])
def test_telemetry_is_off_before_onnxruntime_is_imported(words: list[str], asking: str, was_set: str | None) -> None:
    environment = {} if was_set is None else {"ORT_DISABLE_TELEMETRY": was_set}
    result = run([sys.executable, "-c", WATCH_IMPORTS + asking + REPORT, *words], environment)
    assert answered(result)
    report = json.loads(result.stdout.splitlines()[1])
    assert set(report["telemetry"]) == {"1"}
    assert report["after"] == "1"
