"""Space to depth: blocks of pixels become channels, so that a strided convolution becomes a dense one.

    y[n, (dr * B + ds) * C + c, h, w] = x[n, c, h * B + dr - top, w * B + ds - left],   0 outside x

A filter at stride B over C channels becomes a filter of ceil(R / B) x ceil(S / B) at stride 1 over B * B * C channels,
if the filter is folded in the same way. AlexNet's conv1 (3 channels, 11 x 11, stride 4) becomes 48 channels, 3 x 3.
Then runs of 48 elements are contiguous instead of 3, and a GPU loads 16 bytes of them at a time. This costs 432 taps
instead of 363, and a pass over the input. A photo in NCHW order needs such a pass anyway to become NHWC.

Backward, the folded convolution is differentiated. Depth to space then puts each gradient back to its element's place,
and drops the gradients of the zeros outside x.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.ops.geometry import channels_last
from kernels.tiles.choices import ELEMENTWISE, ITEMSIZE, Choices, Config, Problem, warp_size, whole_rows


@triton.jit
def _space_to_depth_kernel(
    x_ptr,  # [N, C, H, W], by its strides
    y_ptr,  # [N, P, Q, B * B * C]
    M,  # N * P * Q
    stride_xn, stride_xc, stride_xh, stride_xw,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    B: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (B * B * C + BLOCK_N - 1) // BLOCK_N  # in sequence, since they read the same rows of x
    offs_m = (pid // TILES_N).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] folded pixels
    offs_k = pid % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] folded channels
    mask = (offs_m < M)[:, None] & (offs_k < B * B * C)[None, :]
    n = offs_m // (P * Q)
    h = ((offs_m // Q) % P * B - TOP)[:, None] + (offs_k // (B * C))[None, :]  # [BLOCK_M, BLOCK_N]
    w = (offs_m % Q * B - LEFT)[:, None] + (offs_k // C % B)[None, :]
    inside = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    c = (offs_k % C).to(INDEX)  # planes lie far apart
    x_ptrs = x_ptr + (n * stride_xn)[:, None] + (c * stride_xc)[None, :] + h * stride_xh + w * stride_xw
    x = tl.load(x_ptrs, mask=inside, other=0.0)
    tl.store(y_ptr + (offs_m * (B * B * C))[:, None] + offs_k[None, :], x, mask=mask)


@triton.jit
def _depth_to_space_kernel(
    y_ptr,  # [N, P, Q, B * B * C]
    x_ptr,  # [N, H, W, C]
    elements,  # N * H * W * C
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    B: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    # A row of x consists of runs of B * C elements of y: the B pixels of one block side by side.
    offs = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] elements of x
    mask = offs < elements
    n = offs // (H * W * C)
    h = offs // (W * C) % H + TOP
    w = offs // C % W + LEFT
    inside = mask & (h // B < P) & (w // B < Q)  # the last pixels of x may be in no block
    y_ptrs = y_ptr + ((n * P + h // B) * Q + w // B) * (B * B * C) + (h % B * B + w % B) * C + offs % C
    tl.store(x_ptr + offs, tl.load(y_ptrs, mask=inside, other=0.0), mask=mask)


def _default(architecture: str, problem: Problem) -> Config:
    """A warp reads 16 neighbouring pixels of few rows, and writes 32 bytes of each."""
    block_n = 32 // ITEMSIZE[problem.dtype]
    return {"BLOCK_M": 2048 // block_n, "BLOCK_N": block_n, "num_warps": 4}


def _tried(architecture: str, problem: Problem) -> list[Config]:
    vector = 16 // ITEMSIZE[problem.dtype]
    return [
        {"BLOCK_M": warp_size(architecture) * warps * rows // n, "BLOCK_N": n * vector, "num_warps": warps}
        for n in (1, 2, 4, 8)
        for rows in (1, 2)
        for warps in (2, 4, 8)
    ]


tiles.register("space_to_depth", Choices(_default, _tried, whole_rows))
tiles.register("depth_to_space", ELEMENTWISE)


def launch_space_to_depth(x: torch.Tensor, block: int, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """(N, C, H, W), in NCHW or NHWC order -> (N, block * block * C, height, width) in channels_last memory."""
    N, C, H, W = x.shape
    output = channels_last((N, block * block * C, height, width), x)
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous(memory_format=torch.channels_last)
    M = N * height * width
    runtime.launch(
        _space_to_depth_kernel,
        lambda META: (triton.cdiv(M, META["BLOCK_M"]) * triton.cdiv(block * block * C, META["BLOCK_N"]),),
        x, output, M, *x.stride(),
        C=C, H=H, W=W, P=height, Q=width, B=block, TOP=top, LEFT=left,
        INDEX=runtime.index_type(x, output), **tiles.lookup("space_to_depth", x, M, block * block * C, 1),
    )  # fmt: skip
    return output


def launch_depth_to_space(y: torch.Tensor, block: int, top: int, left: int, output: torch.Tensor) -> None:
    """The inverse, of y in channels_last memory: pixels that space to depth did not read are 0."""
    _, C, H, W = output.shape
    _, _, P, Q = y.shape
    elements = output.numel()
    runtime.launch(
        _depth_to_space_kernel, lambda META: (triton.cdiv(elements, META["BLOCK_M"]),),
        y, output, elements,
        C=C, H=H, W=W, P=P, Q=Q, B=block, TOP=top, LEFT=left,
        INDEX=runtime.index_type(y, output), **tiles.lookup("depth_to_space", y, elements, 1, 1),
    )  # fmt: skip


def folds(weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether a convolution runs folded: if that makes a tap's channels a multiple of 16 bytes, as for conv1.

    A filter smaller than its stride would be folded mostly into zeros. ``weight`` is the shape.
    """
    _, C, R, S = weight
    step = stride[0]
    square = step == stride[1] > 1 and tuple(dilation) == (1, 1) and min(R, S) >= step
    return groups == 1 and square and C % 8 != 0 and C * step * step % 8 == 0


def fold_input(
    input: torch.Tensor, weight: Sequence[int], step: int, padding: Sequence[int], P: int, Q: int
) -> torch.Tensor:
    """Folds the input, with its padding, for a folded convolution: (N, C, H, W) -> (N, step^2 * C, H', W')."""
    _, _, R, S = weight
    height, width = P - 1 + triton.cdiv(R, step), Q - 1 + triton.cdiv(S, step)
    return launch_space_to_depth(input, step, padding[0], padding[2], height, width)


def fold_weight(weight: torch.Tensor, step: int) -> torch.Tensor:
    """Folds filters as :func:`fold_input`: (K, C, R, S) -> (K, step^2 * C, ceil(R / step), ceil(S / step))."""
    _, _, R, S = weight.shape
    fold = lambda: launch_space_to_depth(weight, step, 0, 0, triton.cdiv(R, step), triton.cdiv(S, step))
    kept = _kept.get(None)
    if kept is None:
        return fold()
    key = weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, step  # a view has its base's address
    if key not in kept:
        kept[key] = weight, fold()  # the filters are kept too, so that no others get their address
    return kept[key][1]


Kept = dict[tuple, tuple[torch.Tensor, torch.Tensor]]
_kept: ContextVar[Kept] = ContextVar("kept")


def fold_once() -> AbstractContextManager[Kept]:
    """Folds each filter only at its first use inside the ``with``. Filters must not change meanwhile.

    Gives the folded filters: a CUDA graph that is captured inside reads them as long as it lives.
    """
    return runtime.set_inside(_kept, {})
