"""The process that opens DICOM files: it sets its own limits, reads one request, writes one answer, and ends.

Request, on standard input: a line of JSON, then the content of a file where the request gives no paths. Answer, on
standard output: a line of JSON, then the pixels of its frames one after the other. Nothing is ever unpickled.
"""

import contextlib
import io
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from ..image_limits import MAX_PIXELS
from .frames import Frame, decode, open_dataset
from .header import MOST_FRAMES, integer
from .series import read_series, spread
from .view import View, Window

# An image of 100 megapixels, its compressed form and what a decoder makes of it fit in this.
MEMORY_BYTES = 2 * 2**30
CPU_SECONDS = 30


@dataclass(frozen=True)
class Decoded:
    """What a request gave: frames, and what the user should know about them, after the name of the file."""

    frames: Sequence[Frame]
    notes: Sequence[str]


class FileError(InputError):
    """A file of a folder is at fault: `name` within it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def main() -> None:
    """Answer the request on standard input."""
    _limit()
    warnings.simplefilter("ignore")
    reader, writer = sys.stdin.buffer, sys.stdout.buffer
    decoded = None
    try:
        request = json.loads(reader.readline())
        view = View(
            window=None if request["window"] is None else Window(*request["window"]),
            frame=request["frame"],
            montage=None if request["montage"] is None else tuple(request["montage"]),
        )
        if request["folder"]:
            decoded = decode_folder([Path(path) for path in request["paths"]], view)
        elif request["paths"]:
            with Path(request["paths"][0]).open("rb") as stream:
                decoded = decode_file(stream, view)
        else:
            decoded = decode_file(io.BytesIO(reader.read()), view)
        answer: dict[str, Any] = {"frames": list(map(_form, decoded.frames)), "notes": decoded.notes}
    except FileError as error:
        answer = {"error": str(error), "file": error.name}
    except InputError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"needs more than {MEMORY_BYTES / 2**30:g} GiB of memory to read; give a smaller image"}
    writer.write(json.dumps(answer).encode() + b"\n")
    for frame in decoded.frames if decoded else ():
        writer.write(np.ascontiguousarray(frame.pixels).data)
    writer.flush()


def decode_file(source: BinaryIO, view: View) -> Decoded:
    """The frames of one file that `view` asks for."""
    dataset = open_dataset(source)
    count = integer(dataset, "NumberOfFrames", 1, MOST_FRAMES, 1)
    if view.montage is None:
        frame = decode(dataset, (view.frame or 1) - 1, view.window)
        notes = [f"has {count} frames; frame 1 was used"] if count > 1 and view.frame is None else []
        return Decoded([frame], notes + _shown([frame]))
    chosen = spread(count, view.montage[0] * view.montage[1])
    frames = []
    for index in chosen:
        frames.append(decode(dataset, index, view.window))
        _check_total(frames, len(chosen))
    return Decoded(frames, [_listed(chosen, count, "frames"), *_shown(frames)])


def decode_folder(paths: Sequence[Path], view: View) -> Decoded:
    """The slices that `view` asks for of the series that these files are."""
    series = read_series(paths)
    slices = series.frames
    if view.montage is None:
        chosen = [(view.frame or 1) - 1]
        if chosen[0] >= len(slices):
            raise InputError(f"holds {len(slices)} slices; give a frame of 1 to {len(slices)}")
    else:
        chosen = spread(len(slices), view.montage[0] * view.montage[1])
    frames: list[Frame] = []
    for path, index in (slices[place] for place in chosen):
        try:
            with path.open("rb") as stream:
                frames.append(decode(open_dataset(stream), index, view.window))
        except InputError as error:
            raise FileError(path.name, str(error)) from None
        _check_total(frames, len(chosen))
    notes = [_listed(chosen, len(slices), f"slices, ordered by {series.ordered_by}")]
    if series.skipped:
        notes.append(f"has {series.skipped} files that are no DICOM images and were left out")
    return Decoded(frames, notes + _shown(frames))


def _check_total(frames: Sequence[Frame], wanted: int) -> None:
    """Refuse a montage that is too large, as soon as a frame shows it."""
    stored, shown = (math.prod(size) for size in (frames[-1].pixels.shape[:2], frames[-1].size))
    if max(stored, shown) * wanted > MAX_PIXELS:
        raise InputError(f"makes a montage of more than {MAX_PIXELS // 10**6} megapixels; give fewer rows and columns")


def _listed(chosen: Sequence[int], count: int, what: str) -> str:
    return f"has {count} {what}; shown: {', '.join(str(index + 1) for index in chosen)}"


def _shown(frames: Sequence[Frame]) -> list[str]:
    """How greys were made, where it was left to the files: of the first frame, and whether others differ."""
    if not frames[0].shown:
        return []
    others = "" if len({frame.shown for frame in frames}) == 1 else " (the first; others have others)"
    return [f"is shown {frames[0].shown}{others}"]


def _form(frame: Frame) -> dict[str, Any]:
    return {
        "shape": frame.pixels.shape,
        "size": frame.size,
        "frames": frame.header.frames,
        "window": frame.window,
        "extent": frame.extent,
        "inverted": frame.inverted,
    }


def _limit() -> None:
    """Limit this process, where the system can: Windows has no such limits, and macOS does not keep that of memory."""
    try:
        import resource
    except ImportError:
        return
    limits = {
        resource.RLIMIT_AS: (MEMORY_BYTES, MEMORY_BYTES),
        # One second apart: the first limit's signal says that it was this one.
        resource.RLIMIT_CPU: (CPU_SECONDS, CPU_SECONDS + 1),
        # It writes no file, and where it crashes leaves none that would hold what it read.
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            highest = resource.getrlimit(kind)[1]
            soft, hard = (one if highest == resource.RLIM_INFINITY else min(one, highest) for one in most)
            resource.setrlimit(kind, (soft, hard))
