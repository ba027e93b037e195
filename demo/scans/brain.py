"""Axial brain MRI at the level of the basal ganglia, in two weightings of one anatomy: T1 and T2."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .canvas import Array, Canvas, Rng, blob, blur, cloud, paint, smooth
from .scan import Drawing, Kind

_BONE, _FALX = 0.05, 0.2
# Where along a sulcus its points are: 0 at its mouth, 1 at its end.
_DOWN = np.linspace(0, 1, 8)[:, None]


@dataclass(frozen=True)
class Weighting:
    """How bright each tissue is, 0 to 1; `rim` is a lesion's enhancing edge, `blood` a collection's range."""

    fat: float
    csf: float
    grey: float
    white: float
    nuclei: float
    oedema: float
    core: float
    rim: float | None
    blood: tuple[float, float]


T1 = Weighting(0.82, 0.12, 0.4, 0.62, 0.44, 0.36, 0.15, 0.95, (0.82, 1.0))
T2 = Weighting(0.55, 0.92, 0.46, 0.31, 0.42, 0.58, 1.0, None, (0.78, 1.0))


@dataclass(frozen=True)
class Head:
    """One head: half width and height of the skull's inside, widening to the back, thickness of scalp and bone.

    Then the half widths of the ventricles' horns, how far they spread to the sides, and where their middle is.
    """

    a: float
    b: float
    taper: float
    scalp: float
    bone: float
    horn: float
    trigone: float
    spread: float
    middle: tuple[float, float]

    def egg(self, out: float, t: NDArray[np.floating]) -> Array:
        """Points [n, 2] at the angles `t` (0 right, pi/2 back), `out` outside the skull's inside."""
        cos, sin = np.cos(t), np.sin(t)
        x = (self.a + out) * np.sign(cos) * np.abs(cos) ** 0.92 * (1 + self.taper * sin)
        return np.stack([x, (self.b + out) * sin], 1).astype(np.float32)


def _head(rng: Rng, finding: str | None, side: float) -> Head:
    wide = finding == "enlarged ventricles"  # their range is far from the normal one
    # A collection pushes the middle of the brain away from it.
    push = -side * rng.uniform(0.02, 0.06) if finding == "subdural collection" else 0.0
    return Head(
        a=rng.uniform(0.56, 0.64),
        b=rng.uniform(0.72, 0.78),
        taper=rng.uniform(0.04, 0.1),
        scalp=rng.uniform(0.045, 0.085),
        bone=rng.uniform(0.055, 0.08),
        horn=rng.uniform(0.055, 0.095) if wide else rng.uniform(0.015, 0.026),
        trigone=rng.uniform(0.07, 0.12) if wide else rng.uniform(0.016, 0.034),
        spread=rng.uniform(0.88, 1.14),
        middle=(push, rng.uniform(-0.05, 0.05)),
    )


def _sulcus(rng: Rng, mouth: Array, inward: Array, depth: float, width: float) -> Array:
    """The way [n, 2] down one wall of a sulcus and up the other; a deep one forks at its end."""
    turn = rng.normal(0, 0.3)
    ahead = inward * np.cos(turn) + np.array([-inward[1], inward[0]]) * np.sin(turn)
    across = np.array([-ahead[1], ahead[0]])
    bend = rng.normal(0, 0.14) * _DOWN + rng.normal(0, 0.07) * np.sin(np.pi * _DOWN * rng.uniform(1.2, 2.4))
    line = mouth + depth * (ahead * _DOWN + across * bend)
    half = width * (1 - 0.65 * _DOWN) * across
    if rng.random() > 0.6 or depth < 0.13:
        return np.concatenate([line - half, (line + half)[::-1]])
    left, right = depth * rng.uniform(0.25, 0.5, 2)
    fork = line[-1] + [(0.35 * ahead - across) * left, ahead * width, (0.35 * ahead + across) * right]
    return np.concatenate([line - half, fork, (line + half)[::-1]])


def _hemisphere(rng: Rng, head: Head, side: float) -> Array:
    """One hemisphere's surface [n, 2]: from the front around its side to the back and along the midline, folded."""
    # Of the outline's points 120 lie around the side, then 60 along the midline.
    around = head.egg(-0.022, np.linspace(-np.pi / 2 + 0.06, np.pi / 2 - 0.06, 120))
    medial = np.stack([np.full(60, 0.016), np.linspace(around[-1, 1], around[0, 1], 60)], 1)
    outline = np.concatenate([around, medial])
    ahead = np.roll(outline, -2, 0) - np.roll(outline, 2, 0)
    inward = np.stack([-ahead[:, 1], ahead[:, 0]], 1) / np.linalg.norm(ahead, axis=1, keepdims=True)
    opening, sylvian, pieces, i = rng.uniform(0.006, 0.013), int(rng.integers(50, 57)), [], 0
    while i < len(outline):
        step = int(rng.integers(5, 10))
        step = sylvian - i if i < sylvian <= i + step else step
        pieces.append(outline[i : i + step])
        i += step
        if i >= len(outline) or (i >= 120 and abs(outline[i, 1]) < 0.42):
            continue
        shallow, deep = (0.22, 0.26) if i == sylvian else (0.08, 0.24) if i < 120 else (0.05, 0.11)
        depth = rng.uniform(shallow, deep)
        pieces.append(_sulcus(rng, outline[i], inward[i], depth, opening * rng.uniform(0.7, 1.5)))
    return (np.concatenate(pieces) * (side, 1)).astype(np.float32)


def _inside(canvas: Canvas, brain: Array, thickness: float) -> Array:
    """The mask of what lies deeper than `thickness` under the brain's folded surface: its white matter."""
    # A blurred edge has come to 0.93 of its inside at 1.5 sigma.
    sigma = thickness / 1.5 * canvas.scale * min(canvas.height, canvas.width) / 2
    soft = Image.fromarray((brain * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    return np.clip((np.asarray(soft, np.float32) / 255 - 0.9) * 14, 0, 1).astype(np.float32)


def _tube(points: list[tuple[float, float]], half: list[float]) -> Array:
    """The outline of a curve through `points` that is twice `half` wide."""
    line = smooth(points, closed=False)
    ahead = np.gradient(line, axis=0)
    across = np.stack([-ahead[:, 1], ahead[:, 0]], 1) / np.linalg.norm(ahead, axis=1, keepdims=True)
    width = np.interp(np.linspace(0, 1, len(line)), np.linspace(0, 1, len(half)), half)[:, None]
    return np.concatenate([line - across * width, (line + across * width)[::-1]]).astype(np.float32)


def _ventricles(canvas: Canvas, head: Head) -> Array:
    """The mask of the butterfly: two frontal horns, the slit of the third ventricle, two trigones."""
    w, v, (x, y) = head.horn, head.trigone, head.middle
    mask = canvas.ellipse(x, y + 0.05, 0.006 + 6 * w * w, 0.09 + 0.3 * w)
    near = 0.012 + 0.75 * w
    tip = (0.112 + 1.35 * w, -0.37 - 0.3 * w)
    horn = [(near, -0.1 - 0.3 * w), (near + 0.015, -0.22), (0.062 + 1.05 * w, -0.31), tip]
    rear = [(0.13, 0.13), (0.19, 0.22), (0.23 + 0.4 * v, 0.33), (0.2 + 0.3 * v, 0.42 + v)]
    widths = [0.3 * w, 0.9 * w, w, 0.9 * w, 0.25 * w], [0.2 * v, v, 1.1 * v, 0.8 * v, 0.1 * v]
    for outline in (_tube(horn, widths[0]), _tube(rear, widths[1])):
        for side in (-1, 1):
            mask = np.maximum(mask, canvas.polygon(outline * (side * head.spread, 1) + head.middle))
    return mask


def _deep(rng: Rng, canvas: Canvas, image: Array, head: Head, w: Weighting) -> Array:
    """White matter across the middle, and in it the caudate, lentiform nucleus and thalamus of each side."""
    half = [(0.16, -0.46), (0.3, -0.3), (0.31, 0.0), (0.3, 0.25), (0.2, 0.42)]
    bridge = [(0.0, -0.43), *half, (0.0, 0.34), *((-x, y) for x, y in reversed(half))]
    image = paint(image, canvas.polygon(smooth(bridge) + np.array(head.middle)), w.white)
    push = 1.5 * head.horn  # wide ventricles push the nuclei aside
    caudate = blob(rng, 0.085 + push, -0.22, 0.03, 0.085, -0.35, 0.05)
    thalamus = blob(rng, 0.1, 0.07, 0.07, 0.11, -0.5, 0.05)
    wedge = [(0.16, -0.03), (0.2, -0.14), (0.27, -0.2), (0.31, -0.08), (0.28, 0.07), (0.22, 0.06)]
    lentiform = smooth([(x + 0.4 * push, y) for x, y in wedge])
    for outline in (caudate, thalamus, lentiform):
        for side in (-1, 1):
            image = paint(image, canvas.polygon(outline * (side * head.spread, 1) + head.middle), w.nuclei, 0.9)
    return image


def _shell(rng: Rng, canvas: Canvas, head: Head, w: Weighting) -> Array:
    """Air, skin, scalp fat, the skull's two tables with marrow between, and the fluid inside."""
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    wave = 1 + rng.normal(0, 0.006, 2) @ np.stack([np.cos(2 * t + rng.uniform(0, 6)), np.cos(3 * t)])
    b, image = head.bone, canvas.blank()
    # The scalp is thicker behind and at the sides, where it carries muscle.
    scalp = head.scalp * (1 + rng.uniform(0, 0.35) * np.sin(t) * np.abs(np.cos(t)))[:, None]
    skin = head.egg(b, t) * wave[:, None] + scalp * np.stack([np.cos(t), np.sin(t)], 1)
    image = paint(image, canvas.polygon(skin), 0.6 * w.fat)
    image = paint(image, canvas.polygon(skin * 0.982), w.fat + 0.04 * cloud(rng, canvas, 5))
    for out, value in ((b, _BONE), (0.68 * b, 0.36 * w.fat), (0.38 * b, _BONE), (0.0, w.csf)):
        image = paint(image, canvas.polygon(head.egg(out, t) * (wave[:, None] if out else 1)), value)
    return image


def _off_middle(rng: Rng, canvas: Canvas, side: float) -> tuple[float, float]:
    """A place in the white matter, clear of the ventricles, that is on `side` of the picture however it is turned."""
    x, y = side * 0.38, 0.0
    for _ in range(100):
        y = rng.uniform(-0.42, 0.44)
        x = side * rng.uniform(0.23 if y < 0.1 else 0.32, 0.4)
        seen = (canvas.pixels(np.array([[x, y]]))[0, 0] - canvas.width / 2) * side
        if (x / 0.47) ** 2 + (y / 0.62) ** 2 < 1 and seen > 0.06 * min(canvas.height, canvas.width):
            break
    return x, y


def _lesion(rng: Rng, canvas: Canvas, image: Array, brain: Array, side: float, w: Weighting) -> tuple[Array, Array]:
    """A round mass in its oedema; some have an enhancing ring where the weighting shows one."""
    x, y = _off_middle(rng, canvas, side)
    r, angle, shape = rng.uniform(0.08, 0.13), rng.uniform(0, 3), rng.uniform(0.85, 1.18)
    halo = blob(rng, x, y, r * rng.uniform(1.5, 2.0), r * rng.uniform(1.4, 1.9), angle, 0.25)
    image = paint(image, blur(canvas.polygon(halo), 2.0) * brain, w.oedema, rng.uniform(0.6, 0.95))
    mask = canvas.polygon(blob(rng, x, y, r * shape, r / shape, angle, 0.08))
    if w.rim is not None and rng.random() < 0.5:
        image = paint(image, mask, w.rim, rng.uniform(0.6, 1))
        r -= rng.uniform(0.022, 0.035)
        return paint(image, canvas.polygon(blob(rng, x, y, r * shape, r / shape, angle, 0.14)), w.core), mask
    return paint(image, mask, w.core, rng.uniform(0.8, 1)), mask


def _collection(rng: Rng, canvas: Canvas, image: Array, head: Head, side: float, w: Weighting) -> tuple[Array, Array]:
    """A crescent between brain and skull along one side."""
    reach, along = rng.uniform(0.85, 1.3), np.linspace(-1, 1, 40)
    t = rng.uniform(-1, 1) * (1.4 - reach) + reach * along
    thick = rng.uniform(0.085, 0.15) * (1 - along**2) ** 0.45
    dura = head.egg(-0.004, t)
    inner = dura - thick[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    mask = canvas.polygon(np.concatenate([dura, inner[::-1]]) * (side, 1))
    image = paint(image, canvas.stroke(inner * (side, 1), 0.02), w.grey)
    return paint(image, mask, rng.uniform(*w.blood)), mask


def _finish(rng: Rng, canvas: Canvas, image: Array) -> Array:
    """The scanner: uneven coil, blur, noise of a magnitude image, window."""
    grain = 0.025 * cloud(rng, canvas, 4) + 0.03 * cloud(rng, canvas, 12)
    coil = rng.uniform(0.02, 0.06) * cloud(rng, canvas, canvas.width / 2)
    image = blur((image * (1 + grain + coil)).astype(np.float32), rng.uniform(0.4, 0.75))
    noise = rng.standard_normal((2, *image.shape), np.float32) * np.float32(rng.uniform(0.012, 0.04))
    windowed = np.clip(np.hypot(image + noise[0], noise[1]) * rng.uniform(0.85, 1.1), 0, 1) ** rng.uniform(0.85, 1.15)
    return windowed.astype(np.float32)


def _draw(w: Weighting, rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
    """The anatomy in layers from the skin inwards, then the finding."""
    side = -1.0 if place == "left" else 1.0
    head = _head(rng, finding, side)
    falx = canvas.stroke(np.array([[0, -head.b], head.middle, [0, head.b]]), 0.014)
    image = paint(_shell(rng, canvas, head, w), falx, _FALX, 0.8)
    brain = np.maximum(*(canvas.polygon(_hemisphere(rng, head, half)) for half in (-1.0, 1.0)))
    white = _inside(canvas, brain, rng.uniform(0.036, 0.046))
    image = paint(paint(image, brain, w.grey), white, w.white)
    image = _deep(rng, canvas, image, head, w)
    mask = _ventricles(canvas, head)
    image = paint(image, mask, w.csf)
    if finding == "lesion":
        image, mask = _lesion(rng, canvas, image, brain, side, w)
    elif finding == "subdural collection":
        image, mask = _collection(rng, canvas, image, head, side, w)
    elif finding is None:
        mask = canvas.blank()
    return Drawing(_finish(rng, canvas, image), mask)


_SIDES = ("left", "right")
_FINDINGS: dict[str, tuple[str, ...]] = {"lesion": _SIDES, "enlarged ventricles": (), "subdural collection": _SIDES}
BRAIN_T1 = Kind("brain T1", "MRI", "Brain", _FINDINGS, partial(_draw, T1))
BRAIN_T2 = Kind("brain T2", "MRI", "Brain", _FINDINGS, partial(_draw, T2))
