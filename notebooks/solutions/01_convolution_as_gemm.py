"""Solutions of the exercises in 01_convolution_as_gemm."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import torch
import torch.nn.functional as F
import triton
import triton.language as tl


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    span = dilation * (kernel - 1) + 1
    return (size + 2 * padding - span) // stride + 1


@triton.jit
def im2col(
    x_ptr,  # [N, H, W, C]
    a_ptr,  # [N * P * Q, R * S * C]
    M,  # N * P * Q
    C,
    H,
    W,
    P,
    Q,
    R,
    S,
    stride,
    padding,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    n, p, q = offs_m // (P * Q), offs_m // Q % P, offs_m % Q
    r, s, c = offs_k // (S * C), offs_k // C % S, offs_k % C
    h = (p * stride - padding)[:, None] + r[None, :]  # [BLOCK_M, BLOCK_K]
    w = (q * stride - padding)[:, None] + s[None, :]
    mask = (offs_m < M)[:, None] & (offs_k < R * S * C)[None, :]
    inside = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    x = tl.load(x_ptr + ((n[:, None] * H + h) * W + w) * C + c[None, :], mask=inside, other=0.0)
    tl.store(a_ptr + (offs_m * (R * S * C))[:, None] + offs_k[None, :], x, mask=mask)


def fold_filter(weight: torch.Tensor, block: int) -> torch.Tensor:
    K, C, R, S = weight.shape
    rows, columns = -(-R // block), -(-S // block)
    padded = F.pad(weight, (0, columns * block - S, 0, rows * block - R))
    blocks = padded.reshape(K, C, rows, block, columns, block).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(K, block * block * C, rows, columns)
