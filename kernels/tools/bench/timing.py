"""Timing the kernels beside PyTorch's operators: what :mod:`kernels.tools.bench.cli` and the tuner are made of.

- Correct first. What is timed is what is checked: the output of the replayed graph, filled with NaN before the
  replay, against float64 on the same device, every element of it, 64 images at a time. Each provider is held to the
  same bounds; a result outside them is reported as WRONG and has no time. Inputs are random.
- The backward pass of a layer makes the gradients of its input (but conv1's, which nobody wants) and of its parameters
  from a random gradient of its output; the forward pass before it is not timed. A training step of the network is
  forward, cross entropy, backward and PyTorch's own fused SGD with momentum and weight decay, the same for all, at a
  learning rate of 0 so that each replay does the same work; without dropout, whose masks would differ.
- The others at their best: PyTorch eager with ``cudnn.benchmark`` in NCHW and in channels_last memory, of which the
  faster counts, and ``torch.compile`` with max-autotune in that one's memory order. One dtype for all, and one way of
  multiplying float32: IEEE, or TF32 where the dtype is called tf32.
- Every provider, ours included, is timed as replays of a CUDA graph, which leaves out the time Python takes to launch.
  ``max-autotune-no-cudagraphs`` is max-autotune without Inductor's own graphs, which copy their inputs at each replay.
- ``triton.testing.do_bench``: events around each replay, L2 flushed before it, the 20th, 50th and 80th percentiles.
  A replay itself takes a few microseconds, which all providers pay.
- The roofs, a large copy and a large matrix product, are measured in the same run.
"""

import contextlib
import csv
import datetime
import functools
import gc
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch.nn import functional
from tqdm import tqdm

import kernels
from kernels import runtime
from kernels.errors import AlexNetError
from kernels.ops.space_to_depth import fold_once
from kernels.tools import torch_ops
from kernels.tools.cost import Cost
from kernels.tools.roofline import COLUMNS, PROVIDERS, Row, baseline, roofs, share
from kernels.tools.workloads import ALEXNET, POOL, WORKLOADS, Workload, torch_dtype

BOUNDS = {"fp16": 2e-3, "bf16": 1.6e-2, "fp32": 1e-5, "tf32": 2e-3}  # of max|out - ref| / max|ref|
STEP_BOUNDS = {"fp16": 0.1, "bf16": 0.25, "fp32": 2e-3, "tf32": 0.1}  # for a training step: see _step_deviation
CHUNK = 64  # images compared at once: float64 takes memory
INTERPRETED = "interpreted on a CPU"  # what stands for the GPU's name without one
MISSING = "has no such operator"  # of PyTorch, for some dtypes on some devices: no fault of anybody's

Run = Callable[[], object]
Times = tuple[float, float, float]  # 20th, 50th and 80th percentile, in ms


# What is timed


class Work(NamedTuple):
    """Something to time: a pass of one layer, or of several in a row."""

    name: str
    layers: tuple[Workload, ...]
    pass_: str = "forward"  # or backward, or step

    @property
    def operator(self) -> str:
        """Which operator; ``network`` for several."""
        return self.layers[0].operator if len(self.layers) == 1 else "network"

    def cost(self, batch: int, itemsize: int) -> Cost:
        """Summed over the layers; a step is both passes, its loss and its optimizer left out."""
        passes = {"forward": [False], "backward": [True], "step": [False, True]}[self.pass_]
        costs = [layer.cost(batch, itemsize, backward=backward) for backward in passes for layer in self.layers]
        return Cost(costs[-1].output, *(sum(column) for column in list(zip(*costs, strict=True))[1:]))

    def random_operands(self, batch: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
        """The first layer's input, every layer's parameters; then the output's gradient, or a step's classes."""
        input, *parameters = self.layers[0].random_operands(batch, dtype, device)
        for layer in self.layers[1:]:
            parameters += layer.random_operands(1, dtype, device)[1:]
        if self.pass_ == "forward":
            return [input, *parameters]
        output = self.layers[-1].cost(batch).output
        if self.pass_ == "step":
            return [input, *parameters, torch.randint(output[1], (batch,), device=device)]
        if self.operator == "lrn_max_pool2d":
            _untie(input)
        memory = torch.channels_last if len(output) == 4 else torch.contiguous_format
        gradient = torch.empty(output, dtype=dtype, device=device, memory_format=memory).normal_()
        return [input, *parameters, gradient]

    @property
    def ours(self) -> Callable[..., torch.Tensor]:
        """A function of the input and the parameters: the layers on our kernels."""
        return self._chain(lambda layer: layer.run)

    @property
    def theirs(self) -> Callable[..., torch.Tensor]:
        """The same in PyTorch, in the operands' own dtype and memory order."""
        return self._chain(lambda layer: functools.partial(getattr(torch_ops, layer.operator), **layer.arguments))

    def _chain(self, take: Callable[[Workload], Callable[..., torch.Tensor]]) -> Callable[..., torch.Tensor]:
        calls = [(take(layer), len(layer.parameters), layer.operator == "linear") for layer in self.layers]

        def forward(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
            for call, count, flat in calls:
                x = call(x.flatten(1) if flat else x, *parameters[:count])
                parameters = parameters[count:]
            return x

        return forward

    def start(
        self, forward: Callable[..., torch.Tensor], loss: Callable[..., torch.Tensor], operands: list[torch.Tensor]
    ) -> "Started":
        """What to time, with ``forward`` and ``loss`` one provider's."""
        if self.pass_ == "forward":
            return Started(lambda: (forward(*operands),), None)
        *operands, last = operands
        trained = operands[1:] if self.layers[0].first else operands
        given = [x.detach().requires_grad_(any(x is y for y in trained)) for x in operands]
        trained = [x for x in given if x.requires_grad]
        with torch.enable_grad():
            if self.pass_ == "backward":
                output = forward(*given)
                run = lambda: torch.autograd.grad(output, trained, last, retain_graph=True)
                return Started(run, output.detach())
            optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)

            @torch.enable_grad()
            def step() -> tuple[torch.Tensor, ...]:
                gradients = torch.autograd.grad(loss(forward(*given), last, reduction="sum"), trained)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                return gradients

            return Started(step, None)


class Started(NamedTuple):
    """What to time."""

    run: Callable[[], tuple[torch.Tensor, ...]]
    output: torch.Tensor | None  # of the forward pass, where the backward pass is timed


def _untie(x: torch.Tensor) -> None:
    """Fills an (N, C, H, W) tensor so that rounding cannot change which of 3 x 3 neighbours is the largest.

    Else two providers may send a gradient to different pixels, and neither would be wrong.
    """
    N, C, H, W = x.shape
    ranks = torch.rand(N, C, 9, device=x.device).argsort(-1)  # of the nine, another order for each image and channel
    place = torch.arange(H, device=x.device)[:, None] % 3 * 3 + torch.arange(W, device=x.device) % 3
    x.uniform_(0.0, 0.5).add_(ranks[:, :, place])


NETWORK = Work("alexnet", ALEXNET)
STEP = Work("alexnet", ALEXNET, "step")


def _whole(name: str) -> Workload:
    """A convolution of AlexNet's, not in groups."""
    layer = WORKLOADS[name]
    (K, C, R, S), bias = layer.parameters
    arguments = {**layer.arguments}
    groups = arguments.pop("groups", 1)
    return layer._replace(parameters=((K, C * groups, R, S), bias), arguments=arguments)


_CONV1 = WORKLOADS["conv1"]._replace(input=(3, 224, 224), arguments={"stride": (4, 4), "padding": (2, 2)})
_RELU1 = _CONV1._replace(arguments={**_CONV1.arguments, "relu": True})
_POOLS = [Workload(name, "max_pool2d", WORKLOADS[name].input, (), POOL) for name in ("pool1", "pool2", "pool5")]


class Published(NamedTuple):
    """A problem of KernelBench's, and its authors' times on an H100, in ms."""

    work: Work
    batch: int
    eager_ms: float
    compile_ms: float


KERNELBENCH = (
    Published(Work("kernelbench-1-50", (_CONV1,)), 256, 2.20, 1.74),
    Published(
        Work(
            "kernelbench-3-5",
            (_RELU1, _POOLS[0], _whole("conv2"), _POOLS[1], *map(_whole, ("conv3", "conv4", "conv5")), *ALEXNET[7:]),
        ),
        1024,
        23.7,
        16.7,
    ),
)
"""Level 1 problem 50, conv1 without ReLU, and level 3 problem 5, AlexNet without LRN and groups.

Times: https://github.com/ScalingIntelligence/KernelBench, results/timing. Their script leaves PyTorch's precision at
its defaults, float32 with TF32 in cuDNN's convolutions alone: between our fp32 and our tf32.
"""


# Where it runs


class Gpu:
    """The current GPU: graphs, and their replays timed with events."""

    interpreted = False
    matmul_size = 8192  # rows and columns of the roof's product

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise AlexNetError("TRITON_INTERPRET=0 asks for compiled kernels, but no GPU is here; unset it")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.device)
        memory = torch.cuda.get_device_properties(self.device).total_memory
        self.copy_size = min(2**30, memory // 32)  # floats in the roof's copy: far more than a cache holds

    def prepare(self, start: Callable[[], Started], trains: bool) -> tuple[Run, list[torch.Tensor], Started]:
        """What to time, captured in a graph, and the outputs of one replay of it."""
        # Filters fold when a network is loaded, not at each pass; where it trains, at each step.
        with contextlib.nullcontext() if trains else fold_once() as folded:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # a backward pass runs on the stream of its forward pass
                started = start()
                for _ in range(3):  # compiles, chooses cuDNN's algorithms, allocates workspaces: none can be captured
                    started.run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # The outer one goes back to the stream here where a capture fails, which torch.cuda.graph does not.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=stream):
                outputs = list(started.run())

        def replay(_=folded) -> None:  # which the graph reads
            graph.replay()

        for output in outputs:
            output.fill_(math.nan)
        replay()
        torch.cuda.synchronize()
        return replay, outputs, started

    def time(self, run: Run) -> Times:
        """With L2 flushed before each run."""
        return tuple(triton.testing.do_bench(run, warmup=50, rep=300, quantiles=[0.2, 0.5, 0.8]))

    def release(self) -> None:
        """Gives back what dropped tensors and graphs held."""
        gc.collect()
        torch.cuda.empty_cache()


class Interpreter:
    """The CPU, where Triton interprets the kernels: the same rows, none of them a kernel's speed."""

    interpreted = True
    name = INTERPRETED
    device = torch.device("cpu")
    copy_size = 2**24
    matmul_size = 512

    def prepare(self, start: Callable[[], Started], trains: bool) -> tuple[Run, list[torch.Tensor], Started]:
        """What to time, and the outputs of one run of it."""
        started = start()
        return started.run, list(started.run()), started

    def time(self, run: Run) -> Times:
        """Three runs, or as many as begin within 0.3 s."""
        times: list[float] = []
        while len(times) < 3 and sum(times) < 300:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        return tuple(torch.tensor(times).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist())

    def release(self) -> None:
        """Nothing to give back."""


def here() -> Gpu | Interpreter:
    """Where the kernels run: what :mod:`kernels.runtime` decided."""
    return Interpreter() if runtime.INTERPRETED else Gpu()


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Products of float32 as TF32 inside where ``dtype`` is tf32, else as IEEE: ours, cuBLAS's and cuDNN's."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    conv = cudnn.conv  # type: ignore[attr-defined]  # PyTorch annotates some of this module's settings, not this one
    before = matmul.fp32_precision, conv.fp32_precision, cudnn.fp32_precision

    def use(matmul_tf32: bool, cudnn_tf32: bool, everything: str) -> None:
        # PyTorch has an older and a newer name for each, and raises where one is read that disagrees with the other;
        # Inductor reads both. The older setters set both, but for this one.
        matmul.allow_tf32, cudnn.allow_tf32 = matmul_tf32, cudnn_tf32
        cudnn.fp32_precision = everything

    use(dtype == "tf32", dtype == "tf32", "tf32" if dtype == "tf32" else "ieee")
    try:
        yield
    finally:
        use(before[0] == "tf32", before[1] == "tf32", before[2])


# Right, and how fast


class Gap:
    """max|output - reference| / max|reference| over parts that are compared one after another."""

    def __init__(self) -> None:
        self.gap = self.scale = 0.0

    def add(self, got: torch.Tensor, want: torch.Tensor) -> None:
        """Compares a part; NaN or another shape is an infinite gap."""
        difference = (got.double() - want).abs().max().item() if got.shape == want.shape else math.inf
        self.gap = max(self.gap, difference if math.isfinite(difference) else math.inf)
        self.scale = max(self.scale, want.abs().max().item())

    @property
    def share(self) -> float:
        return self.gap / self.scale if self.scale else math.inf


def deviation(
    work: Work, operands: list[torch.Tensor], outputs: list[torch.Tensor], forward: torch.Tensor | None = None
) -> float:
    """max|output - reference| / max|reference| against float64 over every element; inf for NaN or another shape.

    Of several outputs the largest. ``forward`` is the provider's own output where ``outputs`` are gradients.
    """
    # In float64 cuDNN would try out its algorithms at every shape, for a product that runs once.
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    compare: dict[str, Callable[..., float]] = {
        "forward": _forward_deviation,
        "backward": _backward_deviation,
        "step": _step_deviation,
    }
    try:
        return compare[work.pass_](work, operands, outputs, forward)
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _forward_deviation(work: Work, operands: list[torch.Tensor], outputs: list[torch.Tensor], _: None) -> float:
    (output,) = outputs
    input, *parameters = operands
    parameters = [parameter.double() for parameter in parameters]
    exact, found, kept = work.theirs, Gap(), 0
    if len(output) != len(input):
        return math.inf
    for start in range(0, len(input), CHUNK):
        x, got = input[start : start + CHUNK].double(), output[start : start + CHUNK]
        if work.operator == "dropout":  # which elements are dropped is the operator's choice, how many is not
            if got.shape != x.shape:
                return math.inf
            kept += int(got.count_nonzero())
            found.add(got, torch.where(got == 0, 0.0, x / (1.0 - work.layers[0].arguments["p"])))
        else:
            found.add(got, exact(x, *parameters))
    if work.operator == "dropout":
        p, elements = work.layers[0].arguments["p"], output.numel()
        if abs(kept - elements * (1.0 - p)) > 6.0 * math.sqrt(elements * p * (1.0 - p)):
            return math.inf
    return found.share


def _backward_deviation(
    work: Work, operands: list[torch.Tensor], outputs: list[torch.Tensor], forward: torch.Tensor
) -> float:
    """ReLU's and dropout's masks are taken from the provider's own output.

    A sum that rounds to the other side of zero would switch a whole gradient on or off, and is no fault of the
    gradient's.
    """
    (layer,) = work.layers
    input, *parameters, gradient = operands
    parameters = [parameter.double().requires_grad_() for parameter in parameters]
    masked = layer.operator == "bias_relu" or layer.arguments.get("relu", False)
    arguments = {name: value for name, value in layer.arguments.items() if name != "relu"}
    unmasked: dict[str, Callable[..., torch.Tensor]] = {"bias_relu": torch.add, "dropout": lambda x: x}
    exact = unmasked.get(layer.operator, functools.partial(getattr(torch_ops, layer.operator), **arguments))
    gaps = [Gap() for _ in outputs]
    sums = [torch.zeros_like(parameter) for parameter in parameters]  # of their gradients
    for start in range(0, len(input), CHUNK):
        chunk = slice(start, start + CHUNK)
        x, back, y = input[chunk].double(), gradient[chunk].double(), forward[chunk]
        if masked:
            back = torch.where(y <= 0, 0.0, back)
        elif layer.operator == "dropout":
            back = torch.where(y == 0, 0.0, back / (1.0 - layer.arguments["p"]))
        x.requires_grad_(not layer.first)
        with torch.enable_grad():
            parts = torch.autograd.grad(exact(x, *parameters), [x, *parameters][layer.first :], back)
        if not layer.first:
            gaps[0].add(outputs[0][chunk], parts[0])
        for total, part in zip(sums, parts[not layer.first :], strict=True):
            total += part
    for gap, got, want in zip(gaps[not layer.first :], outputs[not layer.first :], sums, strict=True):
        gap.add(got, want)
    return max(gap.share for gap in gaps)


def _step_deviation(work: Work, operands: list[torch.Tensor], outputs: list[torch.Tensor], _: None) -> float:
    """The largest ||gradient - reference|| / ||reference|| of a parameter.

    Of norms, and with wide bounds: through eight layers a rounding moves some gradients to the other of two pixels in a
    window, or past ReLU's zero. How many is in proportion to the rounding, so this error to its square root; PyTorch's
    own in float32 was 5e-4 for conv1 (batch 8). Each operator's gradient by itself is held to the narrow bounds.
    """
    input, *parameters, target = operands
    parameters = [parameter.double().requires_grad_() for parameter in parameters]
    sums = [torch.zeros_like(parameter) for parameter in parameters]  # of their gradients
    for start in range(0, len(input), CHUNK):
        with torch.enable_grad():
            y = work.theirs(input[start : start + CHUNK].double(), *parameters)
            loss = functional.cross_entropy(y, target[start : start + CHUNK], reduction="sum")
        for total, part in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            total += part
    shares = [((got.double() - want).norm() / want.norm()).item() for got, want in zip(outputs, sums, strict=True)]
    return max(share if math.isfinite(share) else math.inf for share in shares)


class Result(NamedTuple):
    """What came of one provider: its times, or none because of what ``problem`` says."""

    variant: str  # "triton", "torch NCHW"
    times: Times | None
    error: float
    problem: str = ""

    @property
    def p50_ms(self) -> float:
        """The median; infinite where there are no times."""
        return self.times[1] if self.times else math.inf


def judge(
    device: Gpu | Interpreter,
    variant: str,
    start: Callable[[], Started],
    deviate: Callable[[list[torch.Tensor], torch.Tensor | None], float],
    bound: float,
    trains: bool = False,
) -> Result:
    """Runs, compares, and times what compares well; what fails is reported and the rest goes on."""
    try:
        run, outputs, started = device.prepare(start, trains)
        error = deviate(outputs, started.output)
        if not error <= bound:
            return Result(variant, None, error, f"WRONG: error {error:.1e}, allowed {bound:.1e}")
        del outputs
        return Result(variant, device.time(run), error)
    except NotImplementedError as error:
        return Result(variant, None, math.nan, f"{MISSING}: {error}")
    except Exception as error:  # a compiler's crash, or no memory left, of one provider at one size
        return Result(variant, None, math.nan, failure(error))


def failure(error: Exception) -> str:
    """An exception in one line: its type and the first line of its message."""
    reason = str(error).strip().splitlines() or [""]
    return f"FAILED: {type(error).__name__}: {reason[0]}"


def judge_work(
    device: Gpu | Interpreter,
    variant: str,
    work: Work,
    dtype: str,
    forward: Callable[..., torch.Tensor],
    loss: Callable[..., torch.Tensor],
    operands: list[torch.Tensor],
) -> Result:
    """One provider's result for some work; ``operands`` are in the memory order that it takes."""
    start = lambda: work.start(forward, loss, operands)
    deviate = lambda outputs, output: deviation(work, operands, outputs, output)
    step = work.pass_ == "step"
    return judge(device, variant, start, deviate, (STEP_BOUNDS if step else BOUNDS)[dtype], trains=step)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """By Inductor at its most thorough, for one shape."""
    from torch._inductor import select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False  # dozens of lines a layer
    torch._functorch.config.donated_buffer = False  # it would free what a backward pass that is replayed reads again
    torch._dynamo.reset()  # drops the code for earlier shapes, of which Dynamo keeps a few only
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)


def provide(
    device: Gpu | Interpreter, provider: str, work: Work, dtype: str, operands: list[torch.Tensor], layout: str
) -> list[Result]:
    """A provider's results: two of torch's for tensors that have two orders in memory."""
    if provider == "triton":
        return [judge_work(device, provider, work, dtype, work.ours, kernels.cross_entropy, operands)]
    layouts = ("NCHW", "NHWC") if operands[0].dim() == 4 else ("",)
    if provider == "compile":
        layouts = (layout,)
    results = []
    for order in layouts:
        forward = compiled(work.theirs) if provider == "compile" else work.theirs
        given = [tensor.contiguous() for tensor in operands] if order == "NCHW" else operands
        name = f"{provider} {order}".strip()
        results.append(judge_work(device, name, work, dtype, forward, functional.cross_entropy, given))
        device.release()
    return results


class Roof(NamedTuple):
    """A roof's row, before it is one."""

    operator: str
    dtype: str
    flops: int
    bytes: int
    result: Result


def roof_copy(device: Gpu | Interpreter) -> Roof:
    """A large copy of random numbers, bytes read and written."""
    source = torch.empty(device.copy_size, device=device.device).normal_()
    target = torch.empty_like(source)
    deviate = lambda outputs, _: 0.0 if torch.equal(outputs[0], source) else math.inf
    result = judge(device, "torch", lambda: Started(lambda: (target.copy_(source),), None), deviate, 0.0)
    return Roof("roof_copy", "fp32", 0, 2 * source.nbytes, result)


def roof_matmul(device: Gpu | Interpreter, dtype: str) -> Roof:
    """A large matrix product of random numbers; its first rows are compared with float64."""
    n = device.matmul_size
    a, b = (torch.empty(n, n, dtype=torch_dtype(dtype), device=device.device).normal_() for _ in range(2))

    def deviate(outputs: list[torch.Tensor], _: torch.Tensor | None) -> float:
        want = a[:CHUNK].double() @ b.double()
        gap = (outputs[0][:CHUNK].double() - want).abs().max() / want.abs().max()
        return gap.item() if outputs[0].isfinite().all() else math.inf

    result = judge(device, "torch", lambda: Started(lambda: (torch.mm(a, b),), None), deviate, BOUNDS[dtype])
    return Roof("roof_matmul", dtype, 2 * n**3, 3 * a.nbytes, result)


# What is kept, and what is shown


class Table:
    """The CSV that rows are appended to as they come, so that an interrupted run keeps what it measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+", newline="", encoding="utf-8", errors="replace")  # it may be no text
        except OSError as error:
            raise AlexNetError(f"--out: cannot write {path}: {error.strerror}") from None
        self.file.seek(0)
        header = self.file.readline().strip()
        if header and header != ",".join(COLUMNS):
            raise AlexNetError(f"--out: {path} is not such a table: its first line is {header!r}")
        self.writer = csv.writer(self.file, lineterminator="\n")
        if not header:
            self.writer.writerow(COLUMNS)

    def append(self, row: Row) -> None:
        """Writes one row, through to the disk."""
        digits = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
        try:
            self.writer.writerow(digits)
            self.file.flush()
        except OSError as error:
            raise AlexNetError(f"--out: cannot write {self.path}: {error.strerror}") from error


def commit() -> str:
    """The commit of the code that is measured, ``-dirty`` where the kernels differ from it; else ``$GIT_COMMIT``."""
    here = Path(__file__).parent
    git = lambda *arguments: subprocess.run(
        ["git", "-C", here, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):  # a copy without its history
        return os.environ.get("GIT_COMMIT", "unknown")


LINE = "{:<20} {:<8} {:>5}  {:<5} {:>10} {:>10}  {:<12} {:>6} {:>8} {:>9}"
HEADER = LINE.format("layer", "pass", "batch", "dtype", "ours ms", "best ms", "best is", "ratio", "of roof", "error")


class Bench:
    """One run: what it measures goes to the screen line by line, and to the table where there is one."""

    def __init__(self, device: Gpu | Interpreter, table: Table | None) -> None:
        self.device = device
        self.table = table
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self.commit = commit()

    def show(self, line: str) -> None:
        """One line on stdout, above the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def record(
        self,
        operator: str,
        layer: str,
        pass_: str,
        dtype: str,
        batch: int,
        provider: str,
        result: Result,
        flops: int,
        bytes: int,
    ) -> None:
        """Keeps a timing, or the reason that there is none."""
        if result.times is None:
            what = layer if pass_ == "forward" else f"{layer}, {pass_}"
            self.problems.append(f"{what}, batch {batch}, {dtype}: {result.variant} {result.problem}")
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        versions = self.commit, self.device.name, str(torch.__version__), triton.__version__
        times = result.times
        row = Row(now, *versions, operator, layer, pass_, dtype, batch, provider, *times, flops, bytes, result.error)
        self.rows.append(row)
        if self.table:
            self.table.append(row)

    def roofs(self, dtype: str) -> None:
        """Measures the roofs for one dtype."""
        for measure in (roof_copy, lambda device: roof_matmul(device, dtype)):
            roof = measure(self.device)
            what = roof.operator, roof.operator, "forward", roof.dtype, 1, "torch"
            self.record(*what, roof.result, roof.flops, roof.bytes)
            self.device.release()
        found = roofs(self.rows, dtype)
        if found:
            copy, rate = found.bandwidth * 1e-12, found.rate * 1e-12
            self.show(f"roofs: copy {copy:.3g} TB/s, {dtype} matrix product {rate:.3g} TFLOP/s")

    def work(self, work: Work, batch: int, dtype: str, providers: list[str], step: Callable[[], object]) -> None:
        """Measures one thing by every provider, and shows the comparison."""
        found: dict[str, Result] = {}
        known = len(self.problems)
        cost = work.cost(batch, torch_dtype(dtype).itemsize)
        what = work.operator, work.name, work.pass_, dtype, batch
        try:
            operands = work.random_operands(batch, torch_dtype(dtype), self.device.device)
        except RuntimeError as error:  # torch.OutOfMemoryError, or what the CPU's allocator raises
            self.problems.append(f"{work.name}, batch {batch}, {dtype}: making its tensors {failure(error)}")
            self.show(f"  {self.problems[-1]}")
            return
        layout = "NHWC" if operands[0].dim() == 4 else ""
        for provider in sorted(providers, key=list(PROVIDERS).index):  # torch before compile: it tells the layout
            results = provide(self.device, provider, work, dtype, operands, layout)
            timed = [result for result in results if result.times]
            for result in results:
                if not result.times:
                    self.record(*what, provider, result, *cost[2:])
            if timed:
                fastest = found[provider] = min(timed, key=lambda result: result.p50_ms)
                self.record(*what, provider, fastest, *cost[2:])
                if provider == "torch":
                    layout = fastest.variant.partition(" ")[2]
            elif provider == "triton":
                found[provider] = results[0]
            step()
        del operands
        self.device.release()
        self.show(self.line(work, batch, dtype, found))
        for problem in self.problems[known:]:
            self.show(f"  {problem}")

    def line(self, work: Work, batch: int, dtype: str, found: dict[str, Result]) -> str:
        """The comparison as a line of the table on the screen."""
        key = work.name, work.pass_, dtype, batch
        rows = [row for row in self.rows if (row.layer, row.pass_, row.dtype, row.batch) == key]
        ours = next((row for row in rows if row.provider == "triton"), None)
        best = baseline(rows)
        limits = None if self.device.interpreted else roofs(self.rows, dtype)
        mine = found.get("triton")
        return LINE.format(
            work.name,
            work.pass_,
            batch,
            dtype,
            f"{ours.p50_ms:.4g}" if ours else (mine.problem.split(":")[0] if mine else "-"),
            f"{best.p50_ms:.4g}" if best else "-",
            found[best.provider].variant if best else "-",
            f"{best.p50_ms / ours.p50_ms:.2f}x" if ours and best else "-",
            f"{share(ours, limits):.1%}" if ours and limits else "-",
            f"{mine.error:.1e}" if mine and not math.isnan(mine.error) else "-",
        ).rstrip()
