"""Instructions as functions: arithmetic, memory, asynchronous copies, and what a warp does together.

A family of instructions, such as ``ld``, has a function here. It takes an instruction apart once, and returns what
executes it: a function of the run and of the group of programs. Tensor cores have a file of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from kernels.ptx import arithmetic, fragments
from kernels.ptx.group import Group
from kernels.ptx.memory import COPIED, STORED, Tensors
from kernels.ptx.program import SIGNED, UNSIGNED, Array, Instruction, Program, size_of

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


def compute(program: Program, instruction: Instruction) -> Execute:
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
    return compute(program, instruction)


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
        group.warn(instruction, "threads store different values to one shared address, one stays")


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
        group.together(instruction)
        other = group.warps(which).astype(np.int64) & 31
        lane = fragments.LANES ^ other if how == "bfly" else other
        value = np.take_along_axis(group.warps(source), lane, 1)
        group.write(instruction, target, value.reshape(group.shape))

    return execute


def _turn(program: Program, instruction: Instruction) -> Callable[[Array], Array]:
    """What ldmatrix and stmatrix do to matrices [..., 8, 8] on their way: with ``.trans`` they transpose them."""
    if instruction.parts[3] != "m8n8" or instruction.parts[-2:] != ["shared", "b16"]:
        raise program.unsupported(instruction)
    return (lambda matrices: matrices.swapaxes(-1, -2)) if "trans" in instruction.parts else lambda matrices: matrices


def _ldmatrix(program: Program, instruction: Instruction) -> Execute:
    """Loads 8 x 8 matrices of 16-bit elements: lane 8 i + j gives row j of matrix i (section 9.7.14.5.15)."""
    names, address = instruction.operands
    count, turned = len(names), _turn(program, instruction)

    def execute(run: Run, group: Group) -> None:
        group.together(instruction)
        lanes = group.lanes(instruction)
        lanes = lanes[lanes % 32 < 8 * count]
        at = group.addresses(address)[lanes]
        run.saw(group, instruction, "shared", lanes, at, 16)
        complain = lambda index, what: group.fault(instruction, int(lanes[index]), what)
        rows = group.shared.load(group.row[lanes], group.warp[lanes], at, 2, 8, complain)
        pairs = turned(rows.reshape(-1, count, 8, 8)).reshape(-1, count, 32, 2)
        values = arithmetic.join(pairs[..., 0], pairs[..., 1])  # [warps, count, 32]
        everyone = group.lanes(instruction)
        for index, name in enumerate(names):
            group.write_lanes(name, everyone, values[:, index].reshape(-1))

    return execute


def _stmatrix(program: Program, instruction: Instruction) -> Execute:
    """Stores 8 x 8 matrices of 16-bit elements, as ldmatrix loads them (section 9.7.14.5.16)."""
    address, names = instruction.operands
    count, turned = len(names), _turn(program, instruction)

    def execute(run: Run, group: Group) -> None:
        group.together(instruction)
        warps = np.unique(group.lanes(instruction) // 32)
        values = np.stack([group.warps(name)[warps] for name in names], 1)  # [warps, count, 32]
        matrices = turned(np.stack(arithmetic.halves(values), -1).reshape(-1, count, 8, 8))
        lanes = (warps[:, None] * 32 + np.arange(8 * count)).reshape(-1)
        at = group.addresses(address)[lanes]
        run.saw(group, instruction, "shared", lanes, at, 16)
        _store_shared(group, instruction, lanes, at, np.ascontiguousarray(matrices).reshape(-1, 8))

    return execute


FAMILIES: dict[str, Callable[[Program, Instruction], Execute]] = {
    "ld": _ld,
    "st": _st,
    "cp": _cp,
    "mov": _mov,
    "bar": _bar,
    "shfl": _shfl,
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
}
"""By the opcode's first part. Everything else is arithmetic, or a tensor core's."""
