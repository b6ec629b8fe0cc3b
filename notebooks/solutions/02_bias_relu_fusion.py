"""Solutions of the exercises in 02_bias_relu_fusion."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import triton
import triton.language as tl


@triton.jit
def leaky(x_ptr, bias_ptr, y_ptr, elements, slope, LENGTH: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    v = x + tl.load(bias_ptr + offs // STEP % LENGTH, mask=mask, other=0.0)
    tl.store(y_ptr + offs, tl.where(v > 0.0, v, slope * v), mask=mask)


@triton.jit
def residual(
    x_ptr, bias_ptr, before_ptr, y_ptr, elements, LENGTH: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr
):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    bias = tl.load(bias_ptr + offs // STEP % LENGTH, mask=mask, other=0.0)
    before = tl.load(before_ptr + offs, mask=mask, other=0.0)
    y = tl.maximum(x + bias + before, 0.0)
    tl.store(y_ptr + offs, y, mask=mask)


@triton.jit
def epilogue(x_ptr, w_ptr, bias_ptr, y_ptr, M, N, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, K)
    mask_m, mask_n = offs_m < M, offs_n < N
    x = tl.load(x_ptr + offs_m[:, None] * K + offs_k[None, :], mask=mask_m[:, None], other=0.0)
    w = tl.load(w_ptr + offs_k[:, None] * N + offs_n[None, :], mask=mask_n[None, :], other=0.0)
    acc = tl.dot(x, w, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)
    acc = tl.maximum(acc + bias[None, :], 0.0)
    y_ptrs = y_ptr + offs_m[:, None] * N + offs_n[None, :]
    tl.store(y_ptrs, acc, mask=mask_m[:, None] & mask_n[None, :])
