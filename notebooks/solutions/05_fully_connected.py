"""Solutions of the exercises in 05_fully_connected."""

import math

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import triton
import triton.language as tl


def meeting_batch(N, K, itemsize, rate, bandwidth):
    gained = 2 * N * K / rate - itemsize * (K + N) / bandwidth  # seconds per photo
    if gained <= 0:
        return None
    return math.ceil(itemsize * (N * K + N) / bandwidth / gained)


@triton.jit
def linear_kn(
    x_ptr,  # [M, K]
    w_ptr,  # [K, N]
    b_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid_m, pid_n = tl.program_id(0), tl.program_id(1)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m = (offs_m < M)[:, None]
    mask_n = (offs_n < N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        inside = offs_k < K
        x = tl.load(x_ptr + offs_m[:, None] * K + offs_k[None, :], mask=mask_m & inside[None, :], other=0.0)
        w = tl.load(w_ptr + offs_k[:, None] * N + offs_n[None, :], mask=inside[:, None] & mask_n, other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    y = acc + tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0)[None, :]
    tl.store(y_ptr + offs_m[:, None] * N + offs_n[None, :], tl.maximum(y, 0.0), mask=mask_m & mask_n)


@triton.jit
def row_int8(
    x_ptr,  # [K]
    w_ptr,  # [N, K], int8
    scale_ptr,  # [N]
    y_ptr,  # [N]
    N,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    rows = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    there = rows < N
    total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        columns = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + columns, mask=columns < K, other=0.0)
        w = tl.load(w_ptr + rows[:, None] * K + columns[None, :], mask=there[:, None] & (columns < K)[None, :], other=0)
        total += w.to(tl.float32) * x[None, :]
    scale = tl.load(scale_ptr + rows, mask=there, other=0.0)
    tl.store(y_ptr + rows, tl.sum(total, 1) * scale, mask=there)
