"""Our kernels beside others': measurements, and numbers that other projects have published about their kernels."""

from collections.abc import Mapping

from lesson import style

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from kernels.tools.measurements import PROVIDERS, Comparison

PUBLISHED = (
    ("matrix product, fp16, H100: tutorial 03, 2048 ... 3072", 0.38, 0.90, "triton-lang/triton 3672, 5726"),
    ("the same: persistent ... warp-specialised", 0.92, 0.97, "facebookexperimental/triton 210, 1038"),
    ("convolution forward, fp16, against cuDNN", 0.39, 1.84, "FlagGems 5642, 5625"),
    ("convolution forward, fp32, against cuDNN", 0.22, 0.86, "FlagGems 5642, 5625"),
    ("convolution backward, against cuDNN: mean", 0.127, 0.127, "FlagGems 1728"),
    ("max pooling backward, fp16, against PyTorch", 0.48, 1.32, "FlagGems 5159"),
)
"""Rows of (what, lowest stated speed-up, highest stated speed-up, the issues and pull requests on GitHub with them)."""


def ratios(compared: Mapping[str, Comparison], *, title: str = "", axes: Axes | None = None) -> None:
    """Draws bars: the time of the best of the others divided by our time. Lines show the 20th to 80th percentiles.

    Args:
        compared: by layer. A layer is left out if only one side was timed.
        title: above the bars.
        axes: where to draw.
    """
    timed = {layer: found for layer, found in compared.items() if found.ratio}
    axes = axes or style.figure(height=1.2 + 0.4 * len(timed))[1]
    found = np.array([found.ratio for found in timed.values()])
    low = np.array([found.best.p20_ms / found.ours.p80_ms for found in timed.values()])
    high = np.array([found.best.p80_ms / found.ours.p20_ms for found in timed.values()])
    colours = [style.BLUE if ratio > 1 else style.ORANGE for ratio in found]
    spread = np.maximum([found - low, high - found], 0)
    bars = axes.barh(list(timed), found - 1, left=1, color=colours, xerr=spread, ecolor=style.BLACK, capsize=3)
    names = [f"{each.ratio:.2f}  ({PROVIDERS[each.best.provider]})" for each in timed.values()]
    for bar, name, end in zip(bars, names, np.maximum(high, 1), strict=True):
        axes.text(end * 1.05, bar.get_y() + bar.get_height() / 2, name, va="center", fontsize=9)
    _scale(axes, min(0.4, low.min(initial=1) * 0.8), max(4.0, high.max(initial=1) * 3))
    axes.set_xlabel("their time / our time; blue: ours is faster (in brackets: the best of the others)")
    axes.set_title(title)


def published(*, axes: Axes | None = None) -> None:
    """Draws the rows of :data:`PUBLISHED`, each with its source."""
    axes = axes or style.figure(height=3.4)[1]
    for place, (_, low, high, source) in enumerate(PUBLISHED):
        axes.plot([low, high], [place, place], "o-", color=style.GREY, linewidth=4, markersize=7)
        stated = f"{low:g}" if low == high else f"{low:g} ... {high:g}"
        axes.text(2.15, place, f"{stated}  ({source})", va="center", fontsize=8, color=style.GREY)
    axes.set_yticks(range(len(PUBLISHED)), [what for what, *_ in PUBLISHED], fontsize=8)
    _scale(axes, 0.1, 2)
    axes.set_xlabel("speed over cuBLAS's, cuDNN's or PyTorch's")
    axes.set_title("PUBLISHED BY OTHERS about their Triton kernels, not measured here", loc="left")


def _scale(axes: Axes, least: float, greatest: float) -> None:
    """Makes the x axis logarithmic, with plain numbers and a mark at 1, and puts the first row on top."""
    axes.axvline(1, color=style.BLACK, linewidth=1)
    axes.set(xscale="log", xlim=(least, greatest))
    axes.xaxis.set_major_locator(ticker.FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.invert_yaxis()
