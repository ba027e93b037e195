"""One image from anywhere, as upright 8-bit RGB.

Files are recognized by their content, never by their name, and only PNG, JPEG, BMP, TIFF, WebP and DICOM are tried.
Of an animated or multi-page file the first frame is used, and a note says so. The EXIF orientation is applied. How
DICOM is read, in a process of its own, is told in the folder dicom.

Modes become RGB as `Qwen2VLImageProcessorPil` makes them, after the EXIF orientation: grey is repeated, palettes are
looked up, CMYK and the like go through Pillow's `convert("RGB")`, and whatever is transparent is laid over white.

Greys of more than 8 bits are the exception, because Pillow clips them at 255: modes I;16, I;16B, I;16L, I;16N, mode I
within 0..65535, and uint16 arrays are scaled by their bit depth. That is the least of 8, 10, 12, 14 and 16 bits which
holds the brightest pixel, and a level is `round(value * 255 / (2**bits - 1))`. So a 12-bit scan in a 16-bit file keeps
its contrast, and black stays black; where a TIFF says that zero is white, as radiographs may, the levels are turned
round. Mode I outside that range and mode F have no such depth and are refused. 16-bit *colour* files never reach the
scaling: Pillow itself keeps the high byte of each sample.
"""

import contextlib
import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .dicom.load import Shown, open_file, open_folder
from .dicom.preamble import HEAD_BYTES, is_dicom
from .dicom.view import DEFAULT_VIEW, View
from .errors import InputError, plain
from .image_limits import MAX_FILE_BYTES, MAX_PIXELS
from .metered import Metered

ImageSource: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | npt.NDArray[Any]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
FORMAT_NAMES = "PNG, JPEG, BMP, TIFF, WebP and DICOM"
BIT_DEPTHS = (8, 10, 12, 14, 16)

# It logs the tags of TIFF and EXIF, which may name a person, wherever an application logs all.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.INFO)

# TIFF's PhotometricInterpretation, and its value where zero is white.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0

# Pillow counts a TIFF's pages in time that grows with their square: a hostile file could keep it at that for hours.
_MAX_COUNTED_FRAMES = 1000
_SCALED_AT_ONCE = 2**20
_READ_AT_ONCE = 2**26
_ARRAY_SHAPES = "[h, w], [h, w, 1], [h, w, 3] or [h, w, 4]"


@dataclass(frozen=True)
class LoadedImage:
    """An upright image of mode RGB, and what the user should know about how it was read: one line each.

    shown: of what came from a DICOM file, what a viewer is told of it.
    """

    pixels: Image.Image
    notes: tuple[str, ...]
    shown: Shown | None = None


def load_image(source: ImageSource, view: View = DEFAULT_VIEW) -> LoadedImage:
    """Read `source`: a path, the bytes of a file, a Pillow image (left as it is), or an array.

    view: how DICOM is shown, for DICOM files alone. With a frame or a montage, the path may be a folder: a series.

    Arrays are `[h, w]`, `[h, w, 1]`, `[h, w, 3]` (RGB) of uint8, uint16 or bool, or `[h, w, 4]` (RGBA) of uint8.

    Raises `InputError`, one line that names the file, for everything that cannot be read: no such file, a folder, a
    device, more than 1 GiB or 100 megapixels (known from the header, before any pixel is decoded), another format,
    truncated or damaged content, or an array of another shape or type.
    """
    # Pillow warns about odd metadata and large images; what matters of it is an InputError here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(source, str | os.PathLike):
            return _load_path(Path(os.fsdecode(source)), view)
        if isinstance(source, bytes):
            return decode_image(source, "the image", view)
        _check_default(view, "the image")
        if isinstance(source, Image.Image):
            return LoadedImage(_checked_upright_rgb(source, "the image"), ())
        if isinstance(source, np.ndarray):
            return LoadedImage(_from_array(source), ())
    raise InputError(f"an image is a path, bytes, a Pillow image or a numpy array, not {type(source).__name__}")


def read_encoded(source: ImageSource) -> tuple[bytes, str] | None:
    """The content of an image file and what to call it in messages; None for pixels, folders, and files over 64 MiB.

    Raises `InputError` as `load_image` does where the file cannot be read.
    """
    if isinstance(source, bytes):
        return source, "the image"
    if not isinstance(source, str | os.PathLike):
        return None
    path = Path(os.fsdecode(source))
    name = plain(str(path))
    if _is_folder(path):
        return None
    with _open_regular(path, name) as stream, _one_line_errors(name):
        content = stream.read(_READ_AT_ONCE + 1)
    return (content, name) if len(content) <= _READ_AT_ONCE else None


def decode_image(content: bytes, name: str, view: View = DEFAULT_VIEW) -> LoadedImage:
    """As `load_image`, of a file's `content` that messages call `name`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_file_size(len(content), name)
        return _load_stream(io.BytesIO(content), content, name, view)


def _load_path(path: Path, view: View) -> LoadedImage:
    name = plain(str(path))
    if view.of_series and _is_folder(path):
        opened = open_folder(path, name, view)
        return LoadedImage(opened.pixels, opened.notes, opened.shown)
    with _open_regular(path, name) as stream:
        return _load_stream(stream, path, name, view)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _check_default(view: View, name: str) -> None:
    """Raise `InputError` where a view was asked for of what is not DICOM."""
    if view != DEFAULT_VIEW:
        raise InputError(f"{name} is no DICOM file; a window, a frame and a montage are for DICOM alone")


def _open_regular(path: Path, name: str) -> BinaryIO:
    """Open `path` for reading, after making sure that it is a file: to open a pipe or a device could block for ever."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder; give one image file, or a montage or a frame of a DICOM series")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is a device, a pipe or a socket; give an image file")
        _check_file_size(status.st_size, name)
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path") from None
    except PermissionError:
        raise InputError(f"{name} may not be read; check its permissions") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be opened ({_reason(error)})") from error


def _check_file_size(size: int, name: str) -> None:
    if size == 0:
        raise InputError(f"{name} is empty (0 bytes); copy or export it again")
    if size > MAX_FILE_BYTES:
        raise InputError(f"{name} is larger than {MAX_FILE_BYTES / 2**30:g} GiB; give a single smaller image")


def _load_stream(stream: BinaryIO, source: Path | bytes, name: str, view: View) -> LoadedImage:
    """The image in `stream`, which is that of `source`."""
    with _one_line_errors(name):
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
    if is_dicom(head):
        opened = open_file(source, head, name, view)
        return LoadedImage(opened.pixels, opened.notes, opened.shown)
    _check_default(view, name)
    metered = Metered(stream, name)
    with _one_line_errors(name), Image.open(cast("BinaryIO", metered), formats=FORMATS) as image:
        metered.expect_pages()
        notes = _frame_notes(image, name)
        metered.expect_pixels(jpeg=image.format in ("JPEG", "MPO"))
        return LoadedImage(_checked_upright_rgb(image, name), notes)


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an `InputError` about `name`."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image, or is damaged at its start; {FORMAT_NAMES} are read") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name)) from None
    except MemoryError:
        raise InputError(f"{name} does not fit in memory; scale it down first") from None
    # Decoders of damaged files raise anything from SyntaxError to zlib.error to a bare Exception.
    except Exception as error:
        raise InputError(
            f"{name} cannot be decoded ({_reason(error)}); it is damaged or of an unusual kind: save it again as PNG"
        ) from error


def _check_size(size: tuple[int, int], name: str) -> None:
    """Refuse the `(width, height)` of an image that has no pixels, or too many of them."""
    if min(size) < 1:
        raise InputError(f"{name} has no pixels ({size[0]} x {size[1]})")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(_too_large(name))


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} megapixels; scale it down first"


def _frame_notes(image: Image.Image, name: str) -> tuple[str, ...]:
    frames = _count_frames(image)
    if frames == 1:
        return ()
    count = f"{frames}" if frames <= _MAX_COUNTED_FRAMES else f"more than {_MAX_COUNTED_FRAMES}"
    return (f"{name} has {count} frames; frame 1 was used",)


def _count_frames(image: Image.Image) -> int:
    """Frames in the file, where `_MAX_COUNTED_FRAMES + 1` means that or more. The first one stays selected."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    frames = 1
    with contextlib.suppress(EOFError):
        while frames <= _MAX_COUNTED_FRAMES:
            image.seek(frames)
            frames += 1
    image.seek(0)
    return frames


def _checked_upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image: `image` decoded, turned upright and converted."""
    _check_size(image.size, name)
    # Pillow turns the levels of 8-bit TIFFs whose zero is white, and leaves deeper ones; turning upright loses the tag.
    zero_is_white = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    with _one_line_errors(name):
        upright = _to_rgb(ImageOps.exif_transpose(image), name, zero_is_white=zero_is_white)
    # Texts may name a person, and Pillow writes a JPEG's comment into what is saved of its pixels.
    upright.info = {}
    return upright


def _to_rgb(image: Image.Image, name: str, *, zero_is_white: bool = False) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels; save it with 8 or 16 bits a pixel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = _eight_bit_levels(np.asarray(image), name)
        return Image.fromarray(255 - levels if zero_is_white else levels).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or image.info.get("transparency") is not None:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    shown = Image.new("RGB", image.size)
    # In strips: whole, 100 megapixels would take two gigabytes.
    height = max(1, _SCALED_AT_ONCE // image.width)
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        shown.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return shown


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    name = "the image array"
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.bool_):
        raise InputError(f"{name} is {plain(str(array.dtype))}; give uint8, uint16 or bool")
    if array.dtype.itemsize == 2 and array.shape[2:] == (4,):
        raise InputError(f"{name} has 16-bit transparency; give its colours alone, [h, w, 3]")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"{name} has the shape {list(array.shape)}; give {_ARRAY_SHAPES}")
    _check_size((array.shape[1], array.shape[0]), name)
    grey = array.ndim == 2 or array.shape[2] == 1
    levels = _array_levels(array.reshape(array.shape[:2]) if grey else array, name)
    return _to_rgb(Image.fromarray(levels), name)


def _array_levels(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """The contiguous uint8 levels of a uint8, uint16 or bool array."""
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    return _eight_bit_levels(array, name)


def _eight_bit_levels(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Integers of any shape within 0..65535 as `round(value * 255 / (2**bits - 1))`, see the module's docstring."""
    darkest, brightest = int(values.min()), int(values.max())
    if darkest < 0 or brightest > 65535:
        raise InputError(f"{name} has pixels from {darkest} to {brightest}; save it with values within 0 to 65535")
    top = next(2**bits - 1 for bits in BIT_DEPTHS if brightest < 2**bits)
    # 255 * value / top is never halfway between two integers, since top is odd: every way of rounding agrees.
    table = np.rint(np.arange(top + 1) * 255 / top).astype(np.uint8)
    flat, levels = values.reshape(-1), np.empty(values.size, dtype=np.uint8)
    # In steps, because numpy turns indices into eight bytes each.
    for start in range(0, flat.size, _SCALED_AT_ONCE):
        levels[start : start + _SCALED_AT_ONCE] = table[flat[start : start + _SCALED_AT_ONCE]]
    return levels.reshape(values.shape)


def _reason(error: BaseException) -> str:
    """What `error` says, on one line of moderate length and without the path that an OSError repeats."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return plain(text)[:120] or type(error).__name__
