"""Solutions of the exercises in 07_roofline."""

import lesson  # noqa: F401 - before triton: it turns on the interpreter

import triton
import triton.language as tl


@triton.jit
def polynomial(x_ptr, c_ptr, y_ptr, n, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    y = tl.zeros((BLOCK,), dtype=tl.float32) + tl.load(c_ptr + ORDER)
    for i in range(ORDER):
        y = y * x + tl.load(c_ptr + ORDER - 1 - i)
    tl.store(y_ptr + offs, y, mask=mask)


def tile_use(M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, multiprocessors):
    programs = triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N)
    rounds = triton.cdiv(programs, multiprocessors)
    each = BLOCK_M * BLOCK_N * triton.cdiv(K, BLOCK_K) * BLOCK_K
    return M * N * K / (rounds * multiprocessors * each)


def photos_a_second(costs, batch, rate, bandwidth):
    seconds = sum(max(cost.flops / rate, cost.bytes / bandwidth) for cost in costs)
    return batch / seconds
