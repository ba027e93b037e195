"""Drawing for synthetic scans: smooth outlines, antialiased masks of them, blur and noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]
Rng = np.random.Generator

# Masks are drawn this many times larger and averaged down, which antialiases their edges.
_SUPERSAMPLE = 2


@dataclass(frozen=True)
class Canvas:
    """A view of size [height, width] pixels on anatomy that is drawn in units of its own.

    In those units x runs right and y down, and the image's shorter side spans -1 to 1. The anatomy is turned by
    `rotation` radians (clockwise), scaled, and moved by `shift` (x, y) in the same units.
    """

    height: int
    width: int
    rotation: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def blank(self, value: float = 0.0) -> Array:
        """An image [height, width] of one value; 0 is black and 1 is white throughout."""
        return np.full((self.height, self.width), value, np.float32)

    def pixels(self, points: NDArray[np.floating]) -> Array:
        """Points [n, 2] (x, y) of the anatomy -> [n, 2] in pixels."""
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        turned = np.asarray(points, np.float64) @ np.array([[cos, sin], [-sin, cos]])
        moved = turned * self.scale + self.shift
        return (moved * min(self.height, self.width) / 2 + (self.width / 2, self.height / 2)).astype(np.float32)

    def polygon(self, points: NDArray[np.floating]) -> Array:
        """The mask [height, width], 0 to 1, of the closed outline [n, 2]."""
        image, draw = self._sheet()
        draw.polygon([tuple(p) for p in (self.pixels(points) * _SUPERSAMPLE).tolist()], fill=255)
        return _averaged(image)

    def stroke(self, points: NDArray[np.floating], width: float) -> Array:
        """The mask of the open line through the points [n, 2], `width` wide in the anatomy's units."""
        image, draw = self._sheet()
        thick = max(1, round(width * self.scale * min(self.height, self.width) / 2 * _SUPERSAMPLE))
        draw.line([tuple(p) for p in (self.pixels(points) * _SUPERSAMPLE).tolist()], 255, thick, joint="curve")
        return _averaged(image)

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Array:
        """The mask of an ellipse, turned by `angle` radians."""
        return self.polygon(oval(x, y, rx, ry, angle))

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.width * _SUPERSAMPLE, self.height * _SUPERSAMPLE), 0)
        return image, ImageDraw.Draw(image)


def oval(x: float, y: float, rx: float, ry: float, angle: float = 0.0, points: int = 72) -> Array:
    """The outline [points, 2] of an ellipse, turned by `angle` radians."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    flat = np.stack([rx * np.cos(t), ry * np.sin(t)], 1)
    cos, sin = np.cos(angle), np.sin(angle)
    return (flat @ np.array([[cos, sin], [-sin, cos]]) + (x, y)).astype(np.float32)


def blob(rng: Rng, x: float, y: float, rx: float, ry: float, angle: float = 0.0, wobble: float = 0.08) -> Array:
    """An ellipse's outline [72, 2] made organic: its radius varies by about `wobble` of itself, smoothly."""
    outline = oval(0, 0, rx, ry, angle)
    t = np.linspace(0, 2 * np.pi, len(outline), endpoint=False)
    waves = [rng.normal(0, wobble / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi)) for k in range(2, 6)]
    return (outline * (1 + np.sum(waves, 0))[:, None] + (x, y)).astype(np.float32)


def smooth(points: list[tuple[float, float]], closed: bool = True, steps: int = 8) -> Array:
    """A curve [n, 2] through the control points (Catmull-Rom), closed into an outline or open."""
    p = np.asarray(points, np.float64)
    padded = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return (
        np.concatenate([*pieces, p[-1:]]).astype(np.float32)
        if not closed
        else np.concatenate(pieces).astype(np.float32)
    )


def paint(image: Array, mask: Array, value: float | Array, opacity: float = 1.0) -> Array:
    """`image` with `value` laid over it where `mask` is, as much as `opacity` says."""
    weight: Array = np.multiply(mask, opacity, dtype=np.float32)
    change: Array = np.subtract(value, image, dtype=np.float32)
    return np.add(image, np.multiply(change, weight, dtype=np.float32), dtype=np.float32)


def blur(image: Array, sigma: float) -> Array:
    """`image` [height, width] blurred by a Gaussian of `sigma` pixels, its edges repeated."""
    if sigma <= 0:
        return image
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(image, pad, mode="edge")
        image = np.zeros_like(image)
        for i, weight in enumerate(kernel.astype(np.float32)):
            image += weight * (padded[i:, :] if axis == 0 else padded[:, i:])[: image.shape[0], : image.shape[1]]
    return image


def cloud(rng: Rng, canvas: Canvas, cell: float) -> Array:
    """Smooth noise [height, width] of about unit deviation whose grains are `cell` pixels wide: tissue texture."""
    shape = (max(2, round(canvas.height / cell) + 1), max(2, round(canvas.width / cell) + 1))
    coarse = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
    fine = np.asarray(coarse.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC), np.float32)
    return fine / max(float(fine.std()), 1e-3)


def _averaged(image: Image.Image) -> Array:
    return np.asarray(image.reduce(_SUPERSAMPLE), np.float32) * np.float32(1 / 255)
