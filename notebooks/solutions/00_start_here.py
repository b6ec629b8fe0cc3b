"""Solutions of the exercises in 00_start_here."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import triton
import triton.language as tl


@triton.jit
def saxpy(x_ptr, y_ptr, out_ptr, a, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    y = tl.load(y_ptr + offs, mask=mask, other=0.0)
    tl.store(out_ptr + offs, a * x + y, mask=mask)


@triton.jit
def mirror(x_ptr, y_ptr, H, W, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = (offs_h < H)[:, None] & (offs_w < W)[None, :]
    row = offs_h[:, None] * W
    x = tl.load(x_ptr + row + offs_w[None, :], mask=mask, other=0.0)
    tl.store(y_ptr + row + (W - 1 - offs_w)[None, :], x, mask=mask)


@triton.jit
def row_max(x_ptr, y_ptr, M, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    largest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    for n0 in range(0, N, BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        mask = mask_m[:, None] & (offs_n < N)[None, :]
        x = tl.load(x_ptr + offs_m[:, None] * N + offs_n[None, :], mask=mask, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(x, 1))
    tl.store(y_ptr + offs_m, largest, mask=mask_m)
