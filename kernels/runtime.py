"""Where the kernels run: compiled on a GPU, interpreted on the CPU, or as compiled code on the CPU.

Triton reads ``TRITON_INTERPRET`` when a function is decorated with ``@triton.jit``. This module sets the variable: 0 if
there is a GPU, else 1. Every operator imports this module before it decorates a kernel. A value that the user has set
is kept: ``TRITON_INTERPRET=1`` steps through the kernels on a machine with a GPU.

The third way is the PTX machine (kernels/ptx): Triton compiles each launch for an NVIDIA GPU, and its PTX is executed
and checked on the CPU. ``ALEXNET_BACKEND=ptx`` sends all launches of a process there, for the GPU that ``ALEXNET_ARCH``
names (default: sm_80), and ``with backend("ptx", arch="sm_90")`` those inside.
"""

import contextlib
import importlib
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch

if "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from kernels.errors import AlexNetError

INTERPRETED: bool = triton.knobs.runtime.interpret

if INTERPRETED and not isinstance(tl.sum, InterpretedFunction):
    # triton was imported before, for example by torchvision. Its own functions (tl.sum, tl.zeros) were decorated for a
    # GPU and cannot be interpreted. Reloading decorates them again.
    for module in (tl.standard, tl.random, tl):
        importlib.reload(module)

# After the reload, and before anything is interpreted: ptx keeps the original triton.language.
from kernels import ptx  # noqa: E402

if INTERPRETED:
    # The interpreter computes with NumPy, which warns of NaN and inf, also in masked rows. A GPU does not.
    warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning, "triton.runtime.interpreter")

_INTERPRETED = tl.constexpr(INTERPRETED)
# The interpreter keeps its place in the grid in a global variable, and the compiler cannot run while it runs.
_one_at_a_time = threading.Lock()


class BackendError(AlexNetError, ValueError):
    """A backend, or an architecture for it, that does not exist."""


def _known(arch: str) -> str:
    if arch not in ptx.ARCHITECTURES:
        raise BackendError(f"the PTX machine knows {', '.join(ptx.ARCHITECTURES)}, got {arch!r}")
    return arch


_name = os.environ.get("ALEXNET_BACKEND")
if _name not in (None, "ptx"):
    raise BackendError(f"ALEXNET_BACKEND must be ptx or not set, got {_name!r}")
_arch = _known(os.environ.get("ALEXNET_ARCH", "sm_80")) if _name else None
_ptx: ContextVar[str | None] = ContextVar("ptx", default=_arch)  # the architecture, if launches go to the PTX machine


def mode() -> str:
    """``"compiled"``, ``"interpreted"`` or ``"ptx"``."""
    return "ptx" if _ptx.get() else "interpreted" if INTERPRETED else "compiled"


def backend(name: str, arch: str = "sm_80") -> AbstractContextManager[str | None]:
    """Inside the ``with``, this thread's launches run elsewhere than by default.

    ``"ptx"`` executes the PTX that Triton compiles for ``arch``, on CPU tensors; ``"default"`` is what the process
    began with, without ALEXNET_BACKEND. Another name or architecture raises BackendError.
    """
    if name not in ("ptx", "default"):
        raise BackendError(f'backend must be "ptx" or "default", got {name!r}')
    return set_inside(_ptx, _known(arch) if name == "ptx" else None)


def default_device() -> torch.device:
    """The device that the kernels run on: the current GPU when compiled, the CPU otherwise."""
    return torch.device("cuda" if mode() == "compiled" else "cpu")


def check_gpu() -> None:
    """Raises AlexNetError if the kernels are compiled, since ``TRITON_INTERPRET=0`` was set, but there is no GPU."""
    if mode() == "compiled" and not torch.cuda.is_available():
        raise AlexNetError("TRITON_INTERPRET=0 asks for compiled kernels, but no GPU is here; unset it to interpret")


class Launch(NamedTuple):
    """One launch of a kernel. ``grid`` is a function of ``constants``, which include the config."""

    kernel: triton.JITFunction
    grid: Callable[[dict], tuple[int, ...]]
    args: tuple
    constants: dict


_launches: ContextVar[list[Launch]] = ContextVar("launches")  # set inside record_launches()


def launch(kernel: triton.JITFunction, grid: Callable[[dict], tuple[int, ...]], *args, **constants) -> None:
    """``kernel[grid](*args, **constants)``, on the GPU of the first argument. All launches come through here."""
    launches = _launches.get(None)
    if launches is not None:
        launches.append(Launch(kernel, grid, args, constants))
        return
    if arch := _ptx.get():
        with _one_at_a_time:
            ptx.launch(kernel, grid(constants), args, constants, arch)
        return
    # Triton launches on the current GPU, wherever the tensors are.
    device = args[0].device
    with (
        torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext(),
        _one_at_a_time if INTERPRETED else contextlib.nullcontext(),
    ):
        kernel[grid](*args, **constants)


_Value = TypeVar("_Value")


@contextlib.contextmanager
def set_inside(variable: ContextVar[_Value], value: _Value) -> Iterator[_Value]:
    """``variable`` is ``value`` inside the ``with``: for this thread only, backward passes that it starts included."""
    token = variable.set(value)
    try:
        # On a GPU, autograd runs backward passes in threads of its own, which would not see the value.
        with torch.autograd.set_multithreading_enabled(False):
            yield value
    finally:
        variable.reset(token)


def record_launches() -> AbstractContextManager[list[Launch]]:
    """Collects the launches made inside the ``with`` instead of running them, for any GPU, and without one.

    Outputs hold whatever was in their memory. If recordings are nested, the innermost alone gets a launch.
    """
    return set_inside(_launches, [])


def is_recording() -> bool:
    """Whether launches are recorded instead of run. Tensors then hold no values to look at."""
    return _launches.get(None) is not None


def register(
    name: str, launcher: Callable, output: Callable, setup: Callable | None = None, gradient: Callable | None = None
) -> Callable:
    """Registers the PyTorch operator ``alexnet::name``, for autograd, torch.compile and torch.export, and returns it.

    Args:
        launcher: writes the results into its last argument. Its annotations become the operator's.
        output: makes tensors of the results' shapes, dtypes and memory order from the arguments before the last. If all
            are empty, the launcher is not called.
        setup, gradient: as :func:`torch.library.register_autograd` takes them, or from :func:`gradient_of_input`.

    ``torch.library.custom_op`` would do the same, but its first call imports torch._dynamo, which takes seconds.
    """

    def operator(*args):
        results = output(*args)
        if any(result.numel() for result in (results if isinstance(results, tuple) else (results,))):
            launcher(*args, results)
        return results

    def no_gradient(*_):
        raise NotImplementedError(f"{name} has no gradient: the kernels are differentiated once")

    *arguments, results = inspect.signature(launcher).parameters.values()
    signature = inspect.Signature(arguments, return_annotation=results.annotation)
    operator.__signature__ = signature  # type: ignore[attr-defined]
    qualified = f"alexnet::{name}"
    torch.library.define(qualified, torch.library.infer_schema(operator, mutates_args=()))
    torch.library.impl(qualified, "CompositeExplicitAutograd", operator)
    torch.library.register_fake(qualified, output)
    torch.library.register_autograd(qualified, gradient or no_gradient, setup_context=setup)
    return getattr(torch.ops.alexnet, name).default


def gradient_of_input(gradient: Callable, saves: Callable) -> tuple[Callable, Callable]:
    """``setup`` and ``gradient`` for :func:`register`, of an operator whose first argument alone has a gradient.

    ``gradient`` takes the first result's gradient, and the tensors and others that ``saves(arguments, results)`` tells.
    """

    def setup(ctx, inputs, output):
        saved = [(value, None) if isinstance(value, torch.Tensor) else (None, value) for value in saves(inputs, output)]
        tensors, ctx.others = zip(*saved, strict=True)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(output[1:] if isinstance(output, tuple) else ()))
        ctx.set_materialize_grads(False)  # no zeros in place of gradients that results do not have
        ctx.rest = [None] * (len(inputs) - 1)

    def backward(ctx, grad, *_):
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        saved = (other if tensor is None else tensor for tensor, other in pairs)
        return None if grad is None else gradient(grad, *saved), *ctx.rest

    return setup, backward


def autocast(*tensors: torch.Tensor | None, dtype: torch.dtype | None = None) -> tuple:
    """The tensors as an operator sees them under :class:`torch.autocast` of the first's device, else as they are.

    All floating-point tensors except float64 are cast to ``dtype``, which is float32 for sums of exponentials, or if it
    is None to autocast's own (https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference).
    """
    device = tensors[0].device.type if isinstance(tensors[0], torch.Tensor) else "meta"  # which has no autocast
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = dtype or torch.get_autocast_dtype(device)
    cast = lambda x: x.is_floating_point() and x.dtype is not torch.float64
    return tuple(x.to(dtype) if isinstance(x, torch.Tensor) and cast(x) else x for x in tensors)


def runs_on(device: torch.device) -> bool:
    """Whether a launch on ``device`` would work: on a GPU, on the CPU for PTX, anywhere if interpreted or recorded."""
    if mode() == "ptx":
        return device.type in ("cpu", "meta") or is_recording()
    return INTERPRETED or device.type == "cuda" or is_recording()


def architecture(device: torch.device | None = None) -> str:
    """The name of the device's architecture: ``"sm_90"``, ``"gfx942"``, or ``"interpreter"``."""
    if arch := _ptx.get():
        return arch
    if INTERPRETED:
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def dot_precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: ``"tf32"`` if PyTorch's matmul would too, else ``"ieee"``."""
    # torch.backends.cuda.matmul.allow_tf32 sets this too. It cannot be read once the newer name was used.
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype is torch.float32 and tf32 else "ieee"


def index_type(*tensors: torch.Tensor) -> tl.dtype:
    """The integer type of offsets into ``tensors``: 32 bits are faster, and enough for less than 2^31 elements."""
    return tl.int64 if any(tensor.numel() >= 2**31 for tensor in tensors) else tl.int32


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in fp32: [M, K] x [K, N] -> [M, N]."""
    if _INTERPRETED:  # the interpreter's tl.dot multiplies the bit patterns of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Rounds fp32 to the output's dtype: to the nearest value, and to the even one of two equally near."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the upper half of fp32; the interpreter would cut off the lower half
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        y = tl.where(x == x, rounded, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.jit
def trips(count):
    """``count`` for ``range()``, if it is known only at run time: ``for step in range(runtime.trips(count))``.

    In the interpreter it is a plain int: Triton 3.6 cannot use its own tensors there with NumPy 2.4.
    """
    if _INTERPRETED:
        return count.handle.data.item()
    return count


@triton.jit
def tile_order(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """The tile (pid_m, pid_n) of program ``pid``: GROUP_M rows of tiles at a time, column by column.

    So programs that run together share a few rows of A and columns of B in L2, instead of one row and all of B.
    """
    per_group = GROUP_M * tiles_n
    first_m = (pid // per_group) * GROUP_M
    rows = tl.minimum(tiles_m - first_m, GROUP_M)
    pid_m = first_m + (pid % per_group) % rows
    pid_n = (pid % per_group) // rows
    return pid_m, pid_n
