"""What of a header matters for pixels: numbers, and words of closed lists. Messages carry nothing else of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..errors import InputError
from ..image_limits import MAX_PIXELS
from .greys import Function, Greys, Lut, Rescale, VoiWindow

# A pydicom dataset: pydicom is imported only where a file is opened.
Dataset: TypeAlias = Any

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# Others are shown alike, and never named.
MODALITIES = ("CT", "MR", "CR", "DX", "MG", "US", "XA", "RF", "PT", "NM", "IO", "PX", "ES", "XC", "SC", "OT")

MOST_FRAMES = 100_000

_PER_FRAME, _SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
_COLOURS_OF_PALETTE = ("Red", "Green", "Blue")

# What is read of a file; the values of all other elements are skipped unread, names among them.
KEYWORDS = (
    "SOPClassUID Modality SeriesInstanceUID InstanceNumber ImagePositionPatient ImageOrientationPatient "
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated "
    "BitsStored HighBit PixelRepresentation PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing "
    "PixelAspectRatio PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept ModalityLUTSequence "
    "WindowCenter WindowWidth VOILUTFunction VOILUTSequence PixelPresentation DirectoryRecordSequence "
    f"{_SHARED} {_PER_FRAME} ExtendedOffsetTable ExtendedOffsetTableLengths "
    "PixelData FloatPixelData DoubleFloatPixelData"
).split() + [
    f"{form}{colour}PaletteColorLookupTable{part}"
    for colour in _COLOURS_OF_PALETTE
    for form, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]


@dataclass(frozen=True)
class Header:
    """The image's form. samples: 1 or 3 a pixel. modality: "" where it is none of the list."""

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    modality: str

    @property
    def is_grey(self) -> bool:
        """Whether its values become greys, by a window or a lookup table."""
        return self.photometric in MONOCHROME


def read_header(dataset: Dataset) -> Header:
    """Check the form of the pixels before any is looked at. Raises `InputError`, without the file's name in it."""
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise InputError("has floating-point pixels; integers of 1 to 16 bits are read")
        raise InputError("has no pixels: it is a report, a plan or another object, or is cut off; give an image")
    header = Header(
        rows=integer(dataset, "Rows", 1, 65535),
        columns=integer(dataset, "Columns", 1, 65535),
        frames=integer(dataset, "NumberOfFrames", 1, MOST_FRAMES, 1),
        samples=integer(dataset, "SamplesPerPixel", 1, 4, 1),
        bits_allocated=integer(dataset, "BitsAllocated", 1, 64),
        bits_stored=integer(dataset, "BitsStored", 1, 64),
        signed=integer(dataset, "PixelRepresentation", 0, 1, 0) == 1,
        photometric=word(dataset, "PhotometricInterpretation", (*MONOCHROME, PALETTE, *COLOURS)),
        modality=word(dataset, "Modality", MODALITIES),
    )
    if header.rows * header.columns > MAX_PIXELS:
        raise InputError(
            f"has {header.columns} x {header.rows} pixels, more than {MAX_PIXELS // 10**6} megapixels; scale it down"
        )
    if header.bits_allocated not in (1, 8, 16) or header.bits_stored > header.bits_allocated:
        raise InputError(
            f"stores {header.bits_stored} of {header.bits_allocated} bits a sample; 1 to 16 of 1, 8 or 16 are read"
        )
    highest = integer(dataset, "HighBit", 0, 63, header.bits_stored - 1)
    if highest >= header.bits_stored:
        raise InputError(
            f"stores {header.bits_stored} bits from bit {highest} down, as was allowed once; they are read from bit "
            f"{header.bits_stored - 1} down: export it again"
        )
    if header.samples != (3 if header.photometric in COLOURS else 1) or not header.photometric:
        raise InputError(
            f"has {header.samples} samples a pixel of the photometric interpretation "
            f"{header.photometric or 'that it lacks or that is unknown'}; "
            f"{', '.join((*MONOCHROME, PALETTE, *COLOURS))} are read"
        )
    return header


def read_greys(dataset: Dataset, header: Header, frame: int, window: VoiWindow | None) -> Greys:
    """How the stored values of a frame, counted from 0, become greys: in `window`, or as the file says."""
    modality = _read_modality(_macro(dataset, frame, "PixelValueTransformationSequence"), header)
    signed = _may_be_negative(modality, header)
    voi = window or _read_voi(_macro(dataset, frame, "FrameVOILUTSequence"), signed=signed)
    padding = None
    if "PixelPaddingValue" in dataset:
        value = _signed(integer(dataset, "PixelPaddingValue", -(2**15), 2**16), signed=header.signed)
        limit = _signed(integer(dataset, "PixelPaddingRangeLimit", -(2**15), 2**16, value), signed=header.signed)
        padding = (min(value, limit), max(value, limit))
    return Greys(modality, voi, padding, header.photometric == "MONOCHROME1")


def read_palette(dataset: Dataset, header: Header) -> tuple[Lut, Lut, Lut]:
    """The palette's red, green and blue. Raises `InputError` for one that is absent, damaged or segmented."""
    if "RedPaletteColorLookupTableData" not in dataset and "SegmentedRedPaletteColorLookupTableData" in dataset:
        raise InputError("has a segmented palette, which is not read; save it as RGB")
    names = [f"{colour}PaletteColorLookupTable" for colour in _COLOURS_OF_PALETTE]
    signed = header.signed
    red, green, blue = (_read_lut(dataset, f"{name}Descriptor", f"{name}Data", signed=signed) for name in names)
    return red, green, blue


def display_size(dataset: Dataset, header: Header, frame: int) -> tuple[int, int]:
    """The (height, width) at which pixels are square: one side is enlarged where their spacings differ.

    Spacings are (between rows, between columns), as PS3.3 2024, 10.7.1.3 has them; the Pixel Aspect Ratio, vertical
    to horizontal, counts where there is none (C.7.6.3.1.7). Raises `InputError` for a ratio beyond 20.
    """
    sources = (
        (_macro(dataset, frame, "PixelMeasuresSequence"), "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
        (dataset, "PixelAspectRatio"),
    )
    spacing = next((found for item, keyword in sources if (found := numbers(item, keyword)) is not None), (1.0, 1.0))
    if len(spacing) != 2 or min(spacing) <= 0:
        return header.rows, header.columns
    ratio = spacing[0] / spacing[1]
    if not 1 / 20 <= ratio <= 20:
        raise InputError(f"has pixels {ratio:.3g} times as high as wide, which cannot be right; correct its spacing")
    height, width = round(header.rows * max(ratio, 1)), round(header.columns * max(1 / ratio, 1))
    if height * width > MAX_PIXELS:
        raise InputError(f"has more than {MAX_PIXELS // 10**6} megapixels once its pixels are square; scale it down")
    return height, width


def element(dataset: Dataset, keyword: str) -> Any:
    """The element's value, None where it is absent. Raises `InputError` for one that pydicom cannot make sense of."""
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001 - what it raises quotes the value
        raise InputError(f"has no usable {keyword} in its header; it is damaged") from None


def integer(dataset: Dataset, keyword: str, least: int, most: int, default: int | None = None) -> int:
    """The element's whole number. Raises `InputError` for none, for several, and for one outside the limits."""
    value = element(dataset, keyword)
    stated: Any = default if value is None else value
    try:
        number = int(stated)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"has no usable {keyword} in its header; it is damaged") from None
    if not least <= number <= most:
        raise InputError(f"has a {keyword} of {number} in its header, which is not within {least} to {most}")
    return number


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """The element's numbers; None where it is absent, empty or holds anything that is no finite number."""
    value = element(dataset, keyword)
    if value is None or value == "":
        return None
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    try:
        found = tuple(map(float, value if several else [value]))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found and all(map(math.isfinite, found)) else None


def word(dataset: Dataset, keyword: str, known: Iterable[str]) -> str:
    """The element's text where it is one of `known`, else ""."""
    value = element(dataset, keyword)
    return value if isinstance(value, str) and value in known else ""


def _macro(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """Where a frame's attributes are: in a functional group of its own, in one that all share, or in the dataset."""
    for groups, index in ((dataset.get(_PER_FRAME), frame), (dataset.get(_SHARED), 0)):
        if groups and index < len(groups) and (found := groups[index].get(sequence)):
            return found[0]
    return dataset


def _read_modality(item: Dataset, header: Header) -> Rescale | Lut:
    if luts := item.get("ModalityLUTSequence"):
        return _read_lut(luts[0], "LUTDescriptor", "LUTData", signed=header.signed)
    slope, intercept = numbers(item, "RescaleSlope") or (1.0,), numbers(item, "RescaleIntercept") or (0.0,)
    if slope[0] == 0 or max(abs(slope[0]), abs(intercept[0])) > 1e30:
        raise InputError(f"has a rescale slope of {slope[0]:g} and an intercept of {intercept[0]:g}; it is damaged")
    return Rescale(slope[0], intercept[0])


def _may_be_negative(modality: Rescale | Lut, header: Header) -> bool:
    """Whether values after the modality LUT may be, so that a VOI LUT's first one is signed (PS3.3, C.11.2.1.1)."""
    if isinstance(modality, Lut):
        return False
    least = -(2 ** (header.bits_stored - 1)) if header.signed else 0
    ends = (least, least + 2**header.bits_stored - 1)
    return min(end * modality.slope + modality.intercept for end in ends) < 0


def _read_voi(item: Dataset, *, signed: bool) -> VoiWindow | Lut | None:
    """The first VOI LUT, else the first window; None where there is none that can be used."""
    luts = item.get("VOILUTSequence")
    if luts and "LUTData" in luts[0]:
        return _read_lut(luts[0], "LUTDescriptor", "LUTData", signed=signed)
    center, width = numbers(item, "WindowCenter"), numbers(item, "WindowWidth")
    function = _FUNCTIONS.get(word(item, "VOILUTFunction", _FUNCTIONS), "LINEAR")
    if center is None or width is None or width[0] < (1 if function == "LINEAR" else 1e-9):
        return None
    return VoiWindow(center[0], width[0], function)


_FUNCTIONS: dict[str, Function] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}


def _read_lut(item: Dataset, descriptor: str, data: str, *, signed: bool) -> Lut:
    """A lookup table (PS3.3 2024, C.11.1.1.1): its descriptor is (entries, 0 for 65,536; first value; bits).

    signed: whether the values that are looked up are.
    """
    form = numbers(item, descriptor)
    if form is None or len(form) != 3 or not 1 <= form[2] <= 16 or not 0 <= form[0] <= 65535:
        raise InputError(f"has no usable {descriptor} in its header; it is damaged")
    count = int(form[0]) or 65536
    entries = _entries(item, data, count)
    if len(entries) != count:
        raise InputError(f"has a lookup table of {len(entries)} entries, where {count} should be; it is damaged")
    return Lut(_signed(int(form[1]), signed=signed), tuple(entries), int(form[2]))


def _entries(item: Dataset, keyword: str, count: int) -> list[int]:
    """The entries, of one or two bytes each where they come as bytes."""
    value = item.get(keyword)
    if isinstance(value, bytes):
        if len(value) in (count, count + count % 2):
            return list(value[:count])
        order = ">" if item.original_encoding[1] is False else "<"
        return np.frombuffer(value[: len(value) // 2 * 2], f"{order}u2").tolist()
    found = numbers(item, keyword)
    return [min(max(int(number), 0), 65535) for number in found or ()]


def _signed(value: int, *, signed: bool) -> int:
    """A value that was read as unsigned, where its like are signed."""
    return value - 2**16 if signed and value >= 2**15 else value
