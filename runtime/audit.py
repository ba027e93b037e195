"""The audit log: one line of JSON an answer, sealed and chained, so that a line changed or taken away shows.

    {"line": 7, "time": …, "bundle": …, "images": […], "settings": {…}, "choice": "B", "options": {"A": 0.1, …},
     "seconds": 3.2, "outcome": "answer", "previous": …, "seal": …}

Beside FILE lie two more. FILE.key is made with the log and seals it: pixels are told by their HMAC-SHA256 under it (who
has an image but not the key cannot look it up), and `seal` is the HMAC-SHA256 of the line before it. FILE.head says,
sealed too, how many lines there are and what the last one is, or nothing would show that the last lines are missing.
`previous` is the sha256 of the line before, newline left out.

It shows changes to whoever keeps the key from those who could make them; who can write all three files can write a
new log. Nothing in it comes from a question, from the model's text or from a file's name or header.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, MedVLMError
from .file_lock import locked
from .files import append_whole, sync_folder

# As many digests of images as a context holds.
MAX_LINE_BYTES = 1 << 20
_KEY_BYTES = 32
_KEY_FILE_BYTES = 1 << 10


@dataclass(frozen=True)
class Entry:
    """What one line says of an answer.

    time: in UTC, ISO 8601. bundle: the sha256 of its manifest. images: the keyed digest of each image's pixels.
    seconds: from the question to the end. outcome: the answer's finish reason, or "stopped" where it was ended before
    its end, or "failed"; then there is no choice.
    """

    time: str
    bundle: str
    images: tuple[str, ...]
    settings: dict[str, Any]
    choice: str | None
    options: dict[str, float]
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Head:
    """How many lines the log has, and the sha256 of the last."""

    lines: int
    last: str


EMPTY = Head(0, "0" * 64)


class AuditLog:
    """A log that may be appended to, by several processes in turn; made with its key where it does not exist.

    Raises `InputError` where it is none, or does not end as its head says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_place(path)
        with self._opened() as file:
            if _is_new(path, file):
                self._key = secrets.token_bytes(_KEY_BYTES)
                self._begin()
            else:
                self._key = read_key(key_path(path))
            self._end(file)

    def digest(self, size: tuple[int, int], pixels: bytes) -> str:
        """The keyed digest of an image: its (width, height) and its pixels, row by row."""
        return _keyed(self._key, repr(size).encode() + pixels)

    def append(self, entry: Entry) -> None:
        """Add a line and wait until the disk has it. Raises `MedVLMError` where it cannot be added whole."""
        with self._opened() as file:
            if read_key(key_path(self.path)) != self._key:
                raise InputError(f"{self.path} was begun anew by others; start again to add to it")
            end = self._end(file)
            body = {"line": end.lines + 1, **dataclasses.asdict(entry), "previous": end.last}
            line = sealed(self._key, body)
            if len(line) >= MAX_LINE_BYTES:
                raise MedVLMError(f"a line of {len(line)} bytes is too long for the audit log; ask about fewer images")
            append_whole(file, line + b"\n")
            self._write_head(Head(end.lines + 1, line_digest(line)))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "rb+", buffering=0) as file, locked(file):
                yield file
        except OSError as error:
            raise MedVLMError(f"cannot write the audit log {self.path}: {error.strerror or error}") from error

    def _begin(self) -> None:
        """Write the head of an empty log, then its key: a key whose head is gone tells that lines are gone too."""
        self._write_head(EMPTY)
        _write_private(key_path(self.path), self._key.hex().encode() + b"\n")

    def _end(self, file: BinaryIO) -> Head:
        """The log's end, which must be its head's.

        A line more is whole: a killed process leaves it, and a full disk. The head is brought up to it.
        """
        head, last = read_head(self.path, self._key), _last_line(file)
        if last is None and head == EMPTY:
            return EMPTY
        body = unsealed(self._key, last or b"", "line")
        if head is not None and body is not None:
            found = Head(body["line"], line_digest(last or b""))
            if found == head:
                return found
            if (found.lines, body["previous"]) == (head.lines + 1, head.last):
                self._write_head(found)
                return found
        raise InputError(
            f"{self.path} does not end as it was left; see medvlm audit verify, and give --audit a new file"
        )

    def _write_head(self, head: Head) -> None:
        _write_private(head_path(self.path), sealed(self._key, dataclasses.asdict(head)) + b"\n")


def key_path(log: Path) -> Path:
    """Where the log's key lies."""
    return log.with_name(f"{log.name}.key")


def head_path(log: Path) -> Path:
    """Where the log's head lies."""
    return log.with_name(f"{log.name}.head")


def read_key(path: Path) -> bytes:
    """The key in a file. Raises `InputError`."""
    try:
        key = bytes.fromhex(_read_start(path, _KEY_FILE_BYTES).decode("ascii").strip())
    except OSError as error:
        raise InputError(f"cannot read the audit log's key {path}: {error.strerror}; put it back") from None
    except ValueError:
        raise InputError(f"{path} is not the key of an audit log; put the right one back") from None
    if len(key) != _KEY_BYTES:
        raise InputError(f"{path} is not the key of an audit log; put the right one back")
    return key


def read_head(log: Path, key: bytes) -> Head | None:
    """The log's head; None where there is none, or one that the key did not seal. Raises OSError."""
    try:
        content = _read_start(head_path(log), MAX_LINE_BYTES)
    except FileNotFoundError:
        return None
    body = unsealed(key, content.removesuffix(b"\n"), "lines")
    return Head(body["lines"], body["last"]) if body else None


def sealed(key: bytes, body: dict[str, Any]) -> bytes:
    """A line of JSON: `body`, and the seal of all that stands before the seal."""
    text = json.dumps(body, allow_nan=False).encode()
    return text[:-1] + b', "seal": "' + _keyed(key, text).encode() + b'"}'


def unsealed(key: bytes, line: bytes, field: str) -> dict[str, Any] | None:
    """What a line says without its seal; None where the seal is not the key's, or the line has no such field.

    The log's lines have a `line`, its head has `lines`: neither can be put in the other's place.
    """
    text, found, seal = line.rpartition(b', "seal": "')
    text += b"}"
    if not found or not hmac.compare_digest(seal, _keyed(key, text).encode() + b'"}'):
        return None
    body = json.loads(text)
    return body if field in body else None


def line_digest(line: bytes) -> str:
    """What the following line calls this one, which has no newline."""
    return hashlib.sha256(line).hexdigest()


def _check_place(path: Path) -> None:
    """Raise `InputError` where no log can be."""
    try:
        if not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a directory; create it before --audit")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file; give --audit another one")
    except OSError as error:
        raise InputError(f"{path} cannot be an audit log ({error.strerror}); give --audit another file") from None


def _is_new(path: Path, file: BinaryIO) -> bool:
    """Whether a log is to be begun: also where a process was killed before the key was there."""
    if file.seek(0, os.SEEK_END) or key_path(path).exists():
        return False
    head = head_path(path)
    return not head.exists() or _read_start(head, MAX_LINE_BYTES).startswith(b'{"lines": 0,')


def _read_start(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _write_private(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, for its owner only, and wait until the disk has it."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _last_line(file: BinaryIO) -> bytes | None:
    """The last line without its newline; empty where it has none, None where the log is empty."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_LINE_BYTES))
    tail = file.read(MAX_LINE_BYTES)
    if not tail:
        return None
    return tail[:-1].rpartition(b"\n")[2] if tail.endswith(b"\n") else b""


def _keyed(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, "sha256").hexdigest()
