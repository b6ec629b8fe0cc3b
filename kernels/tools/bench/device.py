"""The device that times: a GPU with graphs and events, or the CPU, where Triton interprets the kernels."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator

import torch
import triton

from kernels import runtime
from kernels.ops.space_to_depth import fold_once
from kernels.tools.bench.works import Started, Tensors

Run = Callable[[], object]
Times = tuple[float, float, float]  # 20th, 50th and 80th percentile, in ms


class Gpu:
    """The current GPU. Work is captured in a graph, and its replays are timed with events."""

    interpreted = False
    matmul_size = 8192  # rows and columns of the roof's product

    def __init__(self) -> None:
        runtime.check_gpu()
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.device)
        memory = torch.cuda.get_device_properties(self.device).total_memory
        self.copy_size = min(2**30, memory // 32)  # floats in the roof's copy: far more than a cache holds

    def prepare(self, start: Callable[[], Started], trains: bool) -> tuple[Run, Tensors, Started]:
        """Returns what to time, captured in a graph; the outputs of one replay of it; and what ``start`` returned."""
        # Filters are folded when a network is loaded, not at each pass. In training they are folded at each step.
        with contextlib.nullcontext() if trains else fold_once() as folded:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # a backward pass runs on the stream of its forward pass
                started = start()
                for _ in range(3):  # compiling, cuDNN's choice of algorithms and workspaces cannot be captured
                    started.run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # If a capture fails, the outer context returns to the current stream, which torch.cuda.graph does not.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=stream):
                outputs = list(started.run())

        def replay(_: object = folded) -> None:  # keeps the folded filters alive, which the graph reads
            graph.replay()

        for output in outputs:
            output.fill_(math.nan)
        replay()
        torch.cuda.synchronize()
        return replay, outputs, started

    def time(self, run: Run) -> Times:
        """Times the run, with the L2 cache flushed before each."""
        return tuple(triton.testing.do_bench(run, warmup=50, rep=300, quantiles=[0.2, 0.5, 0.8]))

    def release(self) -> None:
        """Frees the memory that dropped tensors and graphs held."""
        gc.collect()
        torch.cuda.empty_cache()


class Interpreter:
    """The CPU, where Triton interprets the kernels. It gives the same rows, but no speeds of kernels."""

    interpreted = True
    name = "interpreted on a CPU"
    device = torch.device("cpu")
    copy_size = 2**24
    matmul_size = 512

    def prepare(self, start: Callable[[], Started], trains: bool) -> tuple[Run, Tensors, Started]:
        """As :meth:`Gpu.prepare`, without a graph."""
        started = start()
        return started.run, list(started.run()), started

    def time(self, run: Run) -> Times:
        """Times three runs, or as many as begin within 0.3 s."""
        times: list[float] = []
        while len(times) < 3 and sum(times) < 300:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        return tuple(torch.tensor(times).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist())

    def release(self) -> None:
        """Nothing to free."""


Device = Gpu | Interpreter


def here() -> Device:
    """Where the kernels run here, as :mod:`kernels.runtime` decided."""
    return Interpreter() if runtime.INTERPRETED else Gpu()


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Inside, float32 is multiplied as TF32 if ``dtype`` is tf32, else as IEEE: by us, cuBLAS and cuDNN."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    conv = cudnn.conv  # type: ignore[attr-defined]  # PyTorch annotates some of this module's settings, not this one
    before = matmul.fp32_precision, conv.fp32_precision, cudnn.fp32_precision

    def use(matmul_tf32: bool, cudnn_tf32: bool, everything: str) -> None:
        # Each setting has an older and a newer name. PyTorch raises if they disagree, and Inductor reads both. The
        # older setters set both names, except this last one.
        matmul.allow_tf32, cudnn.allow_tf32 = matmul_tf32, cudnn_tf32
        cudnn.fp32_precision = everything

    use(dtype == "tf32", dtype == "tf32", "tf32" if dtype == "tf32" else "ieee")
    try:
        yield
    finally:
        use(before[0] == "tf32", before[1] == "tf32", before[2])
