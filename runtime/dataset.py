"""Questions with known answers, in the form of MedVLM-R1's authors: image, problem and solution."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .entries import FORM, read_entries
from .errors import InputError, plain
from .prompt import parse_options


@dataclass(frozen=True)
class DatasetItem:
    """One question of a dataset.

    index: its place in the file, from 0. images: paths of files, which exist unless they were not looked for. problem:
    the question with its options, as it is put to the model. solution: the right letter, one that `problem` offers.
    options: their texts, and subset: the kind of images, where the file says them.
    """

    index: int
    images: tuple[Path, ...]
    problem: str
    solution: str
    options: tuple[str, ...] = ()
    subset: str | None = None


def read_dataset(path: Path, images: Path | None = None, *, find_images: bool = True) -> list[DatasetItem]:
    """Read and check a dataset, in one of the forms that `read_entries` reads; no image is decoded.

    images: the folder that the images' paths start from, by default the file's own. find_images: refuse an entry whose
    image is not there; a folder may be a DICOM series. Raises `InputError`, which names the entry, for what cannot be
    used: all of the file is looked at first.
    """
    folder = images or path.parent
    items = [_read_entry(path, folder, index, entry) for index, entry in enumerate(read_entries(path))]
    for item in items if find_images else ():
        for image in item.images:
            if not is_there(image):
                raise InputError(
                    f"{place(path, item.index)}: there is no image {plain(str(image))}; "
                    "copy it there, or say with --images where it is"
                )
    return items


def place(path: Path, index: int) -> str:
    """What an error calls an entry: `dataset.json[3]`, counted from 0 as JSON's lists are."""
    return f"{plain(path.name)}[{index}]"


def _read_entry(path: Path, folder: Path, index: int, entry: Any) -> DatasetItem:
    where = place(path, index)
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object; give {FORM}")
    absent = [name for name in ("image", "problem", "solution") if not all(_as_list(entry.get(name)) or [None])]
    if absent:
        raise InputError(f"{where} has no {' and no '.join(absent)}; add it, or take the entry out")
    problem = _text(entry["problem"], f"{where}.problem")
    return DatasetItem(
        index=index,
        images=tuple(folder / _text(name, f"{where}.image") for name in _as_list(entry["image"])),
        problem=problem,
        solution=_solution(entry["solution"], problem, where),
        options=tuple(_text(option, f"{where}.options") for option in _as_list(entry.get("options"))),
        subset=_text(entry["subset"], f"{where}.subset") if entry.get("subset") else None,
    )


def is_there(path: Path) -> bool:
    """Whether an image's path leads to a file, or to a folder, which a DICOM series may be."""
    try:
        return path.exists()
    except (OSError, ValueError):
        # A name that is too long, or no name for a file; a folder that may not be entered.
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
