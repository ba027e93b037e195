"""Stored values to greys: every number here is worked out by hand, or by pydicom's own functions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime.dicom.greys import (
    Greys,
    Lut,
    Rescale,
    VoiWindow,
    colour_levels,
    grey_levels,
    modality_values,
    palette_levels,
    voi_shares,
)

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")


def levels(stored: list[int], greys: Greys, dtype: str = "int16") -> list[int]:
    return grey_levels(np.array([stored], dtype), greys)[0][0].tolist()


@pytest.mark.parametrize(
    ("window", "values", "by_hand"),
    [
        # LINEAR, center 40, width 400: ((x - 39.5) / 399 + 0.5) * 255; black up to -160, white from 239 on
        (VoiWindow(40, 400), [-1000, -160, -159, 0, 40, 239, 240], [0, 0, 1, 102, 128, 255, 255]),
        # LINEAR, center 2, width 1: black up to 1.5
        (VoiWindow(2, 1), [1, 2], [0, 255]),
        # LINEAR, center 10, width 3: black up to 8.5, white above 10.5; 9: (-0.5 / 2 + 0.5) * 255 = 63.75
        (VoiWindow(10, 3), [8, 9, 10, 11], [0, 64, 191, 255]),
        # LINEAR_EXACT, center 0, width 4: (x / 4 + 0.5) * 255; black up to -2, white from 2 on
        (VoiWindow(0, 4, "LINEAR_EXACT"), [-2, -1, 0, 1, 2], [0, 64, 128, 191, 255]),
        # SIGMOID, center 0, width 4: 255 / (1 + exp(-x)); x = 1: 255 / 1.36788 = 186.42
        (VoiWindow(0, 4, "SIGMOID"), [-2000, -1, 0, 1, 2000], [0, 69, 128, 186, 255]),
    ],
)
def test_windows_follow_the_standards_three_functions(window: VoiWindow, values: list[int], by_hand: list[int]) -> None:
    assert levels(values, Greys(voi=window)) == by_hand


def test_rescaling_comes_before_the_window() -> None:
    # 1064 * 1 - 1024 = 40: the middle of the window
    assert levels([0, 1064, 4095], Greys(Rescale(1, -1024), VoiWindow(40, 400))) == [0, 128, 255]
    # 20 * 2 + 0 = 40
    assert levels([20], Greys(Rescale(2, 0), VoiWindow(40, 400))) == [128]


def test_modality_lut_holds_its_ends_beyond_them() -> None:
    lut = Lut(first=10, entries=(100, 200, 50), bits=8)
    assert modality_values(np.array([-5, 9, 10, 11, 12, 13, 4000]), lut).tolist() == [100, 100, 100, 200, 50, 50, 50]


def test_voi_lut_is_scaled_by_the_bits_of_its_entries() -> None:
    # 12 bits: 2048 / 4095 * 255 = 127.53
    assert levels([-3, 0, 1, 2, 9], Greys(voi=Lut(0, (0, 2048, 4095), 12))) == [0, 0, 128, 255, 255]


def test_monochrome1_is_turned_round_after_the_window() -> None:
    assert levels([-160, 0, 239], Greys(voi=VoiWindow(40, 400), inverted=True)) == [255, 153, 0]


def test_without_a_window_the_least_value_is_black_and_the_largest_white() -> None:
    # (x + 100) / 400 * 255
    stored = np.array([[-100, 0, 300]], np.int16)
    shown, extent = grey_levels(stored, Greys())
    assert shown.tolist() == [[0, 64, 255]]
    assert extent == (-100, 300)
    assert levels([7, 7], Greys()) == [0, 0]


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_does_not_stretch_the_greys(inverted: bool) -> None:
    greys = Greys(padding=(-2000, -1500), inverted=inverted)
    shown = levels([-2000, -1700, -1500, 0, 100], greys)
    assert shown == [0, 0, 0, *((255, 0) if inverted else (0, 255))]


def test_an_image_of_padding_alone_is_black() -> None:
    assert levels([-5, -5], Greys(padding=(-5, -5), inverted=True)) == [0, 0]


def test_the_whole_range_of_16_bits_fits() -> None:
    stored = np.arange(-32768, 32768, dtype=np.int16).reshape(256, 256)
    shown, extent = grey_levels(stored, Greys())
    assert extent == (-32768, 32767)
    # round(255 * n / 65535) = round(n / 257), which is never halfway
    assert shown.reshape(-1).tolist() == [(2 * n + 257) // 514 for n in range(65536)]


def test_12_bit_colours_are_scaled_by_their_depth() -> None:
    # 2048 * 255 / 4095 = 127.53; what is above the depth is as white as it gets
    assert colour_levels(np.array([0, 2048, 4095, 5000], np.uint16), 12).tolist() == [0, 128, 255, 255]


def test_palettes_hold_their_ends_and_scale_16_bit_entries() -> None:
    red, green, blue = Lut(1, (0, 65535), 16), Lut(1, (32896, 0), 16), Lut(1, (0, 0), 16)
    shown = palette_levels(np.array([[0, 1, 2, 9]], np.uint8), (red, green, blue))
    # 32896 * 255 / 65535 = 128
    assert shown.tolist() == [[[0, 128, 0], [0, 128, 0], [255, 0, 0], [255, 0, 0]]]


def dataset(**elements: Any) -> Any:
    made = pydicom.Dataset()
    made.PixelRepresentation, made.BitsStored, made.PhotometricInterpretation = 1, 16, "MONOCHROME2"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


@given(
    stored=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=20),
    slope=st.floats(0.01, 10),
    intercept=st.floats(-2000, 2000),
    center=st.floats(-3000, 3000),
    width=st.floats(1, 5000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_rescale_and_windows_agree_with_pydicoms(
    stored: list[int], slope: float, intercept: float, center: float, width: float, function: Any
) -> None:
    array = np.array(stored, np.int16)
    values = modality_values(array, Rescale(slope, intercept))
    scaled = pydicom.pixels.apply_modality_lut(array, dataset(RescaleSlope=slope, RescaleIntercept=intercept))
    np.testing.assert_allclose(values, scaled, rtol=1e-6, atol=1e-3)
    # pydicom scales to the range that the rescaled values could have; without a rescale that is 16 signed bits.
    own = voi_shares(array.astype(np.float64), VoiWindow(center, width, function))
    asked = dataset(WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    with np.errstate(over="ignore"):
        theirs = (pydicom.pixels.apply_windowing(array.copy(), asked) + 2**15) / (2**16 - 1)
    # A DS element holds 16 characters of the center and the width.
    np.testing.assert_allclose(own, theirs, atol=1e-3)


@given(
    stored=st.lists(st.integers(0, 2**15 - 51), min_size=1, max_size=20),
    first=st.integers(-50, 50),
    entries=st.lists(st.integers(0, 4095), min_size=2, max_size=40),
)
def test_lookup_tables_agree_with_pydicoms(stored: list[int], first: int, entries: list[int]) -> None:
    array = np.array(stored, np.int16)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [len(entries), first, 16])
    item.add_new("LUTData", "US", entries)
    table = Lut(first, tuple(entries), 12)
    theirs = pydicom.pixels.apply_modality_lut(array, dataset(ModalityLUTSequence=[item]))
    assert modality_values(array, table).tolist() == theirs.tolist()
    theirs = pydicom.pixels.apply_voi(array, dataset(VOILUTSequence=[item]))
    np.testing.assert_allclose(voi_shares(array.astype(np.float64), table), theirs / 4095)
