"""The style of every figure: sizes, fonts, and Okabe and Ito's colours, which colour-blind people can distinguish."""

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from kernels.tools.trace import short

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
)
CYCLE = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW)
BLACK, GREY, LIGHT = "#000000", "#555555", "#DDDDDD"
ON, OFF = BLUE, ORANGE  # active lanes, and lanes that the mask switches off

WIDTH = 9.0  # of a figure, in inches
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
MASK = ListedColormap([OFF, ON])


def use() -> None:
    """Sets this style for all later figures."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 4.0),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "figure.titlesize": 12,
            "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": LIGHT,
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "image.cmap": SEQUENTIAL,
        }
    )


def figure(rows: int = 1, columns: int = 1, *, height: float = 3.0, **arguments) -> tuple[Figure, Axes | np.ndarray]:
    """Returns a new figure of the notebook's width. ``height`` is in inches. The rest is as in ``pyplot.subplots``."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height), **arguments)


def outline(left: float, bottom: float, width: float, height: float, colour: str = VERMILION) -> Rectangle:
    """Returns a frame. Add it to axes with ``add_patch``."""
    return Rectangle((left, bottom), width, height, fill=False, edgecolor=colour, linewidth=2.2, clip_on=False)


def tile(
    axes: Axes, value: np.ndarray, title: str = "", *, limit: float | None = None, signed: bool | None = None
) -> None:
    """Draws a tile: one cell per element, with its value if there is room.

    A mask is blue where it is true and orange where it is false. If numbers have both signs, zero is white.

    Args:
        axes: where to draw.
        value: of any shape. One dimension is drawn as a row. With more than two, all but the last become rows.
        title: above it.
        limit: the largest magnitude that the colours cover. By default the tile's own.
        signed: whether the colours cover both signs. By default they do if a value is below zero.
    """
    value = np.asarray(value)
    table = value.reshape(-1, value.shape[-1]) if value.ndim else value.reshape(1, 1)
    finite = table[np.isfinite(table)] if table.dtype.kind == "f" else table
    if table.dtype.kind == "b":
        look = {"cmap": MASK, "vmin": 0, "vmax": 1}
    elif table.dtype.kind == "f" and (finite.min(initial=0) < 0 if signed is None else signed):
        limit = limit or np.abs(finite).max(initial=0) or 1.0
        look = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
    else:
        look = {"cmap": SEQUENTIAL, "vmin": None, "vmax": limit}
    rows, columns = table.shape
    image = axes.imshow(table, aspect="auto", **look)
    axes.set_box_aspect(min(max(rows / columns, 1 / 8), 1.5) if value.ndim else 1 / 4)
    if rows <= 16 and columns <= 16:
        _numbers(axes, table, image)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(short(value, 3), fontsize=7.5, color=GREY)


def _numbers(axes: Axes, table: np.ndarray, image: AxesImage) -> None:
    """Writes each cell's value into it, if the text is large enough to read."""
    texts = [f"{number:.3g}" if table.dtype.kind == "f" else str(int(number)) for number in table.flat]
    points = axes.get_window_extent().width * 72 / axes.figure.dpi / table.shape[1]  # about the width of a cell
    size = min(9.0, points / (0.7 * max(map(len, texts))))
    if size < 6:
        return
    for text, ((row, column), number) in zip(texts, np.ndenumerate(table), strict=True):
        red, green, blue, _ = image.cmap(image.norm(number))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
