"""Write a directory whole or not at all."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ..runtime.errors import InputError, MedVLMError
from ..runtime.manifest import MANIFEST

# The graphs, the manifest, and what a file system takes for itself.
_SPACE_MARGIN = 64 * 1024**2


def check_output(out: Path, checkpoint: Path, *, force: bool) -> None:
    """Raise `InputError` unless a bundle may be written to `out`: absent, or a bundle with `force`."""
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a directory; create it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"{out.parent} is not writable; choose another OUT")
    resolved, source = out.resolve(), checkpoint.resolve()
    if resolved == source or resolved in source.parents or source in resolved.parents:
        raise InputError(f"OUT {out} and the checkpoint {checkpoint} lie in each other; choose another OUT")
    if not os.path.lexists(out):
        return
    if not force:
        raise InputError(f"{out} exists; choose another OUT, or give --force to replace it")
    if out.is_symlink() or not out.is_dir() or not ((out / MANIFEST).is_file() or not any(out.iterdir())):
        raise InputError(f"{out} exists and is not a bundle; --force replaces only bundles and empty directories")


def check_space(out: Path, needed: int) -> None:
    """Raise `InputError` unless the disk of `out` has `needed` bytes free, and a margin."""
    free = shutil.disk_usage(out.parent).free
    if free < needed + _SPACE_MARGIN:
        raise InputError(
            f"{out.parent} has {free / 1e9:.2f} GB free and the bundle needs {(needed + _SPACE_MARGIN) / 1e9:.2f} GB"
        )


@contextlib.contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that becomes `out` when the block ends well, and is removed when it does not.

    An existing `out` is set aside first and put back if the new one cannot take its place. A disk that fills up is
    reported as `MedVLMError`. Only a killed process (SIGKILL, power) leaves the sibling, `.OUT.*.partial`, behind.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        with _terminate_as_interrupt():
            yield partial
            partial.chmod(0o755)
            _sync(partial)
            _replace(partial, out)
    except OSError as error:
        raise MedVLMError(f"could not write {out}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".replaced", dir=out.parent))
    out.rename(aside / out.name)
    try:
        partial.rename(out)
    except BaseException:
        (aside / out.name).rename(out)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Flush every file to the disk, so that a power cut after the rename cannot leave an empty one."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """While it lasts, SIGTERM ends the work as Ctrl-C does, so that what was written is removed."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
