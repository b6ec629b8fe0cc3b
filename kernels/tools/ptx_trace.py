"""One program of a kernel as compiled code, instruction by instruction, with the registers of all of its threads.

The PTX machine (:mod:`kernels.ptx`) runs the program. Each step is one instruction, beside the line of Python that it
was made from. For what Python did, see :mod:`kernels.tools.trace`.
"""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from kernels import ptx, runtime
from kernels.ptx import Instruction, Program, PtxError, fragments
from kernels.ptx.arithmetic import FLOATS, decode, halves
from kernels.ptx.group import Group
from kernels.ptx.instructions import Copy
from kernels.ptx.memory import SPACING
from kernels.ptx.program import SIGNED, UNSIGNED, Address, Array, size_of
from kernels.tools.trace import TraceError, check_program, not_launched

TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}


class Access(NamedTuple):
    """What threads load from memory, store there, or copy into shared memory."""

    kind: str  # "load", "store" or "copy"
    space: str  # "global" or "shared"
    threads: Array  # that take part
    addresses: Array  # of shared memory from 0
    size: int  # bytes for each thread
    argument: int  # the tensor's number among the arguments; of shared memory the tensor that was copied there, or -1
    elements: Array  # [threads, elements each] of that tensor


class Fragment(NamedTuple):
    """A matrix that 32 or 128 threads hold together in their registers."""

    name: str  # "A", "B" and "D" of a product, "matrix 0" of ldmatrix
    first: int  # the first of the threads
    places: Array  # [threads, elements]: where each element that a thread holds is in the flattened matrix
    values: Array  # [rows, columns]

    def held(self, thread: int) -> list[tuple[int, int]]:
        """(row, column) of each element that a thread of the program holds, in the order of its registers."""
        return [divmod(place, self.values.shape[1]) for place in self.places[thread - self.first].tolist()]


class Step(NamedTuple):
    """An instruction that has run."""

    instruction: Instruction
    active: Array  # [threads] of bool: which ran it
    registers: dict[str, Array]  # those that it names, after it has run: [threads], as bits
    sets: tuple[str, ...]  # those of them that it sets
    accesses: tuple[Access, ...]
    copies: tuple[tuple[Copy, ...], ...]  # asynchronous copies in flight, by group; the last group is not yet committed
    products: int  # wgmma in flight


class SharedMemory(NamedTuple):
    """Shared memory of the program. Each array has one entry per byte."""

    writer: Array  # the warp that wrote it last, -1 if none did
    argument: Array  # the number of the tensor that an asynchronous copy brought it from, -1 if none did
    elements: Array  # and the element
    flying: Array  # of bool: whether an asynchronous copy to it is in flight

    @classmethod
    def empty(cls, size: int) -> SharedMemory:
        writer, argument, elements = np.full((3, size), -1)
        return cls(writer, argument, elements, np.zeros(size, np.bool_))

    def write(self, accesses: Sequence[Access]) -> None:
        """Notes what an instruction has written."""
        spaces = {access.space: access for access in accesses}
        target, source = spaces.get("shared"), spaces.get("global")
        if target is None or target.kind == "load":
            return
        places = target.addresses[:, None] + np.arange(target.size)
        self.writer[places] = target.threads[:, None] // 32
        self.argument[places] = self.elements[places] = -1
        if source is not None:  # of an asynchronous copy; threads without one write zeros
            places = places[np.isin(target.threads, source.threads)]
            self.argument[places] = source.argument
            self.elements[places] = np.repeat(source.elements, target.size // source.elements.shape[1], axis=1)


class PtxTrace(NamedTuple):
    """All that one program did."""

    code: Program
    arch: str
    program: tuple[int, int, int]
    grid: tuple[int, ...]
    tensors: ptx.Tensors
    steps: list[Step]
    fault: list[str]  # the message of the fault that ended the program, if one did

    def source(self, number: int) -> str:
        """The line of Python that a step belongs to."""
        return linecache.getline(self.code.file, self.steps[number].instruction.line).strip()

    def find(self, opcode: str) -> list[int]:
        """The numbers of the steps whose instruction begins so: ``find("ldmatrix")``."""
        return [number for number, step in enumerate(self.steps) if step.instruction.opcode.startswith(opcode)]

    def shared(self, number: int) -> SharedMemory:
        """Shared memory after a step."""
        memory = SharedMemory.empty(self.code.shared)
        for step in self.steps[: number + 1]:
            memory.write(step.accesses)
        for copy in itertools.chain(*self.steps[number].copies):
            memory.flying[copy.address.astype(np.int64)[:, None] + np.arange(_width(copy))] = True
        return memory

    def fragments(self, number: int, warp: int = 0) -> list[Fragment]:
        """The matrices that a warp's ldmatrix, stmatrix or mma, or its four warps' wgmma, has in registers."""
        step, first = self.steps[number], 32 * warp
        operands, parts = step.instruction.operands, step.instruction.parts
        if parts[0] in ("ldmatrix", "stmatrix"):
            per = 4 // size_of(self.element_type)
            lane, element = np.arange(32)[:, None], np.arange(per)
            rows, columns = lane // 4, per * (lane % 4) + element
            places = columns * 8 + rows if "trans" in parts else rows * 4 * per + columns
            shape = (4 * per, 8) if "trans" in parts else (8, 4 * per)
            names = enumerate(operands[parts[0] == "stmatrix"])
            return [
                self._fragment(step, f"matrix {i}", self.element_type, first, (r,), places, shape) for i, r in names
            ]
        if parts[0] == "mma":
            d, a, b, _ = operands
            k = int(parts[3].removeprefix("m16n8k"))
            place = lambda operand, held: fragments.positions(operand, len(held), k // len(a) // 2)
            return [
                self._fragment(step, "A", parts[-3], first, a, place("A", a), (16, k)),
                self._fragment(step, "B", parts[-3], first, b, place("B", b), (k, 8)),
                self._fragment(step, "D", "f32", first, d, fragments.positions("C", 4, 1), (16, 8)),
            ]
        if step.instruction.opcode.startswith("wgmma.mma_async"):
            d, a, *_ = operands
            n, k = map(int, re.findall(r"m64n(\d+)k(\d+)", parts[4])[0])
            found = [
                self._fragment(step, "D", "f32", first // 128 * 128, d, fragments.accumulator_positions(n), (64, n))
            ]
            if isinstance(a, tuple):
                places = fragments.positions("A", len(a), k // len(a) // 2)
                found.insert(0, self._fragment(step, "A", parts[-1], first, a, places, (16, k)))
            return found
        return []

    def _fragment(
        self, step: Step, name: str, type_: str, first: int, registers: Sequence[str], places: Array, shape: tuple
    ) -> Fragment:
        bits = [self._bits(step, register)[first : first + len(places)] for register in registers]
        if size_of(type_) == 2:
            bits = [half for register in bits for half in halves(register)]
        elements = decode(type_.removeprefix("t"), np.stack(bits, 1))
        values = np.empty(shape, elements.dtype)
        values.reshape(-1)[places] = elements
        return Fragment(name, first, places, values)

    def _bits(self, step: Step, operand: str) -> Array:
        """A register of all threads, or a number that stands in the code."""
        if operand in step.registers:
            return step.registers[operand]
        return np.broadcast_to(self.code.constants[self.code.value(operand, 4)][0], self.code.threads)

    @property
    def element_type(self) -> str:
        """The type of the elements that the kernel's tensor-core instructions multiply; f16 if there are none."""
        products = [
            step.parts for step in self.code.code if step.parts[:2] in (["mma", "sync"], ["wgmma", "mma_async"])
        ]
        return next((part for parts in products for part in parts if part in ("f16", "bf16", "tf32")), "f16")

    # As text

    def listing(self, warp: int = 0, lane: int = 0) -> str:
        """Every step as text: the line, the instruction, and what it did in one thread, number ``lane`` of a warp.

        Raises:
            TraceError: the program has no such warp, or the warp no such thread.
        """
        warps = self.code.threads // 32
        if not (0 <= warp < warps and 0 <= lane < 32):
            raise TraceError(f"{self.code.name} has {warps} warps of 32 threads, got warp {warp}, thread {lane}")
        where = f"program {self.program} of {self.grid}, warp {warp} of {warps}, thread {lane} of 32"
        lines = [f"{self.code.name} for {self.arch}, {where}"]
        before = None
        for number, step in enumerate(self.steps):
            if step.instruction.line != before:
                before = step.instruction.line
                lines.append(f"line {before}: {self.source(number)}")
            text, facts = guarded(step.instruction), self.facts(number, warp, lane)
            if facts and len(text) < 50:
                text = f"{text:50}  {facts.pop(0)}"
            lines += [f"{number:6}  {text}", *(f"{'':60}{fact}" for fact in facts)]
        return "\n".join([*lines, *(f"fault: {message}" for message in self.fault)])

    def facts(self, number: int, warp: int = 0, lane: int = 0) -> list[str]:
        """What a step did in one thread of a warp, and shortly in the whole warp: a line of text for each fact."""
        step, thread = self.steps[number], 32 * warp + lane
        taking, parts = step.active[32 * warp : 32 * warp + 32], step.instruction.parts
        facts = []
        if not taking.all():
            facts.append(f"{taking.sum()} of the warp's 32 threads take part, this one{' not' * (not taking[lane])}")
        facts += [self._register(step, name, warp, lane) for name in step.sets[:8]]
        if len(step.sets) > 8:
            facts.append(f"... {len(step.sets)} registers")
        for access in step.accesses:
            facts += self._access(step, access, warp, lane)
        for index, fragment in enumerate(self.fragments(number, warp)):
            facts.append(self._holds(step, index, fragment, thread))
        if parts[0] == "cp":
            sizes = [f"{sum(len(copy.lanes) * _width(copy) for copy in group):,}" for group in step.copies]
            groups = " + ".join(sizes[:-1]) or "0"
            facts.append(f"copies in flight: {groups} bytes in groups, {sizes[-1]} bytes not committed")
        if parts[0] == "wgmma":
            facts.append(f"wgmma in flight: {step.products}")
        return facts

    def numbers(self, step: Step, bits: Array) -> Array:
        """A register's values in some threads, in the type that the instruction, or the tensor, gives them.

        [threads, 1], or [threads, 2] of a register that holds two halves.
        """
        type_, bits = self._type(step).removeprefix("t"), np.ascontiguousarray(bits)
        if bits.dtype == np.bool_:
            return bits[:, None]
        if type_ in FLOATS and size_of(type_) <= bits.itemsize:
            return decode(type_, bits.view(UNSIGNED[size_of(type_)]).reshape(len(bits), -1))
        return bits.view(SIGNED[bits.itemsize])[:, None]

    def texts(self, step: Step, bits: Array) -> list[str]:
        """The same as text. An address is a tensor and an element."""
        numbers = self.numbers(step, bits)
        if numbers.dtype.kind == "b":
            return ["true" if number else "false" for (number,) in numbers.tolist()]
        if numbers.dtype.kind == "i":
            return [self._integer(number, bits.itemsize) for (number,) in numbers.tolist()]
        rows = [", ".join(f"{number:.6g}" for number in row) for row in numbers]
        return [f"({row})" if numbers.shape[1] > 1 else row for row in rows]

    def _type(self, step: Step) -> str:
        if step.instruction.parts[0] == "ldmatrix":
            return self.element_type
        if step.instruction.parts[0] == "ld" and step.accesses and step.accesses[0].argument >= 0:
            return TYPES.get(self.tensors.dtypes[step.accesses[0].argument], "")
        parts = [part.removesuffix("x2") for part in step.instruction.parts[1:]]
        return next((part for part in parts if re.fullmatch(r"t?f\d+|bf16|[bsu]\d+", part)), "")

    def _integer(self, value: int, size: int) -> str:
        if 1 <= value >> SPACING <= len(self.tensors.names):
            (index,), (element,) = self.tensors.locate(np.array([value], np.uint64))
            return f"{self.tensors.names[index]} {'-' if element < 0 else '+'} {abs(element):,}"
        return str(value) if abs(value) < 1 << 7 * size - 4 else f"{value % (1 << 8 * size):#x}"

    def _register(self, step: Step, name: str, warp: int, lane: int) -> str:
        this = slice(32 * warp, 32 * warp + 32)
        texts, taking = self.texts(step, step.registers[name][this]), step.active[this]
        text = f"{name} = {texts[lane]}"
        values = list(dict.fromkeys(itertools.compress(texts, taking)))
        if len(values) > 1:
            return f"{text}; in the warp {len(values)} values, {values[0]} ... {values[-1]}"
        return f"{text}, in the whole warp" if taking.all() else text

    def _access(self, step: Step, access: Access, warp: int, lane: int) -> Iterator[str]:
        together = step.instruction.parts[0] == "wgmma"  # four warps read an operand
        mine = access.threads // 128 == warp // 4 if together else access.threads // 32 == warp
        if not mine.any():
            return
        what = "operand of" if together else f"{access.kind} of {mine.sum()} threads,"
        yield f"{what} {mine.sum() * access.size:,} bytes: {self._place(access, mine)}"
        own = access.threads == 32 * warp + lane
        if own.any() and not together:
            yield f"this thread: {self._place(access, own)}"

    def _place(self, access: Access, some: Array) -> str:
        """Where some of the threads access memory."""
        at, places = access.addresses[some], []
        if access.space == "shared":
            places.append(f"shared memory {at.min():,} ... {at.max() + access.size - 1:,}")
        if access.argument >= 0:
            places.append(self._elements(access, access.elements[some]))
        return ", there ".join(places)

    def _elements(self, access: Access, elements: Array) -> str:
        known = elements[elements >= 0]
        if not known.size:
            return "zeros"
        low, high = known.min(), known.max()
        return f"{self.tensors.names[access.argument]} {low:,}" + (f" ... {high:,}" if low != high else "")

    def _holds(self, step: Step, index: int, fragment: Fragment, thread: int) -> str:
        held = fragment.held(thread)
        rows, columns = (sorted(set(axis)) for axis in zip(*held, strict=True))
        brief = lambda values: ", ".join([*map(str, values[:6]), *["..."] * (len(values) > 6)])
        text = f"{fragment.name}: this thread holds row {brief(rows)}, column {brief(columns)}"
        loaded = [access for access in step.accesses if access.argument >= 0 and access.kind == "load"]
        if not fragment.name.startswith("matrix") or not loaded:
            return text
        of_warp = loaded[0].elements[loaded[0].threads // 32 == thread // 32]
        elements = np.array([of_warp[8 * index + row, column] for row, column in held])
        return f"{text}: {self._elements(loaded[0], elements)}"


def _width(copy: Copy) -> int:
    """Bytes that each thread copies."""
    return copy.values.shape[1] * copy.values.itemsize


def guarded(instruction: Instruction) -> str:
    """An instruction as text, with its guard. Of many registers the first and the last."""
    guard = f"@{'!' * instruction.negated}{instruction.guard} " if instruction.guard else ""
    text = " ".join(instruction.text.split())
    return guard + re.sub(r"\{\s*(%\w+)(?:\s*,\s*%\w+){8,}\s*,\s*(%\w+)\s*\}", r"{\1 ... \2}", text)


def trace_ptx(
    call: Callable[[], object], kernel: str, program: Sequence[int] = (0, 0, 0), arch: str = "sm_90"
) -> PtxTrace:
    """Runs one program of a kernel as compiled code, and records its steps.

    Args:
        call: launches the kernel through :func:`kernels.runtime.launch`, for example ``lambda: kernels.softmax(x)``.
            Of the kernel's first launch only the one program runs. Its other launches, and other kernels, run whole.
        kernel: the kernel function's name.
        program: its program ids, up to three.
        arch: the GPU to compile for, as in :func:`kernels.runtime.backend`.

    Returns:
        The trace. If the program does what it must not do, the trace ends there, and its ``fault`` says what.

    Raises:
        TraceError: no such kernel was launched, or the program is outside its grid.
        BackendError: an unknown architecture.
    """
    x, y, z = (*program, 0, 0)[:3]
    recorder = _Recorder(kernel, (x, y, z), arch)
    with runtime.backend("ptx", arch), runtime.set_inside(ptx.watcher, recorder):
        try:
            call()
        except PtxError as error:
            if recorder.trace is None or not recorder.recording:
                raise
            recorder.trace.fault.append(str(error))
    if recorder.trace is None:
        raise not_launched(kernel, recorder.launched)
    return recorder.trace


class _Recorder:
    """A watcher that lets one program of a kernel run alone, and records it."""

    def __init__(self, kernel: str, program: tuple[int, int, int], arch: str):
        self.kernel, self.program, self.arch = kernel, program, arch
        self.launched: list[str] = []
        self.trace: PtxTrace | None = None  # from its launch on
        self.recording = False
        self.memory = SharedMemory.empty(0)
        self.accesses: list[Access] = []  # of the instruction that runs

    def begin(self, program: Program, grid: tuple[int, ...], ids: Array, tensors: ptx.Tensors) -> Array:
        self.launched.append(program.name)
        self.recording = program.name == self.kernel and self.trace is None
        if not self.recording:
            return ids
        check_program(self.program, grid, self.kernel)
        self.trace = PtxTrace(program, self.arch, self.program, grid, tensors, [], [])
        self.memory = SharedMemory.empty(program.shared)
        return np.array([self.program])

    def step(self, group: Group, instruction: Instruction) -> None:
        if not self.recording:
            return
        assert self.trace is not None
        part = group.takes_part(instruction)
        active = np.broadcast_to(True if part is None else part, group.shape)[0]
        names = [re.findall(r"%[a-z]+\d+", str(operand)) for operand in instruction.operands]
        sets = () if not names or isinstance(instruction.operands[0], Address) else names[0]
        registers = {name: group.all(name) for name in itertools.chain(*names)}
        copies = tuple(map(tuple, (*group.committed, group.pending)))
        accesses, self.accesses = tuple(self.accesses), []
        self.memory.write(accesses)
        products = sum(map(len, (*group.products, group.multiplying)))
        self.trace.steps.append(Step(instruction, active, registers, tuple(sets), accesses, copies, products))

    def access(
        self, group: Group, instruction: Instruction, space: str, lanes: Array, addresses: Array, size: int
    ) -> None:
        if not self.recording:
            return
        assert self.trace is not None
        kind = {"cp": "copy", "st": "store", "stmatrix": "store"}.get(instruction.parts[0], "load")
        if space == "global":
            index, first = self.trace.tensors.locate(addresses)
            argument = int(index[0])
            elements = first[:, None] + np.arange(max(size // self.trace.tensors.dtypes[argument].itemsize, 1))
        else:
            addresses, argument, elements = addresses.astype(np.int64), -1, np.empty((len(addresses), 0), np.int64)
            if kind == "load":
                argument, elements = self._copied(addresses, size)
        self.accesses.append(Access(kind, space, lanes, addresses, size, argument, elements))

    def _copied(self, addresses: Array, size: int) -> tuple[int, Array]:
        """The tensor, and its elements, that asynchronous copies brought to places in shared memory."""
        assert self.trace is not None
        places = np.minimum(addresses[:, None] + np.arange(size), len(self.memory.argument) - 1)
        arguments = self.memory.argument[places]
        known = arguments[arguments >= 0]
        if not known.size:
            return -1, np.empty((len(addresses), 0), np.int64)
        return int(known[0]), self.memory.elements[places][:, :: self.trace.tensors.dtypes[known[0]].itemsize]
