"""Solutions of the exercises in 04_overlapping_pooling."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import triton
import triton.language as tl


def windows(size, kernel, stride, padding, ceil_mode):
    reach = size + 2 * padding - kernel
    if not ceil_mode:
        return reach // stride + 1
    n = -(-reach // stride) + 1
    return n - 1 if (n - 1) * stride >= size + padding else n


@triton.jit
def padded(
    x_ptr,
    y_ptr,
    elements,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    c = offs % C
    q = offs // C % Q
    p = offs // (C * Q) % P
    n = offs // (C * Q * P)
    best = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    for r in tl.static_range(SIZE):
        for s in tl.static_range(SIZE):
            h = p * STRIDE - PAD + r
            w = q * STRIDE - PAD + s
            inside = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            x = tl.load(x_ptr + ((n * H + h) * W + w) * C + c, mask=inside, other=float("-inf"))
            best = tl.maximum(best, x)
    tl.store(y_ptr + offs, best, mask=mask)


@triton.jit
def winner(
    x_ptr,
    tap_ptr,
    elements,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    c = offs % C
    q = offs // C % Q
    p = offs // (C * Q) % P
    n = offs // (C * Q * P)
    x_ptrs = x_ptr + ((n * H + p * STRIDE) * W + q * STRIDE) * C + c
    highest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    tap = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for r in tl.static_range(SIZE):
        for s in tl.static_range(SIZE):
            x = tl.load(x_ptrs + (r * W + s) * C, mask=mask, other=float("-inf"))
            tap = tl.where(x > highest, r * SIZE + s, tap)
            highest = tl.maximum(highest, x)
    tl.store(tap_ptr + offs, tap, mask=mask)
