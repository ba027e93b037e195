"""Decoded images are kept within a bound, however small they are."""

import io

import pytest
from medvlm.runtime import decoded
from medvlm.runtime.decoded import DecodedImages
from medvlm.runtime.dicom.view import DEFAULT_VIEW
from medvlm.runtime.images import decode_image
from PIL import Image


def png(side: int, grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (side, side), grey).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(("side", "kept"), [(1, 5), (50, 2), (90, 0)], ids=["small", "middling", "larger than all"])
def test_the_newest_are_kept(side: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 kB: five of one pixel, which count 4 KiB each, and two of 7.5 kB."""
    names: list[str] = []
    monkeypatch.setattr(decoded, "_MOST_BYTES", 5 * 4096)
    monkeypatch.setattr(decoded, "decode_image", lambda *words: names.append(words[1]) or decode_image(*words))
    images = DecodedImages()
    for grey in range(8):
        assert images.load(png(side, grey), str(grey), DEFAULT_VIEW).pixels.size == (side, side)
    assert len(names) == 8
    names.clear()
    for grey in reversed(range(8 - kept, 8)):
        images.load(png(side, grey), str(grey), DEFAULT_VIEW)
    assert names == []
    images.load(png(side, 0), "0", DEFAULT_VIEW)
    assert names == ["0"]
