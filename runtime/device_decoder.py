"""The language decoder on a GPU: as `Decoder`, with everything but the chosen tokens left where it is computed.

What goes over the bus for a token: one row of the embedding table and a length to the GPU, in one copy, and the
likeliest token and its logit back, in another. `total_sequence_length` alone is read on the CPU, by
GroupQueryAttention, which chooses its kernels by it. A step gives it the cache's length, whatever is filled: the
kernels take the true length from `seqlens_k`, and the captured launches hold for every step.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator, DeviceArray
from .decoder import Decoder, DecoderSessions
from .embeddings import EmbeddingTable
from .logits import DeviceLogits
from .manifest import TextDims

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding

# Tokens of a prompt that go through at once: attention keeps no scores, so that more of them fit than on a CPU.
PREFILL_CHUNK = 2048
# A larger cache has another address, and a step must be captured anew: so it grows in large steps.
_SLOTS_AT_ONCE = 1024
# Addresses in one buffer start where kernels that read sixteen bytes at once like it.
_ALIGNMENT = 256
_CACHE = "KV cache"

# onnxruntime keeps a captured graph by its number, and replays it whatever is bound: no two may be the same.
_graph_numbers = itertools.count(1)


class DeviceDecoder:
    """Owns the KV cache, the rotary tables and the bindings of one sequence on a GPU; see `Decoder`."""

    def __init__(
        self, session: "InferenceSession", embeddings: EmbeddingTable, dims: TextDims, device: Accelerator
    ) -> None:
        self._session, self._embeddings, self._dims, self._device = session, embeddings, dims, device
        self.length = self.capacity = 0
        self.graph_s = 0.0
        self._total = np.zeros((), np.int32)
        self._row_bytes = -(-dims.hidden_size * 2 // _ALIGNMENT) * _ALIGNMENT
        # One token's embedding, and behind it the tokens in the cache less one.
        self._fed = np.zeros(self._row_bytes + 4, np.uint8)
        self._inputs = DeviceArray(device, self._fed.shape, np.uint8, "a token")
        # The likeliest token, and behind it its logit.
        self._outputs = DeviceArray(device, (12,), np.uint8, "a token")
        self._logits = DeviceArray(device, (1, 1, dims.vocab_size), np.float32, "logits")
        self._first_row = DeviceArray(device, (1,), np.int64, "a number")
        self._first_row.write(np.zeros(1, np.int64))
        self._allocate(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self._cache.nbytes

    def reserve(self, slots: int) -> None:
        """As `Decoder.reserve`."""
        if slots <= self.capacity:
            return
        cache, cos, sin, capacity = self._cache, self._cos, self._sin, self.capacity
        self._allocate(-(-slots // _SLOTS_AT_ONCE) * _SLOTS_AT_ONCE)
        dims = self._dims
        if self.length:
            slot = dims.head_size * 2
            pitches = self._cache.address, self.capacity * slot, cache.address, capacity * slot
            self._device.copy_rows(*pitches, self.length * slot, dims.layers * 2 * dims.num_kv_heads)
            for new, old in ((self._cos, cos), (self._sin, sin)):
                self._device.copy(new.address, old.address, self.length * slot // 2)

    def pretend(self, length: int) -> None:
        """As `Decoder.pretend`."""
        self.reserve(length)
        self._cache.write(np.full(self._cache.shape, 0.01, np.float16))
        half = self._dims.head_size // 2
        self.write_rotary(0, np.ones((length, half), np.float32), np.zeros((length, half), np.float32))
        self.length = length

    def write_rotary(self, start: int, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None:
        """As `Decoder.write_rotary`."""
        for table, rows in ((self._cos, cos), (self._sin, sin)):
            table.write(rows, start * table.shape[1])

    def prefill(self, embeddings: NDArray[np.float32]) -> DeviceLogits:
        """As `Decoder.prefill`; the logits stay on the GPU until somebody reads them."""
        rows: list[DeviceLogits] = []
        for start in range(0, len(embeddings), PREFILL_CHUNK):
            rows = self._append(embeddings[start : start + PREFILL_CHUNK], last_only=True)
        return rows[0]

    def extend(self, token_ids: Sequence[int]) -> list[DeviceLogits]:
        """As `Decoder.extend`: the logits after each token, good until the next call."""
        if len(token_ids) == 1:
            return self._step(token_ids[0])
        return self._append(self._embeddings.rows(np.asarray(token_ids, np.int64)), last_only=False)

    def rewind(self, tokens: int) -> None:
        """As `Decoder.rewind`."""
        self.length -= tokens

    def _step(self, token_id: int) -> list[DeviceLogits]:
        """Append one token by launches that are captured the first time, and replayed from then on."""
        self._make_room(1)
        half = self._fed[: self._dims.hidden_size * 2].view(np.float16)
        self._embeddings.write([token_id], half[None])
        self._fed[-4:].view(np.int32)[0] = self.length
        self._inputs.write(self._fed)
        self._total[()] = self.capacity
        if self._binding is None:
            self._binding = self._bind_step()
        self._run(self._binding, self._captured, 1)
        said = self._outputs.read()
        return [_row(said[:8], said[8:], lambda: self._logits.read().reshape(-1))]

    def _append(self, embeddings: NDArray[np.float32], *, last_only: bool) -> list[DeviceLogits]:
        """Append tokens [tokens, hidden_size]; the logits after each of them, or after the last."""
        tokens = len(embeddings)
        self._make_room(tokens)
        rows = np.arange(tokens)[-1 if last_only else 0 :]
        fed = self._sent(embeddings[None], np.float16, "embeddings")
        lengths = self._sent(np.array([self.length + tokens - 1]), np.int32, "a number")
        wanted = self._sent(rows, np.int64, "numbers")
        shape = (1, len(rows), self._dims.vocab_size)
        logits = self._logits if last_only else DeviceArray(self._device, shape, np.float32, "logits")
        said = DeviceArray(self._device, (12 * len(rows),), np.uint8, "tokens")
        binding = self._bind(fed.address, tokens, lengths.address, wanted)
        self._bind_outputs(binding, logits.address, said.address, len(rows))
        self._total[()] = self.length + tokens
        self._run(binding, self._uncaptured, tokens)
        bytes_said = said.read()
        ids, largest = bytes_said[: 8 * len(rows)].reshape(-1, 8), bytes_said[8 * len(rows) :].reshape(-1, 4)
        return [_row(ids[i], largest[i], _fetch(logits, i)) for i in range(len(rows))]

    def _make_room(self, tokens: int) -> None:
        if self.length + tokens > self.capacity:
            raise ValueError(f"{self.length + tokens} tokens do not fit in a cache of {self.capacity}")

    def _run(self, binding: "IOBinding", options: Any, tokens: int) -> None:
        started = time.perf_counter()
        self._session.run_with_iobinding(binding, options)
        self.graph_s += time.perf_counter() - started
        self.length += tokens

    def _allocate(self, capacity: int) -> None:
        dims = self._dims
        shape = dims.layers, 2, 1, dims.num_kv_heads, capacity, dims.head_size
        # Everything before anything is replaced: without memory the decoder stays as it is.
        cache = DeviceArray(self._device, shape, np.float16, _CACHE)
        cos, sin = (DeviceArray(self._device, (capacity, dims.head_size // 2), np.float16, _CACHE) for _ in range(2))
        self._cache, self._cos, self._sin, self.capacity = cache, cos, sin, capacity
        self._binding: IOBinding | None = None
        self._captured, self._uncaptured = _run_options(next(_graph_numbers)), _run_options(-1)

    def _sent(self, values: NDArray[Any], dtype: type[np.generic], what: str) -> DeviceArray:
        array = DeviceArray(self._device, values.shape, dtype, what)
        array.write(values)
        return array

    def _bind_step(self) -> "IOBinding":
        """The binding of a step, whose addresses stay."""
        binding = self._bind(self._inputs.address, 1, self._inputs.address + self._row_bytes, self._first_row)
        self._bind_outputs(binding, self._logits.address, self._outputs.address, 1)
        return binding

    def _bind(self, embeddings: int, tokens: int, lengths: int, rows: DeviceArray) -> "IOBinding":
        """A binding of the inputs at these addresses, and of the cache."""
        binding, name, dims = self._session.io_binding(), self._device.name, self._dims
        layer, kind = self._cache.nbytes // dims.layers, self._cache.nbytes // dims.layers // 2
        shape = self._cache.shape[2:]
        for i in range(dims.layers):
            for place, end in enumerate(("key", "value")):
                address = self._cache.address + i * layer + place * kind
                binding.bind_input(f"past_key_values.{i}.{end}", name, 0, np.float16, shape, address)
                binding.bind_output(f"present.{i}.{end}", name, 0, np.float16, shape, address)
        self._cos.bind_input(binding, "cos_cache")
        self._sin.bind_input(binding, "sin_cache")
        binding.bind_input("seqlens_k", name, 0, np.int32, (1,), lengths)
        binding.bind_input("total_sequence_length", "cpu", 0, np.int32, (), self._total.ctypes.data)
        binding.bind_input("inputs_embeds", name, 0, np.float16, (1, tokens, dims.hidden_size), embeddings)
        rows.bind_input(binding, "logit_rows")
        return binding

    def _bind_outputs(self, binding: "IOBinding", logits: int, said: int, rows: int) -> None:
        """Bind the logits, and what is said of `rows` rows: the likeliest tokens, then their logits."""
        name = self._device.name
        binding.bind_output("logits", name, 0, np.float32, (1, rows, self._dims.vocab_size), logits)
        binding.bind_output("likeliest", name, 0, np.int64, (1, rows), said)
        binding.bind_output("largest", name, 0, np.float32, (1, rows), said + 8 * rows)


AnyDecoder = Decoder | DeviceDecoder
"""The decoder of one sequence, wherever it computes."""


def new_sequence(
    sessions: DecoderSessions, embeddings: EmbeddingTable, dims: TextDims, gpu: Accelerator | None
) -> AnyDecoder:
    """The decoder of one sequence, on the GPU if there is one."""
    if gpu is not None:
        return DeviceDecoder(sessions.decode, embeddings, dims, gpu)
    return Decoder(sessions, embeddings, dims)


def _row(
    token_id: NDArray[np.uint8], largest: NDArray[np.uint8], fetch: Callable[[], NDArray[np.float32]]
) -> DeviceLogits:
    return DeviceLogits(int(token_id.view(np.int64)[0]), float(largest.view(np.float32)[0]), fetch)


def _fetch(logits: DeviceArray, row: int) -> Callable[[], NDArray[np.float32]]:
    return lambda: logits.read()[0, row]


def _run_options(graph: int) -> Any:
    """Capture a run as the graph of this number, or replay it; -1 runs without."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
