"""Synthetic frontal chest radiographs: attenuations of the layers add up, then the film's curve makes greys of them."""

from dataclasses import dataclass, replace
from math import cos, sin

import numpy as np

from .canvas import Array, Canvas, Rng, blob, blur, cloud, oval, paint, smooth
from .scan import Drawing, Kind
from .xray_film import Shape, f32, grained, layer, soften

_SIDES = ("left", "right")


@dataclass(frozen=True)
class _Chest:
    """Proportions, in the canvas's units: where the apices and the two domes are, how wide the thorax and heart."""

    top: float
    width: float
    domes: tuple[float, float]
    heart: tuple[float, float]

    def wall(self, y: float) -> float:
        """Half the thorax's inner width at height y."""
        levels = [self.top, self.top + 0.06, self.top + 0.2, -0.2, 0.1, 0.4]
        return float(np.interp(y, levels, np.array([0.35, 0.5, 0.7, 0.91, 0.97, 1.0]) * self.width))


def draw_chest_xray(rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
    """A frontal chest radiograph as it hangs on the wall: the heart's apex points to the image's right."""
    canvas = replace(canvas, scale=canvas.scale * rng.uniform(1.04, 1.12))
    chest = _proportions(rng, enlarged=finding == "enlarged heart")
    lungs = [canvas.polygon(outline) for outline in _lungs(chest)]
    air = lungs[0] + lungs[1]
    heart = canvas.polygon(_heart(rng, chest))
    side = -1 if place == "left" else 1
    lung = lungs[max(side, 0)]

    # What is as dense as the heart and lies beside it: only its silhouette against air shows.
    dense, extra, mask = soften(canvas.polygon(_belly(chest)), 5) * (1 - air), canvas.blank(), canvas.blank()
    if finding == "pleural effusion":
        mask = lung * canvas.polygon(_fluid(rng, chest, side))
        air, dense = air - mask, np.maximum(dense, mask)
    elif finding == "nodule":
        mask = _nodule(rng, canvas, chest, side, free=lung * (1 - heart))
        extra = mask * rng.uniform(0.22, 0.36)
    elif finding == "pneumonia":
        extra, mask = _pneumonia(rng, canvas, side, lung)
    elif finding == "enlarged heart":
        mask = heart

    depth = _flesh(rng, canvas, chest) - _lung_air(rng, canvas, air) + _centre(rng, canvas, chest, heart, f32(dense))
    depth += air * _vessels(rng, canvas) + _bones(rng, canvas, chest) * (1 - 0.5 * dense) + extra
    return Drawing(_film(rng, canvas, depth), mask)


def _proportions(rng: Rng, enlarged: bool) -> _Chest:
    width, dome = rng.uniform(0.7, 0.8), rng.uniform(0.36, 0.47)
    ratio = rng.uniform(0.62, 0.72) if enlarged else rng.uniform(0.38, 0.46)
    beyond_left = ratio * 2 * width * (rng.uniform(0.28, 0.35) if enlarged else rng.uniform(0.25, 0.32))
    return _Chest(
        top=rng.uniform(-0.74, -0.66),
        width=width,
        domes=(dome, dome + rng.uniform(0.03, 0.08)),
        heart=(beyond_left, ratio * 2 * width - beyond_left),
    )


def _lungs(chest: _Chest) -> list[Array]:
    """Both lungs' outlines: up the wall, over the apex, down the middle, along the dome to the costophrenic angle."""
    top, w = chest.top, chest.width
    up = [(chest.wall(y), y) for y in (0.4, 0.1, -0.2, -0.38, top + 0.2, top + 0.06)]
    sides = smooth([*up, (0.25, top), (0.14, top + 0.12), (0.12, -0.3), (0.13, 0.0), (0.09, 0.36)], closed=False)
    floor = smooth([(0.09, 0.07), (0.4 * w, 0), (0.6 * w, 0.01), (0.84 * w, 0.1), (w, 0.24)], closed=False)
    halves = [np.concatenate([sides, floor + f32([0, dome])]) for dome in chest.domes]
    return [half * f32([side, 1]) for side, half in zip((-1, 1), halves, strict=True)]


def _heart(rng: Rng, chest: _Chest) -> Array:
    """The heart's outline, its widest points exactly at chest.heart."""
    base = chest.domes[1] + 0.03
    tip = base - rng.uniform(0.06, 0.14)
    outline = smooth([
        (-0.5, -0.2), (-0.85, -0.05), (-1, 0.14), (-0.9, base - 0.1), (-0.5, base + 0.02), (0.1, base + 0.05),
        (0.7, base + 0.05), (0.95, tip + 0.07), (1, tip), (0.96, tip - 0.14), (0.8, tip - 0.32), (0.54, -0.09),
        (0.36, -0.2), (0.0, -0.26),
    ])  # fmt: skip
    left, right = chest.heart
    x = outline[:, 0]
    outline[:, 0] = np.where(x < 0, x * left / -x.min(), x * right / x.max())
    return outline


def _belly(chest: _Chest) -> Array:
    """The outline of what lies below the lungs, up into where they will be cut out of it."""
    left, right = chest.domes
    w = chest.width + 0.03
    return f32([(-w, left - 0.02), (-0.4, left - 0.15), (0.4, right - 0.15), (w, right - 0.02), (w, 3), (-w, 3)])


def _flesh(rng: Rng, canvas: Canvas, chest: _Chest) -> Array:
    """Neck, shoulders, arms and chest wall, and gas in the stomach: thick in the middle, thin at the skin."""
    wall, shoulder = chest.width + rng.uniform(0.1, 0.2), rng.uniform(-0.84, -0.74)
    half = [(0.2, -2.5), (0.21, -1.0), (0.36, shoulder - 0.06), (0.75, shoulder + 0.04), (1.1, shoulder + 0.22)]
    half += [(1.6, 0.1), (1.5, 0.3), (1.05, -0.16), (wall + 0.01, 0.0), (wall, 0.4), (wall + 0.04, 1.0), (wall, 2.5)]
    body = canvas.polygon(smooth(half + [(-x, y) for x, y in reversed(half)]))
    flesh = 0.5 * body * soften(body, 6) + 0.08 * body
    if rng.random() < 0.5:
        y, r = rng.uniform(0.2, 0.34), rng.uniform(0.26, 0.32)
        breasts: list[Shape] = [(blob(rng, s * 0.48, y, r, r * 0.9, wobble=0.03), 1.0, None) for s in (-1, 1)]
        flesh += rng.uniform(0.02, 0.05) * soften(layer(canvas, breasts), 3)
    bubble = canvas.ellipse(rng.uniform(0.34, 0.46), chest.domes[1] + 0.14, rng.uniform(0.09, 0.15), 0.065, -0.1)
    return f32(flesh - rng.uniform(0.1, 0.25) * bubble)


def _lung_air(rng: Rng, canvas: Canvas, air: Array) -> Array:
    """What the lungs' air takes away: less near their edges, where they are thin."""
    thick = rng.uniform(0.38, 0.44) * (0.62 * air + 0.38 * soften(air, 8) * air)
    return f32(thick * (1 + 0.03 * cloud(rng, canvas, 18) + 0.03 * cloud(rng, canvas, 5)))


def _centre(rng: Rng, canvas: Canvas, chest: _Chest, heart: Array, dense: Array) -> Array:
    """Mediastinum, heart and aortic knob, what is as dense as they are, and the airway."""
    knob = rng.uniform(0.065, 0.09)
    great = f32([(-0.09, -0.9), (-0.12, chest.top), (-0.14, -0.3), (-0.15, 0.0), (0.14, 0.0), (0.15, -0.12),
                        (0.12, -0.22), (0.12, chest.top), (0.09, -0.9)])  # fmt: skip
    vessels = layer(canvas, [(great, 0.6, None), (oval(0.085, -0.32, knob, knob * 1.3), 0.6, None)])
    muscle = np.maximum(heart * (0.7 + 0.3 * soften(heart, 7)), np.maximum(vessels, dense * rng.uniform(0.75, 0.95)))
    fork = -0.24 + rng.uniform(-0.03, 0.03)
    airway: list[Shape] = [(f32([(0, -2), (0, -0.8), (-0.01, fork - 0.15), (-0.01, fork)]), 1.0, 0.09)]
    main = f32([(-0.01, fork - 0.02), (0.1, fork + 0.1), (0.16, fork + 0.14)])
    airway += [(main * f32([s, 1]), 0.7, 0.05) for s in (-1, 1)]
    return f32(0.32 * muscle - rng.uniform(0.14, 0.2) * layer(canvas, airway))


def _vessels(rng: Rng, canvas: Canvas) -> Array:
    """Hilar vessels that branch and thin out towards the lungs' edges."""
    shapes: list[Shape] = []
    for side in (-1, 1):
        y = -0.06 if side < 0 else -0.1
        shapes.append((blob(rng, side * 0.17, y + 0.02, 0.05, 0.12, side * -0.15), 0.5, None))
        for angle in np.linspace(-1.2, 1.4, 7):
            _branch(rng, shapes, (side * 0.16, y + 0.06 * angle), angle + rng.normal(0, 0.2), side, 0.04)
    return rng.uniform(0.12, 0.18) * layer(canvas, shapes)


def _branch(rng: Rng, shapes: list[Shape], start: tuple[float, float], angle: float, side: int, width: float) -> None:
    step, bend, left, right = rng.normal(0, 1, 4).tolist()
    length, bend = 0.115 + 0.02 * step, angle + 0.2 * bend
    middle = (start[0] + side * 0.5 * length * cos(angle), start[1] + 0.5 * length * sin(angle))
    end = (middle[0] + side * 0.5 * length * cos(bend), middle[1] + 0.5 * length * sin(bend))
    shapes.append((f32([start, middle, end]), min(1.0, 0.2 + 17 * width), width))
    if width > 0.015:
        _branch(rng, shapes, end, bend - 0.35 + 0.2 * left, side, width * 0.7)
        _branch(rng, shapes, end, bend + 0.35 + 0.2 * right, side, width * 0.7)


def _bones(rng: Rng, canvas: Canvas, chest: _Chest) -> Array:
    """Ribs behind and in front, collar bones, shoulder blades and the spine; each layer adds to the others."""
    gap, slope = rng.uniform(0.112, 0.128), rng.uniform(0.8, 1.2)
    bow = smooth([(0.08, 0.0), (0.27, -0.035), (0.55, -0.01), (0.85, 0.08), (1.0, 0.2)], closed=False, steps=5)
    turn = smooth([(1.0, 0.2), (0.93, 0.3), (0.72, 0.4), (0.48, 0.43)], closed=False, steps=5)
    back, front = list[Shape](), list[Shape]()
    for i in range(11):
        y = chest.top - 0.02 + i * gap
        for side in (-1, 1):
            size = f32([side * (chest.wall(y + 0.2) + 0.01), slope])
            back += _rib(bow * size + f32([0, y]), 0.05)
            if i < 7:
                front += _rib(turn * size + f32([0, y]), 0.056)
    ribs = rng.uniform(0.08, 0.13) * (layer(canvas, back) + 0.6 * layer(canvas, front))
    return f32(ribs + 0.15 * layer(canvas, _girdle(rng, chest)) + _spine(rng, canvas))


def _rib(curve: Array, width: float) -> list[Shape]:
    """A rib seen flat: its lower edge is the denser one."""
    return [(curve, 0.6, width), (curve + f32([0, width * 0.42]), 1.0, 0.014)]


def _girdle(rng: Rng, chest: _Chest) -> list[Shape]:
    """Collar bones, shoulder blades and the heads of the arms' bones."""
    y, lift = chest.top + 0.07, rng.uniform(0.0, 0.1)
    bone = smooth([(0.07, y + 0.03), (0.26, y - 0.01), (0.5, y - 0.06 - lift), (0.8, y - 0.05 - lift)], closed=False)
    blade = smooth([(0.86, y + 0.02), (0.74, y + 0.15), (0.84, y + 0.62), (0.92, y + 0.5), (1.0, y + 0.16)])
    arm, head = f32([(1, y), (1.25, y + 0.7)]), oval(1.0, y + 0.06, 0.12, 0.13)
    half: list[Shape] = [(blade, 0.3, None), (blade[8:20], 0.6, 0.02), (head, 0.7, None), (arm, 0.8, 0.16)]
    half += [(bone, 1.0, 0.068), (bone, 0.75, 0.036)]
    return [(outline * f32([side, 1]), value, width) for side in (-1, 1) for outline, value, width in half]


def _spine(rng: Rng, canvas: Canvas) -> Array:
    """Vertebral bodies with the discs between them, pedicles and spinous processes."""
    shapes: list[Shape] = []
    gap = rng.uniform(0.12, 0.135)
    for y in np.arange(-1.3, 1.4, gap):
        half = 0.085 + 0.015 * y
        corners = [(-half, -0.4), (half, -0.4), (half * 0.9, 0), (half, 0.4), (-half, 0.4), (-half * 0.9, 0)]
        shapes.append((f32(corners) * f32([1, gap]) + f32([0, y]), 0.7, None))
        marks = ((-half * 0.62, -0.04, 0.026), (half * 0.62, -0.04, 0.026), (0.0, 0.06, 0.02))
        shapes += [(f32([(x, y + top), (x, y + top + 0.045)]), 1.0, wide) for x, top, wide in marks]
    return rng.uniform(0.1, 0.16) * layer(canvas, shapes)


def _fluid(rng: Rng, chest: _Chest, side: int) -> Array:
    """The outline above which the lung is still filled with air: highest at the wall, hollow like a meniscus."""
    dome = chest.domes[max(side, 0)]
    level, rise = dome - rng.uniform(0.1, 0.34), rng.uniform(0.13, 0.24)
    top = [(0.0, level + 0.05), (0.35, level + 0.04), (0.55, level - 0.1 * rise), (0.68, level - 0.45 * rise)]
    top += [(chest.width - 0.02, level - rise), (chest.width + 0.1, level - 1.8 * rise)]
    return np.concatenate([smooth(top, closed=False), f32([(1.2, 1.2), (0.0, 1.2)])]) * f32([side, 1])


def _nodule(rng: Rng, canvas: Canvas, chest: _Chest, side: int, free: Array) -> Array:
    """A round spot that lies wholly in the free lung, anywhere there that is clearly on its side of the image."""
    radius = rng.uniform(0.07, 0.115) / canvas.scale
    tries = rng.uniform((0.25, chest.top + 0.1), (chest.width - 0.05, 0.45), (200, 2)) * (side, 1)
    spots = canvas.pixels(tries)
    unit = min(canvas.height, canvas.width) / 2
    inside = soften(free, radius * unit / 1.8, 2)
    column, row = np.clip(spots.astype(int), 0, (canvas.width - 1, canvas.height - 1)).T
    good = (inside[row, column] > 0.97) & ((spots[:, 0] - canvas.width / 2) * side > 0.12 * unit)
    x, y = tries[int(np.argmax(good))] if good.any() else (side * 0.5, -0.1)
    return canvas.polygon(blob(rng, x, y, radius, radius, wobble=0.04))


def _pneumonia(rng: Rng, canvas: Canvas, side: int, lung: Array) -> tuple[Array, Array]:
    """Patchy haze in the middle of a lung -> (attenuation, mask)."""
    x, y = side * rng.uniform(0.38, 0.5), rng.uniform(-0.22, 0.12)
    area = canvas.polygon(blob(rng, x, y, rng.uniform(0.2, 0.27), rng.uniform(0.19, 0.28), wobble=0.15))
    haze = soften(area, 7) * lung
    patches = np.clip(0.9 + 0.25 * cloud(rng, canvas, 14) + 0.15 * cloud(rng, canvas, 5), 0.15, 1.4)
    return f32(rng.uniform(0.24, 0.36) * haze * patches), f32(haze)


def _film(rng: Rng, canvas: Canvas, depth: Array) -> Array:
    """The film's S-shaped curve with its window, blur and grain."""
    sharp = blur(depth, rng.uniform(0.7, 1.0))
    grey = 1 / (1 + np.exp(np.float32(-rng.uniform(4.8, 6.2)) * (sharp - np.float32(rng.uniform(0.42, 0.5)))))
    grey = paint(grey * rng.uniform(0.9, 1.02) - 0.06, canvas.blank(1), 0.5, rng.uniform(0, 0.08))
    return grained(rng, canvas, grey)


CHEST_XRAY = Kind(
    "chest X-ray",
    "X-ray",
    "Chest",
    {"pleural effusion": _SIDES, "nodule": _SIDES, "enlarged heart": (), "pneumonia": _SIDES},
    draw_chest_xray,
)
