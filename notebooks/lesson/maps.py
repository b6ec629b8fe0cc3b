"""Draws which elements a tile touches: in a traced program, and in windows that slide over an image."""

from collections.abc import Sequence

from lesson import style

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from kernels.tools.trace import Access, Trace


def indices(access: Access, tensor: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Returns the elements that an access touches, as indices into the tensor: one array per dimension.

    Dimensions are in PyTorch's order. Lanes that the mask switches off are left out. The tensor may have any order in
    memory, but no gaps.
    """
    order = sorted(range(tensor.ndim), key=lambda axis: (-tensor.stride(axis), axis))
    taken = access.offsets[access.mask]
    found = np.unravel_index(taken, [tensor.shape[axis] for axis in order])
    return tuple(found[order.index(axis)] for axis in range(tensor.ndim))


def counts(found: Trace, argument: str, which: slice | int | None = None) -> np.ndarray:
    """Returns how often the program touched each element of an argument, as an array of the tensor's shape.

    Args:
        found: the trace.
        argument: the pointer's name, ``"x_ptr"``.
        which: which of the accesses to it, in order. By default all.
    """
    tensor = found.arguments[argument]
    accesses = found.accesses(argument)
    if which is not None:
        accesses = accesses[which] if isinstance(which, slice) else [accesses[which]]
    total = np.zeros(tuple(tensor.shape), dtype=np.int64)
    for access in accesses:
        np.add.at(total, indices(access, tensor), 1)
    return total


def runs(access: Access) -> np.ndarray:
    """Returns the length of each run of elements that lie side by side in memory, along the tile's last axis.

    Wide loads need long runs: a load of 16 bytes needs 8 elements of fp16 side by side.
    """
    offsets = np.where(access.mask, access.offsets, -1)
    offsets = offsets.reshape(-1, offsets.shape[-1])
    lengths = []
    for row in offsets:
        row = row[row >= 0]
        ends = np.flatnonzero(np.diff(row, append=np.inf) != 1) if row.size else np.array([], dtype=int)
        lengths += np.diff(ends, prepend=-1).tolist()
    return np.array(lengths)


def touched(
    found: Trace,
    argument: str,
    which: slice | int | None = None,
    *,
    background: np.ndarray | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> None:
    """Draws which elements of an argument the program touched: pixels of (N, C, H, W), or elements of (rows, columns).

    Args:
        found, argument, which: as :func:`counts`.
        background: an image of (H, W, 3) to draw on.
        title: above it. By default the argument and the program.
        axes: where to draw.
    """
    total = counts(found, argument, which)
    if total.ndim == 4:
        total = total.sum((0, 1))
    axes = axes or style.figure(height=3.6)[1]
    if background is not None:
        axes.imshow(background)
        veil = np.zeros((*total.shape, 4))
        veil[total == 0] = (1, 1, 1, 0.72)
        axes.imshow(veil)
    else:
        image = axes.imshow(np.where(total > 0, total, np.nan), vmin=0)
        axes.figure.colorbar(image, ax=axes, label="lanes", shrink=0.8)
        axes.set_facecolor(style.LIGHT)
    kind = found.accesses(argument)[0].kind
    axes.set_title(title or f"{kind}s of {argument} by program {found.program}")
    axes.set(xlabel="column", ylabel="row")


def lanes(
    h: np.ndarray,
    w: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int],
    padding: int = 0,
    *,
    title: str = "",
    axes: Axes | None = None,
) -> None:
    """Draws the pixels that lanes address in an image and its padding: loaded, or switched off.

    Args:
        h, w: each lane's row and column, outside the image if it addresses padding. NumPy must be able to broadcast
            them.
        mask: whether the lane loads.
        size: (height, width) of the image.
        padding: the least number of pixels to show around the image.
        title: above it.
        axes: where to draw.
    """
    h, w, mask = np.broadcast_arrays(h, w, mask)
    top, left = min(-padding, h.min()), min(-padding, w.min())
    bottom, right = max(size[0] - 1 + padding, h.max()), max(size[1] - 1 + padding, w.max())
    picture = np.zeros((bottom - top + 1, right - left + 1))
    picture[(h - top)[~mask], (w - left)[~mask]] = 2
    picture[(h - top)[mask], (w - left)[mask]] = 1
    axes = axes or style.figure(height=3.6)[1]
    _cells(axes, picture, (top, left), size)
    handles = [Patch(color=style.ON, label="loaded"), Patch(color=style.OFF, label="switched off")]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)
    axes.set_title(title)


def _cells(axes: Axes, picture: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Draws cells: 0 is light, 1 is on, 2 is off. A frame shows the image inside its padding."""
    rows, columns = picture.shape
    colours = np.array([style.LIGHT, style.ON, style.OFF])
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours])
    axes.imshow(
        rgb[picture.astype(int)],
        extent=(corner[1] - 0.5, corner[1] + columns - 0.5, corner[0] + rows - 0.5, corner[0] - 0.5),
    )
    if max(rows, columns) <= 40:
        axes.set_xticks(np.arange(corner[1], corner[1] + columns) - 0.5, minor=True)
        axes.set_yticks(np.arange(corner[0], corner[0] + rows) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    axes.add_patch(Rectangle((-0.5, -0.5), size[1], size[0], fill=False, edgecolor=style.BLACK, linewidth=1.4))
    axes.set(xlabel="column", ylabel="row")


def windows(
    size: tuple[int, int],
    kernel: int,
    stride: int,
    outputs: Sequence[tuple[int, int]] = ((0, 0), (0, 1), (1, 0)),
    *,
    axes: Axes | None = None,
) -> None:
    """Draws the windows of some output pixels over an image, and how many windows cover each pixel.

    Args:
        size: of the image, (height, width).
        kernel, stride: of a convolution or a pooling without padding.
        outputs: the output pixels, (row, column), whose windows get an outline.
        axes: where to draw.
    """
    height, width = size
    rows, columns = ((extent - kernel) // stride + 1 for extent in size)
    cover = np.zeros(size, dtype=int)
    for p in range(rows):
        for q in range(columns):
            cover[p * stride : p * stride + kernel, q * stride : q * stride + kernel] += 1
    axes = axes or style.figure(height=4.0)[1]
    image = axes.imshow(cover, cmap="Greys", vmin=0, vmax=max(4, 1.6 * cover.max()))
    bar = axes.figure.colorbar(image, ax=axes, label="windows that read the pixel", shrink=0.8)
    bar.ax.set_ylim(0, cover.max())
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=style.BLACK, linewidth=1.4))
    for number, (p, q) in enumerate(outputs):
        inset = 0.1 * (number % 3)  # so that two outlines do not cover each other
        corner = (q * stride - 0.5 + inset, p * stride - 0.5 + inset)
        colour = style.CYCLE[number % len(style.CYCLE)]
        axes.add_patch(
            Rectangle(corner, kernel - 2 * inset, kernel - 2 * inset, fill=False, edgecolor=colour, linewidth=2.2)
        )
        axes.plot([], [], color=colour, linewidth=2.2, label=f"output ({p}, {q})")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8, columnspacing=1.0)
    axes.set_title(f"{kernel} x {kernel} at stride {stride}: {height} x {width} -> {rows} x {columns}")
    axes.set(xlabel="column", ylabel="row")


def footprint(
    size: tuple[int, int],
    kernel: int,
    stride: int,
    padding: int,
    pixels: Sequence[int],
    *,
    title: str = "",
    axes: Sequence[Axes] | None = None,
) -> None:
    """Draws a tile of output pixels, and beside it the input pixels from which they are computed.

    Args:
        size: of the input, (height, width).
        kernel, stride, padding: of the convolution.
        pixels: the tile, as numbers of output pixels, counted row by row: ``range(256, 384)``. Numbers beyond the
            last pixel are left out.
        title: above both.
        axes: two, where to draw.
    """
    P, Q = ((extent + 2 * padding - kernel) // stride + 1 for extent in size)
    made = np.zeros((P, Q))
    read = np.zeros((size[0] + 2 * padding, size[1] + 2 * padding))
    inside = np.zeros_like(read, dtype=bool)
    inside[padding : padding + size[0], padding : padding + size[1]] = True
    for number in pixels:
        if number < P * Q:
            p, q = divmod(number, Q)
            made[p, q] = 1
            read[p * stride : p * stride + kernel, q * stride : q * stride + kernel] = 1
    read[(read > 0) & ~inside] = 2
    if axes is None:
        figure, axes = style.figure(1, 2, height=4.0)
        figure.suptitle(title, x=0.01, ha="left")
    _cells(axes[0], made, (0, 0), (P, Q))
    axes[0].set_title(f"makes {int(made.sum()):,} of {P} x {Q} output pixels")
    _cells(axes[1], read, (-padding, -padding), size)
    axes[1].set_title(f"reads {int((read == 1).sum()):,} of {size[0]} x {size[1]} input pixels")
