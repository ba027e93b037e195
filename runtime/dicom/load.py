"""DICOM files as Pillow images, each opened in a child process with limits.

The child is a fresh interpreter, started without a shell and without a fork of this process, so any thread may do it.
It imports numpy, pydicom and this package's few files, and nothing else of the runtime.
"""

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..errors import InputError, MedVLMError, plain
from ..image_limits import MAX_FILE_BYTES, MAX_PIXELS
from .child import CPU_SECONDS
from .montage import compose
from .preamble import PROGRAM, is_program
from .series import MOST_FILES
from .view import View

# Its time to compute is limited to less; this is for one that waits, or on a machine that is busy with other things.
DEADLINE_SECONDS = 120.0

_PACKAGES = ("pydicom", "pylibjpeg")
# The longest is the list of the frames of a 10x10 montage.
_MOST_TEXT = 1000
_MOST_ANSWER = 2**16
# Stand-ins for the packages above this one: their own __init__ would load the model's code for nothing.
_BOOT = """
import importlib, sys, types
name, path = sys.argv[1:3]
sys.path[:] = sys.argv[3:]
parts = name.split(".")
for end in range(1, len(parts) + 1):
    package = sys.modules[".".join(parts[:end])] = types.ModuleType(".".join(parts[:end]))
    package.__path__ = [path] if end == len(parts) else []
importlib.import_module(name + ".dicom.child").main()
"""


@dataclass(frozen=True)
class Shown:
    """What a viewer is told of a DICOM image: of the first frame of a montage.

    frames: how many its file has. window: the (center, width) that its greys are shown in, None where they are not in
    one. extent: the least and the largest of its values, in the file's units; None of colours.
    inverted: whether the least is white.
    """

    frames: int
    window: tuple[float, float] | None
    extent: tuple[float, float] | None
    inverted: bool


@dataclass(frozen=True)
class Opened:
    """An RGB image and what the user should know about how it was read."""

    pixels: Image.Image
    notes: tuple[str, ...]
    shown: Shown


@dataclass(frozen=True)
class _Form:
    """A frame that the child sends. shape: of its uint8 pixels. size: its (height, width) once they are square."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    shown: Shown


def open_file(source: Path | bytes, head: bytes, name: str, view: View) -> Opened:
    """A DICOM file, whose first bytes are `head`: a path is opened by the child. Raises `InputError` about `name`."""
    if is_program(head):
        raise InputError(f"{name} {PROGRAM}")
    if isinstance(source, bytes):
        return _open([], source, name, view)
    return _open([source], b"", name, view)


def open_folder(folder: Path, name: str, view: View) -> Opened:
    """The slices of a folder's one series. Raises `InputError` where it holds anything else, or too much."""
    try:
        paths = sorted(Path(entry.path) for entry in os.scandir(folder) if _may_be_slice(entry))
    except OSError as error:
        raise InputError(f"{name} cannot be listed ({error.strerror}); check its permissions") from None
    if not 1 <= len(paths) <= MOST_FILES:
        raise InputError(f"{name} holds {len(paths)} files; give the folder of one series, of 1 to {MOST_FILES} files")
    return _open(paths, b"", name, view, folder=True)


def _may_be_slice(entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".") or entry.name.upper() == "DICOMDIR"
    # A link that leads nowhere, or to itself, is no slice.
    with contextlib.suppress(OSError):
        return not hidden and entry.is_file() and entry.stat().st_size <= MAX_FILE_BYTES
    return False


def _open(paths: Sequence[Path], content: bytes, name: str, view: View, *, folder: bool = False) -> Opened:
    _check_installed(name)
    window = view.window
    request = {
        "paths": [str(path.absolute()) for path in paths],
        "folder": folder,
        "window": None if window is None else [window.center, window.width, window.preset],
        "frame": view.frame,
        "montage": view.montage,
    }
    answer, images, shown = _ask_child(json.dumps(request).encode() + b"\n" + content, name)
    image = images[0] if view.montage is None else compose(images, view.montage)
    return Opened(image, tuple(f"{name} {_text(note)}" for note in answer["notes"]), shown)


def _check_installed(name: str) -> None:
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise InputError(f"{name} is a DICOM file, and what reads those is not installed; install medvlm[dicom]")


def _ask_child(message: bytes, name: str) -> tuple[dict[str, Any], list[Image.Image], Shown]:
    """The child's answer, its images, and how the first is shown.

    Raises `InputError` for what it refuses or does not survive.
    """
    with _child(message) as (process, expired):
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        line = process.stdout.readline(_MOST_ANSWER)
        try:
            answer = json.loads(line) if line.endswith(b"\n") else None
            if isinstance(answer, dict) and isinstance(answer.get("notes"), list) and answer.get("frames"):
                forms = list(map(_read_form, answer["frames"]))
                return answer, _read_images(process.stdout, forms), forms[0].shown
        except (ValueError, TypeError, KeyError, OverflowError, EOFError, RecursionError):
            answer = None
        if answer is None:
            process.kill()
        code = process.wait()
    if isinstance(answer, dict) and "error" in answer:
        where = f"{name}{os.sep}{_text(answer['file'])}" if "file" in answer else name
        raise InputError(f"{where} {_text(answer['error'])}")
    raise _ended_early(name, code, expired=expired.is_set())


def _ended_early(name: str, code: int, *, expired: bool) -> MedVLMError:
    """What to say of a child that exited with `code` and gave no answer."""
    if expired:
        return InputError(f"{name} took longer than {DEADLINE_SECONDS:g} s to decode and was given up; it is damaged")
    if code == -getattr(signal, "SIGXCPU", 0):
        return InputError(
            f"{name} took more than {CPU_SECONDS} s to decode and was given up; it is damaged or too large"
        )
    if code < 0:
        return InputError(f"{name} cannot be decoded: its decoder stopped (signal {-code}); it is damaged or too large")
    return MedVLMError(f"{name} could not be read: the process that decodes stopped (exit {code}); reinstall medvlm")


@contextlib.contextmanager
def _child(message: bytes) -> Iterator[tuple[subprocess.Popen[bytes], threading.Event]]:
    """A child that is sent `message`; killed at the end, and at the deadline, which sets the event."""
    runtime = __name__.removesuffix(".dicom.load")
    paths = [path for path in sys.path if path]
    command = [sys.executable, "-I", "-S", "-B", "-c", _BOOT, runtime, str(Path(__file__).parents[1]), *paths]
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and nothing of the file in its arguments
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What a decoder says may quote the header.
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads},
        )
    except OSError as error:
        raise MedVLMError(f"the process that decodes DICOM cannot be started ({error.strerror})") from None
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(DEADLINE_SECONDS, give_up)
    timer.daemon = True
    writer = threading.Thread(target=_send, args=(process.stdin, message), daemon=True)
    timer.start()
    writer.start()
    try:
        yield process, expired
    finally:
        timer.cancel()
        timer.join()
        process.kill()
        writer.join()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _send(stream: IO[bytes], message: bytes) -> None:
    """Write all; a child that ended says so by its answer, or by none."""
    with contextlib.suppress(OSError), stream:
        stream.write(message)


def _read_images(stream: IO[bytes], forms: Sequence[_Form]) -> list[Image.Image]:
    """The frames that follow. Raises `ValueError` and others for what no sound child sends."""
    # Together, since a montage is no larger than an image.
    if sum(max(math.prod(form.shape[:2]), math.prod(form.size)) for form in forms) > MAX_PIXELS:
        raise ValueError("more than was asked for")
    return [_read_image(stream, form) for form in forms]


def _read_form(stated: dict[str, Any]) -> _Form:
    """The form of a frame; raises as `_read_images`."""
    window, extent = _read_pair(stated["window"]), _read_pair(stated["extent"])
    shown = Shown(int(stated["frames"]), window, extent, bool(stated["inverted"]))
    form = _Form(tuple(map(int, stated["shape"])), tuple(map(int, stated["size"])), shown)
    if len(form.size) != 2 or form.shape[2:] not in ((), (3,)) or min(*form.shape, *form.size) < 1:
        raise ValueError("no shape of an image")
    return form


def _read_pair(stated: Any) -> tuple[float, float] | None:
    """Two finite numbers, or None where None or others are stated; raises as `_read_images`."""
    if stated is None:
        return None
    first, second = map(float, stated)
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def _read_image(stream: IO[bytes], form: _Form) -> Image.Image:
    """The next frame as RGB with square pixels. Raises `EOFError` where it ends early."""
    data = stream.read(math.prod(form.shape))
    if len(data) < math.prod(form.shape):
        raise EOFError
    height, width, *samples = form.shape
    image = Image.frombytes("RGB" if samples else "L", (width, height), data)
    if form.size != (height, width):
        image = image.resize((form.size[1], form.size[0]), Image.Resampling.BICUBIC)
    return image.convert("RGB")


def _text(value: object) -> str:
    return plain(str(value))[:_MOST_TEXT]
