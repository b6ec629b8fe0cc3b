"""Solutions of the exercises in 08_against_cublas."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import numpy as np
import triton
import triton.language as tl


def right(out, ref, bound):
    if out.shape != ref.shape:
        return False
    difference = (out.double() - ref.double()).abs()
    return bool((difference <= bound * ref.double().abs().max()).all())


def verdict(ours, theirs, warmup):
    our_low, our_high = np.quantile(ours[warmup:], [0.2, 0.8])
    their_low, their_high = np.quantile(theirs[warmup:], [0.2, 0.8])
    if our_high < their_low:
        return "faster"
    if our_low > their_high:
        return "slower"
    return "no difference"


@triton.jit
def linear_softmax(
    x_ptr,  # [M, K]
    w_ptr,  # [N, K]
    b_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # at least N
    BLOCK_K: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_m = (offs_m < M)[:, None]
    mask_n = (offs_n < N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        inside = offs_k < K
        x = tl.load(x_ptr + offs_m[:, None] * K + offs_k[None, :], mask=mask_m & inside[None, :], other=0.0)
        w = tl.load(w_ptr + offs_n[None, :] * K + offs_k[:, None], mask=inside[:, None] & mask_n, other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    y = acc + tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0)[None, :]
    y = tl.where(mask_n, y, float("-inf"))
    y = tl.exp(y - tl.max(y, 1)[:, None])
    y = y / tl.sum(y, 1)[:, None]
    tl.store(y_ptr + offs_m[:, None] * N + offs_n[None, :], y, mask=mask_m & mask_n)
