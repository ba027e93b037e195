"""Write a file whole or not at all."""

import os
import secrets
from pathlib import Path

from .errors import MedVLMError


def write_whole(path: Path, text: str) -> None:
    """Write a temporary sibling that takes the place of `path`, so that no half a file is ever there.

    Raises `MedVLMError` where it cannot be written; what was there before then still is.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise MedVLMError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
