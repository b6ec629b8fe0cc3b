"""Each kernel's speed beside PyTorch's: ``alexnet bench``. How it is measured: :mod:`kernels.tools.bench.timing`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.roofline import MEASUREMENTS, PROVIDERS, load, plot_all, slug
from kernels.tools.workloads import ALEXNET, DTYPES, WORKLOADS, Workload

# PyTorch takes seconds to import: only once the arguments make sense, inside functions.
if TYPE_CHECKING:
    from kernels.tools.bench.timing import Bench, Work

OPERATORS = (
    "conv2d",
    "linear",
    "max_pool2d",
    "lrn_max_pool2d",
    "local_response_norm",
    "bias_relu",
    "dropout",
    "softmax",
)


def _batch(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of images, at least 1, got {text!r}")
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="alexnet bench",
        description="Times AlexNet's layers on the kernels beside PyTorch's, each checked against float64 first. "
        "Without a GPU the kernels are interpreted, and the times are not speeds of the kernels.",
    )
    add = parser.add_argument
    add(
        "operators",
        nargs="*",
        metavar="OPERATOR",
        help=f"which operators' layers: {', '.join(OPERATORS)} (those of the forward pass)",
    )
    add("--batch", nargs="+", type=_batch, metavar="N", help="images in one batch (1 128; without a GPU 1)")
    add("--dtype", nargs="+", choices=DTYPES, help="tf32: fp32 multiplied as TF32 (fp16; without a GPU fp32)")
    add("--providers", nargs="+", choices=tuple(PROVIDERS), help="whom to time (all; without a GPU not compile)")
    add(
        "--pass",
        dest="passes",
        nargs="+",
        choices=("forward", "backward"),
        help="of each layer; backward of the network is a whole training step (forward)",
    )
    add("--network", action="store_true", help="the whole network; without an OPERATOR only that")
    add("--preset", choices=("kernelbench",), help="KernelBench's two AlexNet problems, beside their published times")
    add("--plot", action="store_true", help="draws the table as PNGs beside it")
    folder = f"{MEASUREMENTS.parent.name}/{MEASUREMENTS.name}"
    add("--out", type=Path, metavar="DIR", help=f"folder of the table ({folder}; without a GPU no table is written)")
    args = parser.parse_args(argv)
    for operator in args.operators:
        if operator not in OPERATORS:
            raise AlexNetError(f"OPERATOR must be one of {', '.join(OPERATORS)}, got {operator!r}")
    if args.preset and (args.operators or args.network or args.passes):
        raise AlexNetError("--preset chooses what to time: give neither OPERATOR nor --network nor --pass with it")
    return args


def complete(args: argparse.Namespace, interpreted: bool) -> None:
    """Fills in what was not asked for, and refuses what the CPU does not have."""
    if interpreted and "tf32" in (args.dtype or ()):
        raise AlexNetError("--dtype tf32: only GPUs have it")
    if interpreted and "compile" in (args.providers or ()):
        raise AlexNetError("--providers compile: only with a GPU")
    if interpreted and args.plot and not args.out:
        raise AlexNetError("--plot: without a GPU it takes --out DIR, too")
    once = lambda given: list(dict.fromkeys(given or ()))  # in the order given
    if interpreted:
        defaults = [1], ["fp32"], ["triton", "torch"]
    else:
        defaults = ([] if args.preset else [1, 128]), (["fp32", "tf32"] if args.preset else ["fp16"]), list(PROVIDERS)
    args.batch = once(args.batch) or defaults[0]
    args.dtype = once(args.dtype) or defaults[1]
    args.providers = once(args.providers) or defaults[2]
    args.passes = once(args.passes) or ["forward"]


def works(args: argparse.Namespace) -> list[tuple[Work, int]]:
    """What to time, and at which batch."""
    from kernels.tools.bench.timing import KERNELBENCH, NETWORK, STEP, Work

    if args.preset:
        return [(item.work, batch) for item in KERNELBENCH for batch in args.batch or [item.batch]]
    layers: Sequence[Workload] = () if args.network else ALEXNET
    if args.operators:
        layers = [layer for layer in WORKLOADS.values() if layer.operator in args.operators]
    chosen = []
    for name in args.passes:
        chosen += [Work(layer.name, (layer,), name) for layer in layers]
        if args.network:
            chosen.append(NETWORK if name == "forward" else STEP)
    return [(work, batch) for batch in args.batch for work in chosen]


def compare_published(bench: Bench) -> None:
    """KernelBench's own times beside those of this run."""
    from kernels.tools.bench.timing import KERNELBENCH

    bench.show("")
    bench.show("KernelBench's own times on an H100, float32 with TF32 in convolutions but not in linear layers:")
    for item in KERNELBENCH:
        bench.show(
            f"  {item.work.name}, batch {item.batch}: eager {item.eager_ms:.2f} ms, compiled {item.compile_ms:.2f} ms"
        )
        if bench.device.interpreted:
            bench.show("    nothing here compares with them: that takes a GPU")
        for row in bench.rows:
            if (row.layer, row.batch) == (item.work.name, item.batch) and not bench.device.interpreted:
                bench.show(f"    here, {row.dtype}: {PROVIDERS[row.provider]} {row.p50_ms:.2f} ms")


def run(args: argparse.Namespace) -> int:
    """Measures what was asked for; 1 where something was wrong or failed."""
    with interrupts_exit():
        import torch
        import triton

        from kernels.tools.bench import timing

    device = timing.here()
    complete(args, device.interpreted)
    table = None
    if args.out or not device.interpreted:
        name = "interpreter" if device.interpreted else slug(device.name)
        table = timing.Table((args.out or MEASUREMENTS) / f"{name}.csv")
    torch.backends.cudnn.benchmark = True
    bench = timing.Bench(device, table)
    if device.interpreted:
        bench.show("No GPU: Triton's interpreter runs the kernels. These times are not speeds of the kernels.")
    versions = f"{device.name}, torch {torch.__version__}, triton {triton.__version__}, commit {bench.commit}"
    bench.show(versions + (f"; table {table.path}" if table else "; no table is written"))
    chosen = works(args)
    total = len(args.dtype) * len(chosen) * len(args.providers)
    with torch.no_grad(), tqdm(total=total, unit="timing", disable=None) as progress:
        for dtype in args.dtype:
            with timing.precision(dtype):
                bench.roofs(dtype)
                bench.show(timing.HEADER)
                for work, batch in chosen:
                    progress.set_postfix_str(f"{work.name} {dtype} batch {batch}")
                    bench.work(work, batch, dtype, args.providers, progress.update)
    if args.preset:
        compare_published(bench)
    if args.plot and table:
        for path in plot_all(load(table.path), table.path.parent, table.path.stem):
            bench.show(f"drawn: {path}")
    faults = [problem for problem in bench.problems if timing.MISSING not in problem]
    for fault in faults:
        print(f"alexnet bench: {fault}", file=sys.stderr)
    return 1 if faults else 0


def main(argv: list[str] | None = None) -> int:
    return command.run("alexnet bench", lambda argv: run(parse(argv)), argv)


if __name__ == "__main__":
    sys.exit(main())
