"""Solutions of the exercises in 03_local_response_norm."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import triton
import triton.language as tl


def from_tensorflow(depth_radius, bias, alpha, beta):
    size = 2 * depth_radius + 1
    return {"size": size, "alpha": alpha * size, "beta": beta, "k": bias}


@triton.jit
def contiguous(
    x_ptr,
    y_ptr,
    elements,
    scale,
    beta,
    k,
    C: tl.constexpr,
    PLANE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    c = offs // PLANE % C
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for j in tl.static_range(SIZE):
        shift = j - SIZE // 2
        exists = mask & (c + shift >= 0) & (c + shift < C)
        neighbour = tl.load(x_ptr + offs + shift * PLANE, mask=exists, other=0.0)
        total += neighbour * neighbour
    d = k + scale * total
    tl.store(y_ptr + offs, x * tl.exp2(-beta * tl.log2(d)), mask=mask)


@triton.jit
def rms_norm(x_ptr, y_ptr, M, eps, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, BLOCK_C)
    inside = (offs_m < M)[:, None] & (offs_c < C)[None, :]
    offs = offs_m[:, None] * C + offs_c[None, :]
    x = tl.load(x_ptr + offs, mask=inside, other=0.0)
    y = x * tl.rsqrt(eps + tl.sum(x * x, 1) / C)[:, None]
    tl.store(y_ptr + offs, y, mask=inside)
