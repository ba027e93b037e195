"""Write a directory whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..runtime.bundle import SIGNATURE
from ..runtime.errors import CheckpointError, InputError, MedVLMError
from ..runtime.interrupts import terminate_as_interrupt
from ..runtime.manifest import MANIFEST
from .config import read_json

# The graphs, the manifest, and what a file system takes for itself.
_SPACE_MARGIN = 64 * 1024**2


def check_output(out: Path, checkpoint: Path, *, force: bool) -> None:
    """Raise `InputError` unless a bundle may be written to `out`: absent, or a bundle with `force`."""
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a directory; create it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"{out.parent} is not writable; choose another OUT")
    if out.is_symlink():
        raise InputError(f"{out} exists and is a link; choose another OUT")
    resolved, source = out.resolve(), checkpoint.resolve()
    if resolved == source or resolved in source.parents or source in resolved.parents:
        raise InputError(f"OUT {out} and the checkpoint {checkpoint} lie in each other; choose another OUT")
    if not out.exists():
        return
    if not force:
        raise InputError(f"{out} exists; choose another OUT, or give --force to replace it")
    _check_replaceable(out)


def _check_replaceable(out: Path) -> None:
    """Raise `InputError` unless `out` is empty or a bundle, damaged or not, with nothing of the user's beside it."""
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        manifest = read_json(out / MANIFEST)
    except CheckpointError:
        manifest = {}
    files = manifest.get("files")
    if "format_version" not in manifest or not isinstance(files, dict):
        raise InputError(f"{out} exists and is not a bundle; --force replaces only bundles and empty directories")
    foreign = sorted(path.name for path in out.iterdir() if path.name not in {MANIFEST, SIGNATURE, *files})
    if foreign:
        raise InputError(f"{out} holds {foreign[0]}, which is no part of a bundle; move it before --force")


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
    out = out.resolve()
    partial = _sibling(out, "partial")
    with terminate_as_interrupt():
        try:
            partial.mkdir()
            yield partial
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
    aside = _sibling(out, "replaced")
    try:
        out.rename(aside)
        partial.rename(out)
    except BaseException:
        if not out.exists():
            _put_back(aside, out)
        raise
    finally:
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _put_back(aside: Path, out: Path) -> None:
    try:
        aside.rename(out)
    except OSError as error:
        raise MedVLMError(f"could not write {out}: {error.strerror or error}; the old one is now {aside}") from error


def _sibling(out: Path, suffix: str) -> Path:
    """A name beside `out` that nothing has."""
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.{suffix}")


def _sync(directory: Path) -> None:
    """Flush every file to the disk, so that a power cut after the rename cannot leave an empty one."""
    for path in directory.rglob("*"):
        if path.is_dir():
            continue
        # Windows flushes only files that are open for writing.
        with path.open("rb+") as file:
            os.fsync(file.fileno())
