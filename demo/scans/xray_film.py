"""What the radiographs share: sheets of many shapes, wide blurs, and the film's grain.

A radiograph has dozens of bones. A mask of its own for each, as the canvas draws them, would be slow; one sheet takes
them all, which is right where they do not overlap or where the later one hides the earlier.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from .canvas import Array, Canvas, Rng, blur, cloud

# An outline or a line [n, 2], its density 0 to 1, and the line's width in the anatomy's units (None fills the outline).
Shape = tuple[Array, float, float | None]

_SUPERSAMPLE = 2


def f32(values: ArrayLike) -> Array:
    """Any numbers as a float32 array."""
    return np.asarray(values, np.float32)


def inset(outline: Array, wall: float) -> Array:
    """The outline, drawn clockwise on the image, moved inward by about `wall`."""
    tangent = np.roll(outline, -1, 0) - np.roll(outline, 1, 0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    return (outline + np.stack([-tangent[:, 1], tangent[:, 0]], 1) * np.float32(wall)).astype(np.float32)


def layer(canvas: Canvas, shapes: Sequence[Shape]) -> Array:
    """All shapes on one sheet [height, width], 0 to 1, later ones over earlier."""
    image = Image.new("L", (canvas.width * _SUPERSAMPLE, canvas.height * _SUPERSAMPLE), 0)
    draw = ImageDraw.Draw(image)
    unit = canvas.scale * min(canvas.height, canvas.width) / 2 * _SUPERSAMPLE
    joined = canvas.pixels(np.concatenate([outline for outline, _, _ in shapes])) * _SUPERSAMPLE
    path = [tuple(p) for p in joined.tolist()]
    start = 0
    for outline, density, width in shapes:
        piece = path[start : start + len(outline)]
        start += len(outline)
        if width is None:
            draw.polygon(piece, fill=round(255 * density))
        else:
            draw.line(piece, round(255 * density), max(1, round(width * unit)))
    return np.asarray(np.asarray(image.reduce(_SUPERSAMPLE)) / 255, np.float32)


def soften(image: Array, sigma: float, step: int = 4) -> Array:
    """`image` blurred by `sigma` pixels, on a grid `step` times coarser: `step` squared times faster."""
    height, width = image.shape
    small = Image.fromarray(image).resize((max(1, width // step), max(1, height // step)), Image.Resampling.BOX)
    soft = blur(np.asarray(small, np.float32), sigma / step).astype(np.float32)
    return np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def grained(rng: Rng, canvas: Canvas, grey: Array) -> Array:
    """`grey` with the film's grain, within 0 to 1."""
    grain = cloud(rng, canvas, 1.4) * rng.uniform(0.006, 0.02)
    return np.clip(grey + grain, 0, 1).astype(np.float32)
