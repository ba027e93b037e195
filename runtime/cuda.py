"""One GPU through CUDA's own runtime library, which comes with onnxruntime-gpu's wheels.

onnxruntime has Python functions for values on a GPU, but none that says how much memory is free, copies a part of a
value, or takes memory outside an arena that doubles. cudart has, in a few functions that have not changed in years.
Its pointers are the same memory to onnxruntime, which uses the same (primary) context.
"""

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from .errors import MedVLMError

PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install 'medvlm[gpu]'"

# cudaError_t: not enough memory, a driver older than the library, and no GPU.
_NO_MEMORY, _OLD_DRIVER, _NO_DEVICE = 2, 35, 100
# cudaDeviceProp has about a kilobyte.
_PROPERTIES_BYTES = 1 << 14
# cudaMemcpyKind: from where to where is told by the addresses.
_BY_ADDRESS = 4


class UnusableError(MedVLMError):
    """There is no GPU to compute on; the message says why, and what to do."""


class CudaDevice:
    """GPU 0 as an `Accelerator`."""

    name = "cuda"
    provider = PROVIDER

    def __init__(self, library: Any) -> None:
        """library: cudart, loaded by ctypes. Raises `UnusableError` where it finds no GPU."""
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        status = library.cudaGetDeviceCount(ctypes.byref(count))
        if status == _OLD_DRIVER:
            raise UnusableError("the NVIDIA driver is absent, or older than CUDA's libraries; install a newer one")
        if status == _NO_DEVICE or (status == 0 and count.value == 0):
            raise UnusableError("the driver finds no NVIDIA GPU")
        self._check(status)

    def options(self, *, stepwise: bool, limit: int | None) -> Mapping[str, str]:
        """As `Accelerator.options`."""
        options = {
            "device_id": "0",
            # Else the arena takes twice what is asked for, and twice that again.
            "arena_extend_strategy": "kSameAsRequested",
            # Until onnxruntime 1.27 the norms add up squares in half floats, which overflow, unless told not to.
            "enable_skip_layer_norm_strict_mode": "1",
            "enable_cuda_graph": "1" if stepwise else "0",
        }
        return options if limit is None else {**options, "gpu_mem_limit": str(limit)}

    def versions(self) -> Mapping[str, str]:
        """As `Accelerator.versions`."""
        # The properties' structure grows with every version; the name has always been its beginning.
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._check(self._library.cudaGetDeviceProperties(properties, 0))
        found = {"gpu": properties.value.decode(errors="replace")}
        for name, ask in (("cuda driver", "cudaDriverGetVersion"), ("cuda runtime", "cudaRuntimeGetVersion")):
            number = ctypes.c_int()
            self._check(getattr(self._library, ask)(ctypes.byref(number)))
            found[name] = f"{number.value // 1000}.{number.value % 1000 // 10}"
        return found

    def memory(self) -> tuple[int, int]:
        """As `Accelerator.memory`."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return free.value, total.value

    def allocate(self, nbytes: int) -> int | None:
        """As `Accelerator.allocate`."""
        address = ctypes.c_void_p()
        status = self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(nbytes))
        if status == _NO_MEMORY:
            # The error stays, for whoever asks next, until it is taken.
            self._library.cudaGetLastError()
            return None
        self._check(status)
        return address.value

    def free(self, address: int) -> None:
        """As `Accelerator.free`."""
        # At the end of the process the driver may be gone already, and the memory with it.
        self._library.cudaFree(ctypes.c_void_p(address))

    def copy(self, to: int, start: int, nbytes: int) -> None:
        """As `Accelerator.copy`."""
        sizes = ctypes.c_void_p(to), ctypes.c_void_p(start), ctypes.c_size_t(nbytes)
        self._wait()
        self._check(self._library.cudaMemcpy(*sizes, _BY_ADDRESS))
        self._wait()

    def copy_rows(self, to: int, to_pitch: int, start: int, start_pitch: int, nbytes: int, rows: int) -> None:
        """As `Accelerator.copy_rows`."""
        target = ctypes.c_void_p(to), ctypes.c_size_t(to_pitch)
        source = ctypes.c_void_p(start), ctypes.c_size_t(start_pitch)
        shape = ctypes.c_size_t(nbytes), ctypes.c_size_t(rows)
        self._wait()
        self._check(self._library.cudaMemcpy2D(*target, *source, *shape, _BY_ADDRESS))
        self._wait()

    def _wait(self) -> None:
        """Let the GPU come to the end of all that it was given.

        Copies run in the default stream, for which onnxruntime's own streams do not wait, nor it for them; and copies
        from pageable memory return before they arrive.
        """
        self._check(self._library.cudaDeviceSynchronize())

    def _check(self, status: int) -> None:
        if status:
            reason = self._library.cudaGetErrorString(status)
            raise MedVLMError(f"CUDA failed: {reason.decode(errors='replace') if reason else status}")


def open_cuda() -> CudaDevice:
    """The GPU, if onnxruntime-gpu, its libraries, a driver and a GPU are there. Raises `UnusableError` if not."""
    fault = package_fault(_installed())
    if fault:
        raise UnusableError(fault)
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        raise UnusableError(f"this onnxruntime computes on CPUs only; pip uninstall onnxruntime, then {INSTALL}")
    # It prints what it cannot find; what is then missing is said below.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    return CudaDevice(_load(onnxruntime.cuda_version))


def package_fault(installed: set[str]) -> str:
    """What is wrong with the packages of onnxruntime that are `installed`, or nothing."""
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        return (
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites the other's files; pip uninstall "
            f"both, then {INSTALL}"
        )
    return ""


def library_names(version: str, platform: str) -> list[str]:
    """The names under which cudart of a CUDA `version` ("12.8") may be loaded, the likeliest first."""
    major = version.partition(".")[0]
    if platform == "win32":
        return [f"cudart64_{major}.dll"]
    return [f"libcudart.so.{major}", "libcudart.so"]


def _installed() -> set[str]:
    found = set()
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            found.add(name)
    return found


def _load(version: str) -> Any:
    for name in library_names(version, sys.platform):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name, winmode=0) if os.name == "nt" else ctypes.CDLL(name)
    raise UnusableError(f"CUDA's libraries (version {version}) are not installed; {INSTALL}")
