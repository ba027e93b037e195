"""The size that a compressed frame itself says, looked at before a decoder makes room for it."""

from dataclasses import dataclass

_START_OF_SCAN, _SIZ = 0xDA, b"\xff\x4f\xff\x51"
# Start of frame: 0xC0 to 0xCF, of which three are other things, and JPEG-LS's own.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JP2_BOX = b"\x00\x00\x00\x0cjP  "


@dataclass(frozen=True)
class StreamSize:
    """Pixels and samples a pixel of a JPEG, JPEG-LS or JPEG 2000 stream."""

    height: int
    width: int
    samples: int


def stream_size(stream: bytes) -> StreamSize | None:
    """The size in the stream's header; None where there is none (RLE, damage).

    JPEG and JPEG-LS: the frame header, ITU-T T.81 (1992) B.2.2 and T.87 (1998) C.2.2. JPEG 2000: the SIZ segment,
    T.800 (2002) A.5.1.
    """
    if stream.startswith(_JP2_BOX):
        start = stream.find(_SIZ)
        return _jpeg2000_size(stream[start:]) if start >= 0 else None
    if stream.startswith(_SIZ):
        return _jpeg2000_size(stream)
    return _jpeg_size(stream) if stream.startswith(b"\xff\xd8") else None


def _jpeg2000_size(stream: bytes) -> StreamSize | None:
    if len(stream) < 42:
        return None
    right, bottom, left, top = (int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20))
    return StreamSize(bottom - top, right - left, int.from_bytes(stream[40:42], "big"))


def _jpeg_size(stream: bytes) -> StreamSize | None:
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF and stream[at + 1] != _START_OF_SCAN:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _FRAMES:
            height, width = (int.from_bytes(stream[at + n : at + n + 2], "big") for n in (5, 7))
            return StreamSize(height, width, stream[at + 9])
        else:
            at += 2 + length
    return None
