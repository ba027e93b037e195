"""A results file: a line that says what its answers are of, then a line an answer, on the disk before the next one.

It may be cut anywhere: what was being written when the process was killed is dropped when the file is opened again.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError, MedVLMError, plain
from ..file_lock import locked
from ..files import append_whole, lies_in, real_path, sync_folder
from .outcome import Outcome

FORMAT = 1
_MARK = "medvlm_results"


@dataclass(frozen=True)
class Header:
    """What the answers of a file are of: only those of equal headers may stand in one.

    kind: the command. bundle: the sha256 of its manifest, which holds those of its files. questions: the sha256 of the
    dataset's file, or of the question. images: the folder that their names start from. settings: whatever else
    decides what is answered.
    """

    kind: str
    bundle: str
    questions: str
    images: str
    settings: dict[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """The file's first line."""
        made = {_MARK: FORMAT, "created_by": f"medvlm {metadata.version('medvlm')}"}
        return _line({**made, **asdict(self)})

    def difference(self, line: Mapping[str, Any]) -> str | None:
        """What the answers of a file with the first line `line` are of instead; None where all is equal."""
        # As JSON, which has no tuples.
        own = json.loads(self.to_line())
        if line.get("kind") != self.kind:
            return f"of medvlm {plain(str(line.get('kind')))}"
        if line.get("bundle") != self.bundle:
            return "of another bundle"
        if line.get("questions") != self.questions:
            return "to other questions"
        if line.get("images") != self.images:
            return f"about images in {plain(str(line.get('images')))}"
        other = line.get("settings")
        if other == own["settings"]:
            return None
        return f"with other settings ({_differing(other if isinstance(other, dict) else {}, own['settings'])})"


def _differing(other: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    names = [name for name in (*own, *other) if own.get(name) != other.get(name)]
    return ", ".join(f"{plain(name)} {plain(str(other.get(name)))}" for name in dict.fromkeys(names))


class Results:
    """An open results file: what was answered before, and where the next line goes. `open_results` makes one."""

    def __init__(self, path: Path, file: Any, outcomes: dict[str, Outcome]) -> None:
        self.path, self.outcomes, self._file = path, outcomes, file

    def has_answer(self, key: str) -> bool:
        """Whether a question was answered, and not only recorded as an error."""
        return _is_answered(key, self.outcomes)

    def append(self, outcome: Outcome, about: Mapping[str, Any] | None = None) -> None:
        """Write a line and wait until it is on the disk. about: what else the line should say.

        Raises `MedVLMError` where it cannot be written; the lines before it stay whole.
        """
        if self.has_answer(outcome.key):
            raise ValueError(f"{outcome.key} has been answered")
        self._write(_line({"key": outcome.key, **(about or {}), **outcome.to_line()}))
        self.outcomes[outcome.key] = outcome

    def _write(self, line: bytes) -> None:
        try:
            append_whole(self._file, line)
        except OSError as error:
            raise MedVLMError(
                f"{self.path} cannot be written ({error.strerror}); make room and give the same command again: "
                f"its {len(self.outcomes)} answers are kept"
            ) from None


@contextlib.contextmanager
def open_results(path: Path, header: Header) -> Iterator[Results]:
    """Make a results file, or go on with one of the same header; nobody else may write it meanwhile.

    Raises `InputError` where the file is something else, of something else, damaged, in use or not to be opened.
    """
    with _opened(path) as file, _alone(file, path):
        file.seek(0)
        content = file.read()
        first = header.to_line()
        if first.startswith(content):
            # New, or cut within its first line.
            file.truncate(0)
            results = Results(path, file, {})
            results._write(first)
            with contextlib.suppress(OSError):
                sync_folder(path.parent)
        else:
            outcomes, size = _read(content, path, header)
            file.truncate(size)
            results = Results(path, file, outcomes)
        yield results


def check_places(bundle: Path, places: Mapping[str, Path | None]) -> None:
    """Raise `InputError` for a path in the bundle, which it would damage, and for one path that is given twice.

    places: what is written, by its option; None where that was not given.
    """
    taken: dict[Path, str] = {}
    for option, path in places.items():
        if path is None:
            continue
        target = real_path(path)
        if lies_in(path, bundle):
            raise InputError(f"{path} would lie in the bundle {bundle}; choose another place for it")
        if target in taken:
            raise InputError(f"{path} is given for {taken[target]} and {option}; give each a file of its own")
        taken[target] = option


def _opened(path: Path) -> Any:
    try:
        if not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a directory; create it first, or choose another place for --out")
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path} is not a file; choose another name for --out")
        # Unbuffered, and each write goes to the end.
        return path.open("a+b", buffering=0)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); choose another place for --out") from None


@contextlib.contextmanager
def _alone(file: Any, path: Path) -> Iterator[None]:
    """Keep the file for this process until the block ends, or the process in whatever way."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(file, wait=False))
        except BlockingIOError:
            raise InputError(
                f"{path} is being written by another process; wait for it, or give another --out"
            ) from None
        except OSError:
            # A file system without locks.
            pass
        yield


def _read(content: bytes, path: Path, header: Header) -> tuple[dict[str, Outcome], int]:
    """The outcomes in a file, and how many of its bytes are whole lines of them."""
    # What follows the last end of a line was being written.
    *lines, _ = content.split(b"\n")
    first = _object(lines[0]) if lines else None
    if first is None or _MARK not in first:
        raise InputError(f"{path} exists and holds no results of medvlm; choose another --out")
    if first[_MARK] != FORMAT:
        raise InputError(f"{path} has the format {first[_MARK]} and this medvlm writes {FORMAT}; choose another --out")
    if difference := header.difference(first):
        raise InputError(f"{path} holds answers {difference}; give another --out, or what it was made with")
    if len(lines) > 1 and _object(lines[-1]) is None:
        # A power cut may leave blocks of a line empty, and its end written.
        lines.pop()
    return _outcomes(lines[1:], path), sum(len(line) + 1 for line in lines)


def _outcomes(lines: list[bytes], path: Path) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for number, line in enumerate(lines, start=2):
        try:
            outcome = Outcome.of_line(_object(line) or {})
        except ValueError as error:
            raise InputError(f"line {number} of {path} is damaged ({error}); give another --out") from None
        # An error may have been asked again: then the later line counts.
        if _is_answered(outcome.key, outcomes):
            raise InputError(f"line {number} of {path} answers {plain(outcome.key)} again; give another --out")
        outcomes[outcome.key] = outcome
    return outcomes


def _is_answered(key: str, outcomes: Mapping[str, Outcome]) -> bool:
    return key in outcomes and outcomes[key].error is None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"
