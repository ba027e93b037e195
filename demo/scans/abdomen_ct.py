"""Axial CT of the upper abdomen in a soft-tissue window, with some contrast medium in the blood."""

from dataclasses import dataclass

import numpy as np

from .canvas import Array, Canvas, Rng, blob, cloud, oval, paint, smooth
from .ct_body import (
    FAT,
    FLUID,
    MUSCLE,
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

_Points = list[tuple[float, float]]


def _mirrored(half: _Points) -> Array:
    return smooth([*half, *((-x, y) for x, y in half[-2:0:-1])])


# The template, in its own units; the first two are given by their right half.
_SKIN_HALF: _Points = [(0, -0.6), (0.3, -0.575), (0.58, -0.45), (0.76, -0.22), (0.82, 0.05), (0.77, 0.3), (0.6, 0.49)]
_SKIN = _mirrored([*_SKIN_HALF, (0.3, 0.59), (0.12, 0.58), (0, 0.55)])
_HALF: _Points = [(0, -0.47), (0.28, -0.45), (0.5, -0.35), (0.65, -0.13), (0.685, 0.07), (0.62, 0.26), (0.47, 0.38)]
_CAVITY = _mirrored([*_HALF, (0.3, 0.38), (0.18, 0.3), (0, 0.22)])
_LIVER: _Points = [(-0.66, -0.05), (-0.64, 0.16), (-0.55, 0.31), (-0.47, 0.24), (-0.38, 0.05), (-0.23, 0.05)]
_LIVER += [(-0.16, -0.05), (-0.1, -0.15), (0.04, -0.29), (0.12, -0.4), (-0.1, -0.455), (-0.35, -0.42), (-0.55, -0.28)]
_SPLEEN: _Points = [(0.47, -0.08), (0.58, -0.06), (0.66, 0.08), (0.62, 0.24), (0.5, 0.35), (0.47, 0.26), (0.54, 0.12)]
_PORTA = (-0.19, -0.04)


@dataclass(frozen=True)
class _Scene:
    """What all organs of one scan share: how strong the contrast medium is, and the space that they lie in."""

    rng: Rng
    canvas: Canvas
    build: Build
    contrast: float
    cavity: Array
    grain: Array

    def lay(self, image: Array, outlines: list[Array], value: float) -> None:
        """Lays the tissue of `value` HU over `image` on the outlines, which are the template's."""
        built = [self.build(outline) for outline in outlines]
        fill(image, self.canvas, value + self.grain, built, within=self.cavity)

    def jittered(self, points: _Points, by: float = 0.012) -> Array:
        moved = np.asarray(points) + self.rng.normal(0, by, (len(points), 2))
        return smooth([(float(x), float(y)) for x, y in moved])


def draw_abdomen_ct(rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
    """One axial slice at the height of the kidneys."""
    build = random_build(rng, (1.0, 1.06), (1.14, 1.26))
    grain = 5 * cloud(rng, canvas, 2.5) + 4 * cloud(rng, canvas, 9)
    image = patient(rng, canvas, build(_SKIN), rng.uniform(0.05, 0.105), grain)
    cavity = union(canvas, [build(_CAVITY)])
    image[:] = paint(image, cavity, FAT + 1.5 * grain)
    scene = _Scene(rng, canvas, build, rng.uniform(0.4, 1.0), cavity, grain)
    _skeleton(scene, image)
    _gut(scene, image)
    liver = _liver(scene, image)
    scene.lay(image, [scene.jittered(_SPLEEN)], 52 + 65 * scene.contrast)
    mask = canvas.blank()
    for side, name in ((-1, "left"), (1, "right")):
        halo, found = _kidney(scene, image, side, finding if place == name else None)
        liver, mask = liver * (1 - halo), np.maximum(mask, found)
    aorta = _vessels(scene, image, wide=finding == "aortic aneurysm")
    if finding == "aortic aneurysm":
        mask = aorta
    if finding == "liver lesion":
        mask = _lesion(scene, image, liver)
    middle, width = rng.uniform(30, 65), rng.uniform(340, 450)
    return Drawing(develop(rng, canvas, image, middle - width / 2, middle + width / 2, rng.uniform(6, 17)), mask)


def _skeleton(scene: _Scene, image: Array) -> None:
    rng, build = scene.rng, scene.build
    where = [(i + rng.uniform(-0.3, 0.3)) / 15 for i in range(15)]
    cage = build(inset(_CAVITY, -0.028))
    # The outline starts in front and runs down the right side; no ribs in front of the belly or behind the spine.
    ribs(rng, scene.canvas, image, cage, [w for w in where if 0.14 < w < 0.42 or 0.58 < w < 0.86])
    spine(rng, scene.canvas, image, build, 0.28, scene.grain)
    psoas = [blob(rng, d * 0.175, 0.29, rng.uniform(0.05, 0.07), 0.085, d * -0.3) for d in (-1, 1)]
    fill(image, scene.canvas, MUSCLE + scene.grain, [build(p) for p in psoas])


def _gut(scene: _Scene, image: Array) -> None:
    """Pancreas, bowel and stomach: walls, what they hold, and gas that floats on it."""
    rng = scene.rng
    twigs = rng.uniform((0.0, -0.42), (0.5, -0.02), (14, 2)).astype(np.float32)
    ends = twigs + rng.normal(0, 0.015, (14, 2)).astype(np.float32)
    lines = [Line(scene.build(np.stack(ab)), 0.014, 0.7) for ab in zip(twigs, ends, strict=True)]
    fill(image, scene.canvas, 45 + 90 * scene.contrast, lines=lines, within=scene.cavity)
    wall = 45 + 40 * scene.contrast
    spots = [(0.46, -0.1), (0.36, 0.0), (0.22, -0.01), (0.1, -0.06), (0.5, -0.27), (0.06, -0.4), (0.16, -0.4)]
    centres = np.asarray(spots)[rng.random(len(spots)) < 0.75] + rng.normal(0, 0.015, 2)
    sizes = rng.uniform((0.055, 0.05), (0.085, 0.07), (len(centres), 2))
    loops = [blob(rng, x, y, rx, ry, x, 0.1) for (x, y), (rx, ry) in zip(centres, sizes, strict=True)]
    # Gas lies in the loops that are in front.
    gassy = [inset(loop, 0.016) for loop in loops if loop[:, 1].mean() < -0.2 and rng.random() < 0.7]
    scene.lay(image, loops, wall)
    scene.lay(image, [inset(loop, 0.018) for loop in loops], rng.uniform(25, 50))
    scene.lay(image, gassy, rng.uniform(-900, -500))
    scene.lay(image, [blob(rng, x, 0.02 - 0.06 * x, 0.085, 0.042, -0.2, 0.15) for x in (-0.08, 0.05, 0.17, 0.28)], wall)
    stomach = blob(rng, rng.uniform(0.24, 0.3), -0.22, rng.uniform(0.18, 0.25), rng.uniform(0.1, 0.16), -0.3, 0.07)
    scene.lay(image, [stomach], wall)
    lumen = inset(stomach, rng.uniform(0.018, 0.035))
    scene.lay(image, [lumen], float(rng.choice([FLUID, 20.0, 35.0, 140.0])))
    top, low = float(lumen[:, 1].min()), float(lumen[:, 1].max())
    level = np.minimum(lumen[:, 1], top + rng.uniform(0.05, 0.6) * (low - top))
    scene.lay(image, [np.stack([lumen[:, 0], level], 1)], -950.0)


def _liver(scene: _Scene, image: Array) -> Array:
    """The liver with its brighter vessels, and its mask."""
    rng, canvas = scene.rng, scene.canvas
    outline = scene.build(scene.jittered(_LIVER, 0.01))
    mask = union(canvas, [outline]) * scene.cavity
    tissue = 58 + 55 * scene.contrast
    fill(image, canvas, tissue + scene.grain, [outline], within=scene.cavity)
    porta = scene.build(np.array([_PORTA], np.float32))[0]
    lines = []
    for end in outline[rng.integers(0, len(outline), 9)]:
        t = np.linspace(0, rng.uniform(0.4, 0.8), 6)[:, None]
        path = porta + t * (end - porta) + rng.normal(0, 0.012, (6, 2))
        lines += [Line(path[:4], 0.024, 0.8), Line(path[3:], 0.012, 0.6)]
    for end in outline[rng.integers(0, len(outline), 12)]:
        spot = porta + (end - porta) * rng.uniform(0.2, 0.9)
        lines.append(Line(np.stack([spot, spot + rng.normal(0, 0.012, 2)]), rng.uniform(0.014, 0.024), 0.8))
    fill(image, canvas, tissue + 15 + 35 * scene.contrast, lines=lines, within=mask, opacity=0.7)
    return mask


def _kidney(scene: _Scene, image: Array, side: int, finding: str | None) -> tuple[Array, Array]:
    """The kidney of one side; returns the mask of it and the fat round it, and the mask of its finding."""
    rng, canvas, build = scene.rng, scene.canvas, scene.build
    x, y = side * rng.uniform(0.35, 0.38), rng.uniform(0.17, 0.22)
    rx, ry, turn = rng.uniform(0.105, 0.125), rng.uniform(0.14, 0.16), -side * rng.uniform(0.2, 0.7)
    bean = blob(rng, x, y, rx, ry, turn, 0.04)
    cyst = [build(_cyst(rng, bean, side))] if finding == "renal cyst" else []
    halo = union(canvas, [inset(part, -0.022) for part in (build(bean), *cyst)]) * scene.cavity
    image[:] = paint(image, halo, FAT)
    scene.lay(image, [bean], 35 + 125 * scene.contrast)
    hilum = oval(x - side * rx * 0.75, y - 0.03, 0.06, 0.028, side * 0.2)
    scene.lay(image, [blob(rng, x - side * 0.03, y, rx * 0.42, ry * 0.42, turn, 0.15), hilum], rng.uniform(-70, -20))
    scene.lay(image, [oval(x - side * 0.06, y, 0.05, 0.018, side * 0.2)], 20 + 60 * scene.contrast)
    if cyst:
        fill(image, canvas, rng.uniform(0, 15) + scene.grain, cyst, within=scene.cavity)
        return halo, union(canvas, cyst) * scene.cavity
    if finding == "kidney stone":
        stone = build(_stone(rng, x, y))
        fill(image, canvas, rng.uniform(700, 1300), [stone])
        return halo, union(canvas, [stone])
    return halo, canvas.blank()


def _stone(rng: Rng, x: float, y: float) -> Array:
    radius = rng.uniform(0.06, 0.085)
    x, y = x + rng.normal(0, 0.02), y + rng.uniform(-0.06, 0.06)
    return blob(rng, x, y, radius, radius * rng.uniform(0.8, 1), 0, 0.2)


def _cyst(rng: Rng, bean: Array, side: int) -> Array:
    """A round outline that bulges out of the kidney anywhere but at its hilum, which faces the spine."""
    radius, angle = rng.uniform(0.09, 0.13), rng.uniform(-1.7, 1.7)
    middle = bean.mean(0)
    away = np.array([side * np.cos(angle), np.sin(angle)])
    edge = bean[int(np.argmax((bean - middle) @ away))]
    x, y = middle + (edge - middle) * rng.uniform(0.8, 1.05)
    return blob(rng, x, y, radius, radius * rng.uniform(0.9, 1.0), wobble=0.02)


def _vessels(scene: _Scene, image: Array, wide: bool) -> Array:
    """Aorta, vena cava and the mesenteric vessels, and the aorta's mask."""
    rng, canvas, build = scene.rng, scene.canvas, scene.build
    r = rng.uniform(0.05, 0.06)
    big = r * rng.uniform(2.3, 2.9) if wide else r
    blood = 45 + 160 * scene.contrast
    cava = blob(rng, -0.12 - (big - r) * 0.6, 0.13, rng.uniform(0.055, 0.075), rng.uniform(0.035, 0.055), -0.3)
    scene.lay(image, [cava], 42 + 85 * scene.contrast)
    if not wide:
        scene.lay(image, [oval(0.04, 0.02, 0.02, 0.02), oval(-0.03, 0.0, 0.028, 0.026)], blood * 0.9)
    outline = blob(rng, 0.045 + rng.uniform(-0.02, 0.02), 0.18 - big, big, big * rng.uniform(0.93, 1.0), 0, 0.02)
    fill(image, canvas, FAT, [build(inset(outline, -0.022))])
    fill(image, canvas, blood + scene.grain, [build(outline)])
    return union(canvas, [build(outline)])


def _lesion(scene: _Scene, image: Array, liver: Array) -> Array:
    rng = scene.rng
    radius = rng.uniform(0.075, 0.13)
    tries = rng.uniform((-0.62, -0.42), (0.05, 0.28), (200, 2)).astype(np.float32)
    x, y = roomiest(scene.canvas, tries, radius * 1.15, liver)
    outline = blob(rng, x, y, radius, radius * rng.uniform(0.85, 1.0), rng.uniform(0, 3), 0.06)
    value = rng.uniform(0, 20) + 10 * scene.contrast
    fill(image, scene.canvas, value + scene.grain, [outline], within=liver)
    return union(scene.canvas, [outline]) * liver


_SIDES = ("left", "right")
ABDOMEN_CT = Kind(
    "abdominal CT",
    "CT",
    "Abdomen",
    {"liver lesion": (), "renal cyst": _SIDES, "kidney stone": _SIDES, "aortic aneurysm": ()},
    draw_abdomen_ct,
)
