"""The command ``alexnet trace conv2d --layer conv1 --program 3 0``: prints one program of a kernel, step by step."""

import functools

from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.workloads import OPERATORS, WORKLOADS, names_of


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
    with tiles.target(args.architecture):
        with runtime.record_launches() as launches:
            layer.run(*operands)
        names = [launch.kernel.__name__ for launch in launches]
        kernel = next(name for name in names if name.startswith(f"_{args.operator}"))
        print(trace(lambda: layer.run(*operands), kernel, args.program).listing())
    return 0


main = functools.partial(command.run, "alexnet trace", run)
