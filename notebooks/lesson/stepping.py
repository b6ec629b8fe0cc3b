"""Shows one program of a kernel, a :class:`kernels.tools.trace.Trace`, step by step: as figures or a slider."""

import functools
import io
from collections.abc import Callable, Sequence

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
    picture = lambda figure, step: draw(figure, found, kernel, step)
    text = f"a slider over {len(found.steps)} steps of {found.kernel}"
    show(picture, text, height=4.2, step=(start, len(found.steps) - 1))


def show(picture: Callable[..., None], text: str, height: float, **sliders: tuple[int, int]) -> None:
    """Displays a picture with sliders. Without a running Python it stays as it begins.

    Args:
        picture: called as ``picture(figure, **numbers)``, with the number of each slider. It draws.
        text: in place of the picture where none can be shown.
        height: of the picture, in inches.
        sliders: (number at the start, last number) of each slider, by its name. The first number is 0.
    """

    @functools.cache
    def png(*numbers: int) -> bytes:
        figure = Figure(figsize=(style.WIDTH, height), dpi=100, layout="constrained")
        picture(figure, **dict(zip(sliders, numbers, strict=True)))
        file = io.BytesIO()
        figure.savefig(file, metadata={"Software": None})
        return file.getvalue()

    wide = ipywidgets.Layout(width="600px")
    moved = [ipywidgets.IntSlider(at, 0, last, description=name, layout=wide) for name, (at, last) in sliders.items()]
    first = png(*(at for at, _ in sliders.values()))
    image = ipywidgets.Image(value=first, format="png")
    for slider in moved:
        slider.observe(lambda _: setattr(image, "value", png(*(slider.value for slider in moved))), "value")
    live = ipywidgets.VBox([*moved, image])._repr_mimebundle_()
    display({**live, "image/png": first, "text/plain": text}, raw=True)


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
    axes.set_title(
        f"{found.kernel}, program {found.program} of {found.grid}: step {number} of {len(found.steps) - 1}",
        fontsize=10,
    )
    first, lines = source.lines(kernel)
    text(axes, *around(lines, step.line - first, CONTEXT), step.facts()[:4])


def around(lines: Sequence[str], here: int, context: int) -> tuple[list[str], int]:
    """Returns a line and some lines before and after it, and the line's place among them."""
    start = max(0, min(here - context, len(lines) - 2 * context - 1))
    return list(lines[start : start + 2 * context + 1]), here - start


def text(
    axes: Axes, lines: Sequence[str], here: int = -1, facts: Sequence[str] = (), *, rows: int = 0, size: float = 7.5
) -> None:
    """Writes lines of code, with one of them marked, and facts under them in blue.

    Args:
        here: which line to mark; -1 for none.
        rows: for how many lines and facts there is room; by default for these.
        size: of the font, in points.
    """
    axes.set_axis_off()
    height = 1 / (max(rows, len(lines) + len(facts)) + 0.5)
    mono = FontProperties(family="monospace", size=size)
    for row, line in enumerate([*lines, *facts]):
        fact = row >= len(lines)
        y = 1 - (row + (1 if fact else 0.5)) * height
        if row == here:
            axes.axhspan(y - height / 2, y + height / 2, color=style.YELLOW, alpha=0.6, linewidth=0)
        look = {"color": style.BLUE, "weight": "bold"} if fact else {}
        axes.text(0.005, y, line[:124], va="center", fontproperties=mono, parse_math=False, clip_on=True, **look)
    axes.set(xlim=(0, 1), ylim=(0, 1))
