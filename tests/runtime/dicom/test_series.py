"""A folder of slices: their order, which of them stand for all, and how they lie in a montage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom.child import decode_folder
from medvlm.runtime.dicom.montage import compose
from medvlm.runtime.dicom.series import Slice, order, read_series, spread
from medvlm.runtime.dicom.view import View, Window
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

Make = Callable[..., bytes]
Refusal = Callable[..., str]
AXIAL = [1, 0, 0, 0, 1, 0]
AS_STORED = Window(128, 256)


@pytest.fixture
def series(make: Make, tmp_path: Path) -> Path:
    """Ten 4x4 slices, slice n (from the feet, 0) of grey 20 n, their files named in another order."""
    folder = tmp_path / "series"
    folder.mkdir()
    for n in range(10):
        pixels = np.full((4, 4), 20 * n, np.uint16)
        content = make(
            pixels, ImagePositionPatient=[-7, 3, 5.0 * n - 100], ImageOrientationPatient=AXIAL, InstanceNumber=50 - n
        )
        (folder / f"IM{(n * 7) % 10}").write_bytes(content)
    return folder


def greys(image: Image.Image) -> list[list[int]]:
    """The grey in the middle of each 4x4 cell."""
    return np.asarray(image)[2::4, 2::4, 0].tolist()


def test_montage_shows_slices_from_low_to_high(series: Path) -> None:
    loaded = load_image(series, View(AS_STORED, montage=(2, 2)))
    assert loaded.pixels.size == (8, 8)
    # The middles of four parts of ten: 1.25, 3.75, 6.25 and 8.75, rounded down. Center 128, width 256 in LINEAR:
    # ((20 n - 127.5) / 255 + 0.5) * 255 = 20 n
    assert greys(loaded.pixels) == [[20, 60], [120, 160]]
    assert loaded.notes == (f"{series} has 10 slices, ordered by position; shown: 2, 4, 7, 9",)


def test_montage_larger_than_the_series_ends_in_black(series: Path) -> None:
    shown = load_image(series, View(AS_STORED, montage=(3, 4)))
    assert greys(shown.pixels) == [[0, 20, 40, 60], [80, 100, 120, 140], [160, 180, 0, 0]]


def test_frame_of_a_folder_is_a_slice_in_that_order(series: Path) -> None:
    paths = sorted(series.iterdir())
    shown = decode_folder(paths, View(AS_STORED, frame=8))
    assert (shown.frames[0].pixels == 140).all()
    assert shown.notes == ["has 10 slices, ordered by position; shown: 8"]
    with pytest.raises(InputError, match="holds 10 slices; give a frame of 1 to 10"):
        decode_folder(paths, View(frame=11))


def test_what_is_no_image_is_left_out_and_said(series: Path) -> None:
    (series / "README").write_text("hello")
    (series / "cut").write_bytes((series / "IM1").read_bytes()[:200])
    (series / "DICOMDIR").write_bytes(b"x")
    (series / ".hidden").write_bytes(b"x")
    (series / "folder").mkdir()
    for link, target in (("circle", "circle"), ("gone", "nowhere"), ("device", "/dev/zero")):
        (series / link).symlink_to(target)
    notes = load_image(series, View(AS_STORED, montage=(1, 1))).notes
    assert notes[1] == f"{series} has 2 files that are no DICOM images and were left out"
    assert "10 slices" in notes[0]


def test_slice_that_is_a_program_is_refused(series: Path, refusal: Refusal) -> None:
    (series / "viewer.exe").write_bytes(b"MZ" + bytes(500))  # beside the images of a CD: left out
    assert "10 slices" in load_image(series, View(montage=(2, 2))).notes[0]
    content = (series / "IM7").read_bytes()
    (series / "IM7").write_bytes(b"MZ" + content[2:])
    assert refusal(series, View(montage=(2, 2))) == (
        f"{series} holds IM7, which has a program in front of its DICOM content; it may be malware: do not open it"
    )


def test_slice_that_is_damaged_further_on_is_named(series: Path, refusal: Refusal) -> None:
    content = (series / "IM7").read_bytes()
    (series / "IM7").write_bytes(content[:-10])
    assert refusal(series, View(montage=(5, 2))).startswith(f"{series}/IM7 has ")


def test_folder_that_is_not_one_series_is_refused(series: Path, make: Make, refusal: Refusal, tmp_path: Path) -> None:
    view = View(montage=(2, 2))
    assert "give one image file, or a montage or a frame of a DICOM series" in refusal(series)
    (series / "other").write_bytes(make(SeriesInstanceUID="1.2.9"))
    with pytest.raises(InputError, match="holds 2 series; give a folder with one of them"):
        decode_folder(sorted(series.iterdir()), view)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds 0 files; give the folder of one series" in refusal(empty, view)
    (empty / "note.txt").write_text("hello")
    assert "holds no DICOM image among its 1 files" in refusal(empty, view)


def test_montage_of_a_cine_takes_frames_evenly(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "cine"
    path.write_bytes(make(np.arange(10, dtype=np.uint16)[:, None, None] * np.full((1, 4, 4), 20, np.uint16)))
    loaded = load_image(path, View(AS_STORED, montage=(1, 2)))
    assert greys(loaded.pixels) == [[40, 140]]
    assert loaded.notes == (f"{path} has 10 frames; shown: 3, 8",)


def test_note_of_the_largest_montage_is_whole(make: Make) -> None:
    cine = np.zeros((10_000, 1, 4), np.uint16)
    assert load_image(make(cine), View(montage=(10, 10))).notes[0].endswith(", 9751, 9851, 9951")


def test_pydicoms_own_series_is_in_order(sample: Callable[[str], Path]) -> None:
    """Its slices lie 5 mm apart; the file names say nothing."""
    names = [f"dicomdirtests/98892001/CT5N/{n}" for n in (2062, 2392, 2693, 3023, 3353)]
    paths = [sample(name) for name in names]
    found = read_series(sorted(paths))
    heights = [float(pydicom.dcmread(one.path).ImagePositionPatient[2]) for one in found.slices]
    assert len(heights) == 5
    assert heights == sorted(heights)
    assert found.ordered_by == "position"


def slice_at(position: float | None, number: int, normal: tuple[float, ...] = (0, 0, 1)) -> Slice:
    return Slice(Path(str(number)), "", 1, position, number, normal)


def test_slices_of_other_planes_are_ordered_by_number() -> None:
    slices = [slice_at(1, 3), slice_at(2, 1, (0, 1, 0)), slice_at(None, 2, ())]
    ordered, by = order(slices)
    assert ([one.number for one in ordered], by) == ([1, 2, 3], "number")
    with pytest.raises(InputError, match="without positions or numbers"):
        order([slice_at(None, 0, ()), slice_at(None, 0, ())])


@pytest.mark.parametrize(
    ("orientation", "direction"),
    [
        ([1, 0, 0, 0, 1, 0], (0, 0, 1)),  # axial: from the feet to the head
        ([1, 0, 0, 0, 0, -1], (0, 1, 0)),  # coronal: from front to back
        ([0, 1, 0, 0, 0, -1], (-1, 0, 0)),  # sagittal: from the patient's left to the right
    ],
)
def test_order_follows_the_normal_of_the_plane(
    make: Make, tmp_path: Path, orientation: list[int], direction: tuple[int, ...]
) -> None:
    paths = [tmp_path / str(n) for n in range(3)]
    for path, n in zip(paths, (1, 2, 0), strict=True):
        place = [10 * n * axis for axis in direction]
        path.write_bytes(make(ImagePositionPatient=place, ImageOrientationPatient=orientation))
    assert [one.path.name for one in read_series(paths).slices] == ["2", "0", "1"]


def test_spread_takes_the_middles_of_equal_parts() -> None:
    assert spread(9, 3) == [1, 4, 7]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(3, 4) == [0, 1, 2]
    assert spread(10**5, 100)[-1] == 99_500


def solid(width: int, height: int, grey: int) -> Image.Image:
    return Image.new("RGB", (width, height), (grey, grey, grey))


def test_smaller_images_are_centered_in_their_cells() -> None:
    montage = compose([solid(8, 8, 10), solid(8, 4, 20)], (1, 2))
    assert montage.size == (16, 8)
    assert np.asarray(montage)[:, 12, 0].tolist() == [0, 0, 20, 20, 20, 20, 0, 0]


def test_montage_is_kept_to_a_megapixel() -> None:
    montage = compose([solid(1000, 500, 10)] * 4, (2, 2))
    assert montage.width * montage.height <= 1024 * 1024
    assert montage.width / montage.height == pytest.approx(2, rel=0.01)
    assert np.asarray(montage).min() == 10


def test_view_is_part_of_what_is_remembered(
    series: Path, tiny_bundle: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a second question in another window would be asked about the first."""
    from medvlm.runtime.bundle import open_bundle
    from medvlm.runtime.processor import Processor

    processor, content = Processor(open_bundle(tiny_bundle)), make(np.array([[0, 1], [2, 3]], np.uint16))
    windows = (Window(1, 2), Window(3, 4))
    digests = [
        processor.prepare([content], "Q?", view=View(window=window)).images[0].digest for window in (*windows, *windows)
    ]
    assert digests[:2] == digests[2:]
    assert digests[0] != digests[1]


def request_of(model: Any, *images: Any, view: View) -> tuple[int, ...]:
    return model.processor.prepare(images, "Q?", view=view).images[0].grid


def test_folder_is_taken_wherever_an_image_is(series: Path, tiny_model: Any) -> None:
    assert request_of(tiny_model, str(series), view=View(montage=(1, 2))) != ()


@pytest.mark.filterwarnings("ignore")
def test_a_header_that_is_damaged_leaves_its_file_out(series: Path, edit: Callable[..., bytes]) -> None:
    def damage(dataset: Any) -> None:
        with pydicom.config.disable_value_validation():
            dataset["InstanceNumber"] = pydicom.DataElement("InstanceNumber", "LO", "no number")

    content = edit((series / "IM0").read_bytes(), damage)
    (series / "IM0").write_bytes(content.replace(b"\x20\x00\x13\x00LO", b"\x20\x00\x13\x00IS"))
    found = read_series(sorted(series.iterdir()))
    assert (len(found.slices), found.skipped) == (9, 1)
