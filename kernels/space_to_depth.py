"""Space to depth: blocks of pixels become channels, so that a strided convolution becomes a dense one.

    y[n, (dr * B + ds) * C + c, h, w] = x[n, c, h * B + dr - top, w * B + ds - left],   0 outside x

A filter at stride B over C channels is a filter of ceil(R / B) x ceil(S / B) at stride 1 over B * B * C channels, once
the filter is folded in the same way. AlexNet's conv1 (3 channels, 11 x 11, stride 4) becomes 48 channels, 3 x 3: runs
of 48 contiguous elements where there were 3, which a GPU loads 16 bytes at a time. The price is 432 taps for 363, and
this pass over the input, which a photo in NCHW order would need anyway to become NHWC.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles


@triton.jit
def _space_to_depth_kernel(
    x_ptr,  # [N, C, H, W], by its strides
    y_ptr,  # [N, P, Q, B * B * C]
    M,  # N * P * Q
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    B: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid = tl.program_id(0)
    TILES_N: tl.constexpr = (B * B * C + BLOCK_N - 1) // BLOCK_N  # one after another: they read the same rows of x
    offs_m = (pid // TILES_N).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] folded pixels
    offs_k = pid % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] folded channels
    mask = (offs_m < M)[:, None] & (offs_k < B * B * C)[None, :]
    n = offs_m // (P * Q)
    h = ((offs_m // Q) % P * B - TOP)[:, None] + (offs_k // (B * C))[None, :]  # [BLOCK_M, BLOCK_N]
    w = (offs_m % Q * B - LEFT)[:, None] + (offs_k // C % B)[None, :]
    inside = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    x_ptrs = x_ptr + (n * stride_xn)[:, None] + (offs_k % C * stride_xc)[None, :] + h * stride_xh + w * stride_xw
    x = tl.load(x_ptrs, mask=inside, other=0.0)
    tl.store(y_ptr + (offs_m * (B * B * C))[:, None] + offs_k[None, :], x, mask=mask)


def launch_space_to_depth(x: torch.Tensor, block: int, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """(N, C, H, W) -> (N, block * block * C, height, width) in channels_last memory; NCHW and NHWC are both read."""
    N, C, H, W = x.shape
    output = torch.empty(
        (N, block * block * C, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous(memory_format=torch.channels_last)
    M = N * height * width
    tile = tiles.lookup("space_to_depth", x, M, block * block * C, 1)
    runtime.launch(
        _space_to_depth_kernel,
        lambda META: (triton.cdiv(M, META["BLOCK_M"]) * triton.cdiv(block * block * C, META["BLOCK_N"]),),
        x,
        output,
        M,
        *x.stride(),
        C=C,
        H=H,
        W=W,
        P=height,
        Q=width,
        B=block,
        TOP=top,
        LEFT=left,
        INDEX=runtime.index_type(x, output),
        **tile,
    )
    return output
