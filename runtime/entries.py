"""The entries of a dataset's file: a JSON list, JSON lines, or a CSV table with a line of names."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError

FORM = "a list of objects with image, problem and solution"
_COLUMNS = ("image", "problem", "solution")
# Cells of a table that may hold several, and what stands between two.
_SEVERAL, _DIVIDER = ("image", "options"), "|"
_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITERS = ",;\t"


def read_entries(path: Path) -> list[Any]:
    """What a dataset's file lists, unchecked but for being a list: of objects, if it is sound.

    A name that ends in .jsonl or .ndjson is read as an object a line, .csv as a table, all else as one JSON list. A
    table's first line names its columns; commas, semicolons or tabs divide them, and `|` divides several images or
    options in one cell. Raises `InputError` where nothing can be read, or no question is there.
    """
    text = _read_text(path)
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES:
        entries = [_read_json(line, f"line {number} of {path}") for number, line in _lines(text)]
    elif suffix == ".csv":
        entries = _read_table(path, text)
    else:
        entries = _read_json(text, str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a JSON list; give {FORM}")
    if not entries:
        raise InputError(f"{path} has no questions; give {FORM}")
    return entries


def _read_text(path: Path) -> str:
    try:
        # Windows' editors put a byte order mark first.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a dataset's JSON, JSONL or CSV file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; give a dataset's JSON, JSONL or CSV file in UTF-8") from None


def _read_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON ({error}); give {FORM}") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1: a string of JSON may hold what Python calls a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_table(path: Path, text: str) -> list[dict[str, Any]]:
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise InputError(
                f"{path} has no column {' and no '.join(absent)}; its first line should name {', '.join(_COLUMNS)}"
            )
        return [_read_row(row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is not CSV near line {reader.line_num} ({error}); save the table anew") from None


def _read_row(row: dict[str, str | None]) -> dict[str, Any]:
    """A row without its empty cells; lists where several may be."""
    cells = {name: cell for name, cell in row.items() if isinstance(name, str) and cell}
    lists = {name: cells[name].split(_DIVIDER) for name in _SEVERAL if name in cells}
    return cells | {name: [part.strip() for part in parts] for name, parts in lists.items()}
