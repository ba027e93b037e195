"""Several images as one: in rows, from the top left."""

import math
from collections.abc import Sequence

from PIL import Image

# A montage of full slices would be thousands of visual tokens; this is 1,369.
MOST_PIXELS = 1024 * 1024


def compose(images: Sequence[Image.Image], grid: tuple[int, int]) -> Image.Image:
    """A montage of (rows, columns), cells of the largest image's size, in RGB; cells without an image are black.

    Shrunk where it would have more than 1,048,576 pixels. A smaller image keeps its aspect ratio within its cell.
    """
    rows, columns = grid
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    scale = min(1.0, math.sqrt(MOST_PIXELS / (width * columns * height * rows)))
    cell = max(1, int(width * scale)), max(1, int(height * scale))
    montage = Image.new("RGB", (cell[0] * columns, cell[1] * rows))
    for place, image in enumerate(images):
        factor = min(cell[0] / image.width, cell[1] / image.height)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        fitted = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
        left = place % columns * cell[0] + (cell[0] - size[0]) // 2
        top = place // columns * cell[1] + (cell[1] - size[1]) // 2
        montage.paste(fitted, (left, top))
    return montage
