"""Draws a network's filters and feature maps, many in one picture, and the patch of the photo that an output sees."""

from collections.abc import Sequence

from lesson import style

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torchvision.utils import make_grid

GAP = 2  # pixels between the pieces of a mosaic, and around them


def filters(weight: np.ndarray, columns: int, *, title: str = "", axes: Axes | None = None) -> None:
    """Draws filters of three colours. In each, the least weight is darkest and the greatest is brightest.

    Args:
        weight: the filters, (K, 3, R, S), in the order red, green, blue.
        columns: the number of filters side by side.
        title: above them.
        axes: where to draw.
    """
    low, high = weight.min((1, 2, 3), keepdims=True), weight.max((1, 2, 3), keepdims=True)
    pieces = (weight - low) / np.maximum(high - low, 1e-12)
    axes = axes or style.figure(height=4.2)[1]
    axes.imshow(_mosaic(pieces, columns, 1.0))
    axes.set_axis_off()
    axes.set_title(title)


def maps(values: np.ndarray, columns: int, *, title: str = "", axes: Axes | None = None) -> None:
    """Draws feature maps, each from 0 (dark) to its own greatest value. A map of zeros is all dark.

    Args:
        values: the maps, (C, H, W).
        columns: the number of maps side by side.
        title: above them.
        axes: where to draw.
    """
    greatest = np.maximum(values.max((1, 2), keepdims=True), 1e-12)
    axes = axes or style.figure(height=4.2)[1]
    axes.imshow(_mosaic((values / greatest)[:, None], columns, np.nan)[..., 0], vmin=0, vmax=1, cmap=style.SEQUENTIAL)
    axes.set_axis_off()
    axes.set_title(title)


def _mosaic(pieces: np.ndarray, columns: int, between: float) -> np.ndarray:
    """Puts pieces, (number, colours, height, width), into one image, (height, width, 3), row by row."""
    return make_grid(torch.from_numpy(pieces), columns, GAP, pad_value=between).permute(1, 2, 0).numpy()


def fields(photo: np.ndarray, patches: Sequence[tuple[str, int]], *, title: str = "", axes: Axes | None = None) -> None:
    """Draws square patches around the middle of a photo.

    Args:
        photo: (H, W, 3).
        patches: a (name, side in pixels) for each patch, the smallest first.
        title: above it.
        axes: where to draw.
    """
    axes = axes or style.figure(height=4.6)[1]
    axes.imshow(photo)
    middle = (photo.shape[1] - 1) / 2, (photo.shape[0] - 1) / 2
    for number, (name, side) in enumerate(patches):
        corner = middle[0] - side / 2, middle[1] - side / 2
        colour = style.CYCLE[number % len(style.CYCLE)]
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=2.2))
        axes.plot([], [], color=colour, linewidth=2.2, label=f"{name}: {side} x {side}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), title="one output of")
    axes.set_axis_off()
    axes.set_title(title)
