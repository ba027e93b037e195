"""Images that were decoded, for the next question about them: DICOM takes a process of its own each time."""

import hashlib
import threading
from collections import OrderedDict

from .dicom.view import View
from .images import LoadedImage, decode_image

# Of the pixels that are kept.
_MOST_BYTES = 1 << 26


class DecodedImages:
    """The images decoded last, as far as their pixels fit in 64 MiB. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str, View], LoadedImage] = OrderedDict()

    def load(self, content: bytes, name: str, view: View) -> LoadedImage:
        """The image that a file holds, which messages and notes call `name`. Raises `InputError`.

        The name is part of the key only because notes speak of it: the content always is.
        """
        key = hashlib.sha256(content).digest(), name, view
        with self._lock:
            found = self._kept.pop(key, None)
        image = found or decode_image(content, name, view)
        with self._lock:
            self._kept[key] = image
            while sum(map(pixel_bytes, self._kept.values())) > _MOST_BYTES:
                self._kept.popitem(last=False)
        return image


def pixel_bytes(image: LoadedImage) -> int:
    """What the pixels take."""
    return 3 * image.pixels.width * image.pixels.height
