"""Sizes that convolutions and poolings share."""

from collections.abc import Sequence
from typing import NamedTuple


def output_size(
    size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Output pixels along one axis. ``padding`` counts both ends together.

    With ``ceil_mode`` the last window may end outside the padded input, if it starts inside the input or in the padding
    before it, as in :func:`torch.nn.functional.max_pool2d`.
    """
    reach = size + padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding // 2 else count


class Geometry(NamedTuple):
    """A convolution's sizes, as constants of its kernels. ``C`` and ``K`` are channels and filters of one group."""

    C: int
    H: int
    W: int
    K: int
    P: int
    Q: int
    R: int
    S: int
    STRIDE_H: int
    STRIDE_W: int
    PAD_H: int
    PAD_W: int
    DILATION_H: int
    DILATION_W: int
    GROUPS: int

    @classmethod
    def of(
        cls, input: Sequence[int], weight: Sequence[int], output: Sequence[int],
        stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    ) -> "Geometry":  # fmt: skip
        """From shapes (N, C, H, W), (K, C / groups, R, S) and (N, K, P, Q), and padding (top, bottom, left, right)."""
        _, _, H, W = input
        K, C, R, S = weight
        _, _, P, Q = output
        return cls(
            C, H, W, K // groups, P, Q, R, S,
            stride[0], stride[1], padding[0], padding[2], dilation[0], dilation[1], groups,
        )  # fmt: skip


def window_constants(
    input_size: Sequence[int],
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
) -> dict[str, int]:
    """A pooling's sizes, as constants of its kernels, from pairs (vertical, horizontal).

    Without padding and dilation if the kernel takes none.
    """
    names = ("H", "W", "P", "Q", "R", "S", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DILATION_H", "DILATION_W")
    return dict(zip(names, (*input_size, *output_size, *kernel_size, *stride, *padding, *dilation), strict=False))
