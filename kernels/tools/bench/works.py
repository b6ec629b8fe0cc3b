"""What is timed: a pass of one layer, or of the whole network, on our kernels and on PyTorch's."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

import kernels
from kernels.tools import torch_ops
from kernels.tools.cost import Cost
from kernels.tools.workloads import ALEXNET, POOL, Workload

Function = Callable[..., torch.Tensor]
Tensors = list[torch.Tensor]


class Started(NamedTuple):
    """Work that can be run again and again."""

    run: Callable[[], tuple[torch.Tensor, ...]]
    output: torch.Tensor | None = None  # of the forward pass, if the backward pass is timed


class Work(NamedTuple):
    """One thing to time: a pass of one layer, or of several in a row."""

    name: str
    layers: tuple[Workload, ...]
    pass_: str = "forward"  # or backward, or step

    @property
    def operator(self) -> str:
        """The operator; ``network`` for several layers."""
        return self.layers[0].operator if len(self.layers) == 1 else "network"

    def cost(self, batch: int, itemsize: int) -> Cost:
        """The sum over the layers. A step counts both passes, but not its loss and its optimizer."""
        passes = {"forward": [False], "backward": [True], "step": [False, True]}[self.pass_]
        costs = [layer.cost(batch, itemsize, backward=backward) for backward in passes for layer in self.layers]
        return Cost(costs[-1].output, *(sum(column) for column in list(zip(*costs, strict=True))[1:]))

    def random_operands(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensors:
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
    def ours(self) -> Function:
        """A function of the input and the parameters: the layers on our kernels."""
        return self._chain(kernels)

    @property
    def theirs(self) -> Function:
        """The same in PyTorch, in the operands' own dtype and memory order."""
        return self._chain(torch_ops)

    def _chain(self, operators: ModuleType) -> Function:
        calls = [
            (functools.partial(getattr(operators, name), **arguments), len(parameters), name == "linear")
            for _, name, _, parameters, arguments, _ in self.layers
        ]

        def forward(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
            for call, count, flat in calls:
                x = call(x.flatten(1) if flat else x, *parameters[:count])
                parameters = parameters[count:]
            return x

        return forward

    def start(self, forward: Function, loss: Function, operands: Tensors) -> Started:
        """Prepares the work on one provider's functions ``forward`` and ``loss``."""
        if self.pass_ == "forward":
            return Started(lambda: (forward(*operands),))
        *operands, last = operands
        first = self.layers[0].first
        given = [x.detach().requires_grad_(number >= first) for number, x in enumerate(operands)]
        trained = given[first:]
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

            return Started(step)


def _untie(x: torch.Tensor) -> None:
    """Fills an (N, C, H, W) tensor so that rounding cannot change which of 3 x 3 neighbours is the largest.

    Otherwise two providers could send a gradient to different pixels, and both would be right.
    """
    N, C, H, W = x.shape
    ranks = torch.rand(N, C, 9, device=x.device).argsort(-1)  # of the nine: another order per image and channel
    place = torch.arange(H, device=x.device)[:, None] % 3 * 3 + torch.arange(W, device=x.device) % 3
    x.uniform_(0.0, 0.5).add_(ranks[:, :, place])


NETWORK = Work("alexnet", ALEXNET)
STEP = Work("alexnet", ALEXNET, "step")


class Published(NamedTuple):
    """A problem of KernelBench's, and its authors' times on an H100, in ms."""

    work: Work
    batch: int
    eager_ms: float
    compile_ms: float


def _simplified(layer: Workload) -> Workload:
    """Without groups, and without local response normalisation."""
    if layer.operator == "lrn_max_pool2d":
        return layer._replace(operator="max_pool2d", arguments=POOL)
    if layer.arguments.get("groups", 1) == 1:
        return layer
    (K, C, R, S), bias = layer.parameters
    filters = (K, C * layer.arguments["groups"], R, S)
    return layer._replace(parameters=(filters, bias), arguments={**layer.arguments, "groups": 1})


_CONV1 = ALEXNET[0]._replace(input=(3, 224, 224), arguments={"stride": (4, 4), "padding": (2, 2)})
_WITH_RELU = _CONV1._replace(arguments={**_CONV1.arguments, "relu": True})
KERNELBENCH = (
    Published(Work("kernelbench-1-50", (_CONV1,)), 256, 2.20, 1.74),
    Published(Work("kernelbench-3-5", (_WITH_RELU, *map(_simplified, ALEXNET[1:]))), 1024, 23.7, 16.7),
)
"""Level 1 problem 50, conv1 without ReLU, and level 3 problem 5, AlexNet without LRN and groups.

Times: https://github.com/ScalingIntelligence/KernelBench, results/timing. Their script leaves PyTorch's precision at
its defaults: float32, with TF32 only in cuDNN's convolutions. This is between our fp32 and our tf32.
"""
