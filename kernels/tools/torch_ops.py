"""The operators in plain PyTorch, under the kernels' names and with their arguments.

What the kernels are timed beside, and what a training run on the kernels is compared with. Nothing here is on the
network's path unless it is asked for by name.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

__all__ = [
    "bias_relu",
    "conv2d",
    "cross_entropy",
    "dropout",
    "linear",
    "local_response_norm",
    "lrn_max_pool2d",
    "max_pool2d",
    "softmax",
]


def _relu(y: torch.Tensor, relu: bool) -> torch.Tensor:
    return functional.relu(y, inplace=True) if relu else y


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    relu: bool = False,
) -> torch.Tensor:
    """As :func:`kernels.conv2d`."""
    return _relu(functional.conv2d(input, weight, bias, stride, padding, dilation, groups), relu)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, relu: bool = False
) -> torch.Tensor:
    """As :func:`kernels.linear`."""
    return _relu(functional.linear(input, weight, bias), relu)


def bias_relu(input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As :func:`kernels.bias_relu`."""
    return _relu(input + bias, True)


def lrn_max_pool2d(
    input: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: int | tuple[int, ...] | list[int],
    stride: int | tuple[int, ...] | list[int],
) -> torch.Tensor:
    """As :func:`kernels.lrn_max_pool2d`."""
    normalise = _banded_local_response_norm if input.device.type == "cpu" else local_response_norm
    return functional.max_pool2d(normalise(input, size, alpha, beta, k), kernel_size, stride)


def _banded_local_response_norm(input: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> torch.Tensor:
    """Local response normalisation of images for a CPU.

    There PyTorch's, by three-dimensional average pooling, takes as long as all of AlexNet's convolutions together.
    Here the sums over channels are a convolution with ones around a matrix's diagonal.
    """
    channels = torch.arange(input.shape[-3])
    ahead = channels - channels[:, None]  # of an input before the output whose window it may be in
    band = (ahead >= -(size // 2)) & (ahead <= (size - 1) // 2)
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    with torch.autocast("cpu", enabled=False):
        filters = band.to(wide.dtype).mul_(alpha / size)[:, :, None, None]
        denominator = functional.conv2d(wide * wide, filters).add_(k).pow(beta)
    return (wide / denominator).to(input.dtype)


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, *, seed: int | None = None) -> torch.Tensor:
    """As :func:`kernels.dropout`, but for which elements are dropped: PyTorch's own generator chooses them."""
    return functional.dropout(input, p, training)


local_response_norm = functional.local_response_norm
max_pool2d = functional.max_pool2d
softmax = functional.softmax
cross_entropy = functional.cross_entropy
