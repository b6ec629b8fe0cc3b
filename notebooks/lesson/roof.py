"""Operators under the roofline, and the least time that each needs. The title says whether the roofs are measured.

A kernel takes at least the longer of two times: its FLOPs at the device's rate, and its bytes at its bandwidth.
"""

from collections.abc import Mapping

from lesson import machine, style

import numpy as np
from matplotlib.axes import Axes

from kernels.tools import roofline
from kernels.tools.cost import Cost


def plot(
    costs: Mapping[str, Cost],
    *,
    dtype: str = "fp16",
    measured: Mapping[str, float | None] | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> None:
    """Draws FLOP/s over FLOP per byte: an open mark for each operator's floor, a filled mark for its measured speed.

    Args:
        costs: the work of each operator, as :mod:`kernels.tools.cost` counts it.
        dtype: selects the roofs.
        measured: ms of each operator on the device with these roofs, or None if it was not timed.
        title: what the plot shows. The roofs' source is added.
        axes: where to draw.
    """
    limits, _, label = machine.limits(dtype)
    axes = axes or style.figure(height=4.8)[1]
    axes.set_title(f"{title}\n({label})" if title else label)
    points = {}
    for name, cost in costs.items():
        speeds = {"floor": cost.flops / limits.floor_ms(cost.flops, cost.bytes) * 1e-9}
        ms = (measured or {}).get(name)
        if ms:
            speeds["triton"] = cost.flops / ms * 1e-9
        points[name] = (cost.flops / cost.bytes, speeds)
    roofline.draw(axes, limits, points)


def floors(
    costs: Mapping[str, Cost],
    *,
    dtype: str = "fp16",
    measured: Mapping[str, float | None] | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> None:
    """Draws two bars per operator: the least time for its FLOPs and for its bytes. The longer one is its floor.

    The arguments are those of :func:`plot`. A mark shows a measured time.
    """
    limits, _, label = machine.limits(dtype)
    axes = axes or style.figure(height=1.4 + 0.55 * len(costs))[1]
    places = np.arange(len(costs))
    compute = [cost.flops / limits.rate * 1e6 for cost in costs.values()]
    memory = [cost.bytes / limits.bandwidth * 1e6 for cost in costs.values()]
    for shift, times, colour, what in ((-0.2, memory, style.BLUE, "bytes"), (0.2, compute, style.ORANGE, "FLOPs")):
        bars = axes.barh(places + shift, times, 0.38, color=colour, label=f"{what} at the roof")
        axes.bar_label(bars, [f"{time:.3g}" for time in times], padding=3, fontsize=8)
    timed = [(place, ms * 1e3) for place, name in enumerate(costs) if (ms := (measured or {}).get(name))]
    if timed:
        axes.plot([us for _, us in timed], [place for place, _ in timed], "D", color=style.BLACK, label="measured")
    axes.set_yticks(places, list(costs))
    axes.invert_yaxis()
    axes.set(xlabel="microseconds, at least")
    axes.margins(x=0.12)
    axes.legend(loc="best")
    axes.set_title(f"{title}\n({label})" if title else label)
