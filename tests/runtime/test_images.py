"""Everything that `load_image` reads, and everything it refuses: each file is built here."""

import contextlib
import io
import logging
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from medvlm.runtime import images
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from PIL import Image, ImageFile, PngImagePlugin

KINDS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP"]


def noise(*shape: int, top: int = 256) -> npt.NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, top, shape)


def picture(height: int = 24, width: int = 32) -> Image.Image:
    return Image.fromarray(noise(height, width, 3).astype(np.uint8))


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def levels(source: Any) -> npt.NDArray[np.uint8]:
    """[h, w] of the grey image that `source` loads as."""
    rgb = np.asarray(load_image(source).pixels)
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


def refusal(source: Any) -> str:
    """The message with which `source` is refused."""
    with pytest.raises(InputError) as error:
        load_image(source)
    message = str(error.value)
    assert message.isprintable()
    return message


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    )


def tiff_chain(pages: int) -> bytes:
    """A TIFF of one white pixel that every one of its pages shares."""
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    size = 2 + 12 * len(tags) + 4
    body = b"".join(
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + struct.pack("<I", 16 + size * (page + 1) if page + 1 < pages else 0)
        for page in range(pages)
    )
    return struct.pack("<2sHI", b"II", 42, 16) + b"\xff" + bytes(7) + body


# What is read


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_is_read_from_a_path_from_text_and_from_bytes(kind: str, tmp_path: Path) -> None:
    stored = file_of(picture(), kind)
    path = tmp_path / "scan"
    path.write_bytes(stored)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for source in (path, str(path), stored):
        loaded = load_image(source)
        assert loaded.pixels.mode == "RGB"
        assert loaded.notes == ()
        assert np.array_equal(np.asarray(loaded.pixels), expected)


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "scan.jpg"
    path.write_bytes(file_of(picture(), "PNG"))
    assert np.array_equal(np.asarray(load_image(path).pixels), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_are_converted_as_pillow_converts_them(mode: str) -> None:
    image = Image.new(mode, (4, 4)) if mode in ("LAB", "PA") else picture().convert(mode)
    loaded = load_image(image)
    assert loaded.pixels.mode == "RGB"
    assert np.array_equal(np.asarray(loaded.pixels), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("colour", "seen"),
    [((10, 20, 30, 0), (255, 255, 255)), ((10, 20, 30, 255), (10, 20, 30)), ((0, 0, 0, 51), (204,) * 3)],
)
def test_what_is_transparent_is_laid_over_white(colour: tuple[int, ...], seen: tuple[int, ...]) -> None:
    assert load_image(Image.new("RGBA", (1, 1), colour)).pixels.getpixel((0, 0)) == seen
    assert load_image(np.array([[colour]], np.uint8)).pixels.getpixel((0, 0)) == seen


def test_a_mode_that_pillow_cannot_convert_is_refused() -> None:
    assert "cannot be decoded (conversion" in refusal(Image.new("La", (4, 4)))


def test_a_pillow_image_is_left_as_it_is() -> None:
    image = picture()
    exif = image.getexif()
    exif[274] = 6
    loaded = load_image(image)
    assert loaded.pixels.size == (24, 32)
    assert image.size == (32, 24)
    assert image.getexif()[274] == 6
    loaded.pixels.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), np.asarray(picture()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_outlives_its_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "scan"
    path.write_bytes(file_of(picture(), kind))
    loaded = load_image(path)
    path.unlink()
    assert type(loaded.pixels) is Image.Image
    assert loaded.pixels.copy().resize((5, 5)).size == (5, 5)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_only_the_first_frame_of_several_is_used_and_a_note_says_so(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in range(0, 240, 20)]
    path = tmp_path / "scan.x"
    path.write_bytes(file_of(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    loaded = load_image(path)
    assert loaded.notes == (f"{path} has 12 frames; frame 1 was used",)
    assert np.array_equal(np.asarray(loaded.pixels), np.asarray(frames[0]))


def test_frames_of_bytes_are_noted_too() -> None:
    stored = file_of(picture(), "TIFF", save_all=True, append_images=[picture()])
    assert load_image(stored).notes == ("the image has 2 frames; frame 1 was used",)


def test_pages_are_counted_up_to_a_thousand() -> None:
    assert load_image(tiff_chain(1)).notes == ()
    assert load_image(tiff_chain(1000)).notes == ("the image has 1000 frames; frame 1 was used",)
    assert load_image(tiff_chain(5000)).notes == ("the image has more than 1000 frames; frame 1 was used",)


# Greys of more than 8 bits


@pytest.mark.parametrize(
    ("brightest", "value", "level"),
    [
        # round(value * 255 / (2**bits - 1)), by hand
        (255, 200, 200),  # 8 bits: as it is
        (256, 256, 64),  # 10 bits: 65280 / 1023 = 63.81
        (1023, 1023, 255),
        (1023, 2, 0),  # 510 / 1023 = 0.499
        (1023, 3, 1),  # 765 / 1023 = 0.748
        (1024, 1024, 64),  # 12 bits: 261120 / 4095 = 63.77
        (4095, 2048, 128),  # 522240 / 4095 = 127.53
        (4095, 4095, 255),
        (4096, 4096, 64),  # 14 bits: 1044480 / 16383 = 63.75
        (16383, 8191, 127),  # 2088705 / 16383 = 127.49
        (16384, 16384, 64),  # 16 bits: 4177920 / 65535 = 63.75
        (65535, 128, 0),  # 32640 / 65535 = 0.498
        (65535, 129, 1),  # 32895 / 65535 = 0.502
        (65535, 65535, 255),
    ],
)
def test_deep_greys_are_scaled_by_the_smallest_depth_that_holds_the_brightest(
    brightest: int, value: int, level: int
) -> None:
    assert levels(np.array([[0, value, brightest]], dtype=np.uint16))[0, :2].tolist() == [0, level]


def deep_sources() -> dict[str, Callable[[npt.NDArray[np.uint16]], Any]]:
    return {
        "array": lambda a: a,
        "array [h, w, 1]": lambda a: a[..., None],
        "big-endian array": lambda a: a.astype(">u2"),
        "strided array": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        "I;16": Image.fromarray,
        "I;16L": lambda a: Image.frombytes("I;16L", a.shape[::-1], a.astype("<u2").tobytes()),
        "I;16B": lambda a: Image.frombytes("I;16B", a.shape[::-1], a.astype(">u2").tobytes()),
        "I": lambda a: Image.fromarray(a.astype(np.int32)),
        "16-bit PNG": lambda a: file_of(Image.fromarray(a), "PNG"),
        "little-endian TIFF": lambda a: file_of(Image.fromarray(a), "TIFF"),
        "deflated TIFF": lambda a: file_of(Image.fromarray(a), "TIFF", compression="tiff_adobe_deflate"),
        "big-endian TIFF": lambda a: file_of(
            Image.frombytes("I;16B", a.shape[::-1], a.astype(">u2").tobytes()), "TIFF"
        ),
    }


@pytest.mark.parametrize("source", deep_sources())
def test_every_form_of_16_bit_grey_is_scaled_alike(source: str) -> None:
    deep = noise(5, 7, top=4096).astype(np.uint16)
    deep[0, :2] = 0, 4095
    by_hand = [[round(int(value) * 255 / 4095) for value in row] for row in deep]
    assert levels(deep_sources()[source](deep)).tolist() == by_hand


def test_large_deep_images_are_scaled_to_their_last_pixel() -> None:
    deep = np.full((1030, 1030), 4095, dtype=np.uint16)
    assert (levels(deep) == 255).all()


def test_black_stays_black() -> None:
    assert not levels(np.zeros((3, 3), dtype=np.uint16)).any()


@pytest.mark.parametrize(("darkest", "brightest"), [(-1, 5), (0, 65536), (-(2**31), 2**31 - 1)])
def test_integers_beyond_16_bits_are_refused(darkest: int, brightest: int) -> None:
    message = refusal(Image.fromarray(np.array([[darkest, brightest]], dtype=np.int32)))
    assert message == f"the image has pixels from {darkest} to {brightest}; save it with values within 0 to 65535"


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dose.tiff"
    path.write_bytes(file_of(Image.new("F", (4, 4), 0.5), "TIFF"))
    assert refusal(path) == f"{path} has floating-point pixels; save it with 8 or 16 bits a pixel"


# Arrays


def test_uint8_arrays_are_read_as_they_are() -> None:
    grey, rgba = noise(5, 7).astype(np.uint8), noise(5, 7, 4).astype(np.uint8)
    assert np.array_equal(levels(grey), grey)
    assert np.array_equal(levels(grey[..., None]), grey)
    assert np.array_equal(np.asarray(load_image(rgba[..., :3]).pixels), rgba[..., :3])
    rgba[..., 3] = 255
    assert np.array_equal(np.asarray(load_image(rgba).pixels), rgba[..., :3])


def test_true_is_white_and_false_is_black() -> None:
    assert levels(np.array([[True, False]])).tolist() == [[255, 0]]


def test_16_bit_transparency_is_refused() -> None:
    assert "16-bit transparency" in refusal(np.zeros((1, 1, 4), dtype=np.uint16))


def test_a_16_bit_tiff_whose_zero_is_white_is_turned_round(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 1365]], np.uint16)
    path = tmp_path / "radiograph.tiff"
    Image.fromarray(values).save(path, tiffinfo={262: 0})
    with Image.open(path) as stored:
        assert stored.mode.startswith("I;16")
    assert np.asarray(load_image(path).pixels)[..., 0].tolist() == [[255, 0, 170]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "uint32", "complex64", "object", "U3"])
def test_arrays_of_other_types_are_refused(dtype: str) -> None:
    message = refusal(np.zeros((4, 4), dtype=dtype))
    assert message.startswith("the image array is ")
    assert message.endswith("; give uint8, uint16 or bool")


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 2), (3, 4, 5), (1, 4, 4, 3)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    message = refusal(np.zeros(shape, dtype=np.uint8))
    expected = "[h, w], [h, w, 1], [h, w, 3] or [h, w, 4]"
    assert message == f"the image array has the shape {list(shape)}; give {expected}"


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3)])
def test_arrays_without_pixels_are_refused(shape: tuple[int, ...]) -> None:
    assert refusal(np.zeros(shape, dtype=np.uint8)).startswith("the image array has no pixels (")


def test_an_array_above_100_megapixels_is_refused_before_it_is_copied() -> None:
    huge = np.broadcast_to(np.uint8(0), (20_000, 20_000))
    assert refusal(huge) == "the image array has more than 100 megapixels; scale it down first"


# Paths that are no files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.png") == f"{tmp_path}/no.png does not exist; check the path"
    assert refusal("http://example.org/scan.png").endswith("does not exist; check the path")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path) == f"{tmp_path} is a folder; give one image file, or a montage or a frame of a DICOM series"
    )
    assert refusal("") == ". is a folder; give one image file, or a montage or a frame of a DICOM series"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random"])
def test_a_device_is_refused(device: str) -> None:
    assert refusal(device) == f"{device} is a device, a pipe or a socket; give an image file"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    assert refusal(path) == f"{path} is a device, a pipe or a socket; give an image file"


def test_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's whole path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("scan.png")
        assert "is a device, a pipe or a socket" in refusal("scan.png")


def test_a_file_that_may_not_be_read_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(file_of(picture(), "PNG"))
    path.chmod(0)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    if os.geteuid() == 0:  # nothing is forbidden to root
        monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == f"{path} may not be read; check its permissions"


def test_impossible_paths_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("x" * 5000), "a\0b.png"):
        assert "cannot be opened (" in refusal(path)


def test_a_file_inside_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(file_of(picture(), "PNG"))
    refusal(path / "inner.png")


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[31m.png", os.fsdecode(b"\xff\xfe.png"), "a\u2028b.png"])
def test_the_message_is_one_printable_line_whatever_the_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    assert refusal(path).endswith("is empty (0 bytes); copy or export it again")
    path.unlink()
    assert refusal(path).endswith("does not exist; check the path")


def test_letters_of_every_language_stay_in_the_message() -> None:
    assert refusal("röntgen/胸部.png") == "röntgen/胸部.png does not exist; check the path"


@pytest.mark.parametrize("source", [None, 5, [], io.BytesIO(b"x"), bytearray(b"x")])
def test_other_objects_are_refused(source: object) -> None:
    expected = f"an image is a path, bytes, a Pillow image or a numpy array, not {type(source).__name__}"
    assert refusal(source) == expected


# Files that are no images


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.touch()
    assert refusal(path) == f"{path} is empty (0 bytes); copy or export it again"
    assert refusal(b"") == "the image is empty (0 bytes); copy or export it again"


def test_a_file_above_1_gib_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "scan.tiff"
    with path.open("wb") as stream:
        stream.truncate(2**30 + 1)  # sparse: it takes no room
    assert refusal(path) == f"{path} is larger than 1 GiB; give a single smaller image"


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"hello",
        b"%PDF-1.7\n" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        file_of(picture(), "GIF"),
        file_of(picture(), "PPM"),
        file_of(picture(), "ICO"),
    ],
)
def test_other_files_are_refused_and_the_formats_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    expected = "is not an image, or is damaged at its start; PNG, JPEG, BMP, TIFF, WebP and DICOM are read"
    assert refusal(path) == f"{path} {expected}"


# Texts


def named(kind: str) -> bytes:
    """A file with a name in each text that its format has."""
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[270] = exif[315] = "PLANTED"
    text.add_text("PLANTED", "PLANTED")
    options: dict[str, dict[str, Any]] = {
        "PNG": {"pnginfo": text},
        "JPEG": {"comment": b"PLANTED"},
        "TIFF": {"tiffinfo": {270: "PLANTED", 315: "PLANTED"}},
    }
    return file_of(picture(), kind, exif=exif, **options.get(kind, {}))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_names_in_a_files_texts_are_neither_logged_nor_kept(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    content = named(kind)
    assert b"PLANTED" in content
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        loaded = load_image(content)
    assert "PLANTED" not in caplog.text
    assert loaded.pixels.info == {}
    assert b"PLANTED" not in file_of(loaded.pixels, "JPEG") + file_of(loaded.pixels, "PNG")


def test_pillow_images_keep_their_texts() -> None:
    image = Image.open(io.BytesIO(named("JPEG")))
    assert load_image(image).pixels.info == {}
    assert image.info["comment"] == b"PLANTED"


# Too many pixels


def bomb(kind: str, width: int, height: int) -> bytes:
    """A file of `kind` whose header claims `width` x `height` pixels, and that holds next to none."""
    if kind == "PNG":
        return png(width, height, (b"IDAT", zlib.compress(bytes(1000))))
    small = bytearray(file_of(Image.new("L" if kind == "JPEG" else "RGB", (16, 16)), kind, lossless=True))
    if kind == "JPEG":
        at = small.index(b"\xff\xc0") + 5
        small[at : at + 4] = struct.pack(">HH", height, width)
    if kind == "BMP":
        small[18:26] = struct.pack("<ii", width, height)
    if kind == "WEBP":
        at = small.index(b"VP8L") + 9
        small[at : at + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    if kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            at = small.index(struct.pack("<HHI", tag, 4, 1))
            small[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(small)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [10_001, 12_000, 16_000])
def test_more_than_100_megapixels_are_refused_before_decoding(
    kind: str, side: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(bomb(kind, side, side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    assert refusal(path) == f"{path} has more than 100 megapixels; scale it down first"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("side", [20_000, 65_000])
def test_what_pillow_itself_calls_a_bomb_is_refused_alike(kind: str, side: int) -> None:
    assert refusal(bomb(kind, side, side)) == "the image has more than 100 megapixels; scale it down first"


def test_a_pillow_image_above_100_megapixels_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    lazy = Image.open(io.BytesIO(bomb("PNG", 20_000, 20_000)))
    assert refusal(lazy) == "the image has more than 100 megapixels; scale it down first"


def test_exactly_the_limit_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)  # below which Pillow warns
    assert load_image(file_of(picture(), "PNG")).pixels.size == (32, 24)
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 32 - 1)
    refusal(file_of(picture(), "PNG"))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**25))),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2**25))),
        (b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**25))),
        (b"iCCP", b"icc\0\0" + b"not deflated"),
        (b"acTL", b"\0"),
        (b"tRNS", b""),
        (b"pHYs", b"\0"),
        (b"gAMA", b""),
        (b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    ],
)
def test_bombs_and_nonsense_in_png_metadata_never_surface(chunk: tuple[bytes, bytes]) -> None:
    pixels = (b"IDAT", zlib.compress(bytes(5 * 4)))
    for chunks in ((chunk, pixels), (pixels, chunk)):
        with contextlib.suppress(InputError):
            assert load_image(png(4, 4, *chunks)).pixels.size == (4, 4)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_text_or_profile_that_inflates_to_32_mib_is_refused(name: bytes) -> None:
    packed = name, b"x\0\0" + zlib.compress(bytes(2**25))
    assert "cannot be decoded (" in refusal(png(4, 4, packed, (b"IDAT", zlib.compress(bytes(5 * 4)))))


def test_many_texts_are_refused_together() -> None:
    packed = b"zTXt", b"x\0\0" + zlib.compress(bytes(2**20))
    refusal(png(4, 4, *[packed] * 80, (b"IDAT", zlib.compress(bytes(5 * 4)))))


def test_an_image_of_no_pixels_is_refused() -> None:
    assert refusal(Image.new("RGB", (0, 5))) == "the image has no pixels (0 x 5)"
    refusal(png(0, 5, (b"IDAT", zlib.compress(b""))))


def test_a_page_list_that_is_a_circle_ends() -> None:
    circle = bytearray(tiff_chain(2))
    circle[-4:] = struct.pack("<I", 16)
    assert load_image(bytes(circle)).notes == ("the image has 2 frames; frame 1 was used",)


# Damage


def check_image_or_one_line(content: bytes) -> None:
    """Load `content`: anything but an image or an `InputError` of one line fails the test."""
    try:
        loaded = load_image(content)
    except InputError as error:
        lines = (str(error),)
    else:
        assert loaded.pixels.mode == "RGB"
        lines = loaded.notes
    assert all(line.isprintable() for line in lines)


SAMPLES = [
    *(file_of(picture(), kind) for kind in KINDS),
    file_of(picture().convert("P"), "PNG"),
    file_of(Image.fromarray(noise(9, 9, top=4096).astype(np.uint16)), "PNG"),
    file_of(picture(), "PNG", save_all=True, append_images=[picture().rotate(90)]),
    file_of(picture(), "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    file_of(picture().convert("P"), "BMP"),
    file_of(picture(), "TIFF", compression="tiff_lzw"),
    file_of(picture(), "TIFF", compression="jpeg"),
    file_of(picture(), "TIFF", save_all=True, append_images=[picture()] * 3),
    file_of(picture(), "WEBP", lossless=True),
    file_of(picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)]),
    file_of(picture(), "MPO", save_all=True, append_images=[picture()]),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_truncation_at_any_point_gives_an_image_or_one_line(sample: bytes) -> None:
    for length in sorted({*range(64), *range(64, len(sample), max(1, len(sample) // 60)), len(sample) - 1}):
        check_image_or_one_line(sample[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    stored = file_of(picture(200, 200), kind)
    path = tmp_path / "scan"
    path.write_bytes(stored[: len(stored) // 2])
    assert refusal(path).startswith(f"{path} ")


def test_a_truncated_png_says_so() -> None:
    stored = file_of(picture(200, 200), "PNG")
    assert refusal(stored[: len(stored) // 2]).startswith("the image cannot be decoded (")


def test_a_damaged_lazy_pillow_image_is_refused() -> None:
    stored = file_of(picture(200, 200), "PNG")
    assert "cannot be decoded (" in refusal(Image.open(io.BytesIO(stored[: len(stored) // 2])))


@settings(max_examples=1500)
@given(
    sample=st.sampled_from(SAMPLES),
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=6),
)
@example(sample=SAMPLES[0], flips=[(24, 255)])
def test_flipped_bytes_give_an_image_or_one_line(sample: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(sample)
    for at, mask in flips:
        damaged[at % len(damaged)] ^= mask
    check_image_or_one_line(bytes(damaged))


@settings(max_examples=1500)
@given(
    sample=st.sampled_from(SAMPLES),
    flips=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_of_the_header_give_an_image_or_one_line(sample: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(sample)
    for at, mask in flips:
        damaged[at % len(damaged)] ^= mask
    check_image_or_one_line(bytes(damaged))


@settings(max_examples=300)
@given(
    magic=st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\1\0\0WEBPVP8X"]),
    rest=st.binary(max_size=300),
)
def test_random_bytes_after_a_signature_give_an_image_or_one_line(magic: bytes, rest: bytes) -> None:
    check_image_or_one_line(magic + rest)


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert refusal(file_of(picture(), "PNG")) == "the image does not fit in memory; scale it down first"


def test_pillows_settings_are_left_alone() -> None:
    limit = cast("int", Image.MAX_IMAGE_PIXELS)
    for content in (file_of(picture(), "PNG"), bomb("PNG", 20_000, 20_000), SAMPLES[0][:100]):
        check_image_or_one_line(content)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert limit == Image.MAX_IMAGE_PIXELS
