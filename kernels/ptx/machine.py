"""The instructions that are more than arithmetic, and the loop that runs a kernel.

:func:`launch` runs a Triton kernel on CPU tensors. :func:`run` runs a program that was compiled before.

An instruction becomes a function of the run and of the group of programs that executes it, once per program. In the
order of this file: arithmetic, memory, asynchronous copies, what a warp does together, tensor cores, the loop.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from kernels.ptx import arithmetic, fragments
from kernels.ptx.compiled import bind, compile_launch, is_constant, jit_twin
from kernels.ptx.group import Group, PtxWarning, Registers
from kernels.ptx.memory import COPIED, STORED, Shared, Tensors
from kernels.ptx.program import SIGNED, UNSIGNED, Address, Array, Instruction, Program, size_of

THREADS_AT_ONCE = 16384  # of all programs of a group: large arrays make NumPy fast

Execute = Callable[["Run", Group], None]


class Watcher(Protocol):
    """Sees every step of a run, for tracing and counting."""

    def begin(self, program: Program, grid: tuple[int, ...], ids: Array, tensors: Tensors) -> Array:
        """A launch of grid (x, y, z) begins. Returns which programs run: ``ids``, [programs, 3], or some of them."""

    def step(self, group: Group, instruction: Instruction) -> None:
        """The group has executed an instruction."""

    def access(
        self, group: Group, instruction: Instruction, space: str, lanes: Array, addresses: Array, size: int
    ) -> None:
        """Threads access ``size`` bytes each, of ``space`` "global" or "shared". ``lanes`` number the group's."""


watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
"""Sees the launches of this thread."""


class Run(NamedTuple):
    """What all groups of a launch share."""

    program: Program
    arguments: list[int]  # the bits of each parameter
    tensors: Tensors
    watcher: Watcher | None

    def saw(self, group: Group, instruction: Instruction, space: str, lanes: Array, at: Array, size: int) -> None:
        if self.watcher is not None:
            self.watcher.access(group, instruction, space, lanes, at, size)


# Arithmetic


def _arithmetic(program: Program, instruction: Instruction) -> Execute:
    try:
        function, sizes = arithmetic.operation(instruction.opcode)
    except arithmetic.UnknownOperationError as error:
        raise program.unsupported(instruction) from error
    target, *given = instruction.operands
    if len(given) != len(sizes):
        raise program.unsupported(instruction, f"takes {len(sizes)} operands here")
    sources = [program.value(operand, size) for operand, size in zip(given, sizes, strict=True)]

    def execute(_: Run, group: Group) -> None:
        result = function(*[group.registers[source] for source in sources])
        if isinstance(result, tuple):  # setp.f16x2 p|q
            for name, part in zip(target.split("|"), result, strict=True):
                group.write(instruction, name, part)
        else:
            group.write(instruction, target, result)

    return execute


_SPECIAL = {f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}


def _mov(program: Program, instruction: Instruction) -> Execute:
    """mov also packs registers into a wider one, and takes one apart (section 9.7.9.4)."""
    target, source = instruction.operands
    register = isinstance(source, str) and source[0] == "%"
    if register and source.rstrip("0123456789") not in program.types and source not in _SPECIAL:
        raise program.unsupported(instruction)
    if isinstance(source, tuple):
        if len(source) != 2:
            raise program.unsupported(instruction)
        size = size_of(instruction.parts[-1]) // 2
        low, high = (program.value(name, size) for name in source)
        return lambda _, group: group.write(
            instruction, target, arithmetic.join(group.registers[low], group.registers[high])
        )
    if isinstance(target, tuple):

        def unpack(_: Run, group: Group) -> None:
            parts = arithmetic.halves(group.registers[source])
            for name, part in zip(target, parts, strict=True):
                group.write(instruction, name, part)

        return unpack
    return _arithmetic(program, instruction)


# Memory


def _ld(program: Program, instruction: Instruction) -> Execute:
    space, type_ = instruction.parts[1].partition("::")[0], instruction.parts[-1]
    target, address = instruction.operands
    width, signed = size_of(type_), type_[0] == "s"
    view = lambda values: values.view(SIGNED[width]) if signed else values
    if space == "param":
        number = [name for name, _ in program.parameters].index(address.base)

        def load_parameter(run: Run, group: Group) -> None:
            bits = run.arguments[number] % (1 << 8 * width)
            group.write(instruction, target, view(np.full((1, 1), bits, UNSIGNED[width])))

        return load_parameter
    names = target if isinstance(target, tuple) else (target,)
    if space not in ("global", "shared") or set(instruction.parts[2:-1]) - {"v2", "v4"}:
        raise program.unsupported(instruction)

    def load(run: Run, group: Group) -> None:
        lanes = group.lanes(instruction)
        if not len(lanes):
            return
        at, size = group.addresses(address)[lanes], width * len(names)
        run.saw(group, instruction, space, lanes, at, size)
        complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
        if space == "global":
            values = run.tensors.load(at, width, len(names), complain)
        else:
            values = group.shared.load(group.row[lanes], group.warp[lanes], at, width, len(names), complain)
        for index, name in enumerate(names):
            group.write_lanes(name, lanes, view(values[:, index]))

    return load


def _st(program: Program, instruction: Instruction) -> Execute:
    space, width = instruction.parts[1].partition("::")[0], size_of(instruction.parts[-1])
    address, source = instruction.operands
    names = [program.value(name, width) for name in (source if isinstance(source, tuple) else (source,))]
    if space not in ("global", "shared") or set(instruction.parts[2:-1]) - {"v2", "v4"}:
        raise program.unsupported(instruction)

    def store(run: Run, group: Group) -> None:
        lanes = group.lanes(instruction)
        if not len(lanes):
            return
        at = group.addresses(address)[lanes]
        values = np.stack([group.all(name)[lanes].astype(UNSIGNED[width]) for name in names], 1)
        run.saw(group, instruction, space, lanes, at, width * len(names))
        if space == "global":
            complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
            run.tensors.store(at, values, complain)
        else:
            _store_shared(group, instruction, lanes, at, values)

    return store


def _store_shared(
    group: Group, instruction: Instruction, lanes: Array, address: Array, values: Array, how: int = STORED
) -> None:
    """Stores to shared memory. Warns if threads store different values to one address, where one of them stays.

    That need not be wrong. Triton lets several threads hold the same sum, and each may add in another order.
    """
    complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
    lost = group.shared.store(group.row[lanes], group.warp[lanes], address, values, complain, how)
    if lost is not None:
        _warn(group, instruction, "threads store different values to one shared address, one stays")


def _warn(group: Group, instruction: Instruction, what: str) -> None:
    where = f"{instruction.text}; {instruction.where}"
    warnings.warn(f"{group.program.name}: {what} ({where})", PtxWarning, stacklevel=2)


# Asynchronous copies (section 9.7.9.25)


@dataclass
class Copy:
    """A cp.async on its way: it has read its source, and its bytes arrive at the wait."""

    instruction: Instruction
    lanes: Array
    address: Array
    values: Array
    pieces: Array

    def select(self, group: Group, chosen: Array) -> Copy:
        """The part of it that belongs to some of the programs."""
        kept = chosen[group.row[self.lanes]]
        numbers = np.cumsum(np.repeat(chosen, group.program.threads)) - 1
        per, count = self.pieces.shape[1], group.shared.writer.shape[1]
        rows = np.cumsum(chosen) - 1
        pieces = self.pieces[kept]
        pieces = rows[pieces // count] * count + pieces % count
        lanes = numbers[self.lanes[kept]]
        return replace(self, lanes=lanes, address=self.address[kept], values=self.values[kept], pieces=pieces[:, :per])


def _cp(program: Program, instruction: Instruction) -> Execute:
    match instruction.parts:
        case ["cp", "async", "ca" | "cg", "shared" | "shared::cta", "global"]:
            return _copy(program, instruction)
        case ["cp", "async", "commit_group"]:
            return _commit
        case ["cp", "async", "wait_group"]:
            allowed = int(instruction.operands[0])
            return lambda _, group: _arrive(group, allowed)
        case ["cp", "async", "wait_all"]:

            def wait_all(run: Run, group: Group) -> None:
                _commit(run, group)
                _arrive(group, 0)

            return wait_all
    raise program.unsupported(instruction)


def _copy(program: Program, instruction: Instruction) -> Execute:
    target, source, size, *given = instruction.operands
    size = int(size, 0)
    width = min(size, 8)
    taken = program.value(given[0], 4) if given else None  # bytes to read; the rest of them is zero

    def execute(run: Run, group: Group) -> None:
        lanes = group.lanes(instruction)
        complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
        values = np.zeros((len(lanes), size // width), UNSIGNED[width])
        count = np.full(len(lanes), size) if taken is None else group.all(taken)[lanes]
        if not np.isin(count, (0, size)).all():
            raise program.unsupported(instruction, "copies a part of its bytes")
        some = np.nonzero(count)[0]
        if len(some):
            at = group.addresses(source)[lanes[some]]
            run.saw(group, instruction, "global", lanes[some], at, size)
            values[some] = run.tensors.load(at, width, size // width, lambda i, what: complain(some[i], what))
        address = group.addresses(target)[lanes]
        run.saw(group, instruction, "shared", lanes, address, size)
        pieces = group.shared.pieces(group.row[lanes], address, size, complain)
        group.shared.check_write(pieces, group.warp[lanes], complain)
        np.add.at(group.shared.copies.reshape(-1), pieces, 1)
        group.pending.append(Copy(instruction, lanes, address, values, pieces))

    return execute


def _commit(_: Run, group: Group) -> None:
    group.committed.append(group.pending)
    group.pending = []


def _arrive(group: Group, allowed: int) -> None:
    """All but the last ``allowed`` committed groups of copies have arrived."""
    while len(group.committed) > allowed:
        for copy in group.committed.pop(0):
            np.subtract.at(group.shared.copies.reshape(-1), copy.pieces, 1)
            _store_shared(group, copy.instruction, copy.lanes, copy.address, copy.values, COPIED)


# What a warp, or a program, does together


def _bar(program: Program, instruction: Instruction) -> Execute:
    if instruction.parts[1:] == ["warp", "sync"]:
        return lambda _, group: None
    if instruction.parts[1:] != ["sync"] or instruction.operands != ("0",):
        raise program.unsupported(instruction, "only a barrier of all threads is known")

    def execute(_: Run, group: Group) -> None:
        if group.running is not None:
            group.fault(instruction, int(group.running.reshape(-1).argmin()), "a thread does not reach this barrier")
        group.shared.barriers += 1

    return execute


def _shfl(program: Program, instruction: Instruction) -> Execute:
    """Each thread of a warp reads another's register (section 9.7.9.6)."""
    target, source, which, clamp, members = instruction.operands
    how = instruction.parts[2]
    if how not in ("bfly", "idx") or (clamp, members) not in (("31", "-1"), ("0x1f", "0xffffffff")):
        raise program.unsupported(instruction)
    source, which = program.value(source, 4), program.value(which, 4)

    def execute(_: Run, group: Group) -> None:
        _together(group, instruction)
        other = group.warps(which).astype(np.int64) & 31
        lane = fragments.LANES ^ other if how == "bfly" else other
        value = np.take_along_axis(group.warps(source), lane, 1)
        group.write(instruction, target, value.reshape(group.shape))

    return execute


def _together(group: Group, instruction: Instruction, threads: int = 32) -> None:
    """All threads of each warp, or warp group, must execute the instruction, or none."""
    if group.running is not None:
        parts = group.running.reshape(-1, threads)
        torn = parts.any(1) & ~parts.all(1)
        if torn.any():
            lane = int(torn.argmax()) * threads + int(parts[torn][0].argmin())
            group.fault(instruction, lane, "a thread does not take part in what its warp does together")


def _ldmatrix(program: Program, instruction: Instruction) -> Execute:
    """Loads 8 x 8 matrices of 16-bit elements: lane 8 i + j gives row j of matrix i (section 9.7.14.5.15)."""
    names, address = instruction.operands
    if instruction.parts[3] != "m8n8" or instruction.parts[-2:] != ["shared", "b16"]:
        raise program.unsupported(instruction)
    transposed, count = "trans" in instruction.parts, len(names)

    def execute(run: Run, group: Group) -> None:
        _together(group, instruction)
        lanes = group.lanes(instruction)
        lanes = lanes[lanes % 32 < 8 * count]
        at = group.addresses(address)[lanes]
        run.saw(group, instruction, "shared", lanes, at, 16)
        complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
        rows = group.shared.load(group.row[lanes], group.warp[lanes], at, 2, 8, complain)
        matrices = rows.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        pairs = matrices.reshape(-1, count, 32, 2)
        values = arithmetic.join(pairs[..., 0], pairs[..., 1])  # [warps, count, 32]
        everyone = group.lanes(instruction)
        for index, name in enumerate(names):
            group.write_lanes(name, everyone, values[:, index].reshape(-1))

    return execute


def _stmatrix(program: Program, instruction: Instruction) -> Execute:
    """Stores 8 x 8 matrices of 16-bit elements, as ldmatrix loads them (section 9.7.14.5.16)."""
    address, names = instruction.operands
    if instruction.parts[3] != "m8n8" or instruction.parts[-2:] != ["shared", "b16"]:
        raise program.unsupported(instruction)
    transposed, count = "trans" in instruction.parts, len(names)

    def execute(run: Run, group: Group) -> None:
        _together(group, instruction)
        warps = np.unique(group.lanes(instruction) // 32)
        values = np.stack([group.warps(name)[warps] for name in names], 1)  # [warps, count, 32]
        matrices = np.stack(arithmetic.halves(values), -1).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        lanes = (warps[:, None] * 32 + np.arange(8 * count)).reshape(-1)
        at = group.addresses(address)[lanes]
        run.saw(group, instruction, "shared", lanes, at, 16)
        _store_shared(group, instruction, lanes, at, np.ascontiguousarray(matrices).reshape(-1, 8))

    return execute


# Tensor cores. Products and sums are in float64, and rounded to float32 once. Hardware adds in an order and with a
# rounding of its own, which NVIDIA does not document.


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
        _together(group, instruction)
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
        _together(group, instruction, 128)
        if group.dirty & touched:
            name = min(group.dirty & touched)
            group.fault(instruction, 0, f"{name} was written, and no wgmma.fence came before this wgmma")
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
        _warn(group, instruction, "wgmma reads what cp.async copied without a fence.proxy.async after it")
    used.append(pieces)
    rows = (group.row[lanes] * shared.stride + flat) // size
    return _numbers(type_, shared.bytes.reshape(-1).view(UNSIGNED[size])[rows].reshape(-1, *shape))


def _fence(program: Program, instruction: Instruction) -> Execute:
    if instruction.parts[1:3] != ["proxy", "async"]:
        raise program.unsupported(instruction)
    return lambda _, group: group.shared.unfenced.fill(False)


_FAMILIES: dict[str, Callable[[Program, Instruction], Execute]] = {
    "ld": _ld,
    "st": _st,
    "cp": _cp,
    "mov": _mov,
    "bar": _bar,
    "shfl": _shfl,
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
    "mma": _mma,
    "wgmma": _wgmma,
    "fence": _fence,
}


# The loop


class Step(NamedTuple):
    """An instruction, ready to run."""

    instruction: Instruction
    execute: Execute | None  # None for a branch
    touches: frozenset[str]  # all its registers, if the kernel has a wgmma that could use them
    dirties: frozenset[str]  # those of them that it writes, and a wgmma reads


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
        execute = None if branch else _FAMILIES.get(base, _arithmetic)(program, instruction)
        touches = held & frozenset(_registers(instruction.operands)) if not _held(instruction) else frozenset()
        writes = frozenset() if base == "st" else held & frozenset(_registers(instruction.operands[:1]))
        steps.append(Step(instruction, execute, touches, writes if touches else frozenset()))
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
    twin = jit_twin(kernel)
    given = bind(kernel, args, constants)
    passed = [(name, v) for place, (name, v) in enumerate(given.items()) if not is_constant(twin, place, v)]
    tensors = Tensors((name, value) for name, value in passed if isinstance(value, torch.Tensor))
    addresses = iter(tensors.addresses)
    run(program, grid, [next(addresses) if isinstance(v, torch.Tensor) else v for _, v in passed], tensors)


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
