"""The kinds of scan there are, and one scan of a kind."""

import numpy as np

from .abdomen_ct import ABDOMEN_CT
from .brain import BRAIN_T1, BRAIN_T2
from .canvas import Canvas, Rng
from .chest_ct import CHEST_CT
from .chest_xray import CHEST_XRAY
from .hand_xray import HAND_XRAY
from .knee import KNEE
from .scan import Kind, Scan

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (BRAIN_T1, BRAIN_T2, KNEE, CHEST_CT, ABDOMEN_CT, CHEST_XRAY, HAND_XRAY)
}

# Height and width in pixels. Half are OmniMedVQA's 224x224; not all are multiples of the 28 pixels of a visual token.
SIZES = ((224, 224), (224, 224), (224, 224), (224, 196), (196, 224), (240, 240))


def draw_scan(rng: Rng, kind: str, finding: str | None, place: str | None) -> Scan:
    """A scan of `kind`, in a size and pose of its own, with `finding` at `place`, or normal where that is None."""
    height, width = SIZES[rng.integers(len(SIZES))]
    canvas = Canvas(
        height,
        width,
        rotation=float(np.clip(rng.normal(0, 0.07), -0.2, 0.2)),
        scale=float(rng.uniform(0.86, 1.04)),
        shift=(float(rng.uniform(-0.07, 0.07)), float(rng.uniform(-0.07, 0.07))),
    )
    drawing = KINDS[kind].draw(rng, canvas, finding, place)
    pixels = (np.clip(drawing.image, 0, 1) * 255).round().astype(np.uint8)
    return Scan(kind, finding, place, pixels, drawing.mask > 0.5)


def places_of(kind: str, finding: str | None) -> tuple[str | None, ...]:
    """Where a finding of that kind of scan can be; `(None,)` where it has no place, as for no finding."""
    return (KINDS[kind].findings[finding] if finding else ()) or (None,)
