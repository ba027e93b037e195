"""onnxruntime sessions, with its telemetry off."""

import contextlib
import importlib.util
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .accelerator import Accelerator, out_of_memory
from .errors import InputError, Interrupted, MedVLMError, first_line
from .threads import usable_cores

# onnxruntime reads this at import, and its wheels carry telemetry that is on without it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    import onnxruntime

DEVICES = ("auto", "cpu", "cuda")

_CPU_INFO = Path("/proc/cpuinfo")

# Errors are raised as well; logged, they would be second lines.
_LOG_FATAL_ONLY = 4

# What it says of a run that `RunOptions.terminate` ended.
_TERMINATED = "terminate flag being set to true"

# How onnxruntime's arena, CUDA and cuBLAS say that a GPU's memory is full; the first says how much was asked for.
_NO_MEMORY = re.compile(
    r"Failed to allocate memory for requested buffer of size (\d+)|Available memory of (?:\d+) is smaller than "
    r"requested bytes of (\d+)|out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)


def check_device(device: str) -> None:
    """Raise `InputError` for a device that is not known, or where no onnxruntime is installed."""
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

    options = _session_options(threads)
    options.add_session_config_entry("session.force_spinning_stop", "0" if stepwise else "1")
    if saturates_bytes(_CPU_INFO):
        # Weights are turned to uint8 at loading: slower, but right.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        source = str(model) if isinstance(model, Path) else model
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = model.name if isinstance(model, Path) else "a graph"
        raise MedVLMError(f"onnxruntime cannot load {name}: {first_line(error)}") from error


def open_on(
    gpu: Accelerator, model: Path, threads: int | None, limit: int | None, *, stepwise: bool = False
) -> "onnxruntime.InferenceSession":
    """A session of a graph on a GPU, all of it: none of its nodes may go to the CPU.

    limit: bytes that its arena may take. stepwise: as for `open_session`. Raises `MedVLMError`.
    """
    import onnxruntime

    # What it logs beside its errors is nothing that these do not say.
    onnxruntime.set_default_logger_severity(_LOG_FATAL_ONLY)
    options = _session_options(threads)
    if gpu.provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    wanted = [(gpu.provider, dict(gpu.options(stepwise=stepwise, limit=limit)))]
    try:
        # Where a provider cannot be had, onnxruntime says so and takes the CPU's.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = onnxruntime.InferenceSession(str(model), options, providers=wanted)
    except Exception as error:
        raise memory_error(error, model.name, gpu) or _load_error(error, model, gpu) from error
    if session.get_providers()[0] != gpu.provider:
        raise MedVLMError(_not_there(model, gpu))
    session.disable_fallback()
    return session


def _load_error(error: Exception, model: Path, gpu: Accelerator) -> MedVLMError:
    if "fallback to CPU EP has been explicitly disabled" in str(error):
        return MedVLMError(_not_there(model, gpu))
    return MedVLMError(f"onnxruntime cannot load {model.name} on the GPU: {first_line(error)}")


def _not_there(model: Path, gpu: Accelerator) -> str:
    return (
        f"onnxruntime cannot compute {model.name} by its {gpu.provider}: libraries of CUDA or cuDNN are missing, or do "
        "not fit the driver; pip install -U 'medvlm[gpu]', or give --device cpu"
    )


def memory_error(error: Exception, what: str, gpu: Accelerator | None) -> MedVLMError | None:
    """The error to raise where `error` says that the GPU's memory is full; None where it says something else."""
    found = _NO_MEMORY.search(str(error)) if gpu else None
    if gpu is None or found is None:
        return None
    size = found[1] or found[2]
    return out_of_memory(gpu, what, int(size) if size else None)


def _session_options(threads: int | None) -> "onnxruntime.SessionOptions":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads or usable_cores()
    # The graphs are one chain: a second pool would only take threads from the first.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return options


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
def one_line_failures(what: str, gpu: Accelerator | None = None) -> Iterator[None]:
    """Turn whatever onnxruntime raises at `what` into a `MedVLMError`: it has no common base class.

    gpu: where it computes, if that is one: what it has no memory for is then said in numbers.
    """
    try:
        yield
    except MedVLMError:
        raise
    except Exception as error:
        if _TERMINATED in str(error):
            raise Interrupted(f"{what} was interrupted") from error
        raise memory_error(error, what, gpu) or MedVLMError(
            f"onnxruntime failed at {what}: {first_line(error)}"
        ) from error
