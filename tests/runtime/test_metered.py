"""Files that would keep their reader busy for hours, or fill memory, with what is no pixel."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from medvlm.runtime import images, metered
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from PIL import Image

BESIDES = "the image holds too much besides its pixels; save it again as PNG"


def file_of(kind: str, **options: Any) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as error:
        load_image(content)
    return str(error.value)


@pytest.mark.parametrize("marker", [b"\xff\xe1", b"\xff\xe5"])
def test_segments_of_more_than_16_mib_are_refused(marker: bytes) -> None:
    """EXIF's are joined one by one: a hundred megabytes of them took 80 seconds."""
    small, segment = file_of("JPEG"), marker + struct.pack(">H", 65535) + b"Exif\0\0" + bytes(65527)
    assert load_image(small[:2] + segment * 20 + small[2:]).pixels.size == (60, 40)
    assert refusal(small[:2] + segment * 260 + small[2:]) == BESIDES


def test_millions_of_empty_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metered, "MOST_READS", 1000)
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    png, jpeg = file_of("PNG"), file_of("JPEG")
    for at in (png.index(b"IDAT") - 4, png.index(b"IEND") - 4):
        assert load_image(png[:at] + chunk * 50 + png[at:]).pixels.size == (60, 40)
        assert refusal(png[:at] + chunk * 1000 + png[at:]) == BESIDES
    assert refusal(jpeg[:2] + b"\xff" * 2000 + jpeg[2:]) == BESIDES
    assert refusal(jpeg[:2] + b"\xff\xe5\0\2" * 1000 + jpeg[2:]) == BESIDES


def test_pages_that_share_one_large_tag_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tags are read again for each."""
    monkeypatch.setattr(metered, "MOST_HEADER_BYTES", 10_000)
    monkeypatch.setattr(metered, "MOST_PAGES_BYTES", 10_000)
    page = Image.new("L", (4, 4))
    few, many = io.BytesIO(), io.BytesIO()
    for stream, pages in ((few, 1), (many, 9)):
        page.save(stream, "TIFF", save_all=True, append_images=[page] * (pages - 1), tiffinfo={270: "x" * 2000})
    assert load_image(few.getvalue()).pixels.size == (4, 4)
    assert refusal(many.getvalue()) == BESIDES


def progressive(scans: int) -> bytes:
    """A JPEG of 16x16 with as many passes that say nothing more: all four blocks end at once (T.81, G.1.2.2)."""
    stream = io.BytesIO()
    Image.new("L", (16, 16), 128).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    # A table of AC codes: "0" is a run of 4 to 7 blocks that end; two more bits say how long it is.
    table = b"\xff\xc4" + struct.pack(">HB16B2B", 21, 0x10, 1, 1, *[0] * 14, 0x20, 0x00)
    scan = b"\xff\xda" + struct.pack(">HBBB3B", 8, 1, 1, 0, 1, 63, 0) + b"\x1f"
    return content[:-2] + table + scan * (scans - content.count(b"\xff\xda")) + b"\xff\xd9"


def test_progressive_jpegs_have_at_most_500_passes() -> None:
    """A hundred thousand passes over 100 megapixels, which are 15 megabytes, would take half an hour."""
    assert load_image(progressive(metered.MOST_SCANS)).pixels.size == (16, 16)
    assert refusal(progressive(metered.MOST_SCANS + 1)) == (
        "the image has more than 500 passes over its pixels; save it again as PNG"
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_pixels_do_not_count(kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metered, "MOST_HEADER_BYTES", 1500)
    monkeypatch.setattr(metered, "MOST_PAGES_BYTES", 1500)
    content = file_of(kind, **options)
    assert len(content) > 3000
    assert load_image(content).pixels.size == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_laid_over_white_in_strips(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (31, 17, 4), np.uint8)
    image = Image.fromarray(noise).convert("LA" if mode == "LA" else "RGBA")
    if mode == "P":
        image = Image.fromarray(noise[..., 0]).convert("P")
        image.info["transparency"] = bytes(range(256))
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    whole = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    monkeypatch.setattr(images, "_SCALED_AT_ONCE", 100)
    assert np.array_equal(np.asarray(load_image(image).pixels), np.asarray(whole))
