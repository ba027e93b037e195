"""Several sequences decoded together, one token each per call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, bind_cache, bind_input, bind_output, empty_cache
from .embeddings import EmbeddingTable
from .manifest import TextDims
from .positions import mrope_tables, turn_keys

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding


class BatchDecoder:
    """Owns the KV caches of several sequences side by side; the first `count` are at work, each with its `lengths`.

    GroupQueryAttention turns the token in slot i by row i of one table for all sequences, yet behind images of
    different sizes the same slot stands for different positions. Attention sees only how far apart two positions are,
    so a sequence may be moved as a whole: where its text is not at the table's position, its prompt's keys are turned
    by the difference when they are copied in. Sequences with equally large images need no turn. (The operator
    can be given positions: tried, it gives the same tokens at the same speed. CUDA's of onnxruntime 1.23 cannot.)

    Nothing is allocated once a call with as many sequences was made.
    """

    def __init__(
        self,
        session: "InferenceSession",
        embeddings: EmbeddingTable,
        dims: TextDims,
        sequences: int,
        capacity: int,
        lag: int,
    ) -> None:
        """Room for `sequences` of `capacity` slots each, of which memory is taken only as they are used.

        lag: how far positions lag behind slots; see `Request.lag`.
        """
        self._session, self._embeddings, self._dims, self._lag = session, embeddings, dims, lag
        self.count = 0
        self.lengths = np.zeros(sequences, np.int32)
        self._cache = empty_cache(dims, sequences, capacity)
        positions = np.broadcast_to(np.arange(capacity) - lag, (3, capacity))
        self._cos, self._sin = (np.ascontiguousarray(table) for table in mrope_tables(positions, dims))
        self._total = np.zeros((), np.int32)
        self._row = np.zeros(1, np.int64)
        self._inputs = np.zeros((sequences, 1, dims.hidden_size), np.float32)
        self._logits = np.zeros((sequences, 1, dims.vocab_size), np.float32)
        self._bindings: dict[int, IOBinding] = {}

    def put(self, sequence: int, decoder: Decoder, lag: int) -> None:
        """Copy a prefilled prompt into a sequence, the first that is not at work or one whose answer has ended."""
        cache = self._cache[:, :, sequence]
        decoder.copy_to(cache)
        if lag != self._lag:
            turn_keys(cache[:, 0, :, : decoder.length], lag - self._lag, self._dims)
        self.lengths[sequence] = decoder.length
        self.count = max(self.count, sequence + 1)

    def remove(self, sequence: int) -> None:
        """End a sequence: the last one at work takes its place, so that those at work stay the first."""
        self.count -= 1
        if sequence != self.count:
            length = self.lengths[self.count]
            self._cache[:, :, sequence, :, :length] = self._cache[:, :, self.count, :, :length]
            self.lengths[sequence] = length

    def rewind(self, sequence: int, tokens: int) -> None:
        """Take back the last `tokens` of a sequence."""
        self.lengths[sequence] -= tokens

    def step(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append a token to each sequence at work; the logits [count, vocab_size], which the next call overwrites."""
        self._embeddings.write(token_ids, self._inputs[: self.count, 0])
        total = int(self.lengths[: self.count].max()) + 1
        if total > self._cache.shape[-2]:
            raise ValueError(f"{total} tokens do not fit in a cache of {self._cache.shape[-2]}")
        self._total[()] = total
        if self.count not in self._bindings:
            self._bindings[self.count] = self._bind(self.count)
        self._session.run_with_iobinding(self._bindings[self.count])
        self.lengths[: self.count] += 1
        return self._logits[: self.count, 0]

    def pretend(self, length: int) -> None:
        """Act as if every sequence were at work behind `length` tokens, to measure what follows them."""
        self._cache[..., :length, :] = 0.01
        self.count = len(self.lengths)
        self.lengths[:] = length

    def _bind(self, count: int) -> "IOBinding":
        """A binding of the first `count` sequences: of every array, its beginning."""
        binding = self._session.io_binding()
        bind_cache(binding, self._cache[:, :, :count])
        bind_input(binding, "cos_cache", self._cos)
        bind_input(binding, "sin_cache", self._sin)
        # A sequence's total less 1, and one token is appended: its length before.
        bind_input(binding, "seqlens_k", self.lengths[:count])
        bind_input(binding, "total_sequence_length", self._total)
        bind_input(binding, "inputs_embeds", self._inputs[:count])
        bind_input(binding, "logit_rows", self._row)
        bind_output(binding, "logits", self._logits[:count])
        return binding
