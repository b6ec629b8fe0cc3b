"""A picture of a product of matrices: one tile of the result, and the parts from which it is computed."""

from lesson import style

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle


def picture(
    sizes: tuple[str, str, str],
    tile: tuple[float, float, float, float],
    step: tuple[float, float],
    *,
    names: tuple[str, str, str] = ("x", "w transposed", "y"),
    title: str = "",
    axes: Axes | None = None,
) -> None:
    """Draws A [M, K] left of C [M, N], and B [K, N] above C. So a tile of C lies beside its rows and below its columns.

    The matrices always have the same size in the picture. Positions are fractions of a side, from 0 to 1.

    Args:
        sizes: labels of M, N and K.
        tile: of C: (first row, last row, first column, last column).
        step: the part of K that one step of the loop covers: (from, to).
        names: of A, B and C.
        title: above the picture.
        axes: where to draw.
    """
    M, N, K = sizes
    axes = axes or style.figure(height=4.2)[1]
    top, bottom, left, right = tile
    start, end = step
    tall, wide, deep, gap = 1.0, 1.5, 2.0, 0.25
    corners = {
        "a": (0, 0, deep, tall),
        "b": (deep + gap, tall + gap, wide, deep * 0.6),
        "c": (deep + gap, 0, wide, tall),
    }

    def place(which: str, x: tuple[float, float], y: tuple[float, float], **look) -> None:
        """Draws a part of a matrix. Rows are counted from the top."""
        x0, y0, width, height = corners[which]
        corner = (x0 + x[0] * width, y0 + (1 - y[1]) * height)
        axes.add_patch(Rectangle(corner, (x[1] - x[0]) * width, (y[1] - y[0]) * height, **look))

    for which in corners:
        place(which, (0, 1), (0, 1), facecolor=style.LIGHT, edgecolor=style.GREY)
    place("a", (0, 1), (top, bottom), facecolor=style.SKY, alpha=0.45)
    place("b", (left, right), (0, 1), facecolor=style.SKY, alpha=0.45)
    place("a", (start, end), (top, bottom), facecolor=style.BLUE)
    place("b", (left, right), (start, end), facecolor=style.BLUE)
    place("c", (left, right), (top, bottom), facecolor=style.VERMILION)
    for which, name, rows, columns in (("a", names[0], M, K), ("b", names[1], K, N), ("c", names[2], M, N)):
        x0, y0, width, height = corners[which]
        axes.text(x0 - 0.05, y0 + height / 2, rows, ha="right", va="center", rotation=90, fontsize=9, color=style.GREY)
        axes.text(x0 + width / 2, y0 + height + 0.03, f"{name}, {columns}", ha="center", va="bottom", fontsize=10)
    axes.set(xlim=(-0.25, deep + gap + wide + 0.05), ylim=(-0.05, tall + gap + deep * 0.6 + 0.2), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title)
