"""Rewrites the README's measured tables and plots from the measurements: ``alexnet readme``.

It replaces what stands between the two markers, and nothing else. The same measurements give the same text.
"""

import functools
import os
from pathlib import Path

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser
from kernels.tools.files import write_bytes
from kernels.tools.measurements import PROVIDERS, Comparison, Row, compare, load, main_batch, roofs, share, tables
from kernels.tools.roofline import plot_all

BEGIN = "<!-- measurements:begin -->"
END = "<!-- measurements:end -->"
NOTHING = (
    "Nothing has been measured on a GPU yet. On one, `alexnet bench` measures, and "
    "`alexnet readme` puts the results here."
)


def _cells(found: Comparison, rate: bool, rows: list[Row]) -> list[str]:
    """Ours, the best baseline, the ratio, the share of the roofline, the error."""
    ours, best = found
    figure = lambda row: f"{row.batch / row.p50_ms * 1e3:,.0f}" if rate else f"{row.p50_ms:.4g}"
    limits = roofs(rows, ours.dtype) if ours else None
    return [
        figure(ours) if ours else "-",
        f"{figure(best)} ({PROVIDERS[best.provider]})" if best else "-",
        f"{found.ratio:.2f}" if found.ratio else "-",
        f"{share(ours, limits):.0%}" if ours and limits else "-",
        f"{ours.error:.1e}" if ours else "-",
    ]


def _table(header: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(line)} |" for line in (header, rule, *lines)] + [""]


def section(path: Path, readme: Path) -> list[str]:
    """One GPU's part of the README, as lines. Draws the GPU's plots beside its table."""
    rows = load(path)
    compared = compare(rows)
    if not compared:
        return []
    newest = max(rows, key=lambda row: row.date)
    lines = [
        f"**{newest.gpu}**, PyTorch {newest.torch}, Triton {newest.triton}, last measured {newest.date[:10]} at commit "
        f"{newest.commit}. Each result was compared with float64 before it was timed. Where a ratio is over 1, our "
        "kernels are faster than the best of PyTorch and torch.compile.",
        "",
    ]
    tail = ["ratio", "of the roofline", "error"]
    for pass_, what in (("forward", "the whole network"), ("step", "training the network")):
        whole = {key[2:]: found for key, found in compared.items() if key[:2] == ("alexnet", pass_)}
        if whole:
            lines += _table(
                [f"{what}, batch", "dtype", "ours, images/s", "best baseline, images/s", *tail],
                [[str(batch), dtype, *_cells(found, True, rows)] for (dtype, batch), found in whole.items()],
            )
    for dtype in dict.fromkeys(dtype for _, _, dtype, _ in compared):
        for pass_ in ("forward", "backward"):
            batch, layers = main_batch(rows, dtype, pass_)
            single = [[name, *_cells(found, False, rows)] for name, found in layers.items() if name != "alexnet"]
            if single:
                lines += _table([f"{dtype}, batch {batch}, {pass_}", "ours, ms", "best baseline, ms", *tail], single)
    link = lambda file: Path(os.path.relpath(file, readme.parent)).as_posix()
    for plot in plot_all(rows, path.parent, path.stem):
        lines += [f"![{plot.stem.removeprefix(path.stem + '-').replace('-', ', ')}]({link(plot)})", ""]
    return [*lines, f"All rows: [{path.name}]({link(path)})", ""]


def rewrite(readme: Path, measurements: Path) -> bool:
    """Replaces what stands between the markers. Returns whether that changed anything.

    Raises:
        AlexNetError: the README is not text, its markers are not one pair, a table cannot be read, or it cannot be
            written.
        OSError: there is no such README.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AlexNetError(f"{readme}: not a README: {error}") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise AlexNetError(f"{readme}: must have one line {BEGIN} and, below it, one line {END}")
    lines = [line for path in tables(measurements) for line in section(path, readme)]
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    new = "\n".join([before + BEGIN, "", *(lines or [NOTHING, ""]), END + after])
    if new == text:
        return False
    write_bytes(readme, new.encode())
    return True


def run(argv: list[str] | None, readme: Path | None = None, measurements: Path | None = None) -> int:
    """``readme`` and ``measurements`` are defaults."""
    parser = Parser(prog="alexnet readme", description="Rewrites the README's measured tables and plots.")
    add = parser.add_argument
    add("readme", nargs="?", type=Path, default=readme, metavar="README", help="what to rewrite (a checkout's)")
    add("--measurements", type=Path, metavar="DIR", help="folder of the tables (a checkout's notebooks/measurements)")
    args = parser.parse_args(argv)
    if args.measurements and not args.measurements.is_dir():  # a wrong folder would remove all tables from the README
        raise AlexNetError(f"--measurements {args.measurements}: no such folder")
    folder = args.measurements or measurements
    if not (args.readme and folder):
        raise AlexNetError("give README and --measurements DIR: no checkout of the project is here")
    changed = rewrite(args.readme, folder)
    print(f"{args.readme}: {'rewritten' if changed else 'unchanged'}")
    return 0


main = functools.partial(command.run, "alexnet readme", run)
