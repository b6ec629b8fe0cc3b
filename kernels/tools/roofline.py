"""The measured table, read; how much of the device a time is; and the plots: ``alexnet roofline``.

A kernel's floor is the longer of two times, its FLOPs at the rate of the fastest matrix product and its bytes at the
bandwidth of a large copy (Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785). Both roofs
are measured on the device, in the run that measures the kernels: a datasheet's are not reached by anything.
"""

import argparse
import csv
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser
from kernels.tools.workloads import ALEXNET, DTYPES

MEASUREMENTS = Path(__file__).parent.parent / "notebooks" / "measurements"
PROVIDERS = {"triton": "ours (Triton)", "torch": "PyTorch", "compile": "torch.compile"}
ROOFS = ("roof_copy", "roof_matmul")


class Row(NamedTuple):
    """One timing: a line of the table, whose columns are these."""

    date: str  # ISO 8601, UTC
    commit: str
    gpu: str
    torch: str
    triton: str
    operator: str
    layer: str
    pass_: str  # forward, backward, or step: a training step; the column is called pass
    dtype: str  # fp16, bf16, fp32, or tf32: fp32 tensors multiplied as TF32
    batch: int
    provider: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    flops: int
    bytes: int
    error: float  # max|out - ref| / max|ref|, of the run that was timed


COLUMNS = tuple(name.rstrip("_") for name in Row._fields)


class TableError(AlexNetError):
    """A table that cannot be read."""


class Roofs(NamedTuple):
    """What the device does at the most."""

    bandwidth: float  # bytes per second, read and written
    rate: float  # FLOP per second, in matrix products of one dtype

    def floor_ms(self, flops: int, bytes: int) -> float:
        """The least time, in ms."""
        return 1e3 * max(flops / self.rate, bytes / self.bandwidth)


def load(path: str | Path) -> list[Row]:
    """The table's latest row for each GPU, operator, layer, pass, dtype, batch and provider, in the table's order.

    Raises:
        TableError: no such file, one that is no CSV, other columns, or a value that is not a number where one belongs.
    """
    latest: dict[tuple, Row] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            if tuple(header) != COLUMNS:
                raise TableError(f"{path}: columns must be {','.join(COLUMNS)}, got {','.join(header)}")
            for line in lines:
                try:
                    types = Row.__annotations__.values()
                    row = Row(*(kind(value) for kind, value in zip(types, line, strict=True)))
                except ValueError as error:
                    raise TableError(f"{path}, line {lines.line_num}: {error}") from None
                key = (row.gpu, row.operator, row.layer, row.pass_, row.dtype, row.batch, row.provider)
                if key not in latest or row.date >= latest[key].date:  # of one second: the one further down
                    latest[key] = row
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a table: {error}") from None
    return list(latest.values())


def slug(gpu: str) -> str:
    """The name of a GPU's table: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def roofs(rows: Iterable[Row], dtype: str) -> Roofs | None:
    """The measured roofs for products in ``dtype``; None unless both are in the table."""
    rows = list(rows)
    copies = [row for row in rows if row.operator == "roof_copy"]
    products = [row for row in rows if row.operator == "roof_matmul" and row.dtype == dtype]
    if not (copies and products):
        return None
    copy, matmul = (max(found, key=lambda row: row.date) for found in (copies, products))
    return Roofs(copy.bytes / copy.p50_ms * 1e3, matmul.flops / matmul.p50_ms * 1e3)


def roofs_for(gpu: str, dtype: str, folder: Path = MEASUREMENTS) -> Roofs | None:
    """The roofs measured on a GPU, by the name that PyTorch has for it; None where nobody has measured them."""
    path = folder / f"{slug(gpu)}.csv"
    return roofs(load(path), dtype) if path.is_file() else None


def share(row: Row, roofs: Roofs) -> float:
    """How much of the roofline a timing reaches: 1 is the floor.

    A network's FLOPs and bytes are its layers' sums: its floor here is a little under the sum of its layers' floors.
    """
    return roofs.floor_ms(row.flops, row.bytes) / row.p50_ms


def baseline(rows: Iterable[Row]) -> Row | None:
    """The fastest of other providers' timings of one thing."""
    return min((row for row in rows if row.provider != "triton"), key=lambda row: row.p50_ms, default=None)


class Comparison(NamedTuple):
    """Our timing of one layer at one batch, beside the best of the others; either may be missing."""

    ours: Row | None
    best: Row | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best of the others: over 1 where ours is faster."""
        return self.best.p50_ms / self.ours.p50_ms if self.ours and self.best else None


def compare(rows: Iterable[Row]) -> dict[tuple[str, str, str, int], Comparison]:
    """Every (layer, pass, dtype, batch) that was timed, in the table's order, roofs left out."""
    timed: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        if row.operator not in ROOFS:
            timed.setdefault((row.layer, row.pass_, row.dtype, row.batch), []).append(row)
    ours = lambda found: next((row for row in found if row.provider == "triton"), None)
    return {key: Comparison(ours(found), baseline(found)) for key, found in timed.items()}


# Okabe and Ito's colours, which colour-blind people can tell apart; and each provider has a marker of its own.
COLOURS = {"triton": "#D55E00", "torch": "#0072B2", "compile": "#009E73"}
MARKERS = {"triton": "o", "torch": "s", "compile": "^"}
GREY = "#555555"


def _figure():
    """A figure and its axes, 900 pixels wide; without pyplot, whose state belongs to whoever calls, a notebook say."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(900 / 110, 560 / 110), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure, path: Path) -> Path:
    # Without matplotlib's version in the file, or its settings: the same table gives the same bytes.
    figure.savefig(path, dpi="figure", metadata={"Software": None})
    return path


def _label(axes, points: dict[str, tuple[float, list[float]]]) -> None:
    """Names below the points at (x, ys), upright so that many fit side by side, moved apart where they would touch."""
    width, gap = 14.0, 16.0  # points on the page: of an upright line of text, and from a point to its name
    scale = 72 / axes.figure.dpi
    place = {name: axes.transData.transform((x, min(ys))) * scale for name, (x, ys) in points.items()}
    names = sorted(points, key=lambda name: place[name][0])
    groups: list[list] = []  # [names, left end], each group moved apart around its own middle
    for name in names:
        groups.append([[name], place[name][0]])
        while len(groups) > 1 and groups[-2][1] + width * len(groups[-2][0]) > groups[-1][1]:
            merged = groups[-2][0] + groups.pop()[0]
            middle = sum(place[each][0] for each in merged) / len(merged)
            groups[-1] = [merged, middle - width * (len(merged) - 1) / 2]
    for members, left in groups:
        below = min(place[name][1] for name in members) - gap
        for index, name in enumerate(members):
            x, ys = points[name]
            axes.annotate(
                name,
                (x, min(ys)),
                xytext=(left + width * index - place[name][0], below - place[name][1]),
                textcoords="offset points",
                ha="center",
                va="top",
                rotation=90,
                arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )


def plot_roofline(
    rows: Iterable[Row], path: Path, *, dtype: str, batch: int, pass_: str = "forward", assumed: Roofs | None = None
) -> Path | None:
    """Every layer's TFLOP/s over its FLOP per byte, under the measured roofs.

    Args:
        rows: of one GPU, as :func:`load` gives them. Without any, the model alone is drawn, under ``assumed``: where
            each of AlexNet's layers would lie at the floor. The plot then says that nothing was measured.
        path: the PNG.
        dtype, batch, pass_: which rows.
        assumed: roofs to draw where the table has none.

    Returns:
        ``path``; None, and no file, where there are no roofs to draw or no layers to draw under them.
    """
    rows = list(rows)
    measured = roofs(rows, dtype)
    limits = measured or assumed
    compared = compare(rows).items() if measured else ()
    timed = {layer: found for (layer, *key), found in compared if key == [pass_, dtype, batch]}
    if limits is None or (measured and not timed):
        return None
    # Where each layer lies: FLOP per byte, and TFLOP/s of each provider.
    speed = lambda row: row.flops / row.p50_ms * 1e-9
    points = {}
    if measured:
        for name, both in timed.items():
            there = [row for row in both if row]
            points[name] = (there[0].flops / there[0].bytes, {row.provider: speed(row) for row in there})
    else:
        for layer in ALEXNET:
            cost = layer.cost(batch, 4 if dtype in ("fp32", "tf32") else 2, backward=pass_ == "backward")
            points[layer.name] = (cost.flops / cost.bytes, {"model": cost.flops / limits.floor_ms(*cost[2:]) * 1e-9})

    from matplotlib import ticker

    figure, axes = _figure()
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylabel="TFLOP/s")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())  # its labels would overlap within one decade
    ridge = limits.rate / limits.bandwidth
    left = min([x for x, _ in points.values()] + [ridge]) / 2.5
    right = max([x for x, _ in points.values()] + [ridge]) * 2.5
    lowest = min(y for _, found in points.values() for y in found.values())
    axes.set_xlim(left, right)
    axes.set_ylim(min(lowest, left * limits.bandwidth * 1e-12) / 6, limits.rate * 1e-12 * 2.2)  # room for names
    axes.plot(
        [left, ridge, right],
        [left * limits.bandwidth * 1e-12, limits.rate * 1e-12, limits.rate * 1e-12],
        color=GREY,
        linewidth=1.5,
        linestyle="-" if measured else "--",
    )

    figure.draw_without_rendering()  # fixes where the axes lie on the page, which the labels need
    (x0, y0), (x1, y1) = axes.transData.transform([(left, left), (ridge, ridge)])
    axes.annotate(
        f"copy {limits.bandwidth * 1e-12:.3g} TB/s",
        (left * 1.25, left * 1.25 * limits.bandwidth * 1e-12),
        xytext=(-2, 7),
        textcoords="offset points",
        rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
        rotation_mode="anchor",
        color=GREY,
    )
    axes.annotate(
        f"matrix product {limits.rate * 1e-12:.3g} TFLOP/s",
        (right / 1.05, limits.rate * 1e-12),
        xytext=(0, 6),
        textcoords="offset points",
        ha="right",
        color=GREY,
    )
    style = {"model": {"color": GREY, "marker": "D", "facecolors": "none", "label": "the model's floor"}}
    for provider, name in PROVIDERS.items():
        empty = provider != "triton"
        style[provider] = {
            "color": COLOURS[provider],
            "marker": MARKERS[provider],
            "facecolors": "none" if empty else COLOURS[provider],
            "label": f"{name}, where it is the best baseline" if empty else name,
        }
    labelled = set()
    for x, found in points.values():
        if len(found) == 2:
            axes.plot([x, x], list(found.values()), color=GREY, linewidth=0.8, zorder=1)
        for provider, y in found.items():
            look = dict(style[provider])
            label = None if provider in labelled else look["label"]
            labelled.add(provider)
            axes.scatter(x, y, s=42, zorder=2, **{**look, "label": label})
    _label(axes, {name: (x, list(found.values())) for name, (x, found) in points.items()})
    axes.legend(loc="lower right", frameon=False)
    if measured:
        latest = max(row.date for row in rows)[:10]
        axes.set_title(f"{rows[0].gpu}, {dtype}, batch {batch}, {pass_}; measured {latest}", loc="left")
    else:
        axes.set_title(
            f"NOT MEASURED: the model's floors under assumed roofs, {dtype}, batch {batch}, {pass_}", loc="left"
        )
    return _save(figure, path)


def plot_speed(rows: Iterable[Row], path: Path, *, layer: str, dtype: str) -> Path | None:
    """Images per second forward over batch, one line a provider, with the range of p20 to p80 and the roofline's limit.

    Args:
        rows: of one GPU, as :func:`load` gives them.
        path: the PNG.
        layer: a layer, or ``alexnet`` for the whole network.
        dtype: which rows.

    Returns:
        ``path``; None, and no file, where the table has no such rows.
    """
    rows = list(rows)
    chosen = [row for row in rows if (row.layer, row.pass_, row.dtype) == (layer, "forward", dtype)]
    chosen.sort(key=lambda row: row.batch)
    if not chosen:
        return None
    rate = lambda row, ms: row.batch / ms * 1e3
    from matplotlib import ticker

    figure, axes = _figure()
    limits = roofs(rows, dtype)
    if limits:
        floors = {row.batch: row.batch / limits.floor_ms(row.flops, row.bytes) * 1e3 for row in chosen}
        axes.plot(*zip(*floors.items(), strict=True), "--", color=GREY, linewidth=1.2, label="roofline", marker="_")
    for provider, name in PROVIDERS.items():
        line = [row for row in chosen if row.provider == provider]
        if not line:
            continue
        batches = [row.batch for row in line]
        look = {"color": COLOURS[provider], "marker": MARKERS[provider]}
        axes.plot(batches, [rate(row, row.p50_ms) for row in line], label=name, markersize=6, **look)
        low, high = ([rate(row, getattr(row, end)) for row in line] for end in ("p80_ms", "p20_ms"))
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
    return _save(figure, path)


def main_batch(rows: Iterable[Row], dtype: str, pass_: str = "forward") -> int | None:
    """The batch that most layers were timed at in ``dtype``; of several, the largest."""
    counts: dict[int, int] = {}
    for _, *key, batch in compare(rows):
        if key == [pass_, dtype]:
            counts[batch] = counts.get(batch, 0) + 1
    return max(counts, key=lambda batch: (counts[batch], batch), default=None)


def plot_all(rows: Iterable[Row], folder: Path, stem: str) -> list[Path]:
    """A roofline for each dtype and pass, at its main batch, and the network's speed where several were timed."""
    rows = list(rows)
    drawn = []
    for dtype in dict.fromkeys(row.dtype for row in rows if row.operator not in ROOFS):
        for pass_ in ("forward", "backward"):
            path = folder / f"{stem}-roofline-{dtype}{'-backward' * (pass_ == 'backward')}.png"
            batch = main_batch(rows, dtype, pass_)
            if batch is not None:
                drawn.append(plot_roofline(rows, path, dtype=dtype, batch=batch, pass_=pass_))
        whole = ("alexnet", "forward", dtype)
        if len({row.batch for row in rows if (row.layer, row.pass_, row.dtype) == whole}) > 1:
            drawn.append(plot_speed(rows, folder / f"{stem}-speed-{dtype}.png", layer="alexnet", dtype=dtype))
    return [path for path in drawn if path]


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
    add("table", nargs="?", metavar="CSV", help="a measured table; none: the model alone, under the roofs given here")
    add("--bandwidth", type=_roof, metavar="TB/S", help="the roof to assume without a table, read plus written")
    add("--rate", type=_roof, metavar="TFLOP/S", help="likewise, of matrix products")
    add("--dtype", choices=DTYPES, default="fp16", help="likewise, of the tensors (fp16)")
    add("--batch", type=int, default=128, metavar="N", help="likewise, images (128)")
    add("--out", type=Path, default=Path("."), metavar="DIR", help="where the PNGs go (here)")
    args = parser.parse_args(argv)
    if args.batch < 1:
        raise AlexNetError(f"--batch must be at least 1, got {args.batch}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.table:
            drawn = plot_all(load(args.table), args.out, Path(args.table).stem)
            if not drawn:
                raise TableError(f"{args.table}: nothing to draw: takes measured layers, and roofs of the same dtype")
        elif args.bandwidth and args.rate:
            print("not measured: the model's floors, under the roofs given")
            assumed = Roofs(args.bandwidth * 1e12, args.rate * 1e12)
            path = args.out / f"model-roofline-{args.dtype}.png"
            plot_roofline([], path, dtype=args.dtype, batch=args.batch, assumed=assumed)
            drawn = [path]
        else:
            raise TableError("not measured: give a table, or roofs to assume with --bandwidth and --rate")
    except OSError as error:
        raise AlexNetError(f"{error.filename}: {error.strerror}") from error
    except TableError as error:
        raise AlexNetError(error) from error
    print(*drawn, sep="\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    return command.run("alexnet roofline", run, argv)


if __name__ == "__main__":
    sys.exit(main())
