"""Programs that run in lock step: their registers, which of their threads run, and what happens where they branch.

A register is one array over all threads of the group, of shape [programs, threads]. A dimension is 1 if the value is
the same along it: what is computed from the program's number alone has shape [programs, 1], from the thread's number
alone [1, threads], from constants [1, 1]. NumPy broadcasts, so most address arithmetic costs little.

If programs branch differently, the group splits, and the parts run one after the other. If threads of one program
branch differently, each keeps its own place. The threads at the lowest instruction run, until the others meet them.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn, Protocol

import numpy as np

from kernels.errors import AlexNetError
from kernels.ptx.memory import Shared
from kernels.ptx.program import Address, Array, Instruction, Program

RUBBISH = 0xDBDBDBDBDBDBDBDB
"""What a register holds that nothing was written to. LLVM reads such registers if the value does not matter."""


class PtxError(AlexNetError, RuntimeError):
    """A compiled kernel did what it must not do. The message names kernel, program, thread, instruction and line."""


class PtxWarning(UserWarning):
    """A compiled kernel did what leaves its result open, in the last bits or altogether."""


class OnItsWay(Protocol):
    """An asynchronous copy or product."""

    def select(self, group: Group, chosen: Array) -> OnItsWay:
        """The part of it that belongs to some of the group's programs (a mask)."""


class Registers(dict):
    """Arrays by register name. Before the first write they hold rubbish."""

    def __init__(self, program: Program, values: dict[str, Array]):
        super().__init__(values)
        self.program = program

    def __missing__(self, name: str) -> Array:
        dtype = np.dtype(self.program.type_of(name))
        return np.full((1, 1), RUBBISH % (1 << 8 * dtype.itemsize)).astype(dtype)


class Group:
    """Programs that run in lock step.

    Attributes:
        ids: [programs, 3], the program numbers along x, y and z.
        next: the number of the instruction that runs next.
        running: which threads run it, [programs, threads]; None for all.
        places: where each thread is, if they are at different places.
        pending, committed: asynchronous copies since the last commit, and the committed groups of copies.
        multiplying, products: the same of wgmma.
        dirty: registers that wgmma reads, if other instructions wrote them since the last ``wgmma.fence``: by name the
            first part of the instruction's opcode.
    """

    def __init__(self, program: Program, ids: Array, registers: Registers, shared: Shared):
        self.program, self.ids, self.registers, self.shared = program, ids, registers, shared
        self.next = 0
        self.running: Array | None = None
        self.places: Array | None = None
        self.pending: list[Any] = []
        self.committed: list[list[Any]] = []
        self.multiplying: list[Any] = []
        self.products: list[list[Any]] = []
        self.dirty: dict[str, str] = {}
        lanes = np.arange(self.size)
        self.row, self.thread = lanes // program.threads, lanes % program.threads
        self.warp = self.thread // 32

    @property
    def size(self) -> int:
        """All threads of the group."""
        return len(self.ids) * self.program.threads

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.ids), self.program.threads

    # Registers

    def all(self, name: str) -> Array:
        """A register of every thread, flat."""
        return np.broadcast_to(self.registers[name], self.shape).reshape(-1)

    def warps(self, name: str) -> Array:
        """A register as [warps, 32]."""
        return self.all(name).reshape(-1, 32)

    def addresses(self, address: Address) -> Array:
        """The address of every thread, flat."""
        base = self.registers[address.base]
        offset = base.dtype.type(address.offset % (1 << 8 * base.dtype.itemsize))
        return np.broadcast_to(base + offset, self.shape).reshape(-1)

    def takes_part(self, instruction: Instruction) -> Array | None:
        """Which threads run an instruction, as its guard says: broadcasts to [programs, threads]. None for all."""
        if instruction.guard is None:
            return self.running
        guard = self.registers[instruction.guard] ^ instruction.negated
        return guard if self.running is None else guard & self.running

    def lanes(self, instruction: Instruction) -> Array:
        """The numbers of the threads that run an instruction, in the flat arrays."""
        part = self.takes_part(instruction)
        if part is None:
            return np.arange(self.size)
        return np.nonzero(np.broadcast_to(part, self.shape).reshape(-1))[0]

    def write(self, instruction: Instruction, name: str, value: Array) -> None:
        """Sets a register in the threads that run the instruction. A signed value keeps its sign in a wider one."""
        if name == "_":
            return
        value = value.astype(self.program.type_of(name), copy=False)
        part = self.takes_part(instruction)
        self.registers[name] = value if part is None else np.where(part, value, self.registers[name])

    def write_lanes(self, name: str, lanes: Array, values: Array) -> None:
        """Sets a register in some threads, given by number."""
        values = values.astype(self.program.type_of(name), copy=False)
        if len(lanes) != self.size:
            values, some = self.all(name).copy(), values
            values[lanes] = some
        self.registers[name] = values.reshape(self.shape)

    # Branches

    def branch(self, instruction: Instruction) -> list[Group]:
        """Goes to the target where the guard says so. Returns the parts if the group has to split, else nothing."""
        part = self.takes_part(instruction)
        if self.running is None:
            if part is None or part.all():
                self.next = instruction.target
                return []
            if not part.any():
                self.next += 1
                return []
            if part.shape[1] == 1 or (part == part[:, :1]).all():
                return self._split(np.broadcast_to(part[:, 0], len(self.ids)), instruction.target)
            self.running, self.places = np.ones(self.shape, np.bool_), np.full(self.shape, self.next)
        assert self.places is not None and part is not None
        self.places[self.running] = self.next + 1
        self.places[np.broadcast_to(part, self.shape)] = instruction.target
        self._continue_lowest()
        return []

    def advance(self) -> None:
        """To the next instruction, where other threads may be waiting."""
        self.next += 1
        if self.places is not None:
            self.places[self.running] = self.next
            self._continue_lowest()

    def _continue_lowest(self) -> None:
        assert self.places is not None
        self.next = int(self.places.min())
        self.running = self.places == self.next
        if self.running.all():
            self.running = self.places = None

    def _split(self, taken: Array, target: int) -> list[Group]:
        """One group of the programs that take a branch, and one of the others."""
        parts = []
        for chosen, place in ((taken, target), (~taken, self.next + 1)):
            pick = lambda value, chosen=chosen: value[chosen] if len(value) == len(self.ids) > 1 else value
            registers = Registers(self.program, {name: pick(value) for name, value in self.registers.items()})
            part = Group(self.program, self.ids[chosen], registers, self.shared.select(chosen))
            part.next, part.dirty = place, dict(self.dirty)
            some = lambda entries, chosen=chosen: [entry.select(self, chosen) for entry in entries]
            part.pending, part.committed = some(self.pending), list(map(some, self.committed))
            part.multiplying, part.products = some(self.multiplying), list(map(some, self.products))
            parts.append(part)
        return parts

    # Checks

    def together(self, instruction: Instruction, threads: int = 32) -> None:
        """All threads of each warp, or of each warp group of 128, must execute the instruction, or none."""
        if self.running is not None:
            parts = self.running.reshape(-1, threads)
            torn = parts.any(1) & ~parts.all(1)
            if torn.any():
                lane = int(torn.argmax()) * threads + int(parts[torn][0].argmin())
                self.fault(instruction, lane, "a thread does not take part in what its warp does together")

    def warn(self, instruction: Instruction, what: str) -> None:
        """Warns with PtxWarning."""
        where = f"{instruction.text}; {instruction.where}"
        warnings.warn(f"{self.program.name}: {what} ({where})", PtxWarning, stacklevel=2)

    def fault(self, instruction: Instruction, lane: int, what: str) -> NoReturn:
        """Raises PtxError for a thread, given by its number in the flat arrays."""
        program = tuple(self.ids[lane // self.program.threads].tolist())
        raise PtxError(
            f"{self.program.name}, program {program}, thread {lane % self.program.threads}: {what} "
            f"({instruction.text}; {instruction.where})"
        )
