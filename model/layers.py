"""The network's layers: PyTorch's own modules on the kernels.

Parameters, names and initialisation are those of ``torch.nn``. Only ``forward`` differs. A layer takes the arguments
that it honours, and no others. It also returns its cost for an input of a given shape.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import nn

import kernels
from kernels.tools import cost, torch_ops

OPERATORS: dict[str, ModuleType] = {"triton": kernels, "torch": torch_ops}
"""Modules of operators, by the names that the commands have for them."""


class Layer(nn.Module):
    """A layer that calls the functions of the module ``operators``."""

    operators: ModuleType = kernels

    def __getstate__(self) -> dict:
        """For :func:`copy.deepcopy` and :func:`torch.save`: modules cannot be copied, but their names can."""
        return {**super().__getstate__(), "operators": self.operators.__name__}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({**state, "operators": import_module(state.get("operators", "kernels"))})


class Conv2d(Layer, nn.Conv2d):
    """Convolution, bias and ReLU in one kernel."""

    padding: tuple[int, ...]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operators.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, groups=self.groups, relu=True
        )

    def cost(self, input: cost.Shape, itemsize: int) -> cost.Cost:
        return cost.conv2d(input, tuple(self.weight.shape), self.stride, self.padding, itemsize=itemsize)


class Linear(Layer, nn.Linear):
    """A fully connected layer, with ReLU in the same kernel if ``relu``."""

    def __init__(self, in_features: int, out_features: int, *, relu: bool):
        super().__init__(in_features, out_features)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operators.linear(x, self.weight, self.bias, relu=self.relu)

    def cost(self, input: cost.Shape, itemsize: int) -> cost.Cost:
        rows = (input[0], self.in_features)
        return cost.linear(rows, tuple(self.weight.shape), itemsize=itemsize)


class LRNMaxPool2d(Layer):
    """Local response normalisation, then 3 x 3 max pooling at stride 2, in one pass over memory."""

    def __init__(self, size: int, alpha: float, beta: float, k: float):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operators.lrn_max_pool2d(x, self.size, self.alpha, self.beta, self.k, kernel_size=3, stride=2)

    def cost(self, input: cost.Shape, itemsize: int) -> cost.Cost:
        return cost.lrn_max_pool2d(input, self.size, (3, 3), (2, 2), itemsize=itemsize)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, kernel_size=3, stride=2"


class MaxPool2d(Layer, nn.MaxPool2d):
    """Max pooling of square windows."""

    kernel_size: int
    stride: int

    def __init__(self, kernel_size: int, stride: int):
        super().__init__(kernel_size, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operators.max_pool2d(x, self.kernel_size, self.stride)

    def cost(self, input: cost.Shape, itemsize: int) -> cost.Cost:
        return cost.max_pool2d(input, (self.kernel_size,) * 2, (self.stride,) * 2, itemsize=itemsize)


class Dropout(Layer, nn.Dropout):
    """Dropout in training, the identity in evaluation."""

    def __init__(self, p: float):
        super().__init__(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operators.dropout(x, self.p, self.training)
