"""One program of a kernel, step by step.

In Triton's interpreter a kernel is a Python function and a tile a NumPy array. So :func:`sys.settrace`, on which
debuggers are built, sees each of its lines with the values of its variables. Loads and stores are recorded in the
interpreter. Of its inside, this file uses the loop over the grid, the builder's operations, and the array behind a
tensor.
"""

import contextlib
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from kernels import runtime  # after this import, the caller's own kernels are decorated as ours are
from kernels.errors import AlexNetError


class Access(NamedTuple):
    """A load or a store: which elements of which argument, and which lanes took part."""

    kind: str  # "load" or "store"
    argument: str  # "x_ptr"
    offsets: np.ndarray  # of the tile's shape, in elements from the argument's first
    mask: np.ndarray  # bool, of the tile's shape

    def __str__(self) -> str:
        taken = self.offsets[self.mask]
        elements = f"elements {taken.min():,} ... {taken.max():,}" if taken.size else "nothing"
        return f"{self.kind}s {elements} of {self.argument}, {self.mask.sum():,} of {self.mask.size:,} lanes"


class Step(NamedTuple):
    """A line of the kernel that has run."""

    line: int
    source: str
    values: dict[str, np.ndarray]  # what the line has set, by name; of pointers the offsets in elements
    accesses: tuple[Access, ...]

    def facts(self) -> list[str]:
        """What the line loads or stores, and the variables that it sets: a line of text for each."""
        few = lambda value: value.size <= 16 and value.dtype.kind in "ib"
        full = lambda value: " ".join(np.array2string(value.astype(int)).split())
        values = [f"{name} = {full(x) if few(x) else short(x)}" for name, x in self.values.items()]
        return [*map(str, self.accesses), *values]


class Trace(NamedTuple):
    """All that one program did."""

    kernel: str
    program: tuple[int, int, int]
    grid: tuple[int, int, int]
    arguments: dict[str, object]  # tensors, numbers and constants as the kernel got them
    steps: list[Step]

    def values(self, name: str) -> list[np.ndarray]:
        """Every value that a variable had, in order. ``values("acc")`` shows how an accumulator fills."""
        return [step.values[name] for step in self.steps if name in step.values]

    def accesses(self, argument: str) -> list[Access]:
        """Every load from an argument, or store to it, in order."""
        return [access for step in self.steps for access in step.accesses if access.argument == argument]

    def listing(self) -> str:
        """Every step as text: the line, what it loads or stores, and the variables that it sets."""
        lines = [f"{self.kernel}, program {self.program} of {self.grid}"]
        for number, step in enumerate(self.steps):
            lines.append(f"{number:3}  line {step.line}: {step.source}")
            lines += [f"       {fact}" for fact in step.facts()]
        return "\n".join(lines)


def short(value: np.ndarray, digits: int = 4) -> str:
    """A value in a few words: its shape, its smallest and its largest number."""
    value = np.asarray(value)
    if not value.shape:
        return f"{value.item():.{digits}g}" if value.dtype.kind == "f" else str(value.item())
    shape = " x ".join(map(str, value.shape))
    if value.dtype.kind == "b":
        return f"[{shape}], {value.mean():.0%} true"
    finite = value[np.isfinite(value)]
    if not finite.size:
        return f"[{shape}], nothing finite"
    low, high = finite.min(), finite.max()
    return f"[{shape}], {low:.{digits}g} ... {high:.{digits}g}" if low != high else f"[{shape}], all {low:.{digits}g}"


class TraceError(AlexNetError, ValueError):
    """The program did not run. The message says what did."""


def check_program(program: tuple[int, ...], grid: tuple[int, ...], kernel: str) -> None:
    """Raises TraceError if a program is outside of a kernel's grid."""
    if not all(0 <= index < size for index, size in zip(program, grid, strict=True)):
        raise TraceError(f"program {program} is outside the grid {grid} of {kernel}")


def not_launched(kernel: str, launched: Sequence[str]) -> TraceError:
    """The error for a kernel that is not among those launched."""
    return TraceError(f"kernel {kernel!r} was not launched; launched: {', '.join(dict.fromkeys(launched)) or 'none'}")


def trace(call: Callable[[], object], kernel: str, program: Sequence[int] = (0, 0, 0)) -> Trace:
    """Runs one program of a kernel and records its steps.

    Args:
        call: launches the kernel, for example ``lambda: kernels.softmax(x)`` or ``lambda: my_kernel[grid](x, y)``.
            Of the kernel's first launch only the one program runs. Its other launches, and other kernels, run whole.
        kernel: the kernel function's name.
        program: its program ids, up to three.

    Raises:
        TraceError: no such kernel was launched, the program is outside its grid, or kernels are compiled here.
    """
    if not runtime.INTERPRETED:
        raise TraceError("only interpreted kernels can be traced: set TRITON_INTERPRET=1")
    x, y, z = (*program, 0, 0)[:3]
    recorder = _Recorder(kernel, (x, y, z))
    run = interpreter.GridExecutor.__call__
    launch = lambda executor, *args, **kwargs: recorder.launch(run, executor, args, kwargs)
    with mock.patch.object(interpreter.GridExecutor, "__call__", launch):
        call()
    if recorder.trace is None:
        raise not_launched(kernel, recorder.launched)
    return recorder.trace


def _before(**notes: Callable[..., None]) -> AbstractContextManager:
    """Inside, each function is called before the interpreter's operation of its name, with that one's arguments."""
    builder = interpreter.interpreter_builder

    def watch(operation: Callable, note: Callable[..., None]) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            note(*args)
            return operation(*args, **kwargs)

        return method

    return mock.patch.multiple(builder, **{name: watch(getattr(builder, name), note) for name, note in notes.items()})


def watching(note: Callable[[str, np.ndarray, np.ndarray], None]) -> AbstractContextManager:
    """Reports every load and store of every program inside: ``note("load", addresses, mask)``."""
    return _before(
        create_masked_load=lambda pointers, mask, *_: note("load", pointers.data, mask.data),
        create_masked_store=lambda pointers, _, mask, *__: note("store", pointers.data, mask.data),
    )


@contextlib.contextmanager
def multiplications() -> Iterator[list[int]]:
    """Records each multiplication or division of floating-point tiles inside: how many elements it has."""
    found: list[int] = []
    note = lambda tile, *_: found.append(tile.data.size) if tile.data.size > 1 else None
    with _before(create_fmul=note, create_fma=note, create_fdiv=note, create_precise_divf=note):
        yield found


class _Recorder:
    def __init__(self, kernel: str, program: tuple[int, int, int]):
        self.kernel, self.program = kernel, program
        self.launched: list[str] = []
        self.trace: Trace | None = None  # from its launch on
        self.tensors: dict[str, torch.Tensor] = {}  # of the arguments
        self.accesses: list[Access] = []  # of the line that runs

    def launch(self, run: Callable, executor: Any, args: tuple, kwargs: dict) -> object:
        """A launch. If it is the one to trace, only one program runs."""
        self.launched.append(executor.fn.__name__)
        if executor.fn.__name__ != self.kernel or self.trace is not None:
            return run(executor, *args, **kwargs)
        arguments = dict(zip(executor.arg_names, args, strict=False))
        arguments |= {name: value for name, value in kwargs.items() if name in executor.arg_names}
        self.tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        whole = executor.grid

        def one(values: dict) -> tuple[int]:
            grid = (*(whole(values) if callable(whole) else whole), 1, 1)[:3]
            check_program(self.program, grid, self.kernel)
            self.trace = Trace(self.kernel, self.program, grid, arguments, [])
            return (1,)

        executor.grid = one
        before = sys.gettrace()
        sys.settrace(lambda frame, event, _: self.enter(frame, executor.fn) if event == "call" else None)
        try:
            with watching(self.note):
                return run(executor, *args, **kwargs)
        finally:
            sys.settrace(before)

    def enter(self, frame: FrameType, function: Callable) -> Callable | None:
        """Python calls this when a function begins. It calls what this returns for each of the function's lines."""
        if self.trace is None or frame.f_code is not function.__code__:
            return None
        interpreter.interpreter_builder.set_grid_dim(*self.trace.grid)
        interpreter.interpreter_builder.set_grid_idx(*self.program)
        steps = self.trace.steps
        before, line = dict(frame.f_locals), frame.f_lineno

        def step(frame: FrameType, event: str, _: object) -> Callable:
            """Before a line runs, or the function returns: the line before it has run."""
            nonlocal before, line
            if event in ("line", "return"):
                now = dict(frame.f_locals)
                changed = {name: self.array(value) for name, value in now.items() if before.get(name) is not value}
                values = {name: array for name, array in changed.items() if array is not None}
                if values or self.accesses:
                    source = linecache.getline(frame.f_code.co_filename, line).strip()
                    steps.append(Step(line, source, values, tuple(self.accesses)))
                before, line, self.accesses = now, frame.f_lineno, []
            return step

        return step

    def array(self, value: object) -> np.ndarray | None:
        """A variable's value as an array, pointers as offsets. None if it is neither a number nor a tile."""
        if isinstance(value, tl.constexpr):
            value = value.value
        if isinstance(value, (bool, int, float)):
            return np.asarray(value)
        if not isinstance(value, tl.tensor):
            return None
        data = np.array(value.handle.data)
        if value.dtype.scalar.is_ptr():
            return self.offsets(self.argument_at(data), data)
        return data.reshape(tuple(value.shape))

    def argument_at(self, addresses: np.ndarray) -> str:
        """The argument in whose memory the addresses are, or the nearest."""
        middle = int(np.median(addresses.astype(np.int64)))
        distance = lambda tensor: max(tensor.data_ptr() - middle, middle - tensor.data_ptr() - tensor.nbytes, 0)
        return min(self.tensors, key=lambda name: distance(self.tensors[name]))

    def offsets(self, argument: str, addresses: np.ndarray) -> np.ndarray:
        """The addresses in elements from the argument's first."""
        tensor = self.tensors[argument]
        return (addresses.astype(np.int64) - tensor.data_ptr()) // tensor.element_size()

    def note(self, kind: str, addresses: np.ndarray, mask: np.ndarray) -> None:
        """Records a load or a store."""
        mask = np.broadcast_to(mask.astype(bool), addresses.shape)
        argument = self.argument_at(addresses[mask] if mask.any() else addresses)
        self.accesses.append(Access(kind, argument, self.offsets(argument, addresses), mask.copy()))
