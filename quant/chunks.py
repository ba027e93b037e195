"""Work on the rows of a matrix in pieces, on all cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Rows are worked on in pieces of about this many elements: the temporaries stay in the last-level cache, and numpy's
# calls are long enough for threads not to wait for the interpreter (an eighth of it took twice the time).
_CHUNK_ELEMENTS = 1 << 18


def rows_at_once(columns: int) -> int:
    """How many rows of `columns` make a piece that stays in the cache."""
    return max(1, _CHUNK_ELEMENTS // max(1, columns))


def each_chunk(work: Callable[[slice], None], rows: int, step: int) -> None:
    """Call `work` with slices of at most `step` that cover `rows`.

    The calls run side by side, for numpy lets go of the interpreter's lock: each must write to its own rows only. The
    first error of a call is raised.
    """
    chunks = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    if len(chunks) < 2:
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(min(len(chunks), _cores())) as pool:
        futures = [pool.submit(work, chunk) for chunk in chunks]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
