"""Labels for the points of a plot that overlap neither each other nor the points."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Places for a label, in points from its marker: (right, up) in steps of this, the nearest first.
_STEP, _STEPS_AWAY = 9, 7
_MARKER_RADIUS = 5


def label_points(axes: "Axes", places: Sequence[tuple[float, float]], labels: Sequence[str], *, color: str) -> None:
    """Write each label in the nearest free place around its point, with a line to it from further away.

    places: (x, y) in the data's units. The first label is bold. The figure must have 72 dots an inch, and its layout
    is fixed from here on. A label without any free place is left out.
    """
    # Where a point is, in pixels, is known once the axes have their places.
    figure: Any = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    points = [tuple(map(float, axes.transData.transform(place))) for place in places]
    taken = [_box(x, y, 2 * _MARKER_RADIUS, 2 * _MARKER_RADIUS, 0) for x, y in points]
    for i, (place, (x, y), label) in enumerate(zip(places, points, labels, strict=True)):
        text = axes.annotate(label, place, fontsize=8, fontweight="bold" if i == 0 else "normal", va="center")
        size = text.get_window_extent()
        text.remove()
        for right, up in _offsets():
            box = _box(x + right, y + up, size.width, size.height, _side(right)).padded(2)
            inside = (
                axes.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            )
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                _write(axes, place, text, (right, up), color)
                break


def _write(axes: "Axes", place: tuple[float, float], text: "Annotation", offset: tuple[int, int], color: str) -> None:
    """The label beside its point, or above or below it, with a line where it is more than a step away."""
    right, up = offset
    side = _side(right)
    line = {
        "arrowstyle": "-",
        "color": color,
        "linewidth": 0.5,
        "shrinkB": _MARKER_RADIUS,
        "relpos": (_before(side), 0.5),
    }
    near = max(abs(right), abs(up)) <= _STEP + 2
    axes.annotate(
        text.get_text(),
        place,
        offset,
        textcoords="offset points",
        ha=("center", "left", "right")[side],
        va="center",
        fontproperties=text.get_fontproperties(),
        arrowprops=None if near else line,
    )


def _side(right: int) -> int:
    """Whether a label begins at its place (1), ends there (-1), or has it in its middle (0)."""
    return (right > 0) - (right < 0)


def _before(side: int) -> float:
    """The share of a label that is left of its place."""
    return (1 - side) / 2


def _box(x: float, y: float, width: float, height: float, side: int) -> "Bbox":
    """The box of a label at (x, y), in pixels."""
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - _before(side) * width, y - height / 2, width, height)


def _offsets() -> Iterator[tuple[int, int]]:
    """Beside, above, below, and then further up and down, and further away."""
    yield from ((_STEP, 0), (-_STEP, 0), (0, _STEP + 2), (0, -_STEP - 2))
    for away in range(1, _STEPS_AWAY):
        for up in range(1, _STEPS_AWAY):
            for right, sign in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                yield right * away * _STEP, sign * up * _STEP
