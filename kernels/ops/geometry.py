"""Sizes and memory that convolutions and poolings share."""

from collections.abc import Sequence

import torch


def channels_last(shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty (N, C, H, W) in channels_last memory, of the dtype and on the device of ``like``."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def output_size(
    size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Output pixels along one axis. ``padding`` counts both ends together.

    With ``ceil_mode`` the last window may end outside the padded input, if it starts before the padding at the end.
    """
    reach = size + padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding // 2 else count


def window_constants(
    input_size: Sequence[int], output_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int] = (), dilation: Sequence[int] = (),
) -> dict[str, int]:  # fmt: skip
    """A sliding window's sizes, as constants of kernels, from pairs (vertical, horizontal)."""
    names = ("H", "W", "P", "Q", "R", "S", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DILATION_H", "DILATION_W")
    return dict(zip(names, (*input_size, *output_size, *kernel_size, *stride, *padding, *dilation), strict=False))


def convolution_constants(
    input: Sequence[int], weight: Sequence[int], output: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> dict[str, int]:  # fmt: skip
    """A convolution's sizes, as constants of its kernels, from shapes and padding (top, bottom, left, right)."""
    window = window_constants(input[2:], output[2:], weight[2:], stride, padding[::2], dilation)
    return window | {"C": weight[1], "K": weight[0] // groups, "GROUPS": groups}
