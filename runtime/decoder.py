"""The language decoder: one session, one KV cache in place, one binding for all steps."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .manifest import TextDims
from .session import open_session

# Tokens that one call of the prefill takes: attention's scores are [heads, chunk, total] in float32, so that this
# bounds the memory of a long prompt.
PREFILL_CHUNK = 512


class Decoder:
    """Owns the session, the KV cache and the rotary tables of one sequence.

    The cache holds `max_length` slots; `length` of them are filled. `write_rotary` fills the rows of slots before
    their tokens go through. Going back to a prefix is only a smaller `length`.
    """

    def __init__(self, path: Path, dims: TextDims, max_length: int, threads: int | None) -> None:
        self._session = open_session(path, threads)
        self._dims = dims
        self.max_length = max_length
        self.length = 0
        # Left untouched until used, so that a large max_length costs address space and not memory.
        cache = (1, dims.num_kv_heads, max_length, dims.head_size)
        names = [f"{i}.{kind}" for i in range(dims.layers) for kind in ("key", "value")]
        self._cache = {name: np.empty(cache, np.float32) for name in names}
        self._cos, self._sin = (np.empty((max_length, dims.head_size // 2), np.float32) for _ in range(2))
        self._seqlens_k = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.empty((1, 1, dims.vocab_size), np.float32)
        self._token = np.empty((1, 1, dims.hidden_size), np.float32)
        self._binding = self._session.io_binding()
        self._bind_fixed()

    def write_rotary(self, start: int, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None:
        """Set the rotary rows of the slots from `start` on; cos and sin: [slots, head_size / 2]."""
        self._cos[start : start + len(cos)] = cos
        self._sin[start : start + len(sin)] = sin

    def prefill(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append tokens [tokens, hidden_size] to the cache, chunk by chunk; the logits [vocab_size] after the last.

        The result is a view that the next call overwrites.
        """
        for start in range(0, len(embeddings), PREFILL_CHUNK):
            self._run(np.ascontiguousarray(embeddings[None, start : start + PREFILL_CHUNK], np.float32))
        return self._logits[0, 0]

    def step(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append one token [hidden_size] to the cache; the logits [vocab_size] after it, a view as in `prefill`."""
        self._token[0, 0] = embedding
        self._run(self._token)
        return self._logits[0, 0]

    def _run(self, embeddings: NDArray[np.float32]) -> None:
        """One call of the graph with embeddings [1, tokens, hidden_size]."""
        total = self.length + embeddings.shape[1]
        if total > self.max_length:
            raise ValueError(f"{total} tokens do not fit in a cache of {self.max_length}")
        self._seqlens_k[0] = total - 1
        self._total[()] = total
        self._bind_input("inputs_embeds", embeddings)
        self._session.run_with_iobinding(self._binding)
        self.length = total

    def _bind_fixed(self) -> None:
        """Bind everything whose address never changes: all but the embeddings.

        The cache is bound as past and as present: GroupQueryAttention then appends in place.
        """
        for name, array in self._cache.items():
            self._bind_input(f"past_key_values.{name}", array)
            self._bind_output(f"present.{name}", array)
        self._bind_input("cos_cache", self._cos)
        self._bind_input("sin_cache", self._sin)
        self._bind_input("seqlens_k", self._seqlens_k)
        self._bind_input("total_sequence_length", self._total)
        self._bind_output("logits", self._logits)

    def _bind_input(self, name: str, array: NDArray[np.float32] | NDArray[np.int32]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: NDArray[np.float32]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
