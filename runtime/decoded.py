"""Images that were decoded, for the next question about them: DICOM takes a process of its own each time."""

import hashlib
import threading
from collections import OrderedDict

from .dicom.view import View
from .images import LoadedImage, decode_image

# Of the pixels that are kept, and what an image of few takes beside them.
_MOST_BYTES = 1 << 26
_LEAST_BYTES = 1 << 12


class DecodedImages:
    """The images decoded last, as far as their pixels fit in 64 MiB. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str, View], LoadedImage] = OrderedDict()
        self._nbytes = 0

    def load(self, content: bytes, name: str, view: View) -> LoadedImage:
        """The image that a file holds, which messages and notes call `name`. Raises `InputError`.

        The name is part of the key only because notes speak of it: the content always is.
        """
        key = hashlib.sha256(content).digest(), name, view
        with self._lock:
            image = self._kept.get(key)
        image = image or decode_image(content, name, view)
        with self._lock:
            self._keep(key, image)
        return image

    def _keep(self, key: tuple[bytes, str, View], image: LoadedImage) -> None:
        if key not in self._kept:
            self._nbytes += _kept_bytes(image)
        self._kept[key] = image
        self._kept.move_to_end(key)
        while self._nbytes > _MOST_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._nbytes -= _kept_bytes(dropped)


def _kept_bytes(image: LoadedImage) -> int:
    return max(pixel_bytes(image), _LEAST_BYTES)


def pixel_bytes(image: LoadedImage) -> int:
    """What the pixels take."""
    return 3 * image.pixels.width * image.pixels.height
