"""Synthetic dorsopalmar hand radiographs: five rays of bones on carpus and forearm, inside a soft-tissue outline."""

from dataclasses import dataclass, replace

import numpy as np

from .canvas import Array, Canvas, Rng, blob, blur, cloud, oval, smooth
from .scan import Drawing, Kind
from .xray_film import Shape, f32, grained, inset, layer, soften

_DIGITS = ("thumb", "index finger", "middle finger", "ring finger", "little finger")

# Each digit's root (x, y), its metacarpal's direction (radians from straight up), how it fans out when the fingers
# spread, and its bones' lengths from the wrist outward. The thumb is at the image's left before mirroring.
_RAYS = (
    ((-0.2, 0.45), -0.8, -0.2, (0.31, 0.235, 0.17)),
    ((-0.145, 0.405), -0.21, -0.14, (0.43, 0.275, 0.165, 0.125)),
    ((-0.03, 0.395), -0.04, -0.04, (0.425, 0.305, 0.195, 0.135)),
    ((0.075, 0.41), 0.14, 0.08, (0.385, 0.285, 0.185, 0.135)),
    ((0.155, 0.44), 0.32, 0.2, (0.35, 0.23, 0.13, 0.115)),
)
# Half widths along a bone, as parts of its width: a metacarpal, a phalanx, a finger's last phalanx.
_ALONG = f32([0, 0.005, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.78, 0.86, 0.93, 0.98, 1.0])
_HALVES = f32([
    [0.3, 0.42, 0.5, 0.47, 0.38, 0.31, 0.3, 0.33, 0.41, 0.48, 0.47, 0.32, 0.15],
    [0.3, 0.46, 0.53, 0.49, 0.4, 0.34, 0.32, 0.31, 0.34, 0.41, 0.42, 0.34, 0.2],
    [0.3, 0.45, 0.52, 0.46, 0.36, 0.27, 0.22, 0.2, 0.22, 0.27, 0.27, 0.2, 0.08],
])  # fmt: skip
# The eight carpal bones: centre, radii, tilt. The last, the pisiform, lies on the one before.
_CARPALS = f32([
    (-0.195, 0.51, 0.06, 0.055, 0.5), (-0.115, 0.485, 0.042, 0.048, 0), (-0.025, 0.525, 0.055, 0.1, 0.05),
    (0.09, 0.53, 0.064, 0.086, -0.3), (-0.125, 0.602, 0.055, 0.095, 0.75), (-0.01, 0.655, 0.07, 0.05, -0.1),
    (0.105, 0.642, 0.058, 0.045, -0.6), (0.14, 0.615, 0.032, 0.034, 0),
])  # fmt: skip
_CORTEX, _MARROW = 0.88, 0.6


@dataclass(frozen=True)
class _Bone:
    """A long bone from `start` along `angle` (from straight up, clockwise), with half widths at _ALONG."""

    start: Array
    angle: float
    length: float
    halves: Array

    def at(self, along: Array | float, across: Array | float) -> Array:
        """Points at fractions of the length and, sideways, at distances -> [n, 2], or [2] of two numbers."""
        sin, cos = np.sin(self.angle), np.cos(self.angle)
        y, x = np.asarray(along) * self.length, np.asarray(across)
        return (self.start + np.stack([x * cos + y * sin, x * sin - y * cos], -1)).astype(np.float32)


@dataclass(frozen=True)
class _Break:
    """A fracture of bone `rank` of a digit: where along it, its slant, and how its far piece has moved."""

    digit: int
    rank: int
    along: float
    slant: float
    gap: float
    step: float
    bend: float

    def far(self, bone: _Bone) -> _Bone:
        """The bone's frame beyond the break: moved outward and sideways, and turned about the break."""
        pivot = bone.at(self.along + self.gap / bone.length, self.step)
        turned = replace(bone, start=pivot, angle=bone.angle + self.bend)
        return replace(turned, start=turned.at(-self.along, 0.0))


def draw_hand_xray(rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
    """A hand seen from its back, fingers up; left or right hand at random."""
    canvas = replace(canvas, scale=canvas.scale * rng.uniform(1.08, 1.16))
    mirror = f32([rng.choice([-1, 1]), 1])

    def sheet(shapes: list[Shape]) -> Array:
        return layer(canvas, [(f32(outline * mirror), density, width) for outline, density, width in shapes])

    digit = _DIGITS.index(place) if place in _DIGITS else 0
    broken = _break(rng, canvas, digit) if finding == "fracture" else None
    rays = _rays(rng, broken)
    shapes = _wrist(rng)
    for i, ray in enumerate(rays):
        for rank, bone in enumerate(ray):
            shapes += _pieces(rng, bone, broken if broken and (broken.digit, broken.rank) == (i, rank) else None)
    skin = sheet([(outline, 1.0, None) for outline in _flesh(rng, rays)])

    mask = metal = canvas.blank()
    if broken:
        bone = rays[digit][broken.rank]
        x, y = bone.at(broken.along + 0.5 * broken.gap / bone.length, 0.5 * broken.step)
        mask = sheet([(oval(x, y, 0.1, 0.1), 1.0, None)])
    elif finding == "bone lesion":
        lesion = _lesion(rng, canvas, rays[digit])
        shapes += lesion
        mask = sheet([(lesion[0][0], 1.0, None)])
    elif finding == "metal foreign body":
        metal = mask = _metal(rng, canvas, skin)
    return Drawing(_film(rng, canvas, skin, sheet(shapes), metal), mask)


def _rays(rng: Rng, broken: _Break | None) -> list[list[_Bone]]:
    """The digits' bones, wrist to tip, at random spread; beyond a break they follow its far piece."""
    spread, thick = rng.uniform(-0.1, 1.0), rng.uniform(0.95, 1.12)
    rays = []
    for i, (root, direction, fan, lengths) in enumerate(_RAYS):
        stretch = rng.uniform(0.96, 1.04)
        start, angle = f32(root), direction + rng.normal(0, 0.02)
        ray: list[_Bone] = []
        for rank, length in enumerate(lengths):
            if rank:
                angle += rng.normal(0, 0.03)
            if rank == 1:
                angle += fan * spread + (0.25 if i == 0 else 0) - 0.35 * direction
            width = thick * (0.122, 0.11, 0.096, 0.084)[rank] * (1.1 if i == 0 else 0.88 if i == 4 else 1)
            profile = 2 if rank == len(lengths) - 1 else min(rank, 1)
            bone = _Bone(start, angle, length * stretch, _HALVES[profile] * np.float32(width))
            ray.append(bone)
            end = broken.far(bone) if broken and (broken.digit, broken.rank) == (i, rank) else bone
            start = end.at(1 + 0.022 / end.length, 0.0)
            # The skin holds the rest of a broken finger nearly straight.
            angle += 0.25 * (end.angle - bone.angle)
        rays.append(ray)
    return rays


def _break(rng: Rng, canvas: Canvas, digit: int) -> _Break:
    """A break of the metacarpal or of a phalanx but the last, which is too short to show one."""
    way = rng.choice([-1, 1])
    return _Break(
        digit=digit,
        rank=int(rng.integers(0, 2 if digit == 0 else 3)),
        along=rng.uniform(0.4, 0.62),
        slant=rng.uniform(0.008, 0.026) * rng.choice([-1, 1]),
        gap=rng.uniform(0.042, 0.055) / canvas.scale,
        step=rng.uniform(0.022, 0.045) * way,
        # An inner finger would come to lie on its neighbour.
        bend=rng.uniform(0.14, 0.32 if digit in (0, 4) else 0.24) * way,
    )


def _pieces(rng: Rng, bone: _Bone, broken: _Break | None) -> list[Shape]:
    """A bone's cortex and marrow, in one piece or in two."""
    if not broken:
        return _piece(rng, bone, (0, 0), (1, 1))
    cut = (broken.along - broken.slant / bone.length, broken.along + broken.slant / bone.length)
    return _piece(rng, bone, (0, 0), cut) + _piece(rng, broken.far(bone), cut, (1, 1))


def _piece(rng: Rng, bone: _Bone, low: tuple[float, float], high: tuple[float, float]) -> list[Shape]:
    """The part of a bone between two slanted cuts, each given at its left and at its right edge."""
    level = rng.uniform(0.93, 1.0)
    cortex = np.interp(_ALONG, [0, 0.12, 0.4, 0.6, 0.88, 1], [0.007, 0.013, 0.022, 0.022, 0.013, 0.007])
    shapes: list[Shape] = []
    for wall, end, density in ((0 * cortex, 0.0, _CORTEX), (cortex, 0.012 / bone.length, _MARROW)):
        sides = []
        for sign, a, b in ((-1, low[0], high[0]), (1, low[1], high[1])):
            along = np.clip(_ALONG, a + end, b - end)
            sides.append(bone.at(along, sign * np.maximum(np.interp(along, _ALONG, bone.halves) - wall, 0.002)))
        shapes.append((np.concatenate([sides[0], sides[1][::-1]]), density * level, None))
    return shapes


def _wrist(rng: Rng) -> list[Shape]:
    """Radius, ulna and the eight carpal bones."""
    y = 0.725 + rng.uniform(-0.01, 0.02)
    radius = [(-0.235, -0.055), (-0.13, -0.02), (-0.02, 0.015), (0.055, 0.0), (0.06, 0.08), (0.01, 0.25), (0.0, 1.2)]
    radius += [(-0.17, 1.2), (-0.19, 0.3), (-0.25, 0.1)]
    ulna = [(0.085, 0.04), (0.13, 0.025), (0.19, -0.02), (0.21, 0.08), (0.18, 0.25), (0.18, 1.2), (0.07, 1.2)]
    ulna += [(0.08, 0.2)]
    shapes: list[Shape] = []
    for outline in (smooth([(x, y + v) for x, v in radius]), smooth([(x, y + v) for x, v in ulna])):
        shapes += [(outline, _CORTEX, None), (inset(outline, 0.018), _MARROW, None)]
    for x, v, rx, ry, tilt in _CARPALS:
        outline = blob(rng, x, v, 0.94 * rx, 0.94 * ry, tilt + rng.normal(0, 0.1), wobble=0.06)
        shapes += [(outline, 0.76, None), (inset(outline, 0.008), rng.uniform(0.6, 0.68), None)]
    shapes[-1] = (shapes[-1][0], 0.74, None)
    return shapes


def _flesh(rng: Rng, rays: list[list[_Bone]]) -> list[Array]:
    """Outlines whose union is the hand's skin: a sleeve round each digit, the palm, the wrist."""
    plump = rng.uniform(0.98, 1.15)
    outlines: list[Array] = []
    for i, ray in enumerate(rays):
        widths = np.array([0.14, 0.112, 0.098, 0.088, 0.07]) * plump * (1.1 if i == 0 else 0.92 if i == 4 else 1)
        joints = np.stack([bone.start for bone in ray] + [ray[-1].at(1.08, 0.0)])
        for a, b, wa, wb in zip(joints[:-1], joints[1:], widths[:-1], widths[1:], strict=False):
            across = np.array([-(b - a)[1], (b - a)[0]]) / np.linalg.norm(b - a)
            outlines.append(np.stack([a + across * wa, b + across * wb, b - across * wb, a - across * wa]))
            outlines.append(oval(float(b[0]), float(b[1]), wb, wb, points=32))
    thumb, index, middle, ring, little = rays
    palm = [thumb[0].at(0.5, -0.1), thumb[0].at(0.95, 0.03), 0.5 * (thumb[0].at(0.9, 0.1) + index[0].at(0.6, -0.1))]
    palm += [index[1].at(0.15, -0.1), middle[1].at(0.35, 0.0), ring[1].at(0.3, 0.05), little[1].at(0.2, 0.1)]
    palm += [little[0].at(0.4, 0.15), *f32([(0.28, 0.55), (0.27, 0.75), (0.28, 2.2), (-0.3, 2.2), (-0.3, 0.75)])]
    return [*outlines, smooth([(float(x), float(y)) for x, y in palm])]


def _lesion(rng: Rng, canvas: Canvas, ray: list[_Bone]) -> list[Shape]:
    """A bubble that widens a bone: thin bright rim, dark inside, perhaps a septum; its outline is the first shape."""
    bone = ray[int(rng.integers(0, len(ray) - 1))]
    x, y = bone.at(rng.uniform(0.3, 0.7), rng.normal(0, 0.008))
    wide = rng.uniform(0.074, 0.088) / np.sqrt(canvas.scale)
    outline = blob(rng, x, y, wide, wide * rng.uniform(1.15, 1.6), bone.angle, wobble=0.06)
    inside = inset(outline, 0.018)
    i = int(rng.integers(0, 18))
    septum = (inside[[i, i + 2, i + 34, i + 36]], rng.choice([0.2, 0.45]), None)
    return [(outline, _CORTEX, None), (inside, rng.uniform(0.08, 0.25), None), septum]


def _metal(rng: Rng, canvas: Canvas, skin: Array) -> Array:
    """A needle, screw or pellet somewhere inside the skin."""
    spots = rng.uniform((-0.8, -0.8), (0.8, 0.9), (300, 2))
    column, row = np.clip(canvas.pixels(spots).astype(int), 6, (canvas.width - 7, canvas.height - 7)).T
    x, y = spots[int(np.argmax(soften(skin, 4, 2)[row, column] > 0.97))]
    angle, shape = rng.uniform(0, np.pi), rng.integers(0, 3)
    if shape == 0:
        return canvas.ellipse(x, y, rng.uniform(0.015, 0.02), rng.uniform(0.14, 0.24), angle)
    if shape == 1:
        return canvas.polygon(_screw(rng, angle) + f32([x, y]))
    size = rng.uniform(0.062, 0.085) / canvas.scale
    return canvas.polygon(blob(rng, x, y, size, size * rng.uniform(0.8, 1.0), angle, wobble=0.03))


def _screw(rng: Rng, angle: float) -> Array:
    """A screw's outline about the origin, turned by `angle`: head, threaded shaft, point."""
    half, turns = rng.uniform(0.1, 0.17), int(rng.integers(6, 10))
    y = np.linspace(-half + 0.03, half - 0.03, 2 * turns)
    x = np.where(np.arange(2 * turns) % 2, 0.034, 0.018)
    right = f32([(0.055, -half), (0.055, -half + 0.03), *zip(x, y, strict=True), (0.0, half)])
    turn = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return np.concatenate([right, right[-2::-1] * f32([-1, 1])]) @ np.array(turn)


def _film(rng: Rng, canvas: Canvas, skin: Array, bone: Array, metal: Array) -> Array:
    """Greys of the layers: thick flesh is lighter than its rim, and bone has a fine weave."""
    # Rounding the union of sleeves and palm: where they meet it has corners that skin has not.
    skin = np.clip(2.2 * soften(skin, min(skin.shape) / 112, 2) - 0.7, 0, 1)
    soft = skin * (0.4 + 0.6 * soften(skin, 12)) * rng.uniform(0.26, 0.4)
    weave = 1 + 0.05 * cloud(rng, canvas, 2.2) + 0.04 * cloud(rng, canvas, 9)
    grey = soft * (1 - 0.3 * bone) + bone * weave * rng.uniform(0.58, 0.7)
    grey = blur(np.maximum(grey, metal * 1.2), rng.uniform(0.45, 0.75)) + rng.uniform(0.01, 0.06)
    return grained(rng, canvas, grey)


HAND_XRAY = Kind(
    "hand X-ray",
    "X-ray",
    "Hand",
    {"fracture": _DIGITS, "bone lesion": _DIGITS, "metal foreign body": ()},
    draw_hand_xray,
)
