"""The command ``alexnet trace conv2d --layer conv1 --program 3 0``: prints one program of a kernel, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.workloads import OPERATORS, WORKLOADS, names_of

# PyTorch takes seconds to import: inside functions, so that --help does not import it.
if TYPE_CHECKING:
    from kernels.tools.trace import Trace


def _show(value: np.ndarray) -> str:
    """A value in a few words."""
    if not value.shape:
        return f"{value.item():g}" if value.dtype.kind == "f" else str(value.item())
    shape = " x ".join(map(str, value.shape))
    if value.dtype.kind == "b":
        return f"[{shape}] {value.mean():.0%} true"
    finite = value[np.isfinite(value)] if value.dtype.kind == "f" else value
    if not finite.size:
        return f"[{shape}] nothing finite"
    return f"[{shape}] {finite.min():g} ... {finite.max():g}"


def _print(found: Trace) -> None:
    print(f"{found.kernel}, program {found.program} of {found.grid}")
    for number, step in enumerate(found.steps):
        print(f"{number:4}  line {step.line}: {step.source}")
        for access in step.accesses:
            taken = access.offsets[access.mask]
            where = f"elements {taken.min()} ... {taken.max()}" if taken.size else "nothing"
            print(f"          {access.kind}s {where} of {access.argument}, {access.mask.mean():.0%} of the lanes")
        for name, value in step.values.items():
            print(f"          {name} = {_show(value)}")


def run(argv: list[str] | None) -> int:
    parser = Parser(
        prog="alexnet trace",
        description="Runs one program of one of AlexNet's layers in the interpreter, and prints every step: the line, "
        "what it loads or stores, and the values it sets.",
    )
    add = parser.add_argument
    add("operator", choices=OPERATORS, metavar="OPERATOR", help=", ".join(OPERATORS))
    add("--layer", choices=WORKLOADS, metavar="LAYER", help="one of the operator's (its first)")
    add("--program", type=int, nargs="+", default=[0], metavar="ID", help="program ids, up to three (0)")
    add("--architecture", choices=tiles.ARCHITECTURES, default="sm_90", help="whose config (%(default)s)")
    args = parser.parse_args(argv)
    layer = WORKLOADS[names_of(args.operator, args.layer)[0]]
    if len(args.program) > 3:
        raise AlexNetError(f"--program: takes up to three ids, got {len(args.program)}")
    with interrupts_exit():
        import torch

        from kernels import runtime
        from kernels.tools.trace import trace

    torch.manual_seed(0)
    operands = layer.random_operands(1, torch.float32, "cpu")
    with runtime.record_launches() as launches, tiles.target(args.architecture):
        layer.run(*operands)
    names = [launch.kernel.__name__ for launch in launches]
    kernel = next(name for name in names if name.startswith(f"_{args.operator}"))
    with tiles.target(args.architecture):
        _print(trace(lambda: layer.run(*operands), kernel, args.program))
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return command.run("alexnet trace", run, argv)
