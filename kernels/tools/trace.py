"""One program of a kernel, step by step: ``alexnet trace conv2d --layer conv1 --program 3 0``.

In Triton's interpreter a kernel is a Python function and a tile a NumPy array, so :func:`sys.settrace`, which debuggers
are built on, sees every line of it with the values of its variables. A program's loads and stores are noted where the
interpreter makes them. What is touched of Triton's insides is in this file alone: the interpreter's loop over the grid,
its builder's loads and stores, and the array behind a tensor.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.workloads import WORKLOADS

if TYPE_CHECKING:
    import torch


class Access(NamedTuple):
    """A load or a store: which elements of which argument, and which lanes took part."""

    kind: str  # "load" or "store"
    argument: str  # "x_ptr"
    offsets: np.ndarray  # of the tile's shape, in elements from the argument's first
    mask: np.ndarray  # bool, of the tile's shape


class Step(NamedTuple):
    """A line of the kernel that has run."""

    line: int
    source: str
    values: dict[str, np.ndarray]  # what the line has set, by name; of pointers the offsets in elements
    accesses: tuple[Access, ...]


class Trace(NamedTuple):
    """All that one program did."""

    kernel: str
    program: tuple[int, int, int]
    grid: tuple[int, int, int]
    arguments: dict[str, object]  # tensors, numbers and constants as the kernel was given them
    steps: list[Step]

    def values(self, name: str) -> list[np.ndarray]:
        """Every value that a variable had, in order: ``values("acc")`` shows an accumulator fill."""
        return [step.values[name] for step in self.steps if name in step.values]

    def accesses(self, argument: str) -> list[Access]:
        """Every load from an argument, or store to it, in order."""
        return [access for step in self.steps for access in step.accesses if access.argument == argument]


class TraceError(ValueError):
    """What was asked for did not run; the message says what did."""


def trace(call: Callable[[], object], kernel: str, program: Sequence[int] = (0, 0, 0)) -> Trace:
    """Runs one program of a kernel and notes its steps.

    Args:
        call: launches the kernel, as ``lambda: kernels.softmax(x)`` does, or ``lambda: my_kernel[grid](x, y)``. Other
            kernels that it launches run as usual; of this one, only the first launch's one program runs.
        kernel: the kernel function's name.
        program: its program ids, up to three.

    Raises:
        TraceError: no such kernel was launched, the program is outside its grid, or kernels are compiled here.
    """
    from kernels import runtime

    if not runtime.INTERPRETED:
        raise TraceError("only interpreted kernels can be traced: set TRITON_INTERPRET=1")
    x, y, z = (*program, 0, 0)[:3]
    recorder = _Recorder(kernel, (x, y, z))
    with recorder.installed():
        call()
    if recorder.trace is None:
        launched = ", ".join(dict.fromkeys(recorder.launched)) or "none"
        raise TraceError(f"kernel {kernel!r} was not launched; launched: {launched}")
    return recorder.trace


@contextlib.contextmanager
def _before(methods: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Inside, each function is called with what the operation of its name in the interpreter's builder takes."""
    builder = interpreter.interpreter_builder
    own = dict(vars(builder))  # what another use of this, around this one, has put there

    def watch(name: str) -> Callable:
        original = getattr(builder, name)

        def method(*args, **kwargs):
            methods[name](*args)
            return original(*args, **kwargs)

        return method

    for name in methods:
        setattr(builder, name, watch(name))
    try:
        yield
    finally:
        for name in methods:
            if name in own:
                setattr(builder, name, own[name])
            else:
                delattr(builder, name)


@contextlib.contextmanager
def watching(note: Callable[[str, np.ndarray, np.ndarray], None]) -> Iterator[None]:
    """Notes every load and store of every program inside: ``note("load", addresses, mask)``."""

    def load(pointers, mask, *_) -> None:
        note("load", pointers.data, mask.data)

    def store(pointers, _, mask, *__) -> None:
        note("store", pointers.data, mask.data)

    with _before({"create_masked_load": load, "create_masked_store": store}):
        yield


@contextlib.contextmanager
def multiplications() -> Iterator[list[int]]:
    """Notes each multiplication or division of tiles of floating-point numbers inside: how many of them it does."""
    found: list[int] = []

    def note(tile, *_) -> None:
        if tile.data.size > 1:
            found.append(tile.data.size)

    with _before(dict.fromkeys(("create_fmul", "create_fma", "create_fdiv", "create_precise_divf"), note)):
        yield found


class _Recorder:
    def __init__(self, kernel: str, program: tuple[int, int, int]):
        self.kernel, self.program = kernel, program
        self.launched: list[str] = []
        self.trace: Trace | None = None  # from its launch on
        self.steps: list[Step] = []
        self.arguments: dict[str, torch.Tensor] = {}
        self.accesses: list[Access] = []
        self.before: dict[str, object] = {}
        self.line = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        run = interpreter.GridExecutor.__call__
        interpreter.GridExecutor.__call__ = lambda executor, *args, **kwargs: self.launch(run, executor, args, kwargs)
        try:
            yield
        finally:
            interpreter.GridExecutor.__call__ = run

    def launch(self, run: Callable, executor, args: tuple, kwargs: dict) -> object:
        """A launch, of which one program alone runs if it is the one to trace."""
        self.launched.append(executor.fn.__name__)
        if executor.fn.__name__ != self.kernel or self.trace is not None:
            return run(executor, *args, **kwargs)
        import torch

        arguments = dict(zip(executor.arg_names, args, strict=False)) | {
            name: value for name, value in kwargs.items() if name in executor.arg_names
        }
        self.arguments = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        whole = executor.grid

        def one(values: dict) -> tuple[int]:
            grid = whole(values) if callable(whole) else whole
            grid = (*grid, 1, 1)[:3]
            if not all(0 <= index < size for index, size in zip(self.program, grid, strict=True)):
                raise TraceError(f"program {self.program} is outside the grid {grid} of {self.kernel}")
            self.trace = Trace(self.kernel, self.program, grid, arguments, self.steps)
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
        """Python calls this whenever a function begins; what it returns is called for each of that function's lines."""
        if self.trace is None or frame.f_code is not function.__code__:
            return None
        interpreter.interpreter_builder.set_grid_dim(*self.trace.grid)
        interpreter.interpreter_builder.set_grid_idx(*self.program)
        self.before, self.line = dict(frame.f_locals), frame.f_lineno
        return self.step

    def step(self, frame: FrameType, event: str, _: object) -> Callable:
        """Before a line runs, or the function returns: the line before it has run."""
        if event in ("line", "return"):
            now = dict(frame.f_locals)
            changed = {name: value for name, value in now.items() if self.before.get(name) is not value}
            arrays = {name: self.array(value) for name, value in changed.items()}
            values = {name: array for name, array in arrays.items() if array is not None}
            if values or self.accesses:
                source = linecache.getline(frame.f_code.co_filename, self.line).strip()
                self.steps.append(Step(self.line, source, values, tuple(self.accesses)))
            self.before, self.line, self.accesses = now, frame.f_lineno, []
        return self.step

    def array(self, value: object) -> np.ndarray | None:
        """A variable's value as an array; None for what is none."""
        if isinstance(value, tl.constexpr):
            value = value.value
        if isinstance(value, (bool, int, float)):
            return np.asarray(value)
        if not isinstance(value, tl.tensor):
            return None
        data = np.array(value.handle.data)
        if value.dtype.scalar.is_ptr():
            return self.locate(data)[1]
        return data.reshape(value.shape) if value.shape else data.reshape(())

    def locate(self, addresses: np.ndarray) -> tuple[str, np.ndarray]:
        """The argument that addresses lie in, and offsets in elements from its first."""
        middle = int(np.median(addresses.astype(np.int64)))
        distance = lambda tensor: max(tensor.data_ptr() - middle, middle - tensor.data_ptr() - tensor.nbytes, 0)
        name = min(self.arguments, key=lambda name: distance(self.arguments[name]))
        tensor = self.arguments[name]
        return name, (addresses.astype(np.int64) - tensor.data_ptr()) // tensor.element_size()

    def note(self, kind: str, addresses: np.ndarray, mask: np.ndarray) -> None:
        mask = np.broadcast_to(mask.astype(bool), addresses.shape)
        argument, _ = self.locate(addresses[mask] if mask.any() else addresses)
        tensor = self.arguments[argument]
        offsets = (addresses.astype(np.int64) - tensor.data_ptr()) // tensor.element_size()
        self.accesses.append(Access(kind, argument, offsets, mask.copy()))


# The command


def _show(value: np.ndarray) -> str:
    """A value in a few words."""
    if not value.shape:
        return f"{value.item():g}" if value.dtype.kind == "f" else str(value.item())
    shape = " x ".join(map(str, value.shape))
    if value.dtype.kind == "b":
        return f"[{shape}] {value.mean():.0%} true"
    finite = value[np.isfinite(value)] if value.dtype.kind == "f" else value
    if not finite.size:
        return f"[{shape}] nothing finite"
    return f"[{shape}] {finite.min():g} ... {finite.max():g}"


def _print(found: Trace) -> None:
    print(f"{found.kernel}, program {found.program} of {found.grid}")
    for number, step in enumerate(found.steps):
        print(f"{number:4}  line {step.line}: {step.source}")
        for access in step.accesses:
            taken = access.offsets[access.mask]
            where = f"elements {taken.min()} ... {taken.max()}" if taken.size else "nothing"
            print(f"          {access.kind}s {where} of {access.argument}, {access.mask.mean():.0%} of the lanes")
        for name, value in step.values.items():
            print(f"          {name} = {_show(value)}")


def run(argv: list[str] | None) -> int:
    operators = sorted({layer.operator for layer in WORKLOADS.values()})
    parser = Parser(
        prog="alexnet trace",
        description="Runs one program of one of AlexNet's layers in the interpreter, and prints every step: the line, "
        "what it loads or stores, and the values it sets.",
    )
    add = parser.add_argument
    add("operator", choices=operators, metavar="OPERATOR", help=", ".join(operators))
    add("--layer", choices=WORKLOADS, metavar="LAYER", help="one of the operator's (its first)")
    add("--program", type=int, nargs="+", default=[0], metavar="ID", help="program ids, up to three (0)")
    add("--architecture", choices=tiles.ARCHITECTURES, default="sm_90", help="whose tile (%(default)s)")
    options = parser.parse_args(argv)
    layers = [name for name, layer in WORKLOADS.items() if layer.operator == options.operator]
    name = options.layer or layers[0]
    if name not in layers:
        parser.error(f"argument --layer: {name} is a layer of {WORKLOADS[name].operator}, not of {options.operator}")
    if len(options.program) > 3:
        parser.error(f"argument --program: takes up to three ids, got {len(options.program)}")

    with interrupts_exit():
        import torch

        from kernels import runtime
    torch.manual_seed(0)
    layer = WORKLOADS[name]
    operands = layer.random_operands(1, torch.float32, "cpu")
    with runtime.record_launches() as launches, tiles.target(options.architecture):
        layer.run(*operands)
    kernel = next(x.kernel.__name__ for x in launches if x.kernel.__name__.startswith(f"_{options.operator}"))
    try:
        with tiles.target(options.architecture):
            found = trace(lambda: layer.run(*operands), kernel, options.program)
    except TraceError as error:
        raise AlexNetError(error) from error
    _print(found)
    return 0


def main(argv: list[str] | None = None) -> int:
    return command.run("alexnet trace", run, argv)


if __name__ == "__main__":
    sys.exit(main())
