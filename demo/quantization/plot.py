"""Size against KL divergence at 4 bits as a picture: a curve for each way over the block sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .cases import WAYS
from .rows import Row

# Of the palette of Okabe and Ito: a colour for each family of ways, a line for each of its members.
_COLORS = {
    "awq+gptq": "#0072B2",
    "gptq": "#56B4E9",
    "awq": "#009E73",
    "hqq": "#E69F00",
    "rtn-search": "#CC79A7",
    "rtn": "#555555",
    "nf4": "#D55E00",
}
_LINES = ("o-", "s--", "^:", "d-.")


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw the rows of 4 bits to `out`: models side by side, settings below each other.

    int8 is left out: nearly twice as large and far closer, it would leave the others no room. Raises `InputError`
    without matplotlib, where nothing is left to draw, and where it cannot write `out`.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError("matplotlib is not installed; pip install 'medvlm[plot]'") from None
    rows = [row for row in rows if WAYS[row.way].precision != "int8"]
    if not rows:
        raise InputError("there is nothing of 4 bits to draw; give other --methods, or no --plot")
    models, settings = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("model", "setting"))
    figure = Figure(figsize=(2.2 + 4.4 * len(models), 3.9 * len(settings)), dpi=150, layout="constrained")
    panels: Any = figure.subplots(len(settings), len(models), squeeze=False, sharey="row")
    for line, setting in zip(panels, settings, strict=True):
        for axes, model in zip(line, models, strict=True):
            _draw_panel(axes, [row for row in rows if (row.model, row.setting) == (model, setting)])
            axes.set_title(f"{model}, {setting}", fontsize=9, loc="left")
        line[0].set_ylabel("KL divergence from fp32, nats a token", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("decoder and head, MB (block sizes as numbers)", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
    try:
        figure.savefig(out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None


def _draw_panel(axes: Any, rows: Sequence[Row]) -> None:
    for way in dict.fromkeys(row.way for row in rows):
        curve = sorted((row.decoder_bytes / 1e6, row.kl, row.block_size) for row in rows if row.way == way)
        color, line = _style(way)
        sizes, divergences = [size for size, _, _ in curve], [kl for _, kl, _ in curve]
        axes.plot(sizes, divergences, line, color=color, label=way, linewidth=1, markersize=3.5)
        for size, kl, block in curve if way in ("rtn", "nf4") else ():
            axes.annotate(str(block), (size, kl), (0, 4), textcoords="offset points", fontsize=6, color=color)
    axes.set_yscale("log")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.tick_params(labelsize=7)


def _style(way: str) -> tuple[str, str]:
    """The colour of a way's family, and the line of its place in it."""
    family = way.split()[0]
    members = [name for name in WAYS if name.split()[0] == family]
    return _COLORS[family], _LINES[members.index(way)]
