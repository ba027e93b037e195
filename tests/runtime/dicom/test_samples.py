"""pydicom's own sample files: what is shown of them is what pydicom's functions make of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom.frames import Frame, decode, open_dataset
from medvlm.runtime.dicom.view import PRESETS, View, Window
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from numpy.typing import NDArray

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

Sample = Callable[[str], Path]

SAME_MR = ["MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit"]
SAME_MR += ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"]
GREYS = ["CT_small", "693_J2KI", "J2K_pixelrep_mismatch", "MR_small", "JPGExtended", "JPEG2000", "examples_overlay"]
GREYS += ["JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "image_dfl", "liver_1frame", "liver_expb_1frame"]
COLOURS = ["ExplVR_BigEnd", "examples_rgb_color", "examples_jpeg2k", "examples_ybr_color", "GDCMJ2K_TextGBR"]
COLOURS += ["SC_ybr_full_422_uncompressed", "SC_rgb_jpeg_dcmtk", "SC_rgb_jls_lossy_line", "SC_rgb_small_odd_jpeg"]
# Ten bars of ten rows each, as pydicom's tests have them.
BARS = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255)]
BARS += [(0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255)]


def decoded(path: Path, index: int = 0, window: Window | None = None) -> Frame:
    with path.open("rb") as stream:
        return decode(open_dataset(stream), index, window)


def by_pydicom(path: Path) -> tuple[Any, NDArray[np.float64]]:
    """The dataset, and its first frame after pydicom's modality LUT."""
    dataset = pydicom.dcmread(path)
    stored = pydicom.pixels.pixel_array(dataset, index=0)
    return dataset, pydicom.pixels.apply_modality_lut(stored, dataset).astype(np.float64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GREYS)
def test_greys_are_those_of_pydicom(sample: Sample, name: str) -> None:
    path = sample(f"{name}.dcm")
    dataset, values = by_pydicom(path)
    least, largest = values.min(), values.max()
    if "WindowWidth" in dataset:
        center, width = (np.atleast_1d(dataset[word].value)[0] for word in ("WindowCenter", "WindowWidth"))
        least, largest = float(center) - 0.5 - (float(width) - 1) / 2, float(center) - 0.5 + (float(width) - 1) / 2
    expected = np.clip((values - least) / (largest - least), 0, 1) * 255
    assert np.abs(decoded(path).pixels - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("name", SAME_MR)
def test_lossless_forms_of_one_image_are_shown_alike(sample: Sample, name: str) -> None:
    assert np.array_equal(decoded(sample(f"{name}.dcm")).pixels, decoded(sample("MR_small.dcm")).pixels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_those_of_pydicom(sample: Sample, name: str) -> None:
    path = sample(f"{name}.dcm")
    assert np.array_equal(decoded(path).pixels, pydicom.pixels.pixel_array(path, index=0, decoding_plugin=""))


@pytest.mark.parametrize("name", ["SC_rgb_rle", "SC_rgb_rle_2frame", "SC_rgb_jpeg_gdcm", "SC_rgb_rle_16bit"])
def test_lossless_colours_are_the_ones_that_were_drawn(sample: Sample, name: str) -> None:
    assert [tuple(row) for row in decoded(sample(f"{name}.dcm")).pixels[5::10, 50].tolist()] == BARS


def test_lossy_colours_are_nearly_those(sample: Sample) -> None:
    for name in ("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_gdcm_KY", "SC_rgb_jpeg_lossy_gdcm"):
        shown = decoded(sample(f"{name}.dcm")).pixels[5::10, 50].astype(int)
        assert np.abs(shown - np.array(BARS)).max() <= 6, name


def test_palette_is_looked_up_as_pydicom_does(sample: Sample) -> None:
    path = sample("examples_palette.dcm")
    dataset = pydicom.dcmread(path)
    # This file's entries have 16 bits: the high byte, but for rounding.
    colours = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset).astype(np.float64) * 255 / 65535
    assert np.abs(decoded(path).pixels - colours).max() <= 0.5


def test_frames_of_a_cine_are_counted_from_1(sample: Sample) -> None:
    path = sample("examples_ybr_color.dcm")
    last = load_image(path, View(frame=30))
    assert np.array_equal(np.asarray(last.pixels), pydicom.pixels.pixel_array(path, index=29))
    assert last.notes == ()
    with pytest.raises(InputError, match="has 30 frames; give a frame of 1 to 30"):
        decoded(path, 30)
    assert load_image(path).notes == (f"{path} has 30 frames; frame 1 was used",)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_hounsfield_windows(sample: Sample, preset: str) -> None:
    path, window = sample("CT_small.dcm"), PRESETS[preset]
    _, values = by_pydicom(path)
    asked = pydicom.Dataset()
    asked.WindowCenter, asked.WindowWidth, asked.RescaleSlope, asked.RescaleIntercept = (
        window.center,
        window.width,
        1,
        0,
    )
    asked.BitsStored, asked.PixelRepresentation, asked.PhotometricInterpretation = 16, 1, "MONOCHROME2"
    theirs = (pydicom.pixels.apply_windowing(values, asked) + 2**15) / (2**16 - 1) * 255
    assert np.abs(decoded(path, window=window).pixels - theirs).max() <= 0.51


def test_presets_are_refused_for_what_is_no_ct(sample: Sample) -> None:
    with pytest.raises(InputError, match="is MR, and the window lung is for CT; give CENTER,WIDTH instead"):
        decoded(sample("MR_small.dcm"), window=PRESETS["lung"])
    with pytest.raises(InputError, match="is a colour image, which has no window"):
        decoded(sample("SC_rgb_rle.dcm"), window=Window(1, 2))


@pytest.mark.parametrize("name", ["reportsi", "rtplan", "waveform_ecg", "test-SR"])
def test_objects_without_pixels_are_refused(sample: Sample, name: str) -> None:
    with pytest.raises(InputError, match="has no pixels: it is a report, a plan or another object"):
        decoded(sample(f"{name}.dcm"))
