"""The language decoder: one sequence's KV cache in place, and the two graphs that fill it and read it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .embeddings import EmbeddingTable
from .errors import MedVLMError
from .manifest import TextDims

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding

# Tokens that one call of a prefill takes: attention's scores are [heads, chunk, total] in float32, so that this
# bounds the memory of a long prompt.
PREFILL_CHUNK = 512
_SLOTS_AT_ONCE = 256


@dataclass(frozen=True)
class DecoderSessions:
    """The decoder's graph, and the one that only fills the cache; None where prompts go through the decoder.

    options: onnxruntime.RunOptions of every run, which its types do not name.
    """

    decode: "InferenceSession"
    prefill: "InferenceSession | None"
    options: Any


@dataclass(frozen=True)
class _Call:
    """A binding for a fixed number of tokens, with what it reads and writes.

    embeddings: [tokens, hidden_size]. logit_rows: [rows] int64. logits: [rows, vocab_size].
    """

    binding: "IOBinding"
    embeddings: NDArray[np.float32]
    logit_rows: NDArray[np.int64]
    logits: NDArray[np.float32]


class Decoder:
    """Owns the KV cache, the rotary tables and the bindings of one sequence.

    The cache holds `capacity` slots, which `reserve` sets; `length` of them are filled. `write_rotary` fills the rows
    of slots before their tokens go through. Going back to a prefix is only a smaller `length`: both graphs read and
    write the same cache, and nothing of it is copied but where `reserve` makes it larger.
    """

    def __init__(self, sessions: DecoderSessions, embeddings: EmbeddingTable, dims: TextDims) -> None:
        self._sessions, self._embeddings, self._dims = sessions, embeddings, dims
        self.length = 0
        # Seconds spent in onnxruntime so far: what is left of a step is Python's.
        self.graph_s = 0.0
        self._seqlens_k = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._allocate(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self._cache.nbytes

    def reserve(self, slots: int) -> None:
        """Make room for at least `slots`, keeping what is filled.

        One array holds the caches of all layers, no longer than needed: its pages are then few and large, and a first
        write to a page costs as much as the numbers on it.
        """
        if slots <= self.capacity:
            return
        cache, cos, sin, filled = self._cache, self._cos, self._sin, self.length
        self._allocate(rounded_up(slots))
        self._cache[..., :filled, :] = cache[..., :filled, :]
        self.write_rotary(0, cos[:filled], sin[:filled])

    def pretend(self, length: int) -> None:
        """Act as if `length` tokens had gone through, to measure what follows them."""
        self.reserve(length)
        self._cache[..., :length, :] = 0.01
        self._cos[:length], self._sin[:length] = 1, 0
        self.length = length

    def _allocate(self, capacity: int) -> None:
        dims = self._dims
        self._cache = empty_cache(dims, 1, capacity)
        self.capacity = capacity
        self._cos, self._sin = (np.empty((capacity, dims.head_size // 2), np.float32) for _ in range(2))
        # One call for each number of tokens that `extend` was ever given.
        self._calls: dict[int, _Call] = {}

    def write_rotary(self, start: int, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None:
        """Set the rotary rows of the slots from `start` on; cos and sin: [slots, head_size / 2]."""
        self._cos[start : start + len(cos)] = cos
        self._sin[start : start + len(sin)] = sin

    def prefill(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append tokens [tokens, hidden_size] to the cache; the logits [vocab_size] after the last of them.

        With a prefill graph all but the last token go through it, and the last through the decoder. The result is a
        view that the next call overwrites.
        """
        embeddings = np.ascontiguousarray(embeddings, np.float32)
        if self._sessions.prefill is not None:
            for chunk in _chunks(embeddings[:-1]):
                self._run(self._sessions.prefill, self._bind(self._sessions.prefill, chunk), len(chunk))
            embeddings = embeddings[-1:]
        *_, logits = (self._decode(self._make_call(chunk, last_only=True)) for chunk in _chunks(embeddings))
        return logits[0]

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the cache; the logits [tokens, vocab_size] after each, a view as in `prefill`.

        Nothing is allocated once a call with as many tokens was made.
        """
        tokens = len(token_ids)
        if tokens not in self._calls:
            embeddings = np.empty((tokens, self._dims.hidden_size), np.float32)
            self._calls[tokens] = self._make_call(embeddings, last_only=False)
        call = self._calls[tokens]
        self._embeddings.write(token_ids, call.embeddings)
        return self._decode(call)

    def copy_to(self, cache: NDArray[np.float32]) -> None:
        """Copy what is filled into the cache of one sequence, [layers, 2, num_kv_heads, capacity, head_size]."""
        cache[..., : self.length, :] = self._cache[:, :, 0, :, : self.length]

    def rewind(self, tokens: int) -> None:
        """Take back the last `tokens`: only the number moves, and what follows overwrites them."""
        self.length -= tokens

    def _decode(self, call: _Call) -> NDArray[np.float32]:
        self._run(self._sessions.decode, call.binding, len(call.embeddings))
        return call.logits

    def _run(self, session: "InferenceSession", binding: "IOBinding", tokens: int) -> None:
        """One call of a graph that appends `tokens`."""
        total = self.length + tokens
        if total > self.capacity:
            raise ValueError(f"{total} tokens do not fit in a cache of {self.capacity}")
        self._seqlens_k[0] = total - 1
        self._total[()] = total
        started = time.perf_counter()
        session.run_with_iobinding(binding, self._sessions.options)
        self.graph_s += time.perf_counter() - started
        self.length = total

    def _make_call(self, embeddings: NDArray[np.float32], *, last_only: bool) -> _Call:
        """The decoder bound to embeddings [tokens, hidden_size], with logits after each token or after the last."""
        rows = np.arange(len(embeddings))[-1 if last_only else 0 :]
        logits = np.empty((1, len(rows), self._dims.vocab_size), np.float32)
        binding = self._bind(self._sessions.decode, embeddings)
        bind_input(binding, "logit_rows", rows)
        bind_output(binding, "logits", logits)
        return _Call(binding, embeddings, rows, logits[0])

    def _bind(self, session: "InferenceSession", embeddings: NDArray[np.float32]) -> "IOBinding":
        """A binding of embeddings [tokens, hidden_size] and of all that both graphs share."""
        binding = session.io_binding()
        bind_cache(binding, self._cache)
        bind_input(binding, "cos_cache", self._cos)
        bind_input(binding, "sin_cache", self._sin)
        bind_input(binding, "seqlens_k", self._seqlens_k)
        bind_input(binding, "total_sequence_length", self._total)
        bind_input(binding, "inputs_embeds", embeddings[None])
        return binding


def empty_cache(dims: TextDims, sequences: int, capacity: int) -> NDArray[np.float32]:
    """The keys and values of all layers: [layers, 2, sequences, num_kv_heads, capacity, head_size].

    Raises `MedVLMError` where there is not so much memory.
    """
    shape = dims.layers, 2, sequences, dims.num_kv_heads, capacity, dims.head_size
    try:
        return np.empty(shape, np.float32)
    # numpy's word for a size that no address reaches is ValueError.
    except (MemoryError, ValueError):
        size = sequences * capacity * dims.kv_bytes_per_token
        raise MedVLMError(
            f"there is no memory for {size / 1e9:.2f} GB of KV cache; lower --max-new-tokens or --max-pixels"
        ) from None


def bind_cache(binding: "IOBinding", cache: NDArray[np.float32]) -> None:
    """Bind a cache, or the first sequences of one, as past and as present: tokens are then appended in place."""
    for i, layer in enumerate(cache):
        for kind, array in zip(("key", "value"), layer, strict=True):
            bind_input(binding, f"past_key_values.{i}.{kind}", array)
            bind_output(binding, f"present.{i}.{kind}", array)


def bind_input(binding: "IOBinding", name: str, array: NDArray[Any]) -> None:
    """Bind contiguous memory that the caller keeps alive."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: "IOBinding", name: str, array: NDArray[np.float32]) -> None:
    """As `bind_input`, for what the graph writes."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def rounded_up(slots: int) -> int:
    """How many slots are made where so many are needed, so that a slightly longer question finds room."""
    return -(-slots // _SLOTS_AT_ONCE) * _SLOTS_AT_ONCE


def _chunks(embeddings: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [embeddings[start : start + PREFILL_CHUNK] for start in range(0, len(embeddings), PREFILL_CHUNK)]
