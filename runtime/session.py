"""onnxruntime sessions, with its telemetry off."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, MedVLMError
from .threads import usable_cores

# onnxruntime reads this at import, and its wheels carry telemetry that is on without it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    import onnxruntime

DEVICES = ("auto", "cpu")

_CPU_INFO = Path("/proc/cpuinfo")

# Errors are raised as well; logged, they would be second lines.
_LOG_FATAL_ONLY = 4


def check_device(device: str) -> None:
    """Raise `InputError` for a device that this version does not run on, or where onnxruntime is not installed."""
    if device not in DEVICES:
        raise InputError(f"device {device!r} is not known; choose one of {', '.join(DEVICES)}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("onnxruntime is not installed; pip install 'medvlm[cpu]', or 'medvlm[gpu]' for an NVIDIA GPU")


def open_session(model: Path | bytes, threads: int | None, *, stepwise: bool = False) -> "onnxruntime.InferenceSession":
    """A CPU session of a graph, a file or serialized; `threads` None takes one for each physical core to be used.

    stepwise: its runs are short and follow each other at once, so that its threads had better wait for the next one
    awake. Those of other sessions sleep after a run, or they would take the cores from the next session for a while.
    Raises `MedVLMError` where onnxruntime cannot load the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads or usable_cores()
    # The graphs are one chain: a second pool would only take threads from the first.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.force_spinning_stop", "0" if stepwise else "1")
    if saturates_bytes(_CPU_INFO):
        # Weights are turned to uint8 at loading: slower, but right.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        source = str(model) if isinstance(model, Path) else model
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = model.name if isinstance(model, Path) else "a graph"
        raise MedVLMError(f"onnxruntime cannot load {name}: {_first_line(error)}") from error


def open_sessions(paths: Sequence[Path], threads: int | None, stepwise: Path) -> "list[onnxruntime.InferenceSession]":
    """A session of each graph, two opened at a time: packing weights takes one core. Raises as `open_session`.

    stepwise: the graph that runs once a token.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda path: open_session(path, threads, stepwise=path == stepwise), paths))


def saturates_bytes(cpu_info: Path) -> bool:
    """Whether products of uint8 and int8 overflow on this CPU: x86 adds them up in 16 bits before VNNI came.

    cpu_info: Linux's /proc/cpuinfo; without such a file the answer is no.
    """
    try:
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not {"avx512_vnni", "avx_vnni"} & set(flags)


@contextlib.contextmanager
def one_line_failures(what: str) -> Iterator[None]:
    """Turn whatever onnxruntime raises at `what` into a `MedVLMError`: it has no common base class."""
    try:
        yield
    except MedVLMError:
        raise
    except Exception as error:
        raise MedVLMError(f"onnxruntime failed at {what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
