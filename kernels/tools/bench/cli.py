"""The command ``alexnet bench``. How it measures stands in :mod:`kernels.tools.bench`."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, count, interrupts_exit
from kernels.tools.measurements import PROVIDERS, load, slug
from kernels.tools.roofline import plot_all
from kernels.tools.workloads import DTYPES, OPERATORS, layers_of, operator

if TYPE_CHECKING:
    from kernels.tools.bench.table import Bench
    from kernels.tools.bench.works import Work


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="alexnet bench",
        description="Times AlexNet's layers on the kernels beside PyTorch's, each checked against float64 first. "
        "Without a GPU the kernels are interpreted, and the times are not speeds of the kernels.",
    )
    add = parser.add_argument
    names = ", ".join(OPERATORS)
    add("operators", nargs="*", type=operator, metavar="OPERATOR", help=f"{names} (those of the forward pass)")
    add("--batch", nargs="+", type=count, metavar="N", help="images in one batch (1 128; without a GPU 1)")
    add("--dtype", nargs="+", choices=DTYPES, help="tf32: fp32 multiplied as TF32 (fp16; without a GPU fp32)")
    add("--providers", nargs="+", choices=tuple(PROVIDERS), help="whose times (all; without a GPU not compile)")
    whole = "of each layer; backward of the network is a whole training step (forward)"
    add("--pass", dest="passes", nargs="+", choices=("forward", "backward"), help=whole)
    add("--network", action="store_true", help="the whole network; without an OPERATOR only that")
    add("--preset", choices=("kernelbench",), help="KernelBench's two AlexNet problems, beside their published times")
    add("--plot", action="store_true", help="draws the table as PNGs beside it")
    where = "folder of the table (a checkout's notebooks/measurements; without a GPU no table is written)"
    add("--out", type=Path, metavar="DIR", help=where)
    args = parser.parse_args(argv)
    if args.preset and (args.operators or args.network or args.passes):
        raise AlexNetError("--preset chooses what to time: give neither OPERATOR nor --network nor --pass with it")
    return args


def complete(args: argparse.Namespace, interpreted: bool, measurements: Path | None) -> None:
    """Fills in what was not given, and refuses what the CPU does not have."""
    if interpreted and "tf32" in (args.dtype or ()):
        raise AlexNetError("--dtype tf32: only GPUs have it")
    if interpreted and "compile" in (args.providers or ()):
        raise AlexNetError("--providers compile: only with a GPU")
    if interpreted and args.plot and not args.out:
        raise AlexNetError("--plot: without a GPU it takes --out DIR, too")
    if not interpreted and not (args.out or measurements):
        raise AlexNetError("give --out DIR, the folder of the measured tables: no checkout of the project is here")
    batch, dtype, providers = [1, 128], ["fp16"], list(PROVIDERS)
    if interpreted:
        batch, dtype, providers = [1], ["fp32"], ["triton", "torch"]
    elif args.preset:
        batch, dtype = [], ["fp32", "tf32"]
    if not interpreted:
        args.out = args.out or measurements
    once = lambda given, default: list(dict.fromkeys(given or default))  # in the order given
    args.batch, args.dtype = once(args.batch, batch), once(args.dtype, dtype)
    args.providers, args.passes = once(args.providers, providers), once(args.passes, ["forward"])


def choose(args: argparse.Namespace) -> list[tuple[Work, int]]:
    """What to time, and at which batch."""
    from kernels.tools.bench.works import KERNELBENCH, NETWORK, STEP, Work

    if args.preset:
        return [(item.work, batch) for item in KERNELBENCH for batch in args.batch or [item.batch]]
    layers = layers_of(args.operators) if args.operators or not args.network else []
    chosen = []
    for name in args.passes:
        chosen += [Work(layer.name, (layer,), name) for layer in layers]
        if args.network:
            chosen.append(NETWORK if name == "forward" else STEP)
    return [(work, batch) for batch in args.batch for work in chosen]


def compare_published(bench: Bench) -> None:
    """Shows KernelBench's own times beside those of this run."""
    from kernels.tools.bench.works import KERNELBENCH

    bench.show("")
    bench.show("KernelBench's own times on an H100, float32 with TF32 in convolutions but not in linear layers:")
    for work, batch, eager, compiled in KERNELBENCH:
        bench.show(f"  {work.name}, batch {batch}: eager {eager:.2f} ms, compiled {compiled:.2f} ms")
        if bench.device.interpreted:
            bench.show("    nothing here compares with them: that takes a GPU")
            continue
        for row in bench.rows:
            if (row.layer, row.batch) == (work.name, batch):
                bench.show(f"    here, {row.dtype}: {PROVIDERS[row.provider]} {row.p50_ms:.2f} ms")


def run(argv: list[str] | None, measurements: Path | None = None) -> int:
    """Returns 1 if something was wrong or failed. ``measurements``: the default folder of tables on a GPU."""
    args = parse(argv)
    with interrupts_exit():
        import torch
        import triton

        from kernels.tools.bench import check, device, table

    here = device.here()
    complete(args, here.interpreted, measurements)
    name = "interpreter" if here.interpreted else slug(here.name)
    kept = table.Table(args.out / f"{name}.csv") if args.out else None
    torch.backends.cudnn.benchmark = True
    bench = table.Bench(here, kept)
    if here.interpreted:
        bench.show("No GPU: Triton's interpreter runs the kernels. These times are not speeds of the kernels.")
    versions = f"{here.name}, torch {torch.__version__}, triton {triton.__version__}, commit {bench.commit}"
    bench.show(versions + (f"; table {kept.path}" if kept else "; no table is written"))
    chosen = choose(args)
    total = len(args.dtype) * len(chosen) * len(args.providers)
    with torch.no_grad(), tqdm(total=total, unit="timing", disable=None) as progress:
        for dtype in args.dtype:
            with device.precision(dtype):
                bench.roofs(dtype)
                bench.show(table.HEADER)
                for work, batch in chosen:
                    progress.set_postfix_str(f"{work.name} {dtype} batch {batch}")
                    bench.work(work, batch, dtype, args.providers, progress.update)
    if args.preset:
        compare_published(bench)
    if args.plot and kept:
        for path in plot_all(load(kept.path), kept.path.parent, kept.path.stem):
            bench.show(f"drawn: {path}")
    faults = [problem for problem in bench.problems if check.MISSING not in problem]
    for fault in faults:
        print(f"alexnet bench: {fault}", file=sys.stderr)
    return 1 if faults else 0


main = functools.partial(command.run, "alexnet bench", run)
