"""What of a DICOM file is shown: which frame, in which window."""

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError, plain

MOST_CELLS = 10


@dataclass(frozen=True)
class Window:
    """A range of values shown from black to white, in the file's units after the modality LUT: HU for CT.

    preset: the name by which it was chosen; presets are for CT alone.
    """

    center: float
    width: float
    preset: str = ""


# Centers and widths in Hounsfield units as radiologists use them: "Windowing (CT)", Radiopaedia, article 52108.
PRESETS = {
    "lung": Window(-600, 1500, "lung"),
    "bone": Window(400, 1800, "bone"),
    "brain": Window(40, 80, "brain"),
    "soft-tissue": Window(50, 400, "soft-tissue"),
}
WINDOW_FORM = f"CENTER,WIDTH or {', '.join(PRESETS)}"

Grid: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class View:
    """How DICOM files are read; any other image takes only the default.

    window: instead of the file's own. frame: which frame of a file, or slice of a series folder, counted from 1; by
    default the first. montage: (rows, columns) of frames or slices evenly spread, instead of one.
    Raises `InputError` for values that make no sense.
    """

    window: Window | None = None
    frame: int | None = None
    montage: Grid | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            _check_window(self.window)
        if self.frame is not None and self.frame < 1:
            raise InputError(f"the frame is {self.frame}; the first is 1")
        if self.montage is not None and not all(1 <= side <= MOST_CELLS for side in self.montage):
            rows, columns = self.montage
            raise InputError(f"the montage is {rows}x{columns}; give 1x1 to {MOST_CELLS}x{MOST_CELLS}, such as 3x3")
        if self.frame is not None and self.montage is not None:
            raise InputError("a frame and a montage exclude each other; give one of them")

    @property
    def of_series(self) -> bool:
        """Whether it may be of a folder as well: a series of slices."""
        return self.frame is not None or self.montage is not None


DEFAULT_VIEW = View()


def read_view(window: str | None = None, frame: int | None = None, montage: str | None = None) -> View:
    """A view from what a user writes, such as "lung", "40,400" and "3x3". Raises `InputError`."""
    return View(
        None if window is None else _read_window(window), frame, None if montage is None else _read_montage(montage)
    )


def _read_window(text: str) -> Window:
    preset = PRESETS.get(text.strip().lower().replace(" ", "-").replace("_", "-"))
    if preset is not None:
        return preset
    try:
        center, width = map(float, text.split(","))
    except ValueError:
        raise InputError(f"the window is {plain(text)!r}; give {WINDOW_FORM}") from None
    return Window(center, width)


def _read_montage(text: str) -> Grid:
    match = re.fullmatch(r"\s*([0-9]{1,3})\s*[xX]\s*([0-9]{1,3})\s*", text)
    if match is None:
        raise InputError(f"the montage is {plain(text)!r}; give rows and columns, such as 3x3")
    return int(match[1]), int(match[2])


def _check_window(window: Window) -> None:
    if not (math.isfinite(window.center) and math.isfinite(window.width) and window.width >= 1):
        raise InputError(f"the window is {window.center:g},{window.width:g}; give a width of at least 1: {WINDOW_FORM}")
