"""AlexNet's layers as calls of the operators. The tools tune, time, trace and compile them.

Shapes are those of BVLC's deploy.prototxt (https://github.com/BVLC/caffe/tree/master/models/bvlc_alexnet).
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import kernels
from kernels.errors import AlexNetError
from kernels.tools import cost

if TYPE_CHECKING:
    import torch

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32"}
"""The commands' names of dtypes, and PyTorch's. ``tf32`` is float32, multiplied as TF32."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that the commands call ``name``."""
    import torch

    return getattr(torch, DTYPES[name])


class Workload(NamedTuple):
    """One call of an operator."""

    name: str
    operator: str
    input: cost.Shape  # of one image, without N
    parameters: tuple[cost.Shape, ...]  # of weight and bias
    arguments: dict  # the operator's other arguments
    first: bool = False  # reads the photo, whose gradient is not needed: operands[first:] have gradients

    def cost(self, batch: int = 1, itemsize: int = 4, *, backward: bool = False) -> cost.Cost:
        """The cost of the layer, or of its backward pass, for a batch of images. ``itemsize``: bytes per element."""
        formula = getattr(cost, self.operator + "_gradient" * backward)
        counted = inspect.signature(formula).parameters
        given = {**self.arguments, "first": self.first, "itemsize": itemsize}
        arguments = {name: value for name, value in given.items() if name in counted}
        return formula((batch, *self.input), *self.parameters[:1], **arguments)

    def operands(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> list[torch.Tensor]:
        """Input and parameters in the memory order that the kernels read. Their values are undefined."""
        import torch

        order = lambda shape: torch.channels_last if len(shape) == 4 else torch.contiguous_format
        shapes = ((batch, *self.input), *self.parameters)
        return [torch.empty(shape, dtype=dtype, device=device, memory_format=order(shape)) for shape in shapes]

    def random_operands(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> list[torch.Tensor]:
        """The same with normally distributed values. Weights are scaled to give the output the input's variance."""
        input, *parameters = self.operands(batch, dtype, device)
        input.normal_()
        for tensor in parameters:
            tensor.normal_(std=1.0 / math.sqrt(math.prod(tensor.shape[1:])))
        return [input, *parameters]

    def run(self, *operands: torch.Tensor) -> torch.Tensor:
        """Runs the layer on our kernels."""
        return getattr(kernels, self.operator)(*operands, **self.arguments)


def _conv(name: str, input: cost.Shape, weight: cost.Shape, **geometry: object) -> Workload:
    return Workload(name, "conv2d", input, (weight, weight[:1]), {**geometry, "relu": True})


def _fc(name: str, features: int, outputs: int, *, relu: bool) -> Workload:
    return Workload(name, "linear", (features,), ((outputs, features), (outputs,)), {"relu": relu})


class LRNArguments(TypedDict):
    """Arguments of :func:`kernels.local_response_norm`, which divides alpha by the window's size, as Caffe does."""

    size: int
    alpha: float
    beta: float
    k: float


BVLC_LRN: LRNArguments = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}
POOL = {"kernel_size": (3, 3), "stride": (2, 2)}

ALEXNET = (
    _conv("conv1", (3, 227, 227), (96, 3, 11, 11), stride=(4, 4))._replace(first=True),
    Workload("pool1", "lrn_max_pool2d", (96, 55, 55), (), {**BVLC_LRN, **POOL}),
    _conv("conv2", (96, 27, 27), (256, 48, 5, 5), padding=(2, 2), groups=2),
    Workload("pool2", "lrn_max_pool2d", (256, 27, 27), (), {**BVLC_LRN, **POOL}),
    _conv("conv3", (256, 13, 13), (384, 256, 3, 3), padding=(1, 1)),
    _conv("conv4", (384, 13, 13), (384, 192, 3, 3), padding=(1, 1), groups=2),
    _conv("conv5", (384, 13, 13), (256, 192, 3, 3), padding=(1, 1), groups=2),
    Workload("pool5", "max_pool2d", (256, 13, 13), (), POOL),
    _fc("fc6", 9216, 4096, relu=True),
    _fc("fc7", 4096, 4096, relu=True),
    _fc("fc8", 4096, 1000, relu=False),
)
"""The network in evaluation, in order."""

UNFUSED = (
    Workload("relu1", "bias_relu", (96, 55, 55), ((96, 1, 1),), {}),
    Workload("norm1", "local_response_norm", (96, 55, 55), (), {**BVLC_LRN}),
    Workload("norm2", "local_response_norm", (256, 27, 27), (), {**BVLC_LRN}),
    Workload("drop6", "dropout", (4096,), (), {"p": 0.5, "seed": 0}),
    Workload("drop7", "dropout", (4096,), (), {"p": 0.5, "seed": 0}),
    Workload("prob", "softmax", (1000,), (), {"dim": 1}),
)
"""Operators that the network fuses into other layers, needs in training, or applies to its logits."""

WORKLOADS = {layer.name: layer for layer in ALEXNET + UNFUSED}
OPERATORS = tuple(dict.fromkeys(layer.operator for layer in WORKLOADS.values()))


def operator(text: str) -> str:
    """An operator's name, as an argument's ``type``."""
    if text not in OPERATORS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(OPERATORS)}, got {text!r}")
    return text


def layers_of(operators: Sequence[str]) -> list[Workload]:
    """The operators' layers. Without operators the network's."""
    return [layer for layer in WORKLOADS.values() if layer.operator in operators] or list(ALEXNET)


def names_of(operator: str | None, layer: str | None) -> list[str]:
    """The names of an operator's layers, or only ``layer``. None stands for all.

    Raises:
        AlexNetError: the layer is another operator's.
    """
    if operator and layer and WORKLOADS[layer].operator != operator:
        raise AlexNetError(f"--layer: {layer} is a layer of {WORKLOADS[layer].operator}, not of {operator}")
    return [layer] if layer else [name for name, each in WORKLOADS.items() if operator in (None, each.operator)]
