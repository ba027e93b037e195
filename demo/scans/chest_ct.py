"""Axial chest CT: lungs with their vessels round the heart and great vessels, mostly in a lung window."""

from dataclasses import dataclass

import numpy as np

from .canvas import Array, Canvas, Rng, blob, cloud, oval, paint, smooth
from .ct_body import (
    AIR,
    CORTEX,
    FAT,
    FLUID,
    MUSCLE,
    SPONGY,
    Build,
    Line,
    develop,
    fill,
    inset,
    patient,
    random_build,
    ribs,
    roomiest,
    spine,
    union,
)
from .scan import Drawing, Kind

# Half of the template's outlines, in the order of drawing; the image's left half is the mirror of its right.
_SKIN = [(0.0, -0.56), (0.3, -0.56), (0.56, -0.46), (0.74, -0.24), (0.86, 0.0), (0.9, 0.2), (0.8, 0.38), (0.52, 0.54)]
_SKIN += [(0.2, 0.63), (0.0, 0.62)]
_LUNG = [(0.06, -0.4), (0.28, -0.455), (0.5, -0.37), (0.65, -0.16), (0.69, 0.07), (0.65, 0.27), (0.53, 0.43)]
_LUNG += [(0.36, 0.52), (0.21, 0.47), (0.14, 0.31), (0.1, 0.1), (0.07, -0.18)]
_MEDIASTINUM = np.array([(0, -0.42), (0.1, -0.4), (0.2, 0.2), (0, 0.3), (-0.2, 0.2), (-0.1, -0.4)], np.float32)
_HILUM = (0.2, 0.09)


@dataclass(frozen=True)
class _Lung:
    """One lung: side -1 (image left) or 1, its outline [n, 2], and where its vessels enter."""

    side: int
    outline: Array
    hilum: Array


def draw_chest_ct(rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
    """One axial slice of the chest, at the height of the great vessels or of the heart."""
    build = random_build(rng, (0.98, 1.0), (1.08, 1.18))
    skin = build(_mirrored(rng, _SKIN))
    grain = 6 * cloud(rng, canvas, 3)
    image = patient(rng, canvas, skin, rng.uniform(0.025, 0.07), grain)
    _wall(rng, canvas, image, build)
    lungs = [_lung(rng, build, side) for side in (-1, 1)]
    fill(image, canvas, FAT, [build(_MEDIASTINUM)])
    centre = _centre(rng, build)
    solid = union(canvas, centre)
    mask, texture = canvas.blank(), 3 * grain + 18 * cloud(rng, canvas, 30)
    for lung in lungs:
        if finding and place == _name(lung.side):
            room = union(canvas, [lung.outline]) * (1 - solid)
            mask = _FINDINGS[finding](rng, canvas, image, lung, room, texture)
        else:
            _air(rng, canvas, image, lung, rng.uniform(-880, -820) + texture)
    spine(rng, canvas, image, build, 0.3, grain)
    _mediastinum(rng, canvas, image, centre, build, grain)
    low, high = _window(rng, finding)
    return Drawing(develop(rng, canvas, image, low, high, rng.uniform(12, 55)), mask)


def _name(side: int) -> str:
    return "left" if side < 0 else "right"


def _window(rng: Rng, finding: str | None) -> tuple[float, float]:
    # Air in the pleural space does not differ from lung in a soft-tissue window, so that is left to the rest.
    if finding != "pneumothorax" and rng.random() < 0.2:
        return rng.uniform(-420, -250), rng.uniform(250, 350)
    middle, width = rng.uniform(-600, -450), rng.uniform(1350, 1650)
    return middle - width / 2, middle + width / 2


def _mirrored(rng: Rng, half: list[tuple[float, float]]) -> Array:
    right = np.asarray(half) + rng.normal(0, 0.006, (len(half), 2))
    left = (np.asarray(half)[-2:0:-1] + rng.normal(0, 0.006, (len(half) - 2, 2))) * (-1, 1)
    return smooth([(float(x), float(y)) for x, y in np.concatenate([right, left])])


def _lung(rng: Rng, build: Build, side: int) -> _Lung:
    points = np.asarray(_LUNG) * (side, 1) + rng.normal(0, 0.01, (len(_LUNG), 2))
    outline = build(smooth([(float(x), float(y)) for x, y in points]))
    return _Lung(side, outline, build(np.array([_HILUM], np.float32) * (side, 1))[0])


def _wall(rng: Rng, canvas: Canvas, image: Array, build: Build) -> None:
    """Fat planes between the muscles, shoulder blades, ribs and the breastbone."""
    cage = build(oval(0, 0.03, 0.735, 0.535))
    layer = build(oval(0, 0.06, 0.8, 0.575))
    planes = [Line(layer[np.arange(first, first + 17) % len(layer)], 0.018) for first in (-4, 22)]
    fill(image, canvas, FAT, lines=planes, opacity=0.7)
    where = [(i + rng.uniform(-0.25, 0.25)) / 14 + 0.02 for i in range(14)]
    ribs(rng, canvas, image, cage, [w for w in where if abs(w - 0.75) > 0.08 and abs(w - 0.25) > 0.05])
    tilt = 0.2 + 0.16 * rng.uniform(0.75, 1.0)
    blades = [build(np.array([[d * 0.83, 0.12], [d * 0.78, 0.2], [d * 0.66, tilt]])) for d in (-1, 1)]
    fill(image, canvas, CORTEX, lines=[Line(blade, 0.026) for blade in blades], opacity=0.8)
    bone = build(blob(rng, 0, -0.49, rng.uniform(0.1, 0.14), 0.03, wobble=0.05))
    fill(image, canvas, CORTEX, [bone])
    fill(image, canvas, SPONGY, [inset(bone, 0.012)], opacity=0.6)


def _centre(rng: Rng, build: Build) -> list[Array]:
    """The outlines of what holds blood: heart or great vessels first, the descending aorta last."""
    aorta = blob(rng, 0.135, 0.2, 0.078, 0.078, wobble=0.03)
    if rng.random() < 0.5:
        heart = blob(rng, rng.uniform(0.08, 0.14), -0.1, rng.uniform(0.27, 0.33), rng.uniform(0.22, 0.26), 0.35, 0.05)
        parts = [heart, blob(rng, -0.12, -0.02, 0.13, 0.15, wobble=0.05), blob(rng, 0.0, 0.08, 0.16, 0.08)]
    else:
        trunk = blob(rng, -0.06, -0.12, 0.14, 0.17, wobble=0.05)
        parts = [trunk, blob(rng, 0.08, -0.15, 0.13, 0.15, wobble=0.05), blob(rng, -0.16, 0.0, 0.07, 0.08)]
        parts += [blob(rng, 0, 0.1, 0.13, 0.08)]
    hila = [blob(rng, side * 0.2, 0.08, 0.085, 0.055, side * 0.4, 0.15) for side in (-1, 1)]
    return [build(part) for part in (*parts, *hila, aorta)]


def _mediastinum(rng: Rng, canvas: Canvas, image: Array, centre: list[Array], build: Build, grain: Array) -> None:
    """Heart or great vessels, the gullet, and the main bronchi, which are black."""
    blood = rng.uniform(45, 190)
    fill(image, canvas, blood * 0.8 + grain, centre)
    fill(image, canvas, blood + grain, [centre[0], centre[-1]])
    fill(image, canvas, MUSCLE, [build(blob(rng, 0.03, 0.17, 0.035, 0.025))])
    bronchi = [(d * rng.uniform(0.11, 0.15), rng.uniform(0.08, 0.12), d * 0.5) for d in (-1, 1)]
    fill(image, canvas, -960.0, [build(oval(x, y, rng.uniform(0.028, 0.045), 0.03, turn)) for x, y, turn in bronchi])


def _vessels(rng: Rng, lung: _Lung, branches: int = 16, dots: int = 70) -> list[Line]:
    """Vessels that fan out from the hilum and branch, and the cut ends of those that cross the slice."""
    reach = lung.outline[rng.integers(0, len(lung.outline), branches)] - lung.hilum
    bend = reach[:, ::-1] * (-1, 1) * rng.normal(0, 0.12, (branches, 1))
    start = rng.uniform(0.0, 0.35, branches)
    t = np.linspace(start, rng.uniform(0.65, 0.93, branches), 7, axis=1)[:, :, None]
    paths = lung.hilum + t * reach[:, None] + np.sin(np.pi * t) * bend[:, None] + rng.normal(0, 0.006, (branches, 7, 2))
    turn = rng.choice([-1, 1], branches) * rng.uniform(0.4, 0.9, branches)
    cos, sin = np.cos(turn), np.sin(turn)
    spurs = np.stack([reach[:, 0] * cos - reach[:, 1] * sin, reach[:, 0] * sin + reach[:, 1] * cos], 1)
    spurs = np.stack([paths[:, 3], paths[:, 3] + spurs * rng.uniform(0.15, 0.3, (branches, 1))], 1)
    lines = [Line(spur, 0.009, strength) for spur, strength in zip(spurs, rng.uniform(0.5, 0.9, branches), strict=True)]
    thick, strength = rng.uniform(0.6, 1.2, branches) * (1 - start), rng.uniform(0.6, 1, branches)
    for i, width in ((4, 0.01), (2, 0.016), (0, 0.024)):
        lines += [Line(paths[k, i : i + 3], width * thick[k], strength[k]) for k in range(branches)]
    ends = lung.outline[rng.integers(0, len(lung.outline), dots)]
    spots = lung.hilum + (ends - lung.hilum) * rng.uniform(0.15, 0.96, (dots, 1))
    long = rng.normal(0, 0.009, (dots, 2))
    cuts, strength = np.stack([spots - long, spots + long], 1), rng.uniform(0.35, 0.9, dots)
    return lines + [Line(*cut) for cut in zip(cuts, rng.uniform(0.007, 0.016, dots), strength, strict=True)]


def _air(rng: Rng, canvas: Canvas, image: Array, lung: _Lung, tissue: Array) -> None:
    fill(image, canvas, tissue, [lung.outline])
    fill(image, canvas, 30.0, lines=_vessels(rng, lung), within=union(canvas, [lung.outline]))


def _pneumothorax(rng: Rng, canvas: Canvas, image: Array, lung: _Lung, room: Array, texture: Array) -> Array:
    """Air round a lung that has shrunk towards its hilum: most of it in front and at the side, where air gathers."""
    away = lung.outline - lung.hilum
    angle = np.arctan2(away[:, 1], away[:, 0] * lung.side) - rng.uniform(-1.3, 0.1)
    stay = rng.uniform(0.72, 0.82) - rng.uniform(0.2, 0.32) * np.cos(angle)
    small = _Lung(lung.side, (lung.hilum + away * stay[:, None]).astype(np.float32), lung.hilum)
    fill(image, canvas, AIR, [lung.outline])
    _air(rng, canvas, image, small, rng.uniform(-720, -600) + texture)
    edge = np.concatenate([small.outline, small.outline[:1]])
    fill(image, canvas, -100.0, lines=[Line(edge, 0.014)], within=room)
    return room * (1 - union(canvas, [small.outline]))


def _effusion(rng: Rng, canvas: Canvas, image: Array, lung: _Lung, room: Array, texture: Array) -> Array:
    """Fluid behind the lung: what is left of its space when its own outline moves forwards and a little inwards."""
    _air(rng, canvas, image, lung, rng.uniform(-880, -800) + texture)
    move = np.array([-lung.side * rng.uniform(0.0, 0.05), -rng.uniform(0.18, 0.34)])
    afloat = [lung.outline + move, lung.outline + move - np.array([0.0, 0.3])]
    behind = np.clip(lung.outline, (-1.0, -0.1), (1.0, 1.0))
    fluid = union(canvas, [behind.astype(np.float32)]) * (1 - union(canvas, afloat))
    image[:] = paint(image, fluid, FLUID + rng.uniform(-20, 20) + 0.3 * texture)
    return fluid * room


def _nodule(rng: Rng, canvas: Canvas, image: Array, lung: _Lung, room: Array, texture: Array) -> Array:
    """A round soft spot, at the first of many places tried where all of it is in the lung."""
    _air(rng, canvas, image, lung, rng.uniform(-880, -820) + texture)
    radius = rng.uniform(0.078, 0.13)
    ends = lung.outline[rng.integers(0, len(lung.outline), 96)]
    tries = lung.hilum + (ends - lung.hilum) * rng.uniform(0.2, 1.0, (96, 1))
    # Clear of the midline, on its own side even in the most slanted and shifted view.
    x, y = roomiest(canvas, tries[np.abs(tries[:, 0]) > 0.31], radius, room)
    spot = blob(rng, x, y, radius, radius * rng.uniform(0.88, 1.0), rng.uniform(0, 3), 0.04)
    fill(image, canvas, rng.uniform(-40, 60), [spot], within=room)
    return union(canvas, [spot]) * room


_FINDINGS = {"nodule": _nodule, "pleural effusion": _effusion, "pneumothorax": _pneumothorax}
CHEST_CT = Kind("chest CT", "CT", "Chest", dict.fromkeys(_FINDINGS, ("left", "right")), draw_chest_ct)
