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
def locked(file: BinaryIO) -> Iterator[None]:
    """Wait for the lock of `file`, and hold it. Raises OSError where the file system has no locks."""
    if fcntl is None:
        with _locked_on_windows(file):
            yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _locked_on_windows(file: BinaryIO) -> Iterator[None]:
    """Windows locks bytes, and those that are locked cannot be read: one far behind the end is taken."""
    import msvcrt

    position = 1 << 40
    locking, lock, unlock = (getattr(msvcrt, name) for name in ("locking", "LK_NBLCK", "LK_UNLCK"))
    while True:
        file.seek(position)
        with contextlib.suppress(OSError):
            locking(file.fileno(), lock, 1)
            break
        time.sleep(_RETRY_S)
    try:
        yield
    finally:
        file.seek(position)
        locking(file.fileno(), unlock, 1)
