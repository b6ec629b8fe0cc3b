"""The command ``alexnet trace conv2d --layer conv1 --program 3 0``: prints one program of a kernel, step by step."""

import argparse
import functools
from collections.abc import Callable

from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.workloads import DTYPES, OPERATORS, WORKLOADS, names_of, torch_dtype


def run(argv: list[str] | None) -> int:
    parser = Parser(
        prog="alexnet trace",
        description="Runs one program of one of AlexNet's layers in the interpreter, and prints every step: the line, "
        "what it loads or stores, and the values it sets. With --ptx, the steps are the instructions that Triton "
        "compiles for an NVIDIA GPU, executed on the CPU.",
    )
    add = parser.add_argument
    add("operator", choices=OPERATORS, metavar="OPERATOR", help=", ".join(OPERATORS))
    add("--layer", choices=WORKLOADS, metavar="LAYER", help="one of the operator's (its first)")
    add("--kernel", metavar="NAME", help="one of the layer's (the operator's own)")
    add("--program", type=int, nargs="+", default=[0], metavar="ID", help="program ids, up to three (0)")
    add("--arch", default="sm_90", metavar="ARCH", help=f"whose config: {', '.join(tiles.ARCHITECTURES)}; with --ptx "
        "also sm_75, sm_86, sm_89 (%(default)s)")  # fmt: skip
    add("--dtype", choices=DTYPES, default="fp32", help="tf32: fp32 multiplied as TF32, with --ptx (%(default)s)")
    add("--ptx", action="store_true", help="steps through compiled code")
    add("--warp", type=int, default=0, metavar="N", help="with --ptx: whose registers (%(default)s)")
    add("--thread", type=int, default=0, metavar="N", help="with --ptx: of the warp, 0 to 31 (%(default)s)")
    add("--counts", action="store_true", help="with --ptx: counts what all programs of all the layer's kernels do: "
        "instructions, bytes of global memory, sectors, bank conflicts")  # fmt: skip
    args = parser.parse_args(argv)
    layer = WORKLOADS[names_of(args.operator, args.layer)[0]]
    if len(args.program) > 3:
        raise AlexNetError(f"--program: takes up to three ids, got {len(args.program)}")
    for name in ("warp", "thread", "counts"):
        if getattr(args, name) and not args.ptx:
            raise AlexNetError(f"--{name}: needs --ptx")
    if not args.ptx and args.arch not in tiles.ARCHITECTURES:
        raise AlexNetError(f"--arch: must be one of {', '.join(tiles.ARCHITECTURES)}, got {args.arch}")
    if args.dtype == "tf32" and not args.ptx:
        raise AlexNetError("--dtype tf32: only GPUs have it, so it needs --ptx")
    with interrupts_exit():
        import torch

        from kernels.tools.bench.device import precision

    torch.manual_seed(0)
    operands = layer.random_operands(1, torch_dtype(args.dtype), "cpu")
    with precision(args.dtype):
        print(_text(args, lambda: layer.run(*operands)))
    return 0


def _text(args: argparse.Namespace, call: Callable[[], object]) -> str:
    from kernels import runtime
    from kernels.tools.ptx_counts import count
    from kernels.tools.ptx_trace import trace_ptx
    from kernels.tools.trace import trace

    if args.counts:
        return count(call, args.arch).table()
    where = runtime.backend("ptx", args.arch) if args.ptx else tiles.target(args.arch)
    with where, runtime.record_launches() as launches:
        call()
    names = [launch.kernel.__name__ for launch in launches]
    kernel = args.kernel or next(name for name in names if name.startswith(f"_{args.operator}"))
    if args.ptx:
        return trace_ptx(call, kernel, args.program, args.arch).listing(args.warp, args.thread)
    with tiles.target(args.arch):
        return trace(call, kernel, args.program).listing()


main = functools.partial(command.run, "alexnet trace", run)
