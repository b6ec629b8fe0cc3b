"""Shows one program as compiled code, a :class:`kernels.tools.ptx_trace.PtxTrace`, instruction by instruction.

Beside the lines of Python and PTX it draws what the instruction is about: registers of a warp, shared memory with its
banks, and which thread holds which element of a tensor core's matrix.
"""

import linecache
from collections.abc import Sequence

from lesson import stepping, style

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kernels.tools.ptx_counts import coalescing
from kernels.tools.ptx_trace import Fragment, PtxTrace, guarded

CONTEXT = 4  # lines before and after the one that has run
ROW, PIECE, BANK = 128, 16, 4  # bytes: of all 32 banks, of a wide access, of one bank
MOST = 24  # rows of shared memory in a picture
WARPS = ListedColormap(["white", *style.CYCLE])
PIECES = ListedColormap(plt.get_cmap(style.SEQUENTIAL)(np.linspace(0.45, 1.0, ROW // PIECE)))


def slider(found: PtxTrace, start: int | None = None, warp: int = 0, lane: int = 0) -> None:
    """Displays sliders over all steps, warps and their threads. Without a running Python, only one step is shown.

    Args:
        found: the trace.
        start: the step to begin with. By default the first access to memory.
        warp, lane: the warp to begin with, and its thread.
    """
    if start is None:
        start = next((number for number, step in enumerate(found.steps) if step.accesses), 0)
    picture = lambda figure, step, warp, thread: draw(figure, found, step, warp, thread)
    last, warps = len(found.steps) - 1, found.code.threads // 32
    text = f"a slider over {len(found.steps)} instructions of {found.code.name}"
    stepping.show(picture, text, height=6.2, step=(start, last), warp=(warp, warps - 1), thread=(lane, 31))


def draw(figure: Figure, found: PtxTrace, number: int, warp: int = 0, lane: int = 0) -> None:
    """Draws one step: the line of Python beside the instruction, what it did, and pictures of that."""
    step, thread = found.steps[number], 32 * warp + lane
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.25, 0.8, 2))
    where = f"{found.code.name} for {found.arch}, program {found.program} of {found.grid}"
    top.suptitle(f"{where}: step {number} of {len(found.steps) - 1}", x=0.01, ha="left", fontsize=10)
    python, ptx = top.subplots(1, 2, width_ratios=(1, 1))
    lines = [line.rstrip("\n") for line in linecache.getlines(found.code.file)]
    stepping.text(python, *stepping.around(lines, step.instruction.line - 1, CONTEXT), size=6)
    code = [f"{instruction.number:4} {guarded(instruction)}"[:80] for instruction in found.code.code]
    stepping.text(ptx, *stepping.around(code, step.instruction.number, CONTEXT), size=6)
    facts = [f"{guarded(step.instruction)}  in warp {warp}, thread {lane}:", *found.facts(number, warp, lane)]
    most = 6
    facts = facts if len(facts) <= most else [*facts[: most - 3], "...", *facts[-2:]]
    stepping.text(middle.subplots(), [], facts=facts, rows=most, size=7)
    held = found.fragments(number, warp)
    panels = []
    if step.instruction.parts[0] in ("ldmatrix", "stmatrix"):
        panels.append((2.0, lambda axes: matrices(held, thread, axes)))
    elif held:
        panels += [(1.0, lambda axes, each=each: fragment(each, thread, axes)) for each in held]
        panels.append((1.0, lambda axes: style.tile(axes, held[-1].values, f"{held[-1].name}'s values")))
    spaces = {access.space for access in step.accesses if (access.threads // 32 == warp).any()}
    if "global" in spaces:
        panels.append((1.2, lambda axes: sectors(found, number, warp, lane, axes)))
    if any(access.space == "shared" for access in step.accesses):
        if found.shared(number).argument.max() >= 0:
            panels.append((2.0, lambda axes: shared(found, number, warp, lane, axes)))
        panels.append((0.8, lambda axes: shared(found, number, warp, lane, axes, writers=True)))
    if step.sets and not held:
        panels.append((2.0, lambda axes: registers(found, number, warp, lane, axes)))
    if panels:
        places = bottom.subplots(1, len(panels), squeeze=False, width_ratios=[wide for wide, _ in panels]).flat
        for place, (_, panel) in zip(places, panels, strict=True):
            panel(place)


def registers(found: PtxTrace, number: int, warp: int = 0, lane: int = 0, axes: Axes | None = None) -> None:
    """Draws the registers that a step sets: one column per thread of the warp, and a row's colours from its own scale.

    Two halves of a register are two rows. Threads that take no part are grey. ``lane`` has a frame.
    """
    axes = axes or style.figure(height=1.6)[1]
    step, threads = found.steps[number], slice(32 * warp, 32 * warp + 32)
    active = step.active[threads]
    rows, names, texts = [], [], []
    for name in step.sets:
        numbers = found.numbers(step, step.registers[name][threads])
        halves = numbers.T.astype(np.float64)
        rows += [(half - half[active].min(initial=np.inf)) / (np.ptp(half[active]) or 1) for half in halves]
        names += [name, *[""] * (len(halves) - 1)]
        whole = found.texts(step, step.registers[name][threads])
        texts += [whole] if len(halves) == 1 else [[f"{number:.3g}" for number in half] for half in halves]
    axes.set_facecolor(style.LIGHT)
    axes.imshow(np.ma.masked_array(rows, np.broadcast_to(~active, (len(rows), 32))), vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(len(rows), 32) if len(rows) <= 4 else ():
        colour = "white" if rows[row][column] < 0.5 and active[column] else "black"
        look = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 5.5, "color": colour}
        axes.text(column, row, texts[row][column][: 40 // len(rows)], **look)
    axes.add_patch(style.outline(lane - 0.5, -0.5, 1, len(rows)))
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xticks(range(0, 32, 4), range(0, 32, 4), fontsize=7)
    axes.set_xlabel("thread of the warp", fontsize=8)
    axes.set_title(f"registers that it sets, in warp {warp}", fontsize=9)


def sectors(found: PtxTrace, number: int, warp: int = 0, lane: int = 0, axes: Axes | None = None) -> None:
    """Draws what a warp's request touches of global memory: one row per 128 bytes, lines between sectors of 32 bytes.

    Each word has the colour of the thread that loads or stores it, and those of ``lane`` have a frame.
    """
    axes = axes or style.figure(height=2.4)[1]
    access = next(access for access in found.steps[number].accesses if access.space == "global")
    mine = access.threads // 32 == warp
    threads, at = access.threads[mine] % 32, access.addresses[mine].astype(np.int64)
    lines, row = np.unique(at // ROW, return_inverse=True)
    table = np.full((len(lines), ROW), -1)
    for thread, line, start in zip(threads, row, at % ROW, strict=True):
        table[line, start : start + access.size] = thread
        if thread == lane:
            axes.add_patch(style.outline(start / BANK - 0.5, line - 0.5, access.size / BANK, 1))
    axes.imshow(
        np.ma.masked_less(table, 0), extent=(-0.5, 31.5, len(lines) - 0.5, -0.5), vmin=0, vmax=31, aspect="auto"
    )
    for edge in range(8, 32, 8):
        axes.axvline(edge - 0.5, color=style.BLACK, linewidth=0.8)
    touched, least = coalescing(access.threads[mine], access.addresses[mine], access.size)[1:]
    _, first = found.tensors.locate(lines.astype(np.uint64) * ROW)
    shown = range(0, len(lines), -(-len(lines) // 8))
    axes.set_yticks(shown, [f"{first[line]:,}" for line in shown], fontsize=7)
    axes.set_xticks([])
    axes.set_xlabel(f"{found.tensors.names[access.argument]}: elements from ...", fontsize=8)
    axes.set_title(f"{touched} sectors; {least} would do", fontsize=9)


def shared(
    found: PtxTrace, number: int, warp: int = 0, lane: int = 0, axes: Axes | None = None, *, writers: bool = False
) -> None:
    """Draws shared memory after a step, where the warp accesses it: one row per 128 bytes, one column per bank.

    Colours sort a row's 16-byte pieces by their place in the tensor that they come from, so that a swizzle shows. The
    numbers are the tensor's elements. Copies on their way are pale. Frames show what the warp accesses, a red one
    what the thread does.

    Args:
        writers: whether colours say instead which warp wrote.
    """
    axes = axes or style.figure(height=3.6)[1]
    memory = found.shared(number)
    at, size, own = _accesses(found, number, warp, lane)
    first = at.min(initial=len(memory.writer)) // ROW if len(at) else 0
    last = min(first + MOST, -(-len(memory.writer) // ROW))
    view = slice(first * ROW, last * ROW)
    rows = lambda values: values[view].reshape(-1, ROW)[:, ::BANK]
    pale = np.where(rows(memory.flying), 0.45, 1.0)
    if writers:
        colours = np.where(rows(memory.writer) < 0, 0, rows(memory.writer) % len(style.CYCLE) + 1)
        axes.imshow(colours, cmap=WARPS, vmin=-0.5, vmax=WARPS.N - 0.5, alpha=pale, aspect="auto")
        present = sorted(set(memory.writer[view].tolist()) - {-1})
        patches = [Patch(color=style.CYCLE[each % len(style.CYCLE)], label=f"warp {each}") for each in present]
        axes.legend(handles=patches, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        axes.set_title("which warp wrote", fontsize=9)
    else:
        heads = memory.elements[view].reshape(-1, ROW // PIECE, PIECE)[:, :, 0]
        rank = np.repeat(heads.argsort(1).argsort(1), PIECE // BANK, axis=1)
        unknown = np.repeat(heads < 0, PIECE // BANK, axis=1)
        axes.imshow(np.ma.masked_array(rank, unknown), cmap=PIECES, vmin=0, vmax=7, alpha=pale, aspect="auto")
        for (row, piece), head in np.ndenumerate(heads):
            if head >= 0:
                axes.text(4 * piece + 1.5, row, head, ha="center", va="center", fontsize=5)
        names = (found.tensors.names[index] for index in sorted(set(memory.argument[view].tolist()) - {-1}))
        axes.set_title(f"shared memory: elements of {', '.join(names)}", fontsize=9)
    for address, mine in zip(at - first * ROW, own, strict=True):
        if address < (last - first) * ROW:
            frame = style.outline(address % ROW / BANK - 0.5, address // ROW - 0.5, size / BANK, 1)
            frame.set(
                edgecolor=style.VERMILION if mine else style.BLACK, linewidth=2.2 if mine else 1.0, zorder=2 + mine
            )
            axes.add_patch(frame)
    axes.set_yticks(range(0, last - first, 4), [f"{ROW * row:,}" for row in range(first, last, 4)], fontsize=7)
    axes.set_xticks(range(0, 32, 4), range(0, 32, 4), fontsize=7)
    axes.set_xlabel("bank", fontsize=8)


def _accesses(found: PtxTrace, number: int, warp: int, lane: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Returns (addresses, bytes each, which are the thread's) of a warp's accesses to shared memory.

    Of a wgmma, which four warps execute together, the pieces of its first operand there.
    """
    step = found.steps[number]
    access = next(access for access in step.accesses if access.space == "shared")
    if step.instruction.parts[0] == "wgmma":
        at = np.unique(access.addresses[access.threads // 128 == warp // 4] // PIECE * PIECE)
        return at, PIECE, np.zeros(len(at), np.bool_)
    mine = access.threads // 32 == warp
    return access.addresses[mine], access.size, access.threads[mine] % 32 == lane


def fragment(held: Fragment, thread: int, axes: Axes | None = None) -> None:
    """Draws which thread holds each element of a matrix: one colour per thread of a warp. ``thread`` has frames."""
    matrices([held], thread, axes)


def matrices(several: Sequence[Fragment], thread: int, axes: Axes | None = None) -> None:
    """Draws matrices side by side, each as :func:`fragment`."""
    axes = axes or style.figure(height=2.4)[1]
    rows, columns = several[0].values.shape
    owners = np.full((rows, len(several) * (columns + 1) - 1), -1)
    for index, held in enumerate(several):
        left = index * (columns + 1)
        owner = np.empty(held.values.size, np.int64)
        owner[held.places] = held.first + np.arange(len(held.places))[:, None]
        owners[:, left : left + columns] = owner.reshape(rows, columns)
        for row, column in held.held(thread):
            axes.add_patch(style.outline(left + column - 0.5, row - 0.5, 1, 1))
    axes.imshow(np.ma.masked_where(owners < 0, owners % 32), vmin=0, vmax=31, aspect="auto")
    if columns <= 16:
        for (row, column), owner in np.ndenumerate(owners):
            colour = "white" if owner % 32 < 16 else "black"
            if owner >= 0:
                axes.text(column, row, owner % 32, ha="center", va="center", fontsize=5.5, color=colour)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(" | ".join(held.name for held in several), fontsize=9)
    axes.set_xlabel(f"{rows} x {columns}, by thread; {thread % 32} has frames", fontsize=7.5, color=style.GREY)
