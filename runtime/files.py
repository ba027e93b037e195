"""Where a file is, and how to write and append whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, MedVLMError


def real_path(path: Path) -> Path:
    """Where a path leads, links followed as far as they can be: a loop of them, or a closed folder, is no error."""
    return Path(os.path.realpath(path))


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path leads to somewhere below a folder."""
    return real_path(folder) in real_path(path).parents


def check_report_place(path: Path) -> None:
    """Raise `InputError` where a report cannot be written to a path, as far as that is known before there is one."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; choose another name for the report")
        if not path.parent.is_dir():
            raise InputError(
                f"{path.parent} is not a directory; create it first, or choose another place for the report"
            )
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place for the report") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path.parent} is not writable; choose another place for the report")


def append_whole(file: BinaryIO, content: bytes) -> None:
    """Append to an unbuffered file and wait until the disk has it, or append nothing: a full disk may take a part.

    Raises OSError where it cannot be written.
    """
    size = file.seek(0, os.SEEK_END)
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def sync_folder(folder: Path) -> None:
    """So that a power cut loses no new name in it either. Raises OSError. Windows opens no folders, and needs none."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a temporary sibling that takes the place of `path`, so that no half a file is ever there.

    Raises `MedVLMError` where it cannot be written; what was there before then still is.
    """
    # Without the file's own name, which may be as long as names can be.
    partial = path.with_name(f".medvlm-{secrets.token_hex(8)}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise MedVLMError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
