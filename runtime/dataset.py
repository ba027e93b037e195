"""Questions with known answers, in the form of MedVLM-R1's authors: a JSON list, its images beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, plain
from .prompt import parse_options

_FORM = "a list of objects with image, problem and solution"


@dataclass(frozen=True)
class DatasetItem:
    """One question of a dataset.

    index: its place in the file, from 0. images: paths of existing files. problem: the question with its options, as it
    is put to the model. solution: the right letter, one that `problem` offers. options: their texts, and subset: the
    kind of images, where the file says them.
    """

    index: int
    images: tuple[Path, ...]
    problem: str
    solution: str
    options: tuple[str, ...] = ()
    subset: str | None = None


def read_dataset(path: Path, images: Path | None = None) -> list[DatasetItem]:
    """Read and check a dataset; no image is decoded.

    images: the folder that the images' paths start from, by default the file's own.
    Raises `InputError`, which names the entry, for what cannot be used: all of the file is looked at first.
    """
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a JSON list; give {_FORM}")
    if not entries:
        raise InputError(f"{path} has no questions; give {_FORM}")
    return [_read_entry(path, images or path.parent, index, entry) for index, entry in enumerate(entries)]


def place(path: Path, index: int) -> str:
    """What an error calls an entry: `dataset.json[3]`, counted from 0 as JSON's lists are."""
    return f"{plain(path.name)}[{index}]"


def _read_json(path: Path) -> Any:
    try:
        # Windows' editors put a byte order mark first.
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a dataset's JSON file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; give a dataset's JSON file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); give {_FORM}") from None


def _read_entry(path: Path, folder: Path, index: int, entry: Any) -> DatasetItem:
    where = place(path, index)
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object; give {_FORM}")
    absent = [name for name in ("image", "problem", "solution") if not entry.get(name)]
    if absent:
        raise InputError(f"{where} has no {' and no '.join(absent)}; add it, or take the entry out")
    problem = _text(entry["problem"], f"{where}.problem")
    return DatasetItem(
        index=index,
        images=_images(entry["image"], folder, where),
        problem=problem,
        solution=_solution(entry["solution"], problem, where),
        options=tuple(_text(option, f"{where}.options") for option in _as_list(entry.get("options"))),
        subset=_text(entry["subset"], f"{where}.subset") if entry.get("subset") else None,
    )


def _images(value: Any, folder: Path, where: str) -> tuple[Path, ...]:
    paths = tuple(folder / _text(name, f"{where}.image") for name in _as_list(value))
    for path in paths:
        if not _is_file(path):
            raise InputError(
                f"{where}: there is no image {plain(str(path))}; copy it there, or say with --images where it is"
            )
    return paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A name that is too long, or a folder that may not be entered.
        return False


def _solution(value: Any, problem: str, where: str) -> str:
    letter, offered = _text(value, f"{where}.solution").strip(), parse_options(problem)
    if letter not in offered:
        letters = ", ".join(offered) or "none"
        raise InputError(
            f"{where}: the solution is {letter!r} and its problem offers {letters}; give a letter of those"
        )
    return letter


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__} and should be text; correct the entry")
    return value


def _as_list(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, and all else as the only member of one."""
    return value if isinstance(value, list) else [] if value is None else [value]
