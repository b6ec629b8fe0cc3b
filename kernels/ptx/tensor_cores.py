"""Tensor cores: mma of a warp, and wgmma of four warps, which reads shared memory by itself and runs asynchronously.

Products and sums are in float64, and rounded to float32 once. Hardware adds in an order and with a rounding of its own,
which NVIDIA does not document.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels.ptx import arithmetic, fragments
from kernels.ptx.group import Group
from kernels.ptx.instructions import Execute, Run
from kernels.ptx.memory import COPIED, STORED
from kernels.ptx.program import UNSIGNED, Array, Instruction, Program


def _numbers(type_: str, bits: Array) -> Array:
    """An operand's elements in float64. Of tf32 the hardware does not look at the lower 13 bits."""
    if type_ == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return arithmetic.decode(type_, bits).astype(np.float64)


def _elements(type_: str, registers: list[Array]) -> Array:
    """The elements in each lane's registers, in order: [warps, 32, elements] in float64."""
    if type_ == "tf32":
        return _numbers(type_, np.stack(registers, 2))
    return _numbers(type_, np.stack([half for register in registers for half in arithmetic.halves(register)], 2))


def _mma(program: Program, instruction: Instruction) -> Execute:
    """16 x 8 outputs per warp (section 9.7.14.5.14)."""
    names = instruction.operands
    match instruction.parts:
        case ["mma", "sync", "aligned", shape, "row", "col", "f32", ("f16" | "bf16" | "tf32") as type_, other, "f32"]:
            per = 1 if type_ == "tf32" else 2
            k = 2 * per * len(names[1])
        case _:
            raise program.unsupported(instruction)
    if other != type_ or shape != f"m16n8k{k}" or len(names[1]) != 2 * len(names[2]):
        raise program.unsupported(instruction)
    sources = [[program.value(name, 4) for name in group] for group in names[1:]]
    at_a, at_b = fragments.positions("A", len(names[1]), per), fragments.positions("B", len(names[2]), per)
    at_c = fragments.positions("C", 4, 1)

    def execute(_: Run, group: Group) -> None:
        group.together(instruction)
        a, b, c = ([group.warps(name) for name in part] for part in sources)
        left = fragments.gather(_elements(type_, a), at_a, 16, k)
        right = fragments.gather(_elements(type_, b), at_b, k, 8)
        sums = fragments.gather(np.stack(c, 2).view(np.float32), at_c, 16, 8)
        result = fragments.scatter((left @ right + sums).astype(np.float32), at_c).view(np.uint32)
        for index, name in enumerate(names[0]):
            group.write(instruction, name, result[..., index].reshape(group.shape))

    return execute


@dataclass
class Product:
    """A wgmma on its way: nobody may touch its registers, nor write the shared memory that it reads."""

    registers: frozenset[str]
    pieces: Array  # flat, each once

    def select(self, group: Group, chosen: Array) -> Product:
        count = group.shared.writer.shape[1]
        pieces = self.pieces[chosen[self.pieces // count]]
        rows = np.cumsum(chosen) - 1
        return Product(self.registers, rows[pieces // count] * count + pieces % count)


def _wgmma(program: Program, instruction: Instruction) -> Execute:
    """64 x N outputs per warp group of 128 threads (section 9.7.15)."""
    match instruction.parts:
        case ["wgmma", "fence", "sync", "aligned"]:
            return lambda _, group: group.dirty.clear()
        case ["wgmma", "commit_group", "sync", "aligned"]:

            def commit(_: Run, group: Group) -> None:
                group.products.append(group.multiplying)
                group.multiplying = []

            return commit
        case ["wgmma", "wait_group", "sync", "aligned"]:
            allowed = int(instruction.operands[0])

            def wait(_: Run, group: Group) -> None:
                while len(group.products) > allowed:
                    for product in group.products.pop(0):
                        group.shared.reads.reshape(-1)[product.pieces] -= 1

            return wait
        case ["wgmma", "mma_async", "sync", "aligned", shape, "f32", ("f16" | "bf16" | "tf32") as type_, other]:
            if other == type_:
                return _multiply(program, instruction, shape, type_)
    raise program.unsupported(instruction)


def _multiply(program: Program, instruction: Instruction, shape: str, type_: str) -> Execute:
    n, k = map(int, re.fullmatch(r"m64n(\d+)k(\d+)", shape).groups())  # type: ignore[union-attr]
    accumulators, a, b, keep, *flags = instruction.operands
    in_registers = isinstance(a, tuple)
    if flags[:2] != ["1", "1"]:
        raise program.unsupported(instruction, "negates an operand")
    transposed = [flag == "1" for flag in flags[2:]]
    if in_registers:
        transposed = [False, *transposed]
    transposed = [*transposed, False, False][:2]
    keep = program.value(keep, 0)
    touched = frozenset((*accumulators, *(a if in_registers else ())))
    at_c = fragments.accumulator_positions(n)
    per = 1 if type_ == "tf32" else 2

    def execute(run: Run, group: Group) -> None:
        group.together(instruction, 128)
        _check_fenced(group, instruction, touched)
        kept = _uniform(group, instruction, keep)
        stack = np.stack([group.all(name).reshape(-1, 128) for name in accumulators], 2).view(np.float32)
        sums = np.zeros((len(stack), 64 * n), np.float64)
        sums[:, at_c] = np.where(kept[:, None, None], stack, np.float32(0))
        used: list[Array] = []
        if in_registers:
            elements = _elements(type_, [group.warps(name) for name in a])
            rows = fragments.gather(elements, fragments.positions("A", len(a), per), 16, k)
            left = rows.reshape(-1, 64, k)
        else:
            left = _operand(run, group, instruction, a, (64, k), type_, transposed[0], used)
        right = _operand(run, group, instruction, b, (n, k), type_, transposed[1], used)
        result = left @ right.transpose(0, 2, 1) + sums.reshape(-1, 64, n)
        values = result.astype(np.float32).reshape(len(stack), -1)[:, at_c].view(np.uint32)
        for index, name in enumerate(accumulators):
            group.write(instruction, name, values[..., index].reshape(group.shape))
        pieces = np.unique(np.concatenate([part.reshape(-1) for part in used]))
        group.shared.reads.reshape(-1)[pieces] += 1
        group.multiplying.append(Product(touched, pieces))

    return execute


def _check_fenced(group: Group, instruction: Instruction, touched: frozenset[str]) -> None:
    """Registers must not be written between ``wgmma.fence`` and a wgmma. Of moves this warns: LLVM puts some there."""
    dirty = sorted(group.dirty.keys() & touched)
    for name in dirty:
        if group.dirty[name] != "mov":
            group.fault(instruction, 0, f"{name} was written, and no wgmma.fence came before this wgmma")
    if dirty:
        group.warn(instruction, f"{dirty[0]} was moved, and no wgmma.fence came before this wgmma")


def _uniform(group: Group, instruction: Instruction, name: str) -> Array:
    """A register that must be the same in all threads of each warp group: [warp groups]."""
    values = group.all(name).reshape(-1, 128)
    differs = values != values[:, :1]
    if differs.any():
        group.fault(instruction, int(differs.argmax()), f"{name} is not the same in all threads of the warp group")
    return values[:, 0]


def _operand(
    run: Run, group: Group, instruction: Instruction, name: str, shape: tuple[int, int], type_: str,
    transposed: bool, used: list[Array],
) -> Array:  # fmt: skip
    """A matrix in shared memory as a descriptor says (section 9.7.15.5.1.2): [warp groups, rows, k] in float64."""
    descriptor, size = _uniform(group, instruction, name), 4 if type_ == "tf32" else 2
    field = lambda low, bits: (descriptor >> np.uint64(low) & np.uint64((1 << bits) - 1)).astype(np.int64)
    start, lead, stride = (field(low, 14)[:, None, None] << 4 for low in (0, 16, 32))
    modes = field(62, 2)
    if field(49, 3).any() or (modes != modes[0]).any():
        raise run.program.unsupported(instruction, "a descriptor with a base offset")
    swizzle = (16, 128, 64, 32)[int(modes[0])]
    offsets = fragments.matrix_offsets(*shape, size, lead, stride, swizzle, transposed)
    address = fragments.swizzled(start + offsets, swizzle)
    first = np.arange(len(address)) * 128  # a thread of each warp group
    lanes = np.repeat(first, shape[0] * shape[1])
    complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
    flat, shared = address.reshape(-1), group.shared
    run.saw(group, instruction, "shared", lanes, flat, size)
    pieces = shared.pieces(group.row[lanes], flat, size, complain)
    shared.check_read(pieces, group.warp[lanes], complain, everyone=True)
    unfenced = shared.unfenced.reshape(-1)[pieces].max(1)
    if (unfenced == STORED).any():
        complain(int(unfenced.argmax()), "wgmma reads what was stored without a fence.proxy.async after it")
    if (unfenced == COPIED).any():  # PTX asks for the fence; Triton 3.6 leaves it out
        group.warn(instruction, "wgmma reads what cp.async copied without a fence.proxy.async after it")
    used.append(pieces)
    rows = (group.row[lanes] * shared.stride + flat) // size
    return _numbers(type_, shared.bytes.reshape(-1).view(UNSIGNED[size])[rows].reshape(-1, *shape))


def _fence(program: Program, instruction: Instruction) -> Execute:
    if instruction.parts[1:3] != ["proxy", "async"]:
        raise program.unsupported(instruction)
    return lambda _, group: group.shared.unfenced.fill(False)


FAMILIES: dict[str, Callable[[Program, Instruction], Execute]] = {"mma": _mma, "wgmma": _wgmma, "fence": _fence}
"""By the opcode's first part."""
