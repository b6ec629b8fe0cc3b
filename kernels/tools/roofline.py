"""Plots of measured times under the roofline: ``alexnet roofline``. The notebooks draw with :func:`draw`, too."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, count
from kernels.tools.files import write_figure
from kernels.tools.measurements import PROVIDERS, ROOFS, Roofs, Row, load, main_batch, roofs
from kernels.tools.workloads import ALEXNET, DTYPES, torch_dtype

# matplotlib takes a second to import: inside functions, so that --help does not import it.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can distinguish. Each provider also has a marker of its own.
GREY = "#555555"
COLOURS = {"triton": "#D55E00", "torch": "#0072B2", "compile": "#009E73", "floor": GREY}
MARKERS = {"triton": "o", "torch": "s", "compile": "^", "floor": "D"}


def _figure() -> tuple[Figure, Axes]:
    """A figure 900 pixels wide, and its axes. Without pyplot, whose settings belong to the caller, e.g. a notebook."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(900 / 110, 560 / 110), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def draw(axes: Axes, limits: Roofs, points: Mapping[str, tuple[float, Mapping[str, float]]]) -> None:
    """Draws points under two roofs: TFLOP/s over FLOP per byte. Set the title before, since names are placed by it.

    Args:
        points: by name, the FLOP per byte, and the TFLOP/s of each provider of :data:`PROVIDERS`, or of ``"floor"`` for
            a computed point, which is not measured.
    """
    from matplotlib import ticker

    bandwidth, rate = limits.bandwidth * 1e-12, limits.rate * 1e-12
    ridge = rate / bandwidth
    intensities = [x for x, _ in points.values()] + [ridge]
    left, right = min(intensities) / 2.5, max(intensities) * 2.5
    lowest = min(y for _, found in points.values() for y in found.values())
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylabel="TFLOP/s")
    axes.set(xlim=(left, right), ylim=(min(lowest, left * bandwidth) / 6, rate * 2.2))  # with room for names
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())  # its labels would overlap within one decade
    axes.plot([left, ridge, right], [left * bandwidth, rate, rate], color=GREY, linewidth=1.5)
    axes.axvline(ridge, color="#dddddd", linewidth=1, zorder=0)
    for x, found in points.values():
        axes.plot([x] * len(found), list(found.values()), color=GREY, linewidth=0.8, zorder=1)
    for provider, name in {**PROVIDERS, "floor": "the floor, not measured"}.items():
        there = [(x, found[provider]) for x, found in points.values() if provider in found]
        if there:
            colour = COLOURS[provider]
            look: dict = {"marker": MARKERS[provider], "edgecolors": colour, "facecolors": "none", "label": name}
            if provider == "triton":
                look["facecolors"] = colour
            elif provider != "floor":
                look["label"] += ", where it is the best baseline"
            xs, ys = zip(*there, strict=True)
            axes.scatter(xs, ys, s=42, zorder=2, **look)
    axes.legend(loc="lower right", frameon=False)
    axes.figure.canvas.figure.draw_without_rendering()  # fixes where the axes lie on the page, which names need
    (x0, y0), (x1, y1) = axes.transData.transform([(left, left), (ridge, ridge)])
    slope: dict = {"rotation": math.degrees(math.atan2(y1 - y0, x1 - x0)), "rotation_mode": "anchor"}
    above: dict = {"xytext": (0, 6), "textcoords": "offset points", "color": GREY}
    axes.annotate(f"memory {bandwidth:.3g} TB/s", (left * 1.25, left * 1.25 * bandwidth), **above, **slope)
    axes.annotate(f"matrix product {rate:.4g} TFLOP/s", (right / 1.05, rate), ha="right", **above)
    _label(axes, {name: (x, min(found.values())) for name, (x, found) in points.items()})


def _label(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes names below the points, upright so that many fit side by side. Moves apart those that would touch."""
    width, gap = 14.0, 16.0  # in points of the page: an upright line of text; from a point to its name
    scale = 72 / axes.figure.dpi
    place = {name: axes.transData.transform(point) * scale for name, point in points.items()}
    groups: list[tuple[list[str], float]] = []  # names side by side, and where the first one stands
    for name in sorted(points, key=lambda name: place[name][0]):
        names, start = [name], place[name][0]
        while groups and groups[-1][1] + width * len(groups[-1][0]) > start:
            names = groups.pop()[0] + names
            start = sum(place[each][0] for each in names) / len(names) - width * (len(names) - 1) / 2
        groups.append((names, start))
    arrow = {"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    look: dict = {"textcoords": "offset points", "ha": "center", "va": "top", "rotation": 90, "arrowprops": arrow}
    for names, start in groups:
        below = min(place[name][1] for name in names) - gap
        for number, name in enumerate(names):
            x, y = place[name]
            axes.annotate(name, points[name], xytext=(start + width * number - x, below - y), **look)


def _roofline(path: Path, title: str, limits: Roofs, points: Mapping[str, tuple[float, Mapping[str, float]]]) -> Path:
    figure, axes = _figure()
    axes.set_title(title, loc="left")
    draw(axes, limits, points)
    write_figure(path, figure)
    return path


def plot_roofline(rows: list[Row], path: Path, *, dtype: str, pass_: str = "forward") -> Path | None:
    """Draws the layers of a GPU's table in ``dtype``, at their main batch, under the measured roofs.

    Returns ``path``, a PNG; None, and no file, if the table has no roofs or no such layers.
    """
    limits = roofs(rows, dtype)
    batch, compared = main_batch(rows, dtype, pass_)
    if limits is None or not compared:
        return None
    points = {}
    for layer, both in compared.items():
        there = [row for row in both if row]
        speed = {row.provider: row.flops / row.p50_ms * 1e-9 for row in there}
        points[layer] = (there[0].flops / there[0].bytes, speed)
    latest = max(row.date for row in rows)[:10]
    title = f"{rows[0].gpu}, {dtype}, batch {batch}, {pass_}; measured {latest}"
    return _roofline(path, title, limits, points)


def plot_model(path: Path, limits: Roofs, *, dtype: str, batch: int) -> Path:
    """Draws each of AlexNet's layers at its floor under assumed roofs. The title says that nothing is measured."""
    points = {}
    for layer in ALEXNET:
        cost = layer.cost(batch, torch_dtype(dtype).itemsize)
        floor = cost.flops / limits.floor_ms(cost.flops, cost.bytes) * 1e-9
        points[layer.name] = (cost.flops / cost.bytes, {"floor": floor})
    title = f"NOT MEASURED: the model's floors under assumed roofs, {dtype}, batch {batch}, forward"
    return _roofline(path, title, limits, points)


def plot_speed(rows: list[Row], path: Path, *, layer: str, dtype: str) -> Path | None:
    """Draws images per second forward over batch: a line per provider from p20 to p80, and the roofline's limit.

    ``layer``: or ``alexnet``, the whole network. Returns ``path``, a PNG; None, and no file, if there is no such row.
    """
    from matplotlib import ticker

    chosen = [row for row in rows if (row.layer, row.pass_, row.dtype) == (layer, "forward", dtype)]
    chosen.sort(key=lambda row: row.batch)
    if not chosen:
        return None
    rate = lambda row, ms: row.batch / ms * 1e3
    figure, axes = _figure()
    limits = roofs(rows, dtype)
    if limits:
        most = {row.batch: rate(row, limits.floor_ms(row.flops, row.bytes)) for row in chosen}
        axes.plot(*zip(*most.items(), strict=True), "--", color=GREY, linewidth=1.2, label="roofline", marker="_")
    for provider, name in PROVIDERS.items():
        line = [row for row in chosen if row.provider == provider]
        if line:
            batches = [row.batch for row in line]
            low, middle, high = (
                [rate(row, getattr(row, name)) for row in line] for name in ("p80_ms", "p50_ms", "p20_ms")
            )
            axes.plot(batches, middle, label=name, markersize=6, color=COLOURS[provider], marker=MARKERS[provider])
            axes.fill_between(batches, low, high, color=COLOURS[provider], alpha=0.2, linewidth=0)
    batches = sorted({row.batch for row in chosen})
    axes.set(xscale="log", yscale="log", xlabel="batch (images)", ylabel="images per second")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.6g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.legend(loc="upper left", frameon=False)
    what = "AlexNet" if layer == "alexnet" else layer
    date = max(row.date for row in chosen)[:10]
    axes.set_title(f"{what}, {chosen[0].gpu}, {dtype}, forward; measured {date}", loc="left")
    write_figure(path, figure)
    return path


def plot_all(rows: list[Row], folder: Path, stem: str) -> list[Path]:
    """Draws a GPU's table: a roofline for each dtype and pass, and the network's speed if several batches were timed.

    Returns the PNGs.
    """
    drawn = []
    for dtype in dict.fromkeys(row.dtype for row in rows if row.operator not in ROOFS):
        for pass_ in ("forward", "backward"):
            path = folder / f"{stem}-roofline-{dtype}{'-backward' * (pass_ == 'backward')}.png"
            drawn.append(plot_roofline(rows, path, dtype=dtype, pass_=pass_))
        whole = ("alexnet", "forward", dtype)
        if len({row.batch for row in rows if (row.layer, row.pass_, row.dtype) == whole}) > 1:
            drawn.append(plot_speed(rows, folder / f"{stem}-speed-{dtype}.png", layer="alexnet", dtype=dtype))
    return [path for path in drawn if path]


# The command


def _roof(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-6 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"must be a number from 1e-6 to 1e6, got {text!r}")
    return value


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="alexnet roofline", description="Draws a measured table, or a model, under the roofline.")
    add = parser.add_argument
    add("table", nargs="?", metavar="CSV", help="a measured table; none: only the model, under the roofs given here")
    add("--bandwidth", type=_roof, metavar="TB/S", help="without a table: the memory roof, read plus written")
    add("--rate", type=_roof, metavar="TFLOP/S", help="without a table: the roof of matrix products")
    add("--dtype", choices=DTYPES, default="fp16", help="without a table: of the tensors (fp16)")
    add("--batch", type=count, default=128, metavar="N", help="without a table: images (128)")
    add("--out", type=Path, default=Path("."), metavar="DIR", help="where the PNGs go (here)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        drawn = plot_all(load(args.table), args.out, Path(args.table).stem)
        if not drawn:
            raise AlexNetError(f"{args.table}: nothing to draw: takes measured layers, and roofs of the same dtype")
    elif args.bandwidth and args.rate:
        print("not measured: the model's floors, under the roofs given")
        limits = Roofs(args.bandwidth * 1e12, args.rate * 1e12)
        path = args.out / f"model-roofline-{args.dtype}.png"
        drawn = [plot_model(path, limits, dtype=args.dtype, batch=args.batch)]
    else:
        raise AlexNetError("not measured: give a table, or roofs to assume with --bandwidth and --rate")
    print(*drawn, sep="\n")
    return 0


main = functools.partial(command.run, "alexnet roofline", run)
