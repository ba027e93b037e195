"""Where a file is, and how to write one whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

from .errors import MedVLMError


def real_path(path: Path) -> Path:
    """Where a path leads, links followed as far as they can be: a loop of them, or a closed folder, is no error."""
    return Path(os.path.realpath(path))


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
