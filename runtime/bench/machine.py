"""What this machine can do and what it is doing, measured: the limits that a benchmark's numbers are held against."""

import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import repeat
from pathlib import Path

import numpy as np

from ..session import one_line_failures, open_session
from .gemm_model import INPUT, OUTPUT, gemm_model

# [rows, k] x [k, n]: the widest product of the vision encoder's blocks (fc1), for an image of 504x504.
GEMM_SHAPE = (1296, 1280, 5120)

_BUFFER_BYTES = 1 << 30
# A fair share of what is free, so that measuring pushes nothing out of memory.
_SHARE_OF_FREE = 4
# A thread takes the next piece when it is done with one, so that one that is held up does not hold up the others.
_PIECE_BYTES = 1 << 24
_WARM_UPS = 3

_PROC = Path("/proc")
# Of /proc/stat's first line: user, nice, system, idle, iowait, irq, softirq, steal. What follows is part of user.
_STATES, _IDLE, _IOWAIT = 8, 3, 4


def read_bandwidth(threads: int, *, size: int = _BUFFER_BYTES, repetitions: int = 10) -> list[float]:
    """Bytes per second that `threads` threads together read from memory, one after the other, once per repetition.

    size: bytes of the buffer, which must be far larger than the last cache; less is taken where little is free.
    The reader is the maximum of int32: the fastest of the reductions tried that use no BLAS, and as fast as a loop of
    bare vector loads. Sums of floats reach half of that, and dot products may start the BLAS library's own threads.
    """
    if threads < 1 or repetitions < 1:
        raise ValueError("threads and repetitions must be at least 1")
    buffer = np.empty(max(_affordable(size) // 4, threads), np.int32)
    pieces = np.array_split(buffer, max(threads, buffer.nbytes // _PIECE_BYTES))
    rates = []
    # numpy lets go of the interpreter's lock while it fills and while it reduces.
    with ThreadPoolExecutor(threads) as pool:
        # Pages that never were written to are all the same page of zeros.
        list(pool.map(np.ndarray.fill, pieces, repeat(1)))
        for _ in range(1 + repetitions):
            start = time.perf_counter()
            list(pool.map(np.max, pieces))
            rates.append(buffer.nbytes / (time.perf_counter() - start))
    return rates[1:]


def _affordable(size: int) -> int:
    """`size`, or less where memory is short."""
    free = _kilobytes(_PROC / "meminfo", "MemAvailable")
    return size if free is None else min(size, free // _SHARE_OF_FREE)


def gemm_rate(
    threads: int, *, shape: tuple[int, int, int] = GEMM_SHAPE, repetitions: int = 10, warm_ups: int = _WARM_UPS
) -> list[float]:
    """Operations per second of onnxruntime's float32 product with a constant weight, one for each repetition.

    shape: (m, k, n) of [m, k] x [k, n], which takes 2 * m * k * n operations.
    """
    m, k, n = shape
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((m, k), np.float32), np.empty((m, n), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gemm.onnx"
        path.write_bytes(gemm_model(m, rng.standard_normal((k, n), np.float32)))
        session = open_session(path, threads)
    binding = session.io_binding()
    binding.bind_input(INPUT, "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output(OUTPUT, "cpu", 0, np.float32, y.shape, y.ctypes.data)
    rates = []
    with one_line_failures("a matrix product"):
        for _ in range(warm_ups + repetitions):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            rates.append(2 * m * k * n / (time.perf_counter() - start))
    return rates[warm_ups:]


def current_rss() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say."""
    return _kilobytes(_PROC / "self/status", "VmRSS")


def peak_rss() -> int | None:
    """The most bytes of memory that this process has held, since `reset_peak` where that works; None if unknown."""
    peak = _kilobytes(_PROC / "self/status", "VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource

    # macOS counts bytes, the others kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> bool:
    """Let `peak_rss` start again from what is held now; whether the system permits it."""
    try:
        # proc(5): 5 resets the peak resident set size.
        (_PROC / "self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Busy:
    """Watches, from its making on, what share of the machine's processor time others take."""

    def __init__(self) -> None:
        self._start = _processor_seconds()

    def share(self) -> float | None:
        """Other processes' time and what the hypervisor took, as a share (0..1) of all processors' time.

        None where the system does not say, or where the interval is too short for its clock.
        """
        end = _processor_seconds()
        if self._start is None or end is None or end[0] <= self._start[0]:
            return None
        total, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
        # The system counts in ticks and the process in nanoseconds, so that nothing may come out as less than nothing.
        return min(1.0, max(0.0, (busy - own) / total))


def _processor_seconds() -> tuple[float, float, float] | None:
    """All processors' time since the start, how much of it was not idle, and how much of that this process's."""
    own = time.process_time()
    try:
        ticks = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1 : 1 + _STATES]]
        total = sum(ticks)
        busy = total - ticks[_IDLE] - ticks[_IOWAIT]
    except (OSError, ValueError, IndexError):
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    return total / per_second, busy / per_second, own


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    name = _field(_PROC / "cpuinfo", "model name")
    return name or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions that a measurement depends on, by name."""
    import onnxruntime

    return {
        "medvlm": metadata.version("medvlm"),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _kilobytes(path: Path, name: str) -> int | None:
    """The bytes of a line `name: 123 kB` of a file of /proc; None where there is none."""
    words = (_field(path, name) or "").split()
    return int(words[0]) * 1024 if words else None


def _field(path: Path, name: str) -> str | None:
    """What follows `name:` in a file of /proc; None where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), None
    )
