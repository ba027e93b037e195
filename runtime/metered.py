"""An image file whose reader is stopped where it would read for ever.

A file may hold millions of pieces that are no pixels (empty chunks of a PNG, segments of a JPEG, tags of a TIFF), and
Pillow looks at each, and keeps many. It may hold a thousand times as many passes over its pixels as any camera makes,
at 150 bytes a pass. Both cost minutes or gigabytes where pixels and bytes are few.
"""

from typing import Any, BinaryIO

from .errors import InputError

# Profiles, previews and notes take a few megabytes. Segments of EXIF are joined in time that grows with their square.
MOST_HEADER_BYTES = 2**24
# What looking at a thousand pages may take in addition.
MOST_PAGES_BYTES = 2**26
# 100 megapixels of 16-bit RGBA in PNG's usual chunks of 8 KiB take 400,000.
MOST_READS = 4_000_000
# A progressive JPEG has about ten; libtiff refuses more than 100, libjpeg-turbo's fuzzers more than 500.
MOST_SCANS = 500

_START_OF_SCAN = b"\xff\xda"


class Metered:
    """A binary stream for Pillow. Its `read` raises `InputError`, one line about `name`, beyond the limits above.

    Until `expect_pixels` everything that is read counts as header, but for what reads the file whole (WebP).
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._reads, self._scans = MOST_READS, MOST_SCANS
        self._header_bytes = MOST_HEADER_BYTES
        self._in_pixels = self._counts_scans = False

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def expect_pages(self) -> None:
        """From now on pages are counted."""
        self._header_bytes += MOST_PAGES_BYTES

    def expect_pixels(self, *, jpeg: bool) -> None:
        """From now on pixels are read; of a JPEG their passes are counted."""
        self._in_pixels, self._counts_scans = True, jpeg

    def read(self, size: int = -1) -> bytes:
        """As the stream's own."""
        data = self._stream.read(size)
        self._reads -= 1
        if not self._in_pixels and size >= 0:
            self._header_bytes -= len(data)
        if self._counts_scans:
            self._scans -= data.count(_START_OF_SCAN)
        if min(self._reads, self._header_bytes) < 0:
            raise InputError(f"{self._name} holds too much besides its pixels; save it again as PNG")
        if self._scans < 0:
            raise InputError(f"{self._name} has more than {MOST_SCANS} passes over its pixels; save it again as PNG")
        return data
