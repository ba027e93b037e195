"""The picture of a benchmark: where the time to the first token goes, and how fast tokens follow."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .summary import summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the palette of Okabe and Ito, which colour-blind readers tell apart: a stage's key, name, colour, and text on it.
_STAGES = (
    ("preprocess_s", "preprocess", "#E69F00", "black"),
    ("vision_s", "vision", "#0072B2", "white"),
    ("prefill_s", "prefill", "#56B4E9", "black"),
    ("decode_s", "first decode", "#D55E00", "white"),
)
_COLOR, _GREY, _GRID = "#0072B2", "#555555", "#DDDDDD"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}
_PERCENTILES = ("median", "p5", "p95")
_DPI, _INCHES_WIDE, _INCHES_A_BAR, _INCHES_MORE = 200, 10.5, 1.15, 0.75
# Heights on a bar's axes: the bar's half, where the labels outside of it stand, and where the axes end.
_HALF_BAR, _OUTSIDE, _TOP = 0.4, 0.62, 1.05
# Between a label and what is beside it, in pixels.
_GAP = 14


@dataclass(frozen=True)
class _Segment:
    """One stage of a bar, in seconds."""

    name: str
    color: str
    text_color: str
    start: float
    length: float

    @property
    def middle(self) -> float:
        return self.start + self.length / 2

    @property
    def label(self) -> str:
        return f"{self.name} {summarize([self.length]).text('time')}"


def check_picture(out: Path) -> None:
    """Raise `InputError` where `plot` would, as far as that is known before there is anything to draw."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib is not installed; pip install 'medvlm[plot]'")
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{out.name} is of no format for pictures; choose .png, .svg or .pdf")
    if not out.resolve().parent.is_dir():
        raise InputError(f"the folder of {out} does not exist; make it first")


def plot(report: Mapping[str, Any], out: Path) -> None:
    """Draw the report to `out`, in the format of its suffix (.png, .svg, .pdf).

    report["first_token"]: for each image its "image", "visual_tokens" and the seconds of its stages: "preprocess_s",
    "vision_s", "prefill_s", "decode_s". report["contexts"]: "length" and "tokens_per_s" with "median", "p5", "p95".
    Raises `InputError` without matplotlib, and where it cannot write `out`.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("matplotlib is not installed; pip install 'medvlm[plot]'") from None
    images = report["first_token"]
    with matplotlib.rc_context(_STYLE):
        # Without pyplot a figure draws with Agg, needs no display, and is gone when it is out of sight.
        height = _INCHES_MORE + _INCHES_A_BAR * max(2, len(images))
        figure = Figure(figsize=(_INCHES_WIDE, height), dpi=_DPI, layout="constrained")
        panels: Any = figure.subfigures(1, 2, width_ratios=(1.6, 1), wspace=0.04)
        left, right = panels
        for panel, title in ((left, "Time to the first token"), (right, "Decoding speed")):
            panel.suptitle(title, x=0.01, ha="left", fontsize="large", fontweight="bold")
        bars = left.subplots(len(images), 1, squeeze=False)[:, 0]
        for axes, image in zip(bars, images, strict=True):
            _draw_bar(axes, image)
        bars[-1].set_xlabel("seconds (each bar on its own scale)")
        speeds = right.subplots()
        _draw_contexts(speeds, report["contexts"])
        # Whether a label fits is known once the axes have their places.
        figure.draw_without_rendering()
        for axes, image in zip(bars, images, strict=True):
            _label_segments(axes, _segments(image))
        _label_contexts(speeds, report["contexts"])
        _save(figure, out)


def _save(figure: "Figure", out: Path) -> None:
    try:
        figure.savefig(out)
    except ValueError:
        raise InputError(f"{out.name} is of no format for pictures; choose .png, .svg or .pdf") from None
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None


def _segments(image: Mapping[str, Any]) -> list[_Segment]:
    """The stages in their order, each from where the one before it ends."""
    segments, start = [], 0.0
    for key, name, color, text_color in _STAGES:
        segments.append(_Segment(name, color, text_color, start, image[key]))
        start += image[key]
    return segments


def _draw_bar(axes: "Axes", image: Mapping[str, Any]) -> None:
    """One image's bar. Each has axes of its own: on a common scale the smallest image would be a line."""
    segments = _segments(image)
    total = segments[-1].start + segments[-1].length
    for segment in segments:
        axes.barh(0, segment.length, 2 * _HALF_BAR, left=segment.start, color=segment.color)
    axes.set_xlim(0, total)
    axes.set_ylim(-_HALF_BAR - 0.1, _TOP)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{image['image']}, {image['visual_tokens']} visual tokens", loc="left")
    axes.set_title(summarize([total]).text("time"), loc="right", fontweight="bold")


def _label_segments(axes: "Axes", segments: Sequence[_Segment]) -> None:
    """Write each stage's name and time on its segment, or above the bar with a line to it where it does not fit."""
    to_pixels = axes.transData.transform
    outside = []
    for segment in segments:
        text = axes.text(segment.middle, 0, segment.label, color=segment.text_color, ha="center", va="center")
        width = text.get_window_extent().width
        if width + _GAP > to_pixels((segment.length, 0))[0] - to_pixels((0, 0))[0]:
            text.remove()
            outside.append((segment, width))
    box = axes.get_window_extent()
    wanted = [float(to_pixels((segment.middle, 0))[0]) for segment, _ in outside]
    centers = _spread_out(wanted, [width for _, width in outside], box.x0, box.x1)
    for (segment, width), x, center in zip(outside, wanted, centers, strict=True):
        # Straight up, where the label is above the segment.
        end = min(max(x, center - width / 2), center + width / 2)
        x_text, x_end = (axes.transData.inverted().transform((pixel, 0))[0] for pixel in (center, end))
        axes.plot([segment.middle, x_end], [_HALF_BAR, _OUTSIDE], color=_GREY, linewidth=0.6, clip_on=False)
        axes.text(x_text, _OUTSIDE, segment.label, ha="center", va="bottom")


def _spread_out(wanted: Sequence[float], widths: Sequence[float], low: float, high: float) -> list[float]:
    """Centers near the wanted ones and in their order, of labels of these widths side by side within low..high."""
    centers, edge = [], low
    for center, width in zip(wanted, widths, strict=True):
        centers.append(max(center, edge + width / 2))
        edge = centers[-1] + width / 2 + _GAP
    edge = high
    for i in reversed(range(len(centers))):
        centers[i] = min(centers[i], edge - widths[i] / 2)
        edge = centers[i] - widths[i] / 2 - _GAP
    return centers


def _draw_contexts(axes: "Axes", contexts: Sequence[Mapping[str, Any]]) -> None:
    """Tokens per second at each length of the context, from zero, so that a fall looks as large as it is."""
    lengths = [context["length"] for context in contexts]
    median, p5, p95 = (np.array([context["tokens_per_s"][key] for context in contexts]) for key in _PERCENTILES)
    axes.errorbar(
        lengths, median, (median - p5, p95 - median), color=_COLOR, marker="o", markersize=4, linewidth=1.2, capsize=3
    )
    axes.set_xlim(-0.06 * max(lengths), 1.06 * max(lengths))
    axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(0, 1.15 * max(p95))
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("tokens/s")
    axes.set_title("median, 5th to 95th percentile", loc="left")


def _label_contexts(axes: "Axes", contexts: Sequence[Mapping[str, Any]]) -> None:
    """Write each median above its point, where the one before it leaves room."""
    edge = 0.0
    for context in contexts:
        speed = context["tokens_per_s"]
        text = axes.annotate(
            f"{speed['median']:.1f}",
            (context["length"], speed["p95"]),
            (0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="small",
        )
        box = text.get_window_extent()
        if box.x0 < edge:
            text.remove()
        else:
            edge = box.x1
