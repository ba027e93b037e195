"""Images that were decoded, for the next question about them: DICOM takes a process of its own each time."""

import hashlib
import threading
from collections import OrderedDict

from ..dicom.view import View
from ..images import LoadedImage, decode_image
from .messages import ImagePart


class DecodedImages:
    """The images decoded last, as far as their pixels fit in `most_bytes`. Any thread may ask."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str, View], LoadedImage] = OrderedDict()

    def load(self, part: ImagePart, name: str) -> LoadedImage:
        """The image that a file holds, which messages and notes call `name`. Raises `InputError`."""
        key = hashlib.sha256(part.content).digest(), name, part.view
        with self._lock:
            found = self._kept.pop(key, None)
        image = found or decode_image(part.content, name, part.view)
        with self._lock:
            self._kept[key] = image
            while sum(map(pixel_bytes, self._kept.values())) > self._most_bytes:
                self._kept.popitem(last=False)
        return image


def pixel_bytes(image: LoadedImage) -> int:
    """What the pixels take."""
    return 3 * image.pixels.width * image.pixels.height
