"""The operators in plain PyTorch, with the kernels' names and arguments.

The kernels are timed beside them, and training on the kernels is compared with training on them. The network uses them
only if it is told to.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Size = int | tuple[int, ...] | list[int]


def _with_relu(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def operator(*arguments: Any, relu: bool = False, **options: Any) -> torch.Tensor:
        y = product(*arguments, **options)
        return functional.relu(y, inplace=True) if relu else y

    return operator


def bias_relu(input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As :func:`kernels.bias_relu`."""
    return functional.relu(input + bias, inplace=True)


def lrn_max_pool2d(
    input: torch.Tensor, size: int, alpha: float, beta: float, k: float, kernel_size: Size, stride: Size
) -> torch.Tensor:
    """As :func:`kernels.lrn_max_pool2d`."""
    normalise = _banded_local_response_norm if input.device.type == "cpu" else local_response_norm
    return functional.max_pool2d(normalise(input, size, alpha, beta, k), kernel_size, stride)


def _banded_local_response_norm(input: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> torch.Tensor:
    """Local response normalisation of images, faster on a CPU.

    There PyTorch's own, by three-dimensional average pooling, takes as long as all of AlexNet's convolutions together.
    Here the sums over channels are a convolution with a band of ones around a matrix's diagonal.
    """
    channels = torch.arange(input.shape[-3])
    ahead = channels - channels[:, None]  # how far an input is ahead of the output whose window it may be in
    band = (ahead >= -(size // 2)) & (ahead <= (size - 1) // 2)
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    with torch.autocast("cpu", enabled=False):
        filters = band.to(wide.dtype).mul_(alpha / size)[:, :, None, None]
        denominator = functional.conv2d(wide * wide, filters).add_(k).pow(beta)
    return (wide / denominator).to(input.dtype)


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, *, seed: int | None = None) -> torch.Tensor:
    """As :func:`kernels.dropout`, except that PyTorch's own generator chooses which elements are dropped."""
    return functional.dropout(input, p, training)


conv2d = _with_relu(functional.conv2d)
linear = _with_relu(functional.linear)
local_response_norm = functional.local_response_norm
max_pool2d = functional.max_pool2d
softmax = functional.softmax
cross_entropy = functional.cross_entropy
