"""Small kernels written in PTX by hand, for tests of the machine that runs them."""

import torch

from kernels import ptx
from kernels.ptx.program import Program, parse


def program(body: str, arguments: int, threads: int = 32, shared: int = 0) -> Program:
    """A kernel around a body, whose lines become lines of ``kernel.py``, from 1.

    The body finds its arguments in ``%arg0`` to ``%arg9``, the number of the thread in ``%t0``, and 4 times it in
    ``%at0``. It has registers ``%p0`` to ``%p9``, ``%h``, ``%r`` and ``%rd`` for 1, 16, 32 and 64 bits, and ``%a``,
    ``%b`` and ``%c`` for 32 bits.
    """
    parameters = ",\n".join(f".param .u64 kernel_param_{index}" for index in range(arguments))
    declared = {"pred": "%p", "b16": "%h", "b32": "%r %a %b %c %t", "b64": "%rd %arg %at"}
    registers = "\n".join(f".reg .{type_} {name}<99>;" for type_, names in declared.items() for name in names.split())
    given = "\n".join(f"ld.param.b64 %arg{index}, [kernel_param_{index}];" for index in range(arguments))
    lines = "\n".join(f".loc 1 {number} 0\n{line}" for number, line in enumerate(body.strip().splitlines(), 1))
    text = f"""
.file 1 "/somewhere/kernel.py"
.visible .entry kernel(
{parameters}
)
.reqntid {threads}
{{
{registers}
{given}
mov.u32 %t0, %tid.x;
mul.wide.u32 %at0, %t0, 4;
{lines}
ret;
}}
"""
    return parse(text, shared)


def execute(
    body: str, *, threads: int = 32, grid: tuple[int, ...] = (1,), shared: int = 0, **arguments: torch.Tensor | int
) -> None:
    """Runs a body on the machine. Its arguments are ``%arg0``, ``%arg1``, ... in their order."""
    tensors = ptx.Tensors((name, value) for name, value in arguments.items() if isinstance(value, torch.Tensor))
    addresses = iter(tensors.addresses)
    values = [next(addresses) if isinstance(value, torch.Tensor) else value for value in arguments.values()]
    ptx.run(program(body, len(arguments), threads, shared), grid, values, tensors)
