"""What CT slices share: Hounsfield units, the patient's build, bones, the table, and the window that makes greys.

Pictures here are drawn in Hounsfield units (air -1000, water 0) and become greys only at the end, as on a scanner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .canvas import Array, Canvas, Rng, blob, blur, cloud, oval, paint

AIR, FAT, FLUID, MUSCLE, SPONGY, CORTEX = -1000.0, -105.0, 8.0, 52.0, 210.0, 520.0

# Twice the pixels each way, averaged down, as in `canvas`.
_SUPERSAMPLE = 2
_NOWHERE: tuple[tuple[slice, slice], Array] = ((slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.float32))


@dataclass(frozen=True)
class Build:
    """How one patient differs from the template: a stretch along x and y, and a slow wave along each."""

    stretch: tuple[float, float]
    swing: tuple[float, float]
    phase: tuple[float, float]

    def __call__(self, points: NDArray[np.floating]) -> Array:
        """Points [n, 2] of the template -> [n, 2] of this patient. One warp for all keeps neighbours neighbours."""
        waves = np.sin(2.6 * points[:, ::-1] + self.phase) * self.swing
        return (points * self.stretch + waves).astype(np.float32)


@dataclass(frozen=True)
class Line:
    """An open line through points [n, 2], `width` wide in the anatomy's units, drawn `strength` (0 to 1) strong."""

    points: NDArray[np.floating]
    width: float
    strength: float = 1.0


def random_build(rng: Rng, low: tuple[float, float], high: tuple[float, float]) -> Build:
    """A patient whose stretch along x and y lies between `low` and `high`."""
    x, y = rng.uniform(low, high)
    swing, phase = rng.uniform(0.0, 0.02, 2), rng.uniform(0, 2 * np.pi, 2)
    return Build((float(x), float(y)), (float(swing[0]), float(swing[1])), (float(phase[0]), float(phase[1])))


def union(canvas: Canvas, outlines: Sequence[Array] = (), lines: Sequence[Line] = ()) -> Array:
    """One mask [height, width], 0 to 1, of many outlines and lines."""
    mask = canvas.blank()
    box, stamp = _stamp(canvas, outlines, lines)
    mask[box] = stamp
    return mask


def fill(
    image: Array,
    canvas: Canvas,
    value: float | Array,
    outlines: Sequence[Array] = (),
    lines: Sequence[Line] = (),
    within: Array | None = None,
    opacity: float = 1.0,
) -> None:
    """Lays `value` over `image`, in place, on all outlines and lines, but only where the mask `within` lets it.

    In place and on no more pixels than they cover, since a scan has some thirty of these.
    """
    box, stamp = _stamp(canvas, outlines, lines)
    if within is not None:
        stamp = stamp * within[box]
    image[box] = paint(image[box], stamp, value[box] if isinstance(value, np.ndarray) else value, opacity)


def _stamp(canvas: Canvas, outlines: Sequence[Array], lines: Sequence[Line]) -> tuple[tuple[slice, slice], Array]:
    """The box of pixels that outlines and lines cover, and their mask in it."""
    curves = [*outlines, *(line.points for line in lines)]
    if not curves:
        return _NOWHERE
    points = canvas.pixels(np.concatenate(curves))
    unit = canvas.scale * min(canvas.height, canvas.width) / 2
    pad = 2 + unit * max((line.width for line in lines), default=0.0)
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    left, top = max(0, int(x0 - pad)), max(0, int(y0 - pad))
    right, bottom = min(canvas.width, int(x1 + pad) + 1), min(canvas.height, int(y1 + pad) + 1)
    if right <= left or bottom <= top:
        return _NOWHERE
    sheet = Image.new("L", ((right - left) * _SUPERSAMPLE, (bottom - top) * _SUPERSAMPLE), 0)
    ends = np.cumsum([len(curve) for curve in curves]).tolist()
    _draw(sheet, (points - (left, top)) * _SUPERSAMPLE, [0, *ends], lines, unit * _SUPERSAMPLE)
    stamp = np.asarray(sheet.reduce(_SUPERSAMPLE), np.float32) * np.float32(1 / 255)
    return (slice(top, bottom), slice(left, right)), stamp


def _draw(sheet: Image.Image, points: Array, ends: list[int], lines: Sequence[Line], unit: float) -> None:
    """Outlines, and after them `lines`, on the sheet: pieces of `points` [n, 2] that meet at `ends`."""
    draw, flat = ImageDraw.Draw(sheet), points.ravel().tolist()
    pieces = [flat[2 * a : 2 * b] for a, b in pairwise(ends)]
    outlines = len(pieces) - len(lines)
    for piece in pieces[:outlines]:
        draw.polygon(piece, fill=255)
    for line, piece in zip(lines, pieces[outlines:], strict=True):
        draw.line(piece, int(255 * line.strength), max(1, int(line.width * unit + 0.5)), joint="curve")


def inset(outline: Array, by: float) -> Array:
    """The outline [n, 2] drawn in towards its middle by about `by` on every side."""
    middle = (outline.max(0) + outline.min(0)) / 2
    half = (outline.max(0) - outline.min(0)) / 2
    return ((outline - middle) * (1 - by / half) + middle).astype(np.float32)


def roomiest(canvas: Canvas, tries: NDArray[np.floating], radius: float, room: Array) -> tuple[float, float]:
    """Of the points `tries` [n, 2], the first whose ring of that radius lies in the mask `room`, or else does best."""
    rings = (tries[:, None] + oval(0, 0, radius, radius, points=12)).reshape(-1, 2)
    column, row = np.clip(canvas.pixels(rings).astype(int), 0, (canvas.width - 1, canvas.height - 1)).T
    x, y = tries[int(np.argmax(room[row, column].reshape(len(tries), -1).min(1)))]
    return float(x), float(y)


def patient(rng: Rng, canvas: Canvas, skin: Array, fat: float, grain: Array) -> Array:
    """A picture [height, width] of the body in the outline `skin`: fat, `fat` thick, round muscle with that grain."""
    image = canvas.blank(AIR)
    low = float(skin[:, 1].max()) + rng.uniform(0.03, 0.12)
    x = np.linspace(-1.3, 1.3, 24)
    tables = []
    for gap, width in ((0.0, 0.022), (rng.uniform(0.12, 0.18), 0.016)):
        table = np.stack([x, low + gap + 0.02 - rng.uniform(0.14, 0.22) * x**2], 1).astype(np.float32)
        tables.append(Line(table, width))
    fill(image, canvas, rng.uniform(100.0, 900.0), lines=tables)
    fill(image, canvas, 0.0, [skin])
    fill(image, canvas, FAT, [inset(skin, 0.013)])
    fill(image, canvas, MUSCLE + grain, [inset(skin, fat)])
    return image


def ribs(rng: Rng, canvas: Canvas, image: Array, cage: Array, where: Sequence[float]) -> None:
    """Ribs cut slantwise, lying along the outline `cage` [n, 2] at the fractions `where` of the way round it."""
    outer, inner = [], []
    for at in where:
        middle, tail = int(at * len(cage)), int(rng.integers(2, 4))
        path = cage[np.arange(middle - tail, middle + tail + 1) % len(cage)]
        thick = rng.uniform(0.04, 0.052)
        outer += [Line(path, 0.6 * thick), Line(path[1:-1], thick)]
        inner.append(Line(path[1:-1], 0.4 * thick))
    fill(image, canvas, CORTEX, lines=outer)
    fill(image, canvas, SPONGY, lines=inner, opacity=0.8)


def spine(rng: Rng, canvas: Canvas, image: Array, build: Build, y: float, grain: Array) -> None:
    """A vertebra whose body has its middle at (0, y): body, arch and processes round the canal.

    `grain` [height, width] is the tissues' texture in HU, several times stronger in spongy bone.
    """
    s, reach = rng.uniform(0.94, 1.08), rng.uniform(0.15, 0.2)
    canal, tip = y + 0.135 * s, y + rng.uniform(0.22, 0.26) * s
    sides = [np.array([[d * 0.05, canal], [d * reach, canal + rng.uniform(0.0, 0.05)]]) * (s, 1.0) for d in (-1, 1)]
    bones = [Line(build(p), 0.05 * s) for p in (*sides, np.array([[0.0, canal], [0.0, tip]]))]
    body = blob(rng, 0, y, 0.118 * s, 0.095 * s, wobble=0.04)
    arch = oval(0, canal, 0.085 * s, 0.068 * s)
    fill(image, canvas, CORTEX, [build(body), build(arch)], bones)
    spongy = [Line(line.points, 0.018 * s) for line in bones]
    fill(image, canvas, SPONGY + 4 * grain, [build(inset(body, 0.014 * s))], spongy)
    fill(image, canvas, 25.0, [build(oval(0, canal, 0.056 * s, 0.045 * s))])


def develop(rng: Rng, canvas: Canvas, image: Array, low: float, high: float, noise: float) -> Array:
    """Hounsfield units -> greys: the scanner's blur and noise (in HU), then the window from `low` to `high`."""
    pixel = min(canvas.height, canvas.width) / 224
    image = blur(image, rng.uniform(0.45, 0.8) * pixel)
    grain = 0.75 * rng.standard_normal(image.shape, np.float32) + 0.65 * cloud(rng, canvas, 1.8 * pixel)
    return np.clip((image + noise * grain - low) / (high - low), 0, 1).astype(np.float32)
