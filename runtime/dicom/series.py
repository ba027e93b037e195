"""The slices of a folder in their order in space. Runs in the child process."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .frames import open_dataset
from .header import MOST_FRAMES, Dataset, element, integer, numbers
from .preamble import HEAD_BYTES, PROGRAM, is_dicom, is_program

MOST_FILES = 5000


@dataclass(frozen=True)
class Slice:
    """One file of a series.

    position: where it is along the normal of its plane, in mm; None where its header does not say. number: its
    Instance Number, 0 for none.
    """

    path: Path
    series: str
    frames: int
    position: float | None
    number: int
    normal: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """The files of a folder that are one series, in order. skipped: how many files of the folder are no images."""

    slices: tuple[Slice, ...]
    skipped: int
    ordered_by: str

    @property
    def frames(self) -> list[tuple[Path, int]]:
        """Each frame's file, and its number in it from 0."""
        return [(one.path, index) for one in self.slices for index in range(one.frames)]


def read_series(paths: Sequence[Path]) -> Series:
    """Look at the headers of a folder's files. Raises `InputError` where they are not the slices of one series."""
    for path in paths:
        _check_preamble(path)
    found = [one for path in paths if (one := _read_slice(path)) is not None]
    if not found:
        raise InputError(f"holds no DICOM image among its {len(paths)} files; give the folder of one series")
    if (total := sum(one.frames for one in found)) > MOST_FRAMES:
        raise InputError(f"holds {total} frames, more than {MOST_FRAMES}; give a part of them")
    count = len({one.series for one in found})
    if count > 1:
        raise InputError(f"holds {count} series; give a folder with one of them, or one image")
    slices, ordered_by = order(found)
    return Series(tuple(slices), len(paths) - len(found), ordered_by)


def order(slices: Sequence[Slice]) -> tuple[list[Slice], str]:
    """The slices from low to high along their common normal, and by what they were ordered.

    The position is the dot product of the Image Position (Patient) with the normal, the cross product of the row's
    and the column's direction (PS3.3 2024, C.7.6.2.1.1): for axial slices, from the feet up. Where planes differ or
    lack a position, the Instance Number decides; raises `InputError` where that is of no help either.
    """
    normals = np.array([one.normal for one in slices if one.position is not None])
    if len(normals) == len(slices) and (normals @ normals[0] > 0.999).all():
        return sorted(slices, key=lambda one: (one.position or 0.0, one.number)), "position"
    if len({one.number for one in slices}) < len(slices):
        raise InputError("holds images without positions or numbers that would order them; give one image")
    return sorted(slices, key=lambda one: one.number), "number"


def spread(count: int, wanted: int) -> list[int]:
    """Which of `count` frames, from 0, stand for all of them: the middles of `wanted` equal parts, or all if fewer."""
    if count <= wanted:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def _check_preamble(path: Path) -> None:
    """Raise `InputError` for a DICOM file that is a program too; one that is no DICOM is left out like any other."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if is_dicom(head) and is_program(head):
            raise InputError(f"holds {path.name}, which {PROGRAM}")


def _read_slice(path: Path) -> Slice | None:
    """None for a file that is no DICOM image."""
    try:
        with path.open("rb") as stream:
            dataset = open_dataset(stream, pixels=False)
            if "Rows" not in dataset or "Columns" not in dataset:
                return None
            return describe(path, dataset)
    except (InputError, OSError):
        return None


def describe(path: Path, dataset: Dataset) -> Slice:
    """Where a file belongs in its series."""
    normal, position = _normal(numbers(dataset, "ImageOrientationPatient")), None
    place = numbers(dataset, "ImagePositionPatient")
    if normal is not None and place is not None and len(place) == 3:
        position = float(normal @ np.array(place))
    return Slice(
        path,
        str(element(dataset, "SeriesInstanceUID")),
        integer(dataset, "NumberOfFrames", 1, MOST_FRAMES, 1),
        position,
        integer(dataset, "InstanceNumber", -(2**31), 2**31, 0),
        () if normal is None else tuple(normal.tolist()),
    )


def _normal(directions: tuple[float, ...] | None) -> np.ndarray | None:
    """The unit normal [3] of a plane from its row's and its column's direction; None where they span none."""
    if directions is None or len(directions) != 6:
        return None
    normal = np.cross(directions[:3], directions[3:])
    length = np.linalg.norm(normal)
    return normal / length if 0.5 < length < 2 else None
