"""The loop that runs a kernel.

:func:`launch` compiles a Triton kernel and runs it on CPU tensors. :func:`run` runs a program that was compiled before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.ptx import instructions, tensor_cores
from kernels.ptx.compiled import bind, compile_launch
from kernels.ptx.group import Group, Registers
from kernels.ptx.instructions import Execute, Run, watcher
from kernels.ptx.memory import Shared, Tensors
from kernels.ptx.program import Address, Array, Instruction, Program, size_of

THREADS_AT_ONCE = 16384  # of all programs of a group: large arrays make NumPy fast

_FAMILIES = instructions.FAMILIES | tensor_cores.FAMILIES


class Step(NamedTuple):
    """An instruction, ready to run."""

    instruction: Instruction
    execute: Execute | None  # None for a branch
    touches: frozenset[str]  # all its registers, if the kernel has a wgmma that could use them
    dirties: dict[str, str]  # those of them that it writes, and its opcode's first part


@functools.cache
def decode(program: Program) -> tuple[list[Step], int]:
    """Each instruction with its function, and the bytes of the smallest access to shared memory."""
    held = frozenset().union(*(_held(instruction) for instruction in program.code))
    steps, sizes = [], [16]
    for instruction in program.code:
        base = instruction.parts[0]
        if base == "ret":
            instruction.target = len(program.code)
        branch = base in ("bra", "ret")
        execute = None if branch else _FAMILIES.get(base, instructions.compute)(program, instruction)
        touches = held & frozenset(_registers(instruction.operands)) if not _held(instruction) else frozenset()
        writes = touches & frozenset(_registers(instruction.operands[:1])) if base != "st" else frozenset()
        steps.append(Step(instruction, execute, touches, dict.fromkeys(writes, base)))
        if base in ("ld", "st") and instruction.parts[1].startswith("shared"):
            data = instruction.operands[base == "st"]
            sizes.append(size_of(instruction.parts[-1]) * (len(data) if isinstance(data, tuple) else 1))
        elif instruction.opcode.startswith("cp.async.c") and instruction.parts[2] != "commit_group":
            sizes.append(int(instruction.operands[2], 0))
    return steps, min(sizes)


def _held(instruction: Instruction) -> frozenset[str]:
    """The registers that a wgmma keeps until it is waited for."""
    if not instruction.opcode.startswith("wgmma.mma_async"):
        return frozenset()
    return frozenset(_registers(part for part in instruction.operands[:2] if isinstance(part, tuple)))


def _registers(operands: Iterable[Any]) -> Iterable[str]:
    for operand in operands:
        if isinstance(operand, Address):
            yield operand.base
        elif isinstance(operand, tuple):
            yield from operand
        else:
            yield from operand.split("|")


def launch(kernel: Any, grid: Sequence[int], args: tuple, constants: dict, architecture: str) -> None:
    """Compiles a launch ``kernel[grid](*args, **constants)`` for a GPU, and runs it on CPU tensors.

    If :data:`watcher` is set, it sees every step.

    Raises:
        PtxError: the compiled kernel accesses memory that is not its own, races, or breaks another rule.
        UnsupportedInstructionError: the kernel uses an instruction that this machine does not know.
    """
    program = compile_launch(kernel, args, constants, architecture)
    given = bind(kernel, args, constants)
    passed = {name: given[name] for name in program.passed}
    tensors = Tensors((name, value) for name, value in passed.items() if isinstance(value, torch.Tensor))
    addresses = iter(tensors.addresses)
    arguments = [next(addresses) if isinstance(value, torch.Tensor) else value for value in passed.values()]
    run(program, grid, arguments, tensors)


def run(program: Program, grid: Sequence[int], arguments: Sequence[float], tensors: Tensors) -> None:
    """Runs all programs of a grid.

    Args:
        grid: the number of programs along x, y and z; up to three numbers.
        arguments: the value of each parameter; of tensors their addresses.
        tensors: global memory.
    """
    steps, piece = decode(program)
    sizes = (*grid, 1, 1)[:3]
    ids = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1)  # [x, y, z, 3]
    ids = ids.transpose(2, 1, 0, 3).reshape(-1, 3)  # x runs fastest
    bits = [int(np.float32(v).view(np.uint32)) if isinstance(v, float) else int(v) for v in arguments]
    bits += [0] * (len(program.parameters) - len(bits))  # Triton's two hidden pointers, to scratch that is not used
    context = Run(program, bits, tensors, watcher.get())
    if context.watcher is not None:
        ids = context.watcher.begin(program, sizes, ids, tensors)
    at_once = max(1, THREADS_AT_ONCE // program.threads)
    with np.errstate(all="ignore"):
        for start in range(0, len(ids), at_once):
            some = ids[start : start + at_once]
            registers = Registers(program, _special(program, some, sizes))
            groups = [Group(program, some, registers, Shared(len(some), program.shared, piece))]
            while groups:
                groups += _run_group(context, groups.pop(), steps)


def _special(program: Program, ids: Array, grid: Sequence[int]) -> dict[str, Array]:
    """The registers that are set from the start (section 10), and the constants."""
    one = lambda number: np.full((1, 1), number, np.uint32)
    values = dict(program.constants, global_smem=one(0))
    for axis, name in enumerate("xyz"):
        values[f"%ctaid.{name}"] = ids[:, axis : axis + 1].astype(np.uint32)
        values[f"%nctaid.{name}"] = one(grid[axis])
        values[f"%tid.{name}"] = np.arange(program.threads, dtype=np.uint32)[None] if name == "x" else one(0)
        values[f"%ntid.{name}"] = one(program.threads if name == "x" else 1)
    return values


def _run_group(run: Run, group: Group, steps: list[Step]) -> list[Group]:
    """Runs a group until its programs end, or until they have to split into the groups that it returns."""
    watch = run.watcher.step if run.watcher is not None else None
    while group.next < len(steps):
        instruction, execute, touches, dirties = steps[group.next]
        if touches and (group.products or group.multiplying):
            _check_free(group, instruction, touches)
        if execute is None:
            if watch:
                watch(group, instruction)
            parts = group.branch(instruction)
            if parts:
                return parts
            continue
        execute(run, group)
        if dirties:
            group.dirty |= dirties
        if watch:
            watch(group, instruction)
        group.advance()
    return []


def _check_free(group: Group, instruction: Instruction, touches: frozenset[str]) -> None:
    """No wgmma on its way may hold the registers."""
    for product in (product for products in [*group.products, group.multiplying] for product in products):
        if held := product.registers & touches:
            group.fault(instruction, 0, f"{min(held)} belongs to a wgmma that no wgmma.wait_group has waited for")
