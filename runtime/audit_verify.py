"""Whether an audit log is as it was written: no line changed, added, removed, moved or cut off."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .audit import EMPTY, MAX_LINE_BYTES, Head, key_path, line_digest, read_head, read_key, unsealed
from .errors import InputError
from .file_lock import locked

# Another file than a log may have a fault a byte.
_MOST_FAULTS = 100


@dataclass(frozen=True)
class Verdict:
    """faults: one line each, the first hundred of many; empty where the log is whole.

    end: how far the log goes, and its last line's sha256.
    """

    faults: tuple[str, ...]
    end: Head


def verify_log(path: Path, key: Path | None = None) -> Verdict:
    """Check every line of a log, and its end. Raises `InputError` where it or its key cannot be read.

    key: the file of the log's key, by default the one beside it.
    """
    secret = read_key(key or key_path(path))
    try:
        # The lock keeps others from adding a line between the last one that is read and the head.
        with path.open("rb") as file, locked(file):
            file.seek(0)
            chain = _Chain(secret)
            found = (fault for line in _lines(file) for fault in chain.follow(line))
            faults = list(itertools.islice(found, _MOST_FAULTS))
            more = sum(1 for _ in found)
            head = read_head(path, secret)
    except OSError as error:
        raise InputError(f"cannot read the audit log {path}: {error.strerror}") from None
    faults += [f"and {more} faults more"] if more else []
    return Verdict((*faults, *_end_faults(head, chain)), chain.end)


class _Chain:
    """What the lines so far say. After one that was changed, the next is taken to follow it."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.end = EMPTY
        self.read = 0
        # Lines since `end` that nothing sealed.
        self.broken = 0

    def follow(self, line: bytes) -> Iterator[str]:
        """What is wrong with the next line, which ends with its newline."""
        self.read += 1
        content = line.removesuffix(b"\n")
        body = unsealed(self._key, content, "line")
        if body is None or content == line:
            self.broken += 1
            yield f"line {self.read} {'was changed, or added' if content != line else 'is cut off'}"
            return
        number, expected = body["line"], self.end.lines + self.broken + 1
        if number <= self.end.lines:
            yield f"line {self.read} is out of order: it was line {number}"
            return
        if number > expected:
            yield f"before line {self.read}, {_lines_are(number - expected)} missing"
        elif number < expected:
            yield f"before line {self.read}, {expected - number} more than there were"
        elif not self.broken and body["previous"] != self.end.last:
            yield f"line {self.read} does not follow the line before it"
        self.end, self.broken = Head(number, line_digest(content)), 0


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; one that is too long is taken in pieces, none of which is sealed."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line


def _end_faults(head: Head | None, chain: _Chain) -> Iterator[str]:
    """What is wrong with the end. One line more than the head knows is what a killed process leaves, and whole."""
    lines = chain.end.lines + chain.broken
    if head is None:
        yield "its head is missing or was changed: lines that are missing at the end do not show"
    elif head.lines > lines:
        yield f"at the end, {_lines_are(head.lines - lines)} missing"
    elif head.lines + 1 < lines or (head.lines == chain.end.lines and head.last != chain.end.last):
        yield "its head is not this log's: it was put back, or the log was"


def _lines_are(count: int) -> str:
    return "1 line is" if count == 1 else f"{count} lines are"
