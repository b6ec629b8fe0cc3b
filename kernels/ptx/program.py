"""The text of a kernel's PTX, taken apart into instructions.

A line such as

    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 16 ];

is an instruction: a guard (only threads whose %p1 is true take part), an opcode, and operands. Operands are registers,
numbers, addresses in brackets and groups of registers in braces (sections 4 to 6). What the instructions do is not said
here.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kernels.errors import AlexNetError

Array = np.ndarray

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class UnsupportedInstructionError(AlexNetError, NotImplementedError):
    """PTX that this machine does not know. The message names the kernel, the line, and what is not known."""


def size_of(type_: str) -> int:
    """Bytes of a PTX type: 4 for ``f32``, ``b32`` and ``f16x2``; 0 for ``pred``."""
    if type_ == "pred":
        return 0
    bits, _, count = re.sub(r"^[a-z]+", "", type_).partition("x")
    return int(bits) // 8 * int(count or 1)


def dtype_of(type_: str) -> type:
    """The NumPy type in which a register of a PTX type is kept: its bits, unsigned."""
    return np.bool_ if type_ == "pred" else UNSIGNED[size_of(type_)]


@dataclass(frozen=True)
class Address:
    """``[%rd1 + 16]``: a register, or the name of a parameter or of shared memory, and an offset in bytes."""

    base: str
    offset: int


@dataclass(eq=False, slots=True)
class Instruction:
    """One instruction, as text.

    Attributes:
        number: its place in the program.
        text: as in the PTX, without the guard and the semicolon.
        where: the line of Triton code that it comes from, ``"conv2d.py:57"``. If that line is in a function that was
            inlined, the line of the call follows, up to the kernel: ``"standard.py:43 in conv2d.py:57"``.
        line: the line of the kernel's own file, 57.
        guard, negated: the predicate register of ``@%p1`` or ``@!%p1``; None if there is none.
        opcode, operands: ``"ld.global.v4.b32"``, and the operands: texts, tuples of texts, or addresses.
        target: where a branch goes: an instruction's number.
    """

    number: int
    text: str
    where: str
    line: int
    guard: str | None
    negated: bool
    opcode: str
    operands: tuple
    target: int = -1

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")


@dataclass(eq=False)
class Program:
    """A kernel's PTX.

    Attributes:
        name, threads: the kernel's name, and the threads of one of its programs (PTX: of a CTA).
        shared: bytes of shared memory per program.
        parameters: (name, PTX type) of each, in order.
        types: NumPy type of each declared register, by the register's prefix: ``{"%r": uint32}``.
        constants: numbers that stand in the code, as registers of one element, by the name that operands have.
        file: of the kernel's Python code.
        passed: names of the kernel's arguments that are parameters here; the others are compiled in.
    """

    name: str
    threads: int
    shared: int
    parameters: list[tuple[str, str]]
    code: list[Instruction] = field(default_factory=list)
    types: dict[str, type] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    file: str = ""
    passed: list[str] = field(default_factory=list)

    def unsupported(self, instruction: Instruction, what: str = "is not known") -> UnsupportedInstructionError:
        """The error for an instruction that this machine cannot run."""
        return UnsupportedInstructionError(f"{self.name}: {instruction.text} ({instruction.where}): {what}")

    def type_of(self, register: str) -> type:
        """The NumPy type of a declared register."""
        return self.types[register.rstrip("0123456789")]

    def value(self, operand: str, size: int) -> str:
        """An operand's register. A number becomes a constant of ``size`` bytes; 0 is a predicate."""
        if operand[0] == "%" or operand == "global_smem":
            return operand
        name = f"{operand}:{size}"
        if name not in self.constants:
            digits = operand.rstrip("U")
            number = int(digits[2:], 16) if re.match("0[fFdD]", digits) else int(digits, 0)  # 0f3F800000 is a float32
            bits = np.bool_(number != 0) if size == 0 else UNSIGNED[size](number % (1 << 8 * size))
            self.constants[name] = np.full((1, 1), bits)
        return name


def parse(ptx: str, shared: int) -> Program:
    """Takes PTX apart.

    Args:
        ptx: a module with one kernel, as Triton compiles it.
        shared: bytes of shared memory that a program gets when it is launched (Triton's ``metadata.shared``).
    """
    head, _, rest = ptx.partition(".reqntid")
    name = re.search(r"\.entry\s+(\w+)", head)
    threads = re.match(r"\s*(\d+)", rest)
    if name is None or threads is None:
        raise UnsupportedInstructionError("the PTX has no kernel with a number of threads (.entry, .reqntid)")
    parameters = [(param, type_) for type_, param in re.findall(r"\.param\s+\.(\w+)[^,\n]*?(\w+_param_\d+)", head)]
    program = Program(name[1], int(threads[1]), shared, parameters)
    lines = _Lines(dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', ptx)))
    labels: dict[str, int] = {}
    body = rest[rest.index("{") + 1 :].split("\n}")[0]
    for text in body.splitlines():
        text = lines.read(text)
        for statement in filter(None, (part.strip() for part in text.split(";"))):
            while label := re.match(r"(\$\w+):\s*", statement):
                labels[label[1]], statement = len(program.code), statement[label.end() :]
            if declared := re.match(r"\.reg\s+\.(\w+)\s+(%\w+)<\d+>", statement):
                program.types[declared[2]] = dtype_of(declared[1])
            elif statement not in ("", "{", "}") and not statement.startswith("."):
                program.code.append(_instruction(len(program.code), statement, lines.where, lines.line))
    for instruction in program.code:
        if instruction.parts[0] == "bra":
            instruction.target = labels[instruction.operands[0]]
    return program


class _Lines:
    """Which line of Python the PTX comes from, as ``.loc`` says (section 11.5):

    .loc file line column[, function_name label, inlined_at file line column]

    If the call is in a function that was inlined, too, a ``.loc`` before told where that one was called. Triton 3.6
    does not say where functions were inlined. There the kernel's line stays what it was before.
    """

    def __init__(self, files: dict[str, str]):
        self.files = files
        self.callers: dict[tuple, tuple] = {}
        self.first = ("", 0)  # the file and line of the kernel's ``def``
        self.where, self.line = "", 0
        self.in_assembly = False

    def read(self, text: str) -> str:
        """Takes in a line of PTX, and returns what it has besides its location and comments."""
        text, _, comment = (part.strip() for part in text.partition("//"))
        if comment.endswith("inline asm"):
            self.in_assembly = comment.startswith("begin")
        if not re.match(r"\.loc\s", text):
            return text
        if not self.in_assembly:  # where LLVM counts the lines of assembly on from the line of Python
            self._locate(text)
        return ""

    def _locate(self, text: str) -> None:
        here, *callers = re.findall(r"(\d+) (\d+) (\d+)", text)
        if callers:
            self.callers[here] = callers[0]
        chain = [here]
        while (caller := self.callers.get(chain[-1])) and caller not in chain:  # unrolled loops may go in a circle
            chain.append(caller)
        self.where = " in ".join(f"{Path(self.files.get(file, '')).name}:{line}" for file, line, _ in chain)
        file, line = chain[-1][0], int(chain[-1][1])
        if not self.line:
            self.first = (file, line)
        if file == self.first[0] and line >= self.first[1]:
            self.line = line


def _instruction(number: int, text: str, where: str, line: int) -> Instruction:
    guard = re.match(r"@(!?)(%\w+)\s+", text)
    rest = text[guard.end() :] if guard else text
    opcode, *operands = rest.split(None, 1)
    found = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", operands[0] if operands else "")
    return Instruction(
        number, rest, where, line, guard and guard[2], bool(guard and guard[1]), opcode, tuple(map(_operand, found))
    )


def _operand(text: str) -> str | tuple[str, ...] | Address:
    text = text.strip()
    if text[0] == "{":
        return tuple(part.strip() for part in text.strip("{}").split(","))
    if text[0] == "[":
        base, _, offset = text.strip("[] ").partition("+")
        return Address(base.strip(), int(offset or 0))
    return text
