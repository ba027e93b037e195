"""Read safetensors files: one file, or shards with an index. One tensor is in memory at a time.

The format (8 bytes of header length, a JSON header, the data) is read directly, because the errors must say which
tensor of which shard is wrong before any work is done, and because bf16 has no numpy type.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import CheckpointError
from .config import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# bf16 is the upper half of a float32.
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` at `offset` of `file`, of dtype F32, F16 or BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self) -> NDArray[np.float32]:
        """The tensor as float32, in its shape. bf16 and fp16 values are kept exactly."""
        try:
            stored = np.fromfile(self.file, _DTYPES[self.dtype], math.prod(self.shape), offset=self.offset)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.file}: {error.strerror or error}") from None
        if stored.size != math.prod(self.shape):
            raise CheckpointError(f"{self.file} became shorter while it was read; download the checkpoint again")
        if self.dtype == "BF16":
            widened = stored.astype(np.uint32)
            widened <<= 16
            return widened.view(np.float32).reshape(self.shape)
        return stored.astype(np.float32, copy=False).reshape(self.shape)


def find_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint by name. Raises `CheckpointError` for a missing, truncated or foreign file.

    Where there is both one file and an index, the one file is read, as transformers does.
    """
    if (directory / SINGLE).is_file():
        return _read_header(directory / SINGLE)
    if (directory / INDEX).is_file():
        return _read_index(directory)
    if any(directory.glob("*.bin")):
        raise CheckpointError(f"{directory} has only .bin weights; convert them to safetensors first (transformers)")
    raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}; download the checkpoint again")


def _read_index(directory: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{directory / INDEX} has no weight_map; download the checkpoint again")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard in (".", ".."):
            raise CheckpointError(f"{directory / INDEX} names {shard!r}, a file outside the directory")
        path = directory / shard
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; download the checkpoint again")
        header = _read_header(path)
        tensors |= {name: info for name, info in header.items() if weight_map.get(name) == shard}
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise CheckpointError(f"{directory / weight_map[absent[0]]} lacks {absent[0]}; download the checkpoint again")
    return tensors


def _read_header(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= min(size - 8, _MAX_HEADER):
                raise _truncated(path, f"it has {size} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not a safetensors file; download it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file; download it again")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _tensor_info(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _check_layout(path: Path, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """The format wants tensors to follow each other without overlaps and gaps, to the end of the file."""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != start:
            raise CheckpointError(f"{path}: {name} overlaps another tensor or leaves a gap; download it again")
        start += info.nbytes
    if start != size:
        raise CheckpointError(f"{path} has {size - start} bytes after its last tensor; download it again")


def _tensor_info(path: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (KeyError, TypeError, ValueError):
        sound, dtype, shape, begin, end = False, "", (), 0, 0
    if not sound:
        raise CheckpointError(f"{path}: the entry of {name} is malformed; download it again")
    if data_start + end > size:
        raise _truncated(path, f"{name} ends at byte {data_start + end} and the file has {size}")
    if dtype in _DTYPES and math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
        raise CheckpointError(f"{path}: {name} and its shape {list(shape)} differ in size; download it again")
    return TensorInfo(path, dtype, shape, data_start + begin, end - begin)


def _truncated(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated ({detail}); download it again")


def check_tensors(tensors: dict[str, TensorInfo], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` for the first tensor that is missing, of another shape, or of a dtype not read here."""
    for name, shape in expected.items():
        info = tensors.get(name)
        if info is None:
            raise CheckpointError(f"the checkpoint lacks the tensor {name} {list(shape)}; download it again")
        if info.shape != shape:
            raise CheckpointError(f"{name} has the shape {list(info.shape)} and config.json wants {list(shape)}")
        if info.dtype not in _DTYPES:
            raise CheckpointError(
                f"{name} is stored as {info.dtype}; {', '.join(_DTYPES)} are read: give the unquantized checkpoint"
            )
