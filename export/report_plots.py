"""The report's plots, as SVG that stands inside a page: text as text, in the page's own colours."""

import contextlib
import importlib.util
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError
from .report import TensorLoss, Tried
from .report_labels import label_points
from .report_words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the palette of Okabe and Ito, which colour-blind readers tell apart, those that are seen on white and on black.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv<>phX*"
_HIGHLIGHT, _OTHER = "#D55E00", "#0072B2"
# They become the page's own colours, so that a plot can be read in light and dark; nothing else is drawn in them.
_INK, _GRID = "#010203", "#030201"
_PAGE_COLORS = {_INK: "currentColor", _GRID: "var(--line)"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1,
    "lines.markersize": 4,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    # A label is what somebody called a file or a recipe: "$" in it is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_ERROR_INCHES, _TRIED_INCHES = (5.0, 3.5), (7.4, 4.0)
# The errors' axis spans at least this share of the largest.
_SMALLEST_SPAN = 0.1
# What matplotlib adds and a page with several plots must not have: names that it gives in each, a style for all.
_NAMES, _OWN_STYLE = re.compile(r'<g id="[\w.]+_\d+">'), re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


@dataclass(frozen=True)
class Series:
    """The errors of one kind of matrix by layer. Outside of the layers there is one point, and `layers` is (None,)."""

    kind: str
    layers: tuple[int | None, ...]
    errors: tuple[float, ...]


def check_plotting() -> None:
    """Raise `InputError` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the plots of a report need matplotlib, which is not installed; pip install 'medvlm[plot]'")


def error_series(tensors: Sequence[TensorLoss]) -> list[Series]:
    """The relative errors of some matrices, a series for each kind that has any, in the order in which they come.

    Pieces of one matrix, each quantized by itself, are one point: their mean, weighted by their elements.
    """
    found: dict[str, dict[int | None, list[TensorLoss]]] = {}
    for tensor in tensors:
        found.setdefault(tensor.kind, {}).setdefault(tensor.layer, []).append(tensor)
    return [
        Series(kind, tuple(layers), tuple(_mean_error(pieces) for pieces in layers.values()))
        for kind, layers in found.items()
        if any(piece.relative_error for pieces in layers.values() for piece in pieces)
    ]


def _mean_error(pieces: Sequence[TensorLoss]) -> float:
    return sum(piece.weights * piece.relative_error for piece in pieces) / sum(piece.weights for piece in pieces)


def errors_svg(title: str, tensors: Sequence[TensorLoss]) -> str:
    """Relative error by layer, one line for each kind. What lies outside of the layers stands behind the last."""
    series = error_series(tensors)
    with _figure(_ERROR_INCHES, title) as figure:
        axes = figure.subplots()
        layers = sorted({layer for one in series for layer in one.layers if layer is not None})
        outside = [one.kind for one in series if one.layers == (None,)]
        behind = {kind: max(layers, default=-1) + 1 + i for i, kind in enumerate(outside)}
        for i, one in enumerate(series):
            places = [behind[one.kind] if layer is None else layer for layer in one.layers]
            (line,) = axes.plot(places, [100 * error for error in one.errors], label=one.kind)
            line.set(marker=_MARKERS[i % len(_MARKERS)], color=_COLORS[i % len(_COLORS)], gid=_gid(title, one.kind))
            line.set_linestyle("none" if one.layers == (None,) else "-")
        if behind and layers:
            axes.axvline(layers[-1] + 0.5, color=_GRID, linewidth=1)
        axes.set_xticks(_ticks(layers))
        _widen(axes)
        axes.set(title=title, xlabel="layer", ylabel="relative error of the weights, %")
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure)


def _widen(axes: "Axes") -> None:
    """Let the errors fill the axes, but not so much that a hundredth of them looks like a mountain."""
    low, high = axes.get_ylim()
    missing = max(0.0, _SMALLEST_SPAN * high - (high - low)) / 2
    axes.set_ylim(max(0.0, low - missing), high + missing)


def _ticks(layers: Sequence[int]) -> list[int]:
    """At most about ten of the layers' numbers."""
    return list(layers[:: math.ceil(len(layers) / 10)]) if layers else []


def tried_svg(tried: Sequence[Tried]) -> str:
    """Size against KL. The first is this report's, and highlighted; the others are those it is compared with.

    A KL of 0 has no place on a logarithmic axis: it is drawn at the foot as an arrow.
    """
    with _figure(_TRIED_INCHES, "tried") as figure:
        axes = figure.subplots()
        foot = min((one.kl for one in tried if one.kl), default=1e-3) / 3
        places = [(one.megabytes, one.kl or foot) for one in tried]
        for i, (one, (x, y)) in reversed(list(enumerate(zip(tried, places, strict=True)))):
            marker, color = ("D", _HIGHLIGHT) if i == 0 else ("o", _OTHER)
            (line,) = axes.plot([x], [y], marker if one.kl else "v", color=color, markersize=8 if i == 0 else 6)
            line.set_gid(_gid("tried", str(i)))
        _scale(axes, [y for _, y in places])
        axes.margins(x=0.2)
        if not any(one.kl for one in tried):
            axes.set_yticks([])
        axes.grid(which="major")
        axes.set(xlabel="size of the bundle, MB", ylabel="KL divergence from fp32, nats (logarithmic)")
        label_points(axes, places, plot_labels(tried), color=_INK)
        return _svg(figure)


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic vertical axis with room around `values`, and ticks at 1, 2 and 5 where they are close together."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    axes.set_yscale("log")
    axes.set_ylim(low / 2, high * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot_labels(tried: Sequence[Tried]) -> list[str]:
    """The decoder's precision where it tells a bundle from all others, the whole label where it does not."""
    short = [one.label.partition(",")[0] for one in tried]
    labels = [name if short.count(name) == 1 else one.label for name, one in zip(short, tried, strict=True)]
    labels = [label if one.kl else f"{label} (KL is 0)" for label, one in zip(labels, tried, strict=True)]
    return [f"{labels[0]} (this bundle)", *labels[1:]]


@contextlib.contextmanager
def _figure(inches: tuple[float, float], name: str) -> "Iterator[Figure]":
    """A figure in the report's style. `name` goes into all names within it, so that no two plots share one."""
    import matplotlib
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        # The page writes what matplotlib's own font has no letter for.
        warnings.filterwarnings("ignore", message="Glyph")
        # An SVG has 72 dots an inch: what is measured here is as large there.
        yield Figure(figsize=inches, dpi=72, layout="constrained")


def _svg(figure: "Figure") -> str:
    """The figure as an `svg` element without a background."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
    text = out.getvalue().decode()
    svg = _OWN_STYLE.sub("", _NAMES.sub("<g>", text[text.index("<svg") :]))
    for drawn, shown in _PAGE_COLORS.items():
        svg = svg.replace(drawn, shown)
    return svg


def _gid(*names: str) -> str:
    """A name for what is drawn that is unique in the page."""
    return "/".join(names).replace(" ", "-")
