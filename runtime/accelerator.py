"""A GPU as the runtime needs it: memory with addresses, and the execution provider that computes there."""

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import MedVLMError

if TYPE_CHECKING:
    from onnxruntime import IOBinding


class Accelerator(Protocol):
    """What `medvlm.runtime.cuda` gives for CUDA, and a test may give for something else."""

    @property
    def name(self) -> str:
        """What IOBinding calls its memory: "cuda"."""
        ...

    @property
    def provider(self) -> str:
        """The execution provider's name."""
        ...

    def options(self, *, stepwise: bool, limit: int | None) -> Mapping[str, str]:
        """The provider's options for a session, whose arena may grow to `limit` bytes.

        stepwise: its graph runs once a token, so that its launches are to be captured and replayed.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """What a measurement depends on: the GPU's name, the driver, the libraries."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes that there are."""
        ...

    def allocate(self, nbytes: int) -> int | None:
        """The address of new memory; None where there is not so much."""
        ...

    def free(self, address: int) -> None:
        """Give memory back."""
        ...

    def copy(self, to: int, start: int, nbytes: int) -> None:
        """Copy between addresses, of the host's memory or of this; it is done when this returns."""
        ...

    def copy_rows(self, to: int, to_pitch: int, start: int, start_pitch: int, nbytes: int, rows: int) -> None:
        """As `copy`, for the beginnings of rows that lie so many bytes apart."""
        ...


class DeviceArray:
    """Memory of an accelerator, of a shape and a type; given back with the object."""

    def __init__(self, device: Accelerator, shape: Sequence[int], dtype: DTypeLike, what: str) -> None:
        """Raises `MedVLMError` where there is no memory for `what`."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._device = device
        address = device.allocate(max(1, self.nbytes))
        if address is None:
            raise out_of_memory(device, what, self.nbytes)
        self.address = address
        weakref.finalize(self, device.free, address)

    def write(self, values: NDArray[Any], start: int = 0) -> None:
        """Copy values of its type from the host, behind `start` elements."""
        values = np.ascontiguousarray(values, self.dtype)
        end = start * self.dtype.itemsize + values.nbytes
        if not 0 <= start <= end <= self.nbytes:
            raise ValueError(f"{values.size} elements behind {start} do not fit in {self.shape}")
        self._device.copy(self.address + start * self.dtype.itemsize, values.ctypes.data, values.nbytes)

    def read(self) -> NDArray[Any]:
        """A copy on the host."""
        values = np.empty(self.shape, self.dtype)
        self._device.copy(values.ctypes.data, self.address, self.nbytes)
        return values

    def bind_input(self, binding: "IOBinding", name: str, shape: Sequence[int] | None = None) -> None:
        """Bind its beginning, of another shape than its own where one is given."""
        shape = self.shape if shape is None else shape
        binding.bind_input(name, self._device.name, 0, self.dtype.type, shape, self.address)


def out_of_memory(device: Accelerator, what: str, nbytes: int | None) -> MedVLMError:
    """The error for what does not fit: what was needed, as far as it is known, and what was free."""
    free, total = device.memory()
    needed = "" if nbytes is None else f": {nbytes / 1e6:.0f} MB more are needed"
    return MedVLMError(
        f"the GPU has no memory for {what}{needed}, and {free / 1e6:.0f} of {total / 1e6:.0f} MB are free; lower "
        "--max-pixels or --max-length"
    )
