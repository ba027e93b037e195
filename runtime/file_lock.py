"""A lock on an open file, held against other processes and threads until the block ends or the process dies."""

import contextlib
import time
from collections.abc import Iterator
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

_RETRY_S = 0.05


@contextlib.contextmanager
def locked(file: BinaryIO, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `file`, waiting for it first if need be.

    Raises `BlockingIOError` where another holds it and `wait` is false, and OSError where the file system has no locks.
    """
    if fcntl is None:
        with _locked_on_windows(file, wait):
            yield
        return
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _locked_on_windows(file: BinaryIO, wait: bool) -> Iterator[None]:
    """Windows locks bytes, and those that are locked cannot be read: one far behind the end is taken."""
    import msvcrt

    position = 1 << 40
    locking, lock, unlock = (getattr(msvcrt, name) for name in ("locking", "LK_NBLCK", "LK_UNLCK"))
    while True:
        file.seek(position)
        with contextlib.suppress(OSError):
            locking(file.fileno(), lock, 1)
            break
        if not wait:
            raise BlockingIOError
        time.sleep(_RETRY_S)
    try:
        yield
    finally:
        file.seek(position)
        locking(file.fileno(), unlock, 1)
