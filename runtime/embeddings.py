"""The embedding table: memory-mapped, read by row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError


class EmbeddingTable:
    """Rows [vocab_size, hidden_size] of fp16 or fp32, of which a question touches a few hundred.

    Raises `BundleError` where the file has another size.
    """

    def __init__(self, path: Path, dtype: str, vocab_size: int, hidden_size: int) -> None:
        stored = np.dtype(dtype).newbyteorder("<")
        size, wanted = path.stat().st_size, vocab_size * hidden_size * stored.itemsize
        if size != wanted:
            raise BundleError(f"{path} has {size} bytes and the manifest's dimensions want {wanted}; export again")
        # A plain array over the mapping: each view of a memmap costs as much as a row.
        self._table = np.asarray(np.memmap(path, stored, mode="r", shape=(vocab_size, hidden_size)))

    def rows(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings [tokens, hidden_size] of `token_ids` [tokens]."""
        return self._table[token_ids].astype(np.float32)

    def write(self, token_ids: Sequence[int], out: NDArray[Any]) -> None:
        """Write the embeddings of `token_ids` into floats `out` [tokens, hidden_size], without an array in between."""
        for row, token_id in zip(out, token_ids, strict=True):
            row[:] = self._table[token_id]
