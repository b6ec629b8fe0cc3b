"""Each result is compared with float64, and timed only if it is right: by :func:`check_and_time`."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

import kernels
from kernels.tools import torch_ops
from kernels.tools.bench.device import Device, Times
from kernels.tools.bench.works import Function, Started, Tensors, Work
from kernels.tools.workloads import torch_dtype

BOUNDS = {"fp16": 2e-3, "bf16": 1.6e-2, "fp32": 1e-5, "tf32": 2e-3}  # of max|out - ref| / max|ref|
STEP_BOUNDS = {"fp16": 0.1, "bf16": 0.25, "fp32": 2e-3, "tf32": 0.1}  # for a training step: see _step_deviation
CHUNK = 64  # images compared at once, because float64 takes memory
MISSING = "has no such operator"  # PyTorch has no kernels for some dtypes on some devices: not a fault

# Right?


class Gap:
    """max|output - reference| / max|reference| over parts that are compared one after another."""

    def __init__(self) -> None:
        self.gap = self.scale = 0.0

    def add(self, got: torch.Tensor, want: torch.Tensor) -> None:
        """Compares a part. NaN or another shape is an infinite gap."""
        difference = (got.double() - want).abs().max().item() if got.shape == want.shape else math.inf
        self.gap = max(self.gap, difference if math.isfinite(difference) else math.inf)
        self.scale = max(self.scale, want.abs().max().item())

    @property
    def share(self) -> float:
        return self.gap / self.scale if self.scale else math.inf


def deviation(work: Work, operands: Tensors, outputs: Tensors, forward: torch.Tensor | None = None) -> float:
    """max|output - reference| / max|reference| against float64, over every element of every output.

    Infinite for NaN or another shape. ``forward`` is the provider's own output if ``outputs`` are gradients.
    """
    # In float64 cuDNN would try its algorithms at every shape, for a product that runs once.
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        if work.pass_ == "step":
            return _step_deviation(work, operands, outputs)
        if forward is not None:
            return _backward_deviation(work, operands, outputs, forward)
        return (_dropout_deviation if work.operator == "dropout" else _forward_deviation)(work, operands, outputs)
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _forward_deviation(work: Work, operands: Tensors, outputs: Tensors) -> float:
    (output,), (input, *parameters) = outputs, operands
    if len(output) != len(input):
        return math.inf
    parameters = [parameter.double() for parameter in parameters]
    gap = Gap()
    for x, got in zip(input.split(CHUNK), output.split(CHUNK), strict=True):
        gap.add(got, work.theirs(x.double(), *parameters))
    return gap.share


def _dropout_deviation(work: Work, operands: Tensors, outputs: Tensors) -> float:
    """The operator chooses which elements it drops, but not how many: within 6 standard deviations."""
    (output,), (input,) = outputs, operands
    if output.shape != input.shape:
        return math.inf
    p = work.layers[0].arguments["p"]
    gap = Gap()
    for x, got in zip(input.split(CHUNK), output.split(CHUNK), strict=True):
        gap.add(got, torch.where(got == 0, 0.0, x.double() / (1.0 - p)))
    kept = output.numel() * (1.0 - p)
    return gap.share if abs(int(output.count_nonzero()) - kept) <= 6.0 * math.sqrt(kept * p) else math.inf


def _backward_deviation(work: Work, operands: Tensors, outputs: Tensors, forward: torch.Tensor) -> float:
    """Takes the masks of ReLU and dropout from the provider's own output.

    A sum that rounds to the other side of zero would switch a whole gradient on or off, and both would be right.
    """
    (layer,) = work.layers
    input, *given, gradient = operands
    parameters: list[Any] = [x.double().requires_grad_() for x in given]  # Any: PyTorch annotates .grad as optional
    arguments = {name: value for name, value in layer.arguments.items() if name != "relu"}
    unmasked: dict[str, Function] = {"bias_relu": torch.add, "dropout": lambda x: x}
    exact = unmasked.get(layer.operator, functools.partial(getattr(torch_ops, layer.operator), **arguments))
    of_input = Gap()
    for start in range(0, len(input), CHUNK):
        part = slice(start, start + CHUNK)
        x: Any = input[part].double().requires_grad_(not layer.first)
        back, y = gradient[part].double(), forward[part]
        if layer.operator == "bias_relu" or layer.arguments.get("relu"):
            back = torch.where(y <= 0, 0.0, back)
        elif layer.operator == "dropout":
            back = torch.where(y == 0, 0.0, back / (1.0 - layer.arguments["p"]))
        with torch.enable_grad():
            exact(x, *parameters).backward(back)
        if not layer.first:
            of_input.add(outputs[0][part], x.grad)
    compared = [] if layer.first else [of_input]
    for got, parameter in zip(outputs[len(compared) :], parameters, strict=True):
        compared.append(Gap())
        compared[-1].add(got, parameter.grad)
    return max(gap.share for gap in compared)


def _step_deviation(work: Work, operands: Tensors, outputs: Tensors) -> float:
    """The largest ||gradient - reference|| / ||reference|| of a parameter.

    Norms, and wide bounds: over eight layers a rounding moves some gradients to another pixel of a window, or past
    ReLU's zero. Their number is proportional to the rounding, so this error is proportional to its square root.
    PyTorch's own was 5e-4 in float32 for conv1 (batch 8). Each operator's own gradient is held to the narrow bounds.
    """
    input, *given, target = operands
    parameters: list[Any] = [x.double().requires_grad_() for x in given]
    for x, wanted in zip(input.split(CHUNK), target.split(CHUNK), strict=True):
        with torch.enable_grad():
            functional.cross_entropy(work.theirs(x.double(), *parameters), wanted, reduction="sum").backward()
    pairs = zip(outputs, parameters, strict=True)
    shares = [((got.double() - exact.grad).norm() / exact.grad.norm()).item() for got, exact in pairs]
    return max(share if math.isfinite(share) else math.inf for share in shares)


# And how fast?


class Result(NamedTuple):
    """A provider's times. If there are none, ``problem`` says why."""

    variant: str  # "triton", "torch NCHW"
    times: Times | None
    error: float = math.nan
    problem: str = ""

    @property
    def p50_ms(self) -> float:
        """The median. Infinite if there are no times."""
        return self.times[1] if self.times else math.inf


def check_and_time(
    device: Device,
    variant: str,
    start: Callable[[], Started],
    deviate: Callable[[Tensors, torch.Tensor | None], float],
    bound: float,
    trains: bool = False,
) -> Result:
    """Runs, compares, and times if the result is right. A failure becomes a result, too, so that the rest goes on.

    ``deviate`` gives the error of outputs, from them and the output of the forward pass if they are gradients.
    ``trains``: whether it is a training step, which folds filters each time.
    """
    try:
        run, outputs, started = device.prepare(start, trains)
        error = deviate(outputs, started.output)
        if not error <= bound:
            return Result(variant, None, error, f"WRONG: error {error:.1e}, allowed {bound:.1e}")
        del outputs
        return Result(variant, device.time(run), error)
    except NotImplementedError as error:
        return Result(variant, None, problem=f"{MISSING}: {error}")
    except Exception as error:  # a compiler's crash, or no memory left, of one provider at one size
        return Result(variant, None, problem=failure(error))


def failure(error: Exception) -> str:
    """An exception in one line: its type and the first line of its message."""
    reason = str(error).strip().splitlines() or [""]
    return f"FAILED: {type(error).__name__}: {reason[0]}"


def time_work(
    device: Device, variant: str, work: Work, dtype: str, forward: Function, loss: Function, operands: Tensors
) -> Result:
    """Checks and times work on one provider's functions. ``operands`` are in its memory order."""
    start = lambda: work.start(forward, loss, operands)
    deviate = lambda outputs, output: deviation(work, operands, outputs, output)
    step = work.pass_ == "step"
    return check_and_time(device, variant, start, deviate, (STEP_BOUNDS if step else BOUNDS)[dtype], trains=step)


def compiled(function: Function) -> Function:
    """The function compiled by Inductor at its most thorough, for one shape."""
    from torch._inductor import select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False  # dozens of lines per layer
    torch._functorch.config.donated_buffer = False  # would free what a replayed backward pass reads again
    torch._dynamo.reset()  # drops the code for earlier shapes: Dynamo keeps only a few
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)


def time_provider(
    device: Device, provider: str, work: Work, dtype: str, operands: Tensors, layout: str
) -> list[Result]:
    """A provider's results. PyTorch has two if the tensors have two memory orders; ``layout`` is the compiler's."""
    if provider == "triton":
        return [time_work(device, provider, work, dtype, work.ours, kernels.cross_entropy, operands)]
    results = []
    for order in (layout,) if provider == "compile" or not layout else ("NCHW", "NHWC"):
        forward = compiled(work.theirs) if provider == "compile" else work.theirs
        given = [tensor.contiguous() for tensor in operands] if order == "NCHW" else operands
        name = f"{provider} {order}".strip()
        results.append(time_work(device, name, work, dtype, forward, functional.cross_entropy, given))
        device.release()
    return results


Roof = tuple[Result, int, int]  # its timing, FLOPs and bytes


def roof_copy(device: Device) -> Roof:
    """Times a large copy of random numbers. It reads and writes each byte."""
    source = torch.empty(device.copy_size, device=device.device).normal_()
    target = torch.empty_like(source)
    deviate = lambda outputs, _: 0.0 if torch.equal(outputs[0], source) else math.inf
    result = check_and_time(device, "torch", lambda: Started(lambda: (target.copy_(source),)), deviate, 0.0)
    return result, 0, 2 * source.nbytes


def roof_matmul(device: Device, dtype: str) -> Roof:
    """Times a large matrix product of random numbers. Its first rows are compared with float64."""
    n = device.matmul_size
    a, b = (torch.empty(n, n, dtype=torch_dtype(dtype), device=device.device).normal_() for _ in range(2))

    def deviate(outputs: Tensors, _: torch.Tensor | None) -> float:
        gap = Gap()
        gap.add(outputs[0][:CHUNK], a[:CHUNK].double() @ b.double())
        return gap.share if outputs[0].isfinite().all() else math.inf

    result = check_and_time(device, "torch", lambda: Started(lambda: (torch.mm(a, b),)), deviate, BOUNDS[dtype])
    return result, 2 * n**3, 3 * a.nbytes
