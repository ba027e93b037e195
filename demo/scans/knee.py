"""Sagittal knee MRI, proton-density weighted: fat and marrow bright, muscle dark, ligaments black, fluid brightest."""

from dataclasses import dataclass

import numpy as np

from .canvas import Array, Canvas, Rng, blob, blur, cloud, paint, smooth
from .scan import Drawing, Kind

Points = list[tuple[float, float]]

_TENDON = 0.05
_MENISCUS = 0.05
_CORTEX = 0.08


@dataclass(frozen=True)
class Knee:
    """One knee's greys and proportions. `front` is -1 where the patella is on the left of the picture, else 1."""

    front: float
    fat: float
    marrow: float
    muscle: float
    cartilage: float
    fluid: float
    # How far the tibia is from the femur, the condyle's width, and the skin's and patella's place.
    gap: float
    condyle: float
    skin: float
    patella: tuple[float, float, float]

    def straight(self, points: Points) -> Array:
        """The points [n, 2] themselves, which are written for a patella on the left."""
        return (np.array(points) * (-self.front, 1)).astype(np.float32)

    def at(self, points: Points, closed: bool = True) -> Array:
        """The curve [n, 2] through points that are written for a patella on the left."""
        return (smooth(points, closed, steps=5) * (-self.front, 1)).astype(np.float32)


def _knee(rng: Rng, finding: str | None) -> Knee:
    # Fluid lifts the patella off the femur.
    lift = rng.uniform(0.03, 0.09) if finding == "joint effusion" else rng.uniform(0, 0.04)
    return Knee(
        front=float(rng.choice((-1.0, 1.0))),
        fat=rng.uniform(0.62, 0.74),
        marrow=rng.uniform(0.48, 0.6),
        muscle=rng.uniform(0.18, 0.28),
        cartilage=rng.uniform(0.36, 0.46),
        fluid=rng.uniform(0.93, 1.05),
        gap=rng.uniform(-0.03, 0.01),
        condyle=rng.uniform(0.92, 1.06),
        skin=rng.uniform(-0.06, 0.05),
        patella=(-0.59 - lift, rng.uniform(-0.42, -0.32), rng.uniform(0.95, 1.25)),
    )


def _femur(k: Knee) -> Points:
    c = k.condyle
    shaft = [(-0.2, -2.6), (-0.22, -0.95), (-0.27, -0.7)]
    front = [(-0.42 * c, -0.48), (-0.47 * c, -0.28), (-0.4 * c, -0.06)]
    below = [(-0.2 * c, 0.09), (0.08, 0.12), (0.32 * c, 0.05), (0.46 * c, -0.12), (0.47 * c, -0.3), (0.36 * c, -0.46)]
    return [*shaft, *front, *below, (0.22, -0.62), (0.17, -0.9), (0.18, -2.6)]


def _tibia(k: Knee) -> Points:
    top, c = 0.25 + k.gap, k.condyle
    plateau = [
        (-0.37 * c, top + 0.06),
        (-0.3, top - 0.01),
        (0.05, top + 0.03),
        (0.35, top - 0.01),
        (0.43 * c, top + 0.06),
    ]
    behind = [(0.38, top + 0.2), (0.24, top + 0.4), (0.2, 1.1), (0.22, 2.6)]
    return [*plateau, *behind, (-0.16, 2.6), (-0.18, 1.05), (-0.3, 0.68), (-0.37, 0.5)]


def _patella(k: Knee) -> Points:
    x, y, s = k.patella
    shape = [(0, -0.19), (0.08, -0.14), (0.1, 0), (0.03, 0.16), (-0.05, 0.09), (-0.07, -0.06)]
    return [(x + s * dx, y + s * dy) for dx, dy in shape]


def _limb(rng: Rng, canvas: Canvas, k: Knee) -> Array:
    """Air, skin, and inside it fat with its septa everywhere."""
    s, (x, y, _) = k.skin, k.patella
    front = [
        (-0.68 + s, -2.6),
        (-0.7 + s, -1.0),
        (x - 0.15, y - 0.2),
        (x - 0.16, y + 0.05),
        (-0.7, -0.02),
        (-0.62, 0.25),
    ]
    below = [(-0.52, 0.6), (-0.38 + s, 1.0), (-0.3 + s, 2.6), (1.0, 2.6)]
    limb = [*front, *below, (1.06, 0.8), (1.0, 0.2), (0.9 + s, -0.2), (0.98, -0.8), (1.0 + s, -2.6)]
    skin = k.at(limb)
    image = paint(canvas.blank(0.02), canvas.polygon(skin), 0.35)
    fat = canvas.polygon(skin * (0.98, 1) - (0.005 * k.front, 0))
    # Septa lie where a cloud crosses zero: thin, branching, darker lines.
    septa: Array = np.maximum(1 - np.abs(cloud(rng, canvas, 11)) / np.float32(0.18), 0)
    return paint(image, fat, k.fat - septa * np.float32(rng.uniform(0.06, 0.16)))


def _muscles(rng: Rng, canvas: Canvas, image: Array, k: Knee) -> Array:
    """Quadriceps in front; behind, the hamstrings, gastrocnemius with streaks of fat, popliteus, and the artery."""
    d, e = rng.uniform(-0.06, 0.05, 2)
    thigh = [(-0.55, -2.6), (-0.5, -1.1), (-0.44, -0.92 + d), (-0.38, -1.0), (-0.32, -2.6)]
    hamstring = [
        (0.42 + d, -2.6),
        (0.46 + d, -1.0),
        (0.58 + d, -0.62),
        (0.74, -0.45 + e),
        (0.86 + d, -0.75),
        (0.88, -2.6),
    ]
    deep = [(0.3, 0.6), (0.38, 0.62), (0.42, 1.0), (0.4, 2.6), (0.2, 2.6), (0.22, 1.0)]
    calf = [(0.5, -0.38 + d), (0.62, -0.45), (0.76, -0.2), (0.87 + e, 0.25), (0.93 + e, 0.8), (0.9, 2.6)]
    calf += [(0.36, 2.6), (0.42, 0.8), (0.52, 0.25), (0.55, -0.1)]
    # Thigh and hamstring are one outline that joins far above the picture.
    for outline in ([*thigh, *hamstring], deep, calf):
        image = paint(image, canvas.polygon(k.at(outline)), k.muscle)
    for _ in range(rng.integers(3, 6)):
        x, y, long = rng.uniform(0.58, 0.8), rng.uniform(-0.2, 0.7), rng.uniform(0.15, 0.4)
        line = [(x, y), (x + 0.03, y + long / 2), (x + rng.uniform(-0.03, 0.07), y + long)]
        image = paint(image, canvas.stroke(k.straight(line), 0.013), k.fat, rng.uniform(0.2, 0.55))
    artery = [(0.3 + e, -2.6), (0.34 + e, -0.9), (0.47 + e, -0.5), (0.53, -0.3)]
    return paint(image, canvas.stroke(k.at(artery, closed=False), 0.035), 0.1, rng.uniform(0.4, 0.9))


def _tendons(canvas: Canvas, image: Array, k: Knee) -> Array:
    """Quadriceps tendon down to the patella, and the patellar tendon on to the tibia's tuberosity."""
    x, y, s = k.patella
    above = [(-0.52, -2.6), (-0.55, -1.1), (x + 0.01, y - 0.3 * s), (x - 0.01, y - 0.1 * s)]
    below = [(x - 0.03 * s, y + 0.05 * s), (x + 0.05, y + 0.3), (-0.47, 0.3), (-0.36, 0.56)]
    return paint(image, canvas.stroke(k.at([*above, *below], closed=False), 0.048), _TENDON)


def _joint(rng: Rng, canvas: Canvas, image: Array, k: Knee) -> Array:
    """Between the bones: cartilage on both, and the dark wedges of the meniscus that meet as a bow tie."""
    c, top = k.condyle, 0.25 + k.gap
    space = [(-0.38 * c, 0.05), (-0.2, 0.1), (0.1, 0.12), (0.34, 0.06), (0.46 * c, 0.0), (0.46 * c, top)]
    space += [(0.05, top + 0.04), (-0.38, top + 0.03)]
    image = paint(image, canvas.polygon(k.at(space)), 0.3)
    condyle = [(x * 1.06, y * 1.06 + 0.035) for x, y in _femur(k)[3:12]]
    image = paint(image, canvas.stroke(k.at(condyle, closed=False), 0.06), k.cartilage)
    plateau = [(x, y - 0.03) for x, y in _tibia(k)[:5]]
    image = paint(image, canvas.stroke(k.at(plateau, closed=False), 0.04), k.cartilage)
    inner, middle = rng.uniform(0.1, 0.2), 0.185 + k.gap / 2
    left, right = -0.4 * c, 0.43 * c
    bow = [(left, 0.1), (0.8 * left, 0.15), (-inner, middle), (inner, middle), (0.8 * right, 0.15), (right, 0.1)]
    bow += [(right, top - 0.02), (0.8 * right, top - 0.03), (inner, middle), (-inner, middle)]
    bow += [(0.8 * left, top - 0.03), (left, top - 0.02)]
    return paint(image, canvas.polygon(k.at(bow)), _MENISCUS)


def _bone(canvas: Canvas, image: Array, k: Knee, outline: Points, marrow: Array) -> tuple[Array, Array]:
    """A bone's black cortex around its marrow; also the mask of the bone."""
    curve = k.at(outline)
    mask = canvas.polygon(curve)
    image = paint(image, mask, marrow)
    return paint(image, canvas.stroke(np.concatenate([curve[::2], curve[:1]]), 0.022), _CORTEX), mask


def _effusion(rng: Rng, canvas: Canvas, image: Array, k: Knee) -> tuple[Array, Array]:
    """Fluid that fills the pouch between the quadriceps tendon and the femur, above and behind the patella."""
    x, y, _ = k.patella
    up, thick = rng.uniform(-0.98, -0.85), rng.uniform(-0.01, 0.06)
    front = [(x + 0.1, y + 0.1), (x + 0.09, y - 0.12), (x + 0.05, y - 0.24), (-0.53, up + 0.12), (-0.48, up)]
    back = [(-0.38 + thick, up + 0.04), (-0.32 + thick, up + 0.17), (-0.3, y - 0.25), (-0.4, y)]
    outline = k.at([*front, *back])
    mask = canvas.polygon(outline)
    image = paint(image, canvas.stroke(np.concatenate([outline[::2], outline[:1]]), 0.035), 0.2, 0.8)
    return paint(image, mask, k.fluid), mask


def _cyst(rng: Rng, canvas: Canvas, image: Array, k: Knee) -> tuple[Array, Array]:
    """A bright oval between the muscles behind the joint, in a thin dark wall, with a neck towards the joint."""
    x, y = rng.uniform(0.6, 0.7), rng.uniform(-0.15, 0.3)
    rx, ry = rng.uniform(0.09, 0.14), rng.uniform(0.15, 0.26)
    outline = blob(rng, x * -k.front, y, rx, ry, rng.uniform(-0.2, 0.2), 0.08)
    neck = k.at([(0.47, 0.02), (0.53, 0.5 * y), (x, y)], closed=False)
    mask = np.maximum(canvas.polygon(outline), canvas.stroke(neck, rng.uniform(0.03, 0.05)))
    image = paint(image, canvas.stroke(np.concatenate([outline[::2], outline[:1]]), 0.03), 0.1, 0.8)
    return paint(image, mask, k.fluid), mask


def _marrow_lesion(rng: Rng, canvas: Canvas, k: Knee, place: str | None) -> tuple[Array, float]:
    """A soft patch in one bone, and its grey: plainly darker or brighter than the marrow."""
    if place == "femur":
        x, y = rng.uniform(-0.27, 0.3), rng.uniform(-0.36, -0.06)
    else:
        x, y = rng.uniform(-0.2, 0.22), rng.uniform(0.4, 0.62)
    r, long = rng.uniform(0.095, 0.16), rng.uniform(0.95, 1.5)
    outline = blob(rng, x * -k.front, y, r * long, r, rng.uniform(-0.6, 0.6), 0.2)
    return canvas.polygon(outline), rng.uniform(0.08, 0.22) if rng.random() < 0.6 else rng.uniform(0.92, 1.0)


def _finish(rng: Rng, canvas: Canvas, image: Array) -> Array:
    """The scanner: uneven coil, blur, noise of a magnitude image, window."""
    coil = rng.uniform(0.02, 0.06) * cloud(rng, canvas, canvas.width / 2)
    image = blur((image * (1 + 0.02 * cloud(rng, canvas, 4) + coil)).astype(np.float32), rng.uniform(0.4, 0.75))
    noise = rng.standard_normal((2, *image.shape), np.float32) * np.float32(rng.uniform(0.01, 0.035))
    windowed = np.clip(np.hypot(image + noise[0], noise[1]) * rng.uniform(0.88, 1.05), 0, 1) ** rng.uniform(0.85, 1.15)
    return windowed.astype(np.float32)


def draw_knee(rng: Rng, canvas: Canvas, finding: str | None, place: str | None) -> Drawing:
    """A slice through one femoral condyle."""
    k, mask = _knee(rng, finding), canvas.blank()
    image = _tendons(canvas, _muscles(rng, canvas, _limb(rng, canvas, k), k), k)
    if finding == "joint effusion":
        image, mask = _effusion(rng, canvas, image, k)
    elif finding == "popliteal cyst":
        image, mask = _cyst(rng, canvas, image, k)
    image = _joint(rng, canvas, image, k)
    grain = 0.03 * cloud(rng, canvas, 2.5) + 0.025 * cloud(rng, canvas, 30)
    marrow: Array = (k.marrow + grain).astype(np.float32)
    for scar in ([(-0.3, -0.34), (0.0, -0.28), (0.33, -0.36)], [(-0.28, 0.52), (0.0, 0.46), (0.27, 0.5)]):
        marrow = paint(marrow, canvas.stroke(k.straight(scar), 0.012), 0.3, 0.4)
    if finding == "bone marrow lesion":
        mask, grey = _marrow_lesion(rng, canvas, k, place)
        marrow = paint(marrow, blur(mask, 2), grey, rng.uniform(0.75, 1))
    masks = []
    for outline in (_femur(k), _tibia(k), _patella(k)):
        image, bone = _bone(canvas, image, k, outline, marrow)
        masks.append(bone)
    if finding == "bone marrow lesion":
        mask = mask * masks[0 if place == "femur" else 1]
    elif finding is not None:
        mask = mask * (1 - np.maximum.reduce(masks))
    return Drawing(_finish(rng, canvas, image), mask)


KNEE = Kind(
    "knee MRI",
    "MRI",
    "Knee",
    {"joint effusion": (), "bone marrow lesion": ("femur", "tibia"), "popliteal cyst": ()},
    draw_knee,
)
