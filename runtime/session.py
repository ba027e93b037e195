"""onnxruntime sessions, with its telemetry off."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, MedVLMError

# onnxruntime reads this at import, and its wheels carry telemetry that is on without it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    import onnxruntime

DEVICES = ("auto", "cpu")

# Errors are raised as well; logged, they would be second lines.
_LOG_FATAL_ONLY = 4


def check_device(device: str) -> None:
    """Raise `InputError` for a device that this version does not run on, or where onnxruntime is not installed."""
    if device not in DEVICES:
        raise InputError(f"device {device!r} is not known; choose one of {', '.join(DEVICES)}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("onnxruntime is not installed; pip install 'medvlm[cpu]', or 'medvlm[gpu]' for an NVIDIA GPU")


def open_session(path: Path, threads: int | None) -> "onnxruntime.InferenceSession":
    """A CPU session of the graph in `path`; `threads` None takes one for each physical core.

    Raises `MedVLMError` where onnxruntime cannot load the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads or 0
    # The graphs are one chain: a second pool would only take threads from the first.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MedVLMError(f"onnxruntime cannot load {path.name}: {_first_line(error)}") from error


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
