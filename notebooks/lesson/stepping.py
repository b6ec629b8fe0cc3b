"""Shows one program of a kernel, a :class:`kernels.tools.trace.Trace`, step by step: as figures or a slider."""

import functools
import io
from collections.abc import Callable

from lesson import source, style

import ipywidgets
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from kernels.tools.trace import Step, Trace

CONTEXT = 4  # lines of source before and after the one that has run


def strip(found: Trace, *names: str, columns: int = 4, height: float = 1.9) -> None:
    """Draws a picture of each value that the variables had: one row per variable, or one row if each was set once.

    Args:
        found: the trace.
        names: of variables.
        columns: the greatest number of values per variable. If there are more, a selection at even distances is shown,
            with the first and the last.
        height: of a row, in inches.

    Raises:
        ValueError: the program has set no variable of this name.
    """
    rows = []
    for name in names:
        steps = [(number, name, step.values[name]) for number, step in enumerate(found.steps) if name in step.values]
        if not steps:
            raise ValueError(f"{found.kernel} has set no {name}")
        if len(steps) > columns:
            steps = [steps[round(index)] for index in np.linspace(0, len(steps) - 1, columns)]
        rows.append(steps)
    if all(len(steps) == 1 for steps in rows):
        rows = [[steps[0] for steps in rows]]
    wide = max(map(len, rows))
    figure, axes = style.figure(len(rows), wide, height=height * len(rows) + 0.4, squeeze=False)
    figure.suptitle(f"{found.kernel}, program {found.program} of {found.grid}", x=0.01, ha="left")
    for places, steps in zip(axes, rows, strict=True):
        for place in places[len(steps) :]:
            place.set_axis_off()
        for place, (number, name, value) in zip(places, steps, strict=False):
            # All values of a variable share one scale, so that one sees how an accumulator fills.
            alike = [other[np.isfinite(other)] for _, named, other in steps if named == name]
            largest = max(np.abs(other).max(initial=0) for other in alike) or None
            signed = any(other.dtype.kind == "f" and other.min(initial=0) < 0 for other in alike)
            style.tile(place, value, f"step {number}: {name}", limit=largest, signed=signed)


def slider(found: Trace, kernel: Callable) -> None:
    """Displays a slider over all steps, each as :func:`draw` draws it. It begins with the first load or store.

    Without a running Python, only that step is shown. ``kernel`` is the traced kernel, for its source.
    """
    start = next((number for number, step in enumerate(found.steps) if step.accesses), 0)

    @functools.cache
    def picture(number: int) -> bytes:
        figure = Figure(figsize=(style.WIDTH, 4.2), dpi=100, layout="constrained")
        draw(figure, found, kernel, number)
        file = io.BytesIO()
        figure.savefig(file, metadata={"Software": None})
        return file.getvalue()

    number = ipywidgets.IntSlider(
        start, 0, len(found.steps) - 1, description="step", layout=ipywidgets.Layout(width="600px")
    )
    image = ipywidgets.Image(value=picture(start), format="png")
    number.observe(lambda change: setattr(image, "value", picture(change["new"])), "value")
    live = ipywidgets.VBox([number, image])._repr_mimebundle_()
    display(
        {
            **live,
            "image/png": picture(start),
            "text/plain": f"a slider over {len(found.steps)} steps of {found.kernel}",
        },
        raw=True,
    )


def draw(figure: Figure, found: Trace, kernel: Callable, number: int) -> None:
    """Draws one step: the source around the line, what it loaded or stored, and what it set."""
    step = found.steps[number]
    panels = sorted(step.values.items(), key=lambda item: item[1].ndim == 0)[:3]
    masks = [(f"{access.kind} mask, {access.argument}", access.mask) for access in step.accesses if access.mask.ndim]
    panels = [item for item in panels if item[1].ndim] + masks[: 4 - len(panels)]
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    _source(top.subplots(), found, kernel, step, number)
    if not panels:
        return
    for place, (name, value) in zip(bottom.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        style.tile(place, value, name)


def _source(axes: Axes, found: Trace, kernel: Callable, step: Step, number: int) -> None:
    """Draws the lines around the line that has run, marks that line, and says in words what it did."""
    axes.set_axis_off()
    axes.set_title(
        f"{found.kernel}, program {found.program} of {found.grid}: step {number} of {len(found.steps) - 1}",
        fontsize=10,
    )
    first, lines = source.lines(kernel)
    here = step.line - first
    start = max(0, min(here - CONTEXT, len(lines) - 2 * CONTEXT - 1))
    shown = list(range(start, min(len(lines), start + 2 * CONTEXT + 1)))
    facts = step.facts()[:4]
    height = 1 / (2 * CONTEXT + 1 + len(facts) + 0.5)
    mono = FontProperties(family="monospace", size=7.5)
    for row, index in enumerate(shown):
        y = 1 - (row + 0.5) * height
        if index == here:
            axes.axhspan(y - height / 2, y + height / 2, color=style.YELLOW, alpha=0.6, linewidth=0)
        axes.text(0.005, y, lines[index][:124], va="center", fontproperties=mono, parse_math=False)
    for row, fact in enumerate(facts):
        y = 1 - (len(shown) + row + 1) * height
        axes.text(
            0.005, y, fact[:124], va="center", color=style.BLUE, fontproperties=mono, parse_math=False, weight="bold"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))
