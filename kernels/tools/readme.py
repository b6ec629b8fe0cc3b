"""The README's measured table and plots, rewritten from the measurements: ``alexnet readme``.

What stands between the two markers is replaced, nothing else is touched, and the same measurements give the same text.
"""

import os
import sys
from pathlib import Path

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser
from kernels.tools.files import write_bytes
from kernels.tools.roofline import (
    MEASUREMENTS,
    PROVIDERS,
    Comparison,
    Row,
    TableError,
    compare,
    load,
    main_batch,
    plot_all,
    roofs,
    share,
)

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
    """One GPU's part of the README, as lines; draws its plots beside the table."""
    rows = load(path)
    compared = compare(rows)
    if not compared:
        return []
    newest = max(rows, key=lambda row: row.date)
    lines = [
        f"**{newest.gpu}**, PyTorch {newest.torch}, Triton {newest.triton}, last measured {newest.date[:10]} at commit "
        f"{newest.commit}. Every time stands for a result that was compared with float64; ratios over 1 are where our "
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
            key = [pass_, dtype, main_batch(rows, dtype, pass_)]
            single = {name: found for (name, *k), found in compared.items() if name != "alexnet" and k == key}
            if single:
                lines += _table(
                    [f"{dtype}, batch {key[2]}, {pass_}", "ours, ms", "best baseline, ms", *tail],
                    [[layer, *_cells(found, False, rows)] for layer, found in single.items()],
                )
    for plot in plot_all(rows, path.parent, path.stem):
        link = Path(os.path.relpath(plot, readme.parent)).as_posix()
        lines += [f"![{plot.stem.removeprefix(path.stem + '-').replace('-', ', ')}]({link})", ""]
    return [*lines, f"All rows: [{path.name}]({Path(os.path.relpath(path, readme.parent)).as_posix()})", ""]


def rewrite(readme: Path, measurements: Path = MEASUREMENTS) -> bool:
    """Replaces what stands between the markers; whether that changed anything.

    Raises:
        TableError: no such README, one that is not text, markers that are missing or not one pair, or a table that
            cannot be read.
        AlexNetError: it cannot be written.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(f"{readme}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TableError(f"{readme}: not a README: {error}") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise TableError(f"{readme}: must have one line {BEGIN} and, below it, one line {END}")
    lines = []
    for path in sorted(measurements.glob("*.csv")):
        if path.stem != "interpreter":
            lines += section(path, readme)
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    new = "\n".join([before + BEGIN, "", *(lines or [NOTHING, ""]), END + after])
    if new == text:
        return False
    write_bytes(readme, new.encode())
    return True


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="alexnet readme", description="Rewrites the README's measured table and plots.")
    default = Path(__file__).parent.parent / "README.md"
    add = parser.add_argument
    add("readme", nargs="?", type=Path, default=default, metavar="README", help="what to rewrite (the repository's)")
    folder = f"{MEASUREMENTS.parent.name}/{MEASUREMENTS.name}"
    add("--measurements", type=Path, default=MEASUREMENTS, metavar="DIR", help=f"folder of the tables ({folder})")
    args = parser.parse_args(argv)
    if args.measurements != MEASUREMENTS and not os.path.isdir(args.measurements):  # whose tables would be gone
        raise AlexNetError(f"--measurements {args.measurements}: no such folder")
    try:
        changed = rewrite(args.readme, args.measurements)
    except OSError as error:
        raise AlexNetError(f"{error.filename}: {error.strerror}") from error
    except TableError as error:
        raise AlexNetError(error) from error
    print(f"{args.readme}: {'rewritten' if changed else 'unchanged'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return command.run("alexnet readme", run, argv)


if __name__ == "__main__":
    sys.exit(main())
