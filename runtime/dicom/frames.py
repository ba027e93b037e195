"""A DICOM file opened, and one frame of it as 8-bit pixels. Runs in the child process.

Messages of pydicom's errors and of its decoders may quote the header, so none is passed on.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .codestream import StreamSize, stream_size
from .greys import Greys, Lut, VoiWindow, colour_levels, grey_levels, palette_levels
from .header import KEYWORDS, PALETTE, Dataset, Header, display_size, read_greys, read_header, read_palette
from .view import Window

_DICOMDIR = "1.2.840.10008.1.3.10"
_DAMAGED = "it is damaged or of an unusual kind; export it again"


@dataclass(frozen=True)
class Frame:
    """One frame as it is shown.

    pixels: [height, width] or [height, width, 3] uint8. size: the (height, width) at which its pixels are square.
    window: the (center, width) that greys are shown in, None where they are not in one. extent: the least and the
    largest value of greys, in the file's units; None of colours. inverted: whether the least is white.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    header: Header
    shown: str
    window: tuple[float, float] | None = None
    extent: tuple[float, float] | None = None
    inverted: bool = False


@contextlib.contextmanager
def one_line_errors(doing: str) -> Iterator[None]:
    """Turn whatever pydicom and its decoders raise into an `InputError` that quotes nothing of the file."""
    try:
        yield
    except (InputError, MemoryError, KeyboardInterrupt):
        raise
    except RecursionError:
        raise InputError(f"cannot be {doing}: its sequences are nested without end; it is damaged") from None
    # Decoders of damaged files raise anything; a panic of the RLE decoder, which is in Rust, is no Exception.
    except BaseException as error:  # noqa: BLE001
        raise InputError(f"cannot be {doing} ({type(error).__name__}); {_DAMAGED}") from None


def open_dataset(source: BinaryIO, *, pixels: bool = True) -> Dataset:
    """The elements of a DICOM file that pixels need. Raises `InputError` for what is no DICOM image."""
    from pydicom import dcmread
    from pydicom.tag import Tag

    with one_line_errors("read"):
        dataset = dcmread(source, stop_before_pixels=not pixels, specific_tags=[Tag(word) for word in KEYWORDS])
        kind = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        if kind == _DICOMDIR or "DirectoryRecordSequence" in dataset:
            raise InputError("is a DICOMDIR, a table of contents; give one of the files that it lists, or their folder")
    return dataset


def decode(dataset: Dataset, index: int, window: Window | None) -> Frame:
    """The frame `index`, counted from 0, in `window` or as the file says. Raises `InputError`."""
    with one_line_errors("read"):
        header = read_header(dataset)
        if index >= header.frames:
            raise InputError(f"has {header.frames} frames; give a frame of 1 to {header.frames}")
        _check_window(header, window)
        size = display_size(dataset, header, index)
    with one_line_errors("decoded"):
        stored = _stored_values(dataset, header, index)
    with one_line_errors("shown"):
        if header.photometric == PALETTE:
            return Frame(palette_levels(stored, read_palette(dataset, header)), size, header, "")
        if not header.is_grey:
            return Frame(colour_levels(stored, header.bits_stored), size, header, "")
        voi = None if window is None else VoiWindow(window.center, window.width)
        greys = read_greys(dataset, header, index, voi)
        pixels, extent = grey_levels(stored, greys)
        shown_in = (greys.voi.center, greys.voi.width) if isinstance(greys.voi, VoiWindow) else None
        return Frame(
            pixels, size, header, "" if window else _how_shown(greys, extent), shown_in, extent, greys.inverted
        )


def _check_window(header: Header, window: Window | None) -> None:
    if window is None:
        return
    if not header.is_grey:
        raise InputError("is a colour image, which has no window; leave --window out")
    if window.preset and header.modality != "CT":
        raise InputError(
            f"is {header.modality or 'no CT'}, and the window {window.preset} is for CT; give CENTER,WIDTH instead"
        )


def _how_shown(greys: Greys, extent: tuple[float, float]) -> str:
    if isinstance(greys.voi, VoiWindow):
        return f"in its own window {greys.voi.center:g},{greys.voi.width:g}"
    if isinstance(greys.voi, Lut):
        return "by its own VOI LUT"
    return f"from its least value {extent[0]:g} to its largest {extent[1]:g}, having no window of its own"


def _stored_values(dataset: Dataset, header: Header, index: int) -> NDArray[Any]:
    """The frame's samples, [rows, columns] or [rows, columns, 3], as they are stored; YBR made RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    syntax = _transfer_syntax(dataset)
    _check_length(dataset, header, index, syntax)
    pixels, properties = get_decoder(syntax).as_array(
        dataset,
        index=index,
        decoding_plugin="pylibjpeg" if syntax.is_encapsulated else "",
        **as_pixel_options(dataset, allow_excess_frames=False),
    )
    expected = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if pixels.shape != expected or (header.samples == 3 and properties["photometric_interpretation"] != "RGB"):
        raise InputError(f"cannot be decoded: its pixels are not what its header says; {_DAMAGED}")
    return pixels


def _transfer_syntax(dataset: Dataset) -> Any:
    """The UID of how pixels are encoded. Raises `InputError` for one that is absent or that nothing here reads."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise InputError(f"does not say its transfer syntax; {_DAMAGED}")
    # pydicom calls an unknown one by its own text, which may say anything.
    name = "an unknown one" if syntax.name == str(syntax) else syntax.name
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise InputError(f"has a transfer syntax that is not read ({name}); export it uncompressed") from None
    if syntax.is_encapsulated and "pylibjpeg" not in decoder.available_plugins:
        raise InputError(f"needs a decoder that is not installed ({name}); install medvlm[dicom]")
    return syntax


def _check_length(dataset: Dataset, header: Header, index: int, syntax: Any) -> None:
    """Raise `InputError` where there are more or fewer pixels than the header says."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import get_expected_length

    data = dataset.PixelData
    if syntax.is_encapsulated:
        offsets = None
        if "ExtendedOffsetTable" in dataset:
            offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        size = stream_size(get_frame(data, index, number_of_frames=header.frames, extended_offsets=offsets))
        if size is not None and size != StreamSize(header.rows, header.columns, header.samples):
            raise InputError(
                f"says {header.columns} x {header.rows} pixels, and its compressed frame {size.width} x {size.height} "
                f"of {size.samples} samples; {_DAMAGED}"
            )
        return
    expected = get_expected_length(dataset)
    if not expected <= len(data) <= expected + expected % 2:
        raise InputError(f"has {len(data)} bytes of pixels, where {expected} should be; {_DAMAGED}")
