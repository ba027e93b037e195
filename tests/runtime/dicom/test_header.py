"""What a header says about its pixels, and what is made of it: files are built here."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom.child import Decoded, decode_file
from medvlm.runtime.dicom.view import DEFAULT_VIEW, View, Window
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

Make = Callable[..., bytes]
Refusal = Callable[..., str]


def decoded(content: bytes, view: View = DEFAULT_VIEW) -> Decoded:
    """What the child process makes of a file, here in this one: a process for each would take a while."""
    return decode_file(io.BytesIO(content), view)


def levels(content: bytes) -> list[list[int]]:
    return decoded(content).frames[0].pixels.tolist()


def says(content: bytes) -> str:
    with pytest.raises(InputError) as error:
        decoded(content)
    return str(error.value)


def item(**elements: Any) -> Any:
    made = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def test_file_and_its_bytes_give_the_same(make: Make, tmp_path: Path) -> None:
    content, path = make(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=-1000, WindowWidth=48), tmp_path / "scan"
    path.write_bytes(content)
    # (x - 1024 + 1000.5) / 47 + 0.5 = x / 47
    by_hand = [[round((8 * row + column) * 255 / 47) for column in range(8)] for row in range(6)]
    loaded = [load_image(source) for source in (path, content)]
    assert [np.asarray(image.pixels)[..., 2].tolist() for image in loaded] == [by_hand, by_hand]
    assert loaded[0].notes == (f"{path} is shown in its own window -1000,48",)


def test_window_that_is_asked_for_replaces_the_files(make: Make) -> None:
    content = make(np.array([[0, 50, 100]], np.int16), WindowCenter=5000, WindowWidth=2, VOILUTFunction="SIGMOID")
    shown = decoded(content, View(window=Window(50.5, 101)))
    assert shown.frames[0].pixels.tolist() == [[0, 128, 255]]
    assert shown.notes == []


def test_functional_groups_say_how_each_frame_is_shown(make: Make) -> None:
    def group(center: int) -> Any:
        return item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=101)])

    shared = item(
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100, RescaleType="HU")],
        PixelMeasuresSequence=[item(PixelSpacing=[2, 1])],
    )
    content = make(
        np.full((2, 2, 4), 75, np.uint16),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[group(50), group(100)],
    )
    # 75 * 2 - 100 = 50: the middle of 50,101, and in 100,101 (50 - 99.5) / 100 + 0.5 = 0.005
    first, second = (decoded(content, View(frame=number)).frames[0] for number in (1, 2))
    assert (first.pixels == 129).all()
    assert (second.pixels == 1).all()
    assert first.size == (4, 4)


@pytest.mark.parametrize(
    ("elements", "size"),
    [
        ({"PixelSpacing": [1, 1]}, (8, 6)),
        ({"PixelSpacing": [2, 1]}, (8, 12)),  # rows 2 mm apart, columns 1 mm
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (16, 6)),
        ({"PixelAspectRatio": [3, 2]}, (8, 9)),
        ({"PixelAspectRatio": [1, 2]}, (16, 6)),
        ({"PixelSpacing": [1, 1], "PixelAspectRatio": [1, 2]}, (8, 6)),
        ({"PixelSpacing": [0.5000001, 0.5]}, (8, 6)),
        ({"PixelSpacing": [0, 1]}, (8, 6)),
    ],
)
def test_pixels_are_made_square(make: Make, elements: dict[str, Any], size: tuple[int, int]) -> None:
    assert decoded(make(**elements)).frames[0].size == size[::-1]


def test_enlarged_pixels_are_between_their_neighbours(make: Make) -> None:
    image = load_image(
        make(np.array([[0, 0], [200, 200]], np.uint16), PixelSpacing=[3, 1], WindowCenter=100.5, WindowWidth=201)
    )
    greys = np.asarray(image.pixels)[:, 0, 0].astype(int)
    assert image.pixels.size == (2, 6)
    assert (np.diff(greys) >= 0).all()
    assert (greys[0], greys[-1]) == (0, 255)


def test_pixels_that_cannot_be_right_are_refused(make: Make) -> None:
    assert says(make(PixelSpacing=[50, 1])).startswith("has pixels 50 times as high as wide")


def test_padding_range_of_signed_pixels_is_black(make: Make) -> None:
    stored = np.array([[-2000, -1990, 0, 100]], np.int16)
    content = make(
        stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990, PhotometricInterpretation="MONOCHROME1"
    )
    assert levels(content) == [[0, 0, 255, 0]]


def test_bits_above_those_stored_do_not_count(make: Make) -> None:
    """Overlays lie there in older files: 0xF001 of 12 bits is 1, and 0xF800 signed is -2048."""
    unsigned = make(np.array([[0xF001, 0, 4]], np.uint16), BitsStored=12, HighBit=11)
    assert levels(unsigned) == [[64, 0, 255]]
    signed = make(np.array([[0x0800, 0, 0x07FF]], np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert levels(signed) == [[0, 128, 255]]


def test_lookup_tables_of_signed_pixels_may_start_below_zero(make: Make) -> None:
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "SS", [3, -1, 8])
    lut.add_new("LUTData", "OW", b"\x00\x00\x80\x00\xff\x00")
    content = make(np.array([[-5, -1, 0, 1, 5]], np.int16), VOILUTSequence=[lut], WindowCenter=0, WindowWidth=1)
    assert levels(content) == [[0, 0, 128, 255, 255]]
    assert decoded(content).notes == ["is shown by its own VOI LUT"]


@pytest.mark.parametrize(
    ("stored", "intercept", "first"),
    [
        ([-2048, -2047, -2046], 42048, 40000),  # signed, and never negative once rescaled
        ([0, 1, 2], -1024, 2**16 - 1024),  # unsigned, and negative: -1024 in 16 bits
    ],
)
def test_first_value_of_a_voi_lut_is_signed_as_the_rescaled_values_are(
    make: Make, stored: list[int], intercept: int, first: int
) -> None:
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "US", [3, first, 8])
    lut.add_new("LUTData", "OW", b"\x00\x00\x80\x00\xff\x00")
    pixels = np.array([stored], np.int16 if stored[0] < 0 else np.uint16)
    content = make(pixels, RescaleSlope=1, RescaleIntercept=intercept, VOILUTSequence=[lut])
    assert levels(content) == [[0, 128, 255]]


def test_palette_of_more_than_256_colours_is_whole(make: Make) -> None:
    palette = {}
    for colour, values in (("Red", range(512)), ("Green", [0] * 512), ("Blue", range(511, -1, -1))):
        name = f"{colour}PaletteColorLookupTable"
        palette[f"{name}Descriptor"] = [512, 0, 16]
        palette[f"{name}Data"] = np.array([value * 128 for value in values], "<u2").tobytes()
    content = make(np.array([[0, 300, 511]], np.uint16), PhotometricInterpretation="PALETTE COLOR", **palette)
    # 300 * 128 * 255 / 65535 = 149.42, 211 * 128 * 255 / 65535 = 105.09, 511 * 128 * 255 / 65535 = 254.5
    pixels = decoded(content).frames[0].pixels[0]
    assert pixels[:, 0].tolist() == [0, 149, 255]
    assert pixels[:, 2].tolist() == [255, 105, 0]


def test_planes_of_colours_are_put_together(make: Make) -> None:
    planes = np.arange(18, dtype=np.uint8).reshape(3, 2, 3)
    content = make(planes.transpose(1, 2, 0), PlanarConfiguration=1, PixelData=planes.tobytes())
    assert np.array_equal(decoded(content).frames[0].pixels, planes.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"BitsAllocated": 32, "BitsStored": 32}, "stores 32 of 32 bits a sample"),
        ({"BitsStored": 17}, "stores 17 of 16 bits a sample"),
        ({"BitsStored": 12, "HighBit": 15}, "stores 12 bits from bit 15 down"),
        ({"PhotometricInterpretation": "RGB"}, "has 1 samples a pixel of the photometric interpretation RGB"),
        ({"PhotometricInterpretation": "DOE"}, "interpretation that it lacks or that is unknown"),
        ({"SamplesPerPixel": 5}, "has a SamplesPerPixel of 5 in its header"),
        ({"Rows": None}, "has no usable Rows in its header"),
        ({"NumberOfFrames": 0}, "has a NumberOfFrames of 0 in its header"),
        ({"NumberOfFrames": 1000}, "has 96 bytes of pixels, where 96000 should be"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "has a rescale slope of 0"),
    ],
)
def test_headers_that_make_no_image_are_refused(make: Make, elements: dict[str, Any], message: str) -> None:
    assert message in says(make(**elements))


def test_a_view_is_for_dicom_alone(refusal: Refusal, image_path: Path) -> None:
    for view in (View(frame=1), View(window=Window(1, 2)), View(montage=(2, 2))):
        assert "is no DICOM file" in refusal(image_path, view)
        assert "is no DICOM file" in refusal(image_path.read_bytes(), view)
        assert refusal(np.zeros((4, 4), np.uint8), view).startswith("the image is no DICOM file")
