"""Local response normalisation and max pooling in one pass over memory.

    max_pool2d(local_response_norm(x, size, alpha, beta, k), kernel_size, stride)

In sequence, the two read and write the full-size feature map once each, and then read it again. Here each program
normalises the pixels under its windows as it reads them, and writes only the maxima. Windows overlap, and each thread
that needs a pixel normalises it: arithmetic in exchange for memory traffic. To repeat less, a thread takes a block of
windows. For 3 x 3 windows at stride 2, a block of 3 x 3 windows needs 7 x 7 pixels, 5.4 per window instead of 9.

The gradient is one pass too. The forward pass saves x and each window's argmax, in a byte. A thread gathers the
gradients of its pixels' normalised channels from the windows, and those of neighbouring channels too, since the
normalisation's gradient needs them. So x is read once and dx is written once. Two passes would write and read one more
feature map. If a thread has two vectors of channels, they share neighbours: 20 channels are gathered and normalised for
16, instead of 12 for 8.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import batched, check, gradient_wanted, integer, number, pair
from kernels.ops import local_response_norm, max_pool2d
from kernels.ops.cost import Cost, Shape
from kernels.ops.geometry import channels_last, window_constants
from kernels.ops.local_response_norm import divisor, formula, lanes, load_lanes, normalise, normalise_gradient, rows
from kernels.ops.max_pool2d import argmax_of_two, gather, maximum, stored
from kernels.tiles.choices import VECTORISED, Choices, Config, Problem, vectors, warp_size


@triton.jit
def _lrn_max_pool2d_kernel(
    x_ptr, y_ptr, argmax_ptr,  # [N, H, W, C], [N, P, Q, C], [N, P, Q, C]
    N, scale, beta, k,  # scale is alpha / SIZE
    C: tl.constexpr, SIZE: tl.constexpr, ROOTS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    ARGMAX: tl.constexpr,  # whether to store r * S + s of each maximum
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    # A thread has 16 bytes of channels of BLOCK_P x BLOCK_Q output pixels.
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # per pixel
    BLOCKS_P: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    BLOCKS_Q: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M], in the order N, P, Q, C
    offs_c = (v % VECTORS * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    q0 = v // VECTORS % BLOCKS_Q * BLOCK_Q
    p0 = v // (VECTORS * BLOCKS_Q) % BLOCKS_P * BLOCK_P
    n = v // (VECTORS * BLOCKS_Q * BLOCKS_P)
    h0 = p0 * STRIDE_H
    w0 = q0 * STRIDE_W
    x_ptrs = x_ptr + (((n * H + h0) * W + w0) * C)[:, None] + offs_c
    offs = (((n * P + p0) * Q + q0) * C)[:, None] + offs_c

    # Squares keep the order, and x|x| / d^1.5 saves one root per pixel. Only float16's squares are sure to fit in fp32.
    SQUARED: tl.constexpr = ROOTS and x_ptr.dtype.element_ty == tl.float16
    # Rows that a window shares with the window below are normalised once: their maxima are carried over.
    CARRIED: tl.constexpr = R - STRIDE_H if STRIDE_H < R and R <= 2 * STRIDE_H else 0
    nothing = ()  # BLOCK_Q tiles [BLOCK_M, VECTOR]
    nowhere = ()
    for _ in tl.static_range(BLOCK_Q):
        nothing += (tl.full((BLOCK_M, VECTOR), float("-inf"), dtype=tl.float32),)
        nowhere += (tl.zeros((BLOCK_M, VECTOR), dtype=tl.int32),)
    carry = nothing
    carry_argmax = nowhere
    for p in range(BLOCK_P):
        best = carry
        carry = nothing
        if ARGMAX:
            argmax = carry_argmax
            carry_argmax = nowhere
        for r in range(min(p, 1) * CARRIED, R):
            h = p * STRIDE_H + r
            row = ()  # normalised pixels
            for s in tl.static_range((BLOCK_Q - 1) * STRIDE_W + S):
                mask = (n < N) & (h0 + h < H) & (w0 + s < W)
                x, d = divisor(x_ptrs + (h * W + s) * C, offs_c, mask[:, None], scale, k, C, SIZE)
                if SQUARED:
                    root = tl.rsqrt(d)
                    x *= root
                    row += (x * tl.abs(x) * root,)
                else:
                    row += (normalise(x, d, beta, ROOTS),)
            new_best = ()
            new_carry = ()
            new_argmax = ()
            new_carry_argmax = ()
            for q in tl.static_range(BLOCK_Q):
                y = row[q * STRIDE_W]  # the maximum of this row of the window
                y_argmax = r * S
                for s in tl.static_range(1, S):
                    if ARGMAX:
                        y_argmax = argmax_of_two(y, row[q * STRIDE_W + s], y_argmax, r * S + s)
                    y = maximum(y, row[q * STRIDE_W + s])
                if ARGMAX:
                    new_argmax += (argmax_of_two(best[q], y, argmax[q], y_argmax),)
                    shared = argmax_of_two(carry[q], y, carry_argmax[q], y_argmax - STRIDE_H * S)
                    new_carry_argmax += (tl.where(r >= STRIDE_H, shared, carry_argmax[q]),)
                new_best += (maximum(best[q], y),)
                new_carry += (tl.where(r >= STRIDE_H, maximum(carry[q], y), carry[q]),)
            best = new_best
            if ARGMAX:
                argmax = new_argmax
            if CARRIED > 0:
                carry = new_carry
                if ARGMAX:
                    carry_argmax = new_carry_argmax
        for q in tl.static_range(BLOCK_Q):
            y = best[q]
            if SQUARED:
                root = tl.sqrt(tl.abs(y))
                y = tl.where(y < 0, -root, root)
            place = offs + (p * Q + q) * C
            mask = ((n < N) & (p0 + p < P) & (q0 + q < Q))[:, None] & (offs_c < C)
            tl.store(y_ptr + place, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)
            if ARGMAX:
                tl.store(argmax_ptr + place, argmax[q].to(argmax_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _lrn_max_pool2d_gradient_kernel(
    x_ptr, dy_ptr, argmax_ptr, dx_ptr,  # [N, H, W, C], [N, P, Q, C], [N, P, Q, C], [N, H, W, C]
    N, scale, factor, beta, k,  # alpha / SIZE, 2 * scale * beta
    C: tl.constexpr, SIZE: tl.constexpr, ROOTS: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # A thread has OWN channels of a cell, STRIDE_H x STRIDE_W pixels, as in kernels/ops/max_pool2d.py.
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    OWN: tl.constexpr = BLOCK_C * VECTOR
    OWNERS: tl.constexpr = (C + OWN - 1) // OWN  # threads for all channels
    CELLS_P: tl.constexpr = (H + STRIDE_H - 1) // STRIDE_H
    CELLS_Q: tl.constexpr = (W + STRIDE_W - 1) // STRIDE_W
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M], in the order N, P, Q, C
    c0 = v % OWNERS * OWN
    offs_c = c0[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    q = v // OWNERS % CELLS_Q
    p = v // (OWNERS * CELLS_Q) % CELLS_P
    n = v // (OWNERS * CELLS_Q * CELLS_P)
    h0 = p * STRIDE_H
    w0 = q * STRIDE_W
    offs_x = (((n * H + h0) * W + w0) * C)[:, None] + offs_c
    offs_y = (((n * P + p) * Q + q) * C)[:, None] + offs_c

    # The gradients of the normalised pixels, also of neighbouring channels: these come from L1, as x's do below.
    FIRST: tl.constexpr = ((SIZE - 1) // 2 + VECTOR - 1) // VECTOR
    LAST: tl.constexpr = (SIZE // 2 + VECTOR - 1) // VECTOR + BLOCK_C - 1
    ROWS: tl.constexpr = min(STRIDE_H, R)
    COLUMNS: tl.constexpr = min(STRIDE_W, S)
    cells = ()
    for j in tl.static_range(-FIRST, LAST + 1):
        c = offs_c + j * VECTOR
        offs = offs_y + j * VECTOR
        mask = (n < N)[:, None] & (c >= 0) & (c < C)
        cell = gather(
            dy_ptr + offs, argmax_ptr + offs, p, q, mask, None, ROWS, COLUMNS,
            C, W, P, Q, R, S, STRIDE_H, STRIDE_W, 1, 1,
        )  # fmt: skip
        cells += (cell,)

    x = ()
    for i in tl.static_range(ROWS * COLUMNS + 1):
        previous = x
        if i < ROWS * COLUMNS:  # loads this pixel while the one before it is computed
            h = i // COLUMNS
            w = i % COLUMNS
            mask = ((n < N) & (h0 + h < H) & (w0 + w < W))[:, None]
            x = load_lanes(x_ptr + offs_x + (h * W + w) * C, offs_c, mask, SIZE - 1, SIZE - 1 + OWN - VECTOR, C)
        if i > 0:
            dy = ()
            for j in tl.static_range(FIRST + LAST + 1):
                dy += lanes(cells[j][i - 1])
            dx = normalise_gradient(previous, dy, c0, scale, factor, beta, k, C, SIZE, VECTOR, OWN, ROOTS)
            h = (i - 1) // COLUMNS
            w = (i - 1) % COLUMNS
            mask = ((n < N) & (h0 + h < H) & (w0 + w < W))[:, None]
            for j in tl.static_range(BLOCK_C):
                dx_ptrs = dx_ptr + offs_x + (h * W + w) * C + j * VECTOR
                vector = runtime.cast(rows(dx, j * VECTOR, VECTOR), dx_ptr.dtype.element_ty)
                tl.store(dx_ptrs, vector, mask=mask & (offs_c + j * VECTOR < C))


def _default(architecture: str, problem: Problem) -> Config:
    """Blocks of pixels save arithmetic once there are threads enough. They need registers, as large windows do."""
    threads = vectors(problem) if problem.K <= 9 else 0
    block_p, block_q = 3 if threads >= 2**20 else 1, 3 if threads >= 2**18 else 1
    return {"BLOCK_M": 128, "BLOCK_P": block_p, "BLOCK_Q": block_q, "num_warps": 4}


def _tried(architecture: str, problem: Problem) -> list[Config]:
    return [
        {"BLOCK_M": warp_size(architecture) * warps, "BLOCK_P": p, "BLOCK_Q": q, "num_warps": warps}
        for p in (1, 2, 3, 7, 9)
        for q in (1, 2, 3)
        for warps in (2, 4)
    ]


def _default_gradient(architecture: str, problem: Problem) -> Config:
    """Two vectors of channels per thread share neighbours, which saves arithmetic, once there are threads enough."""
    return {"BLOCK_M": 128, "BLOCK_C": 2 if vectors(problem) >= 2**18 else 1, "num_warps": 4}


def _tried_gradient(architecture: str, problem: Problem) -> list[Config]:
    return [
        {"BLOCK_M": warp_size(architecture) * warps, "BLOCK_C": c, "num_warps": warps}
        for c in (1, 2, 3)
        for warps in (1, 2, 4, 8)
    ]


_interpreter = lambda **blocks: lambda problem: VECTORISED.interpreter(problem) | blocks
tiles.register("lrn_max_pool2d", Choices(_default, _tried, _interpreter(BLOCK_P=1, BLOCK_Q=1)))
tiles.register("lrn_max_pool2d_gradient", Choices(_default_gradient, _tried_gradient, _interpreter(BLOCK_C=1)))


def launch_lrn_max_pool2d(
    input: torch.Tensor, size: int, alpha: float, beta: float, k: float,
    kernel_size: Sequence[int], stride: Sequence[int], save_argmax: bool, results: tuple[torch.Tensor, torch.Tensor],
) -> None:  # fmt: skip
    output, argmax = results
    x = input.contiguous(memory_format=torch.channels_last)
    N, C, P, Q = output.shape
    vectors = triton.cdiv(C, 16 // x.element_size())  # per pixel
    blocks = lambda META: N * triton.cdiv(P, META["BLOCK_P"]) * triton.cdiv(Q, META["BLOCK_Q"])
    runtime.launch(
        _lrn_max_pool2d_kernel, lambda META: (triton.cdiv(blocks(META) * vectors, META["BLOCK_M"]),),
        x, output, argmax, N,
        **formula(size, alpha, beta, k, C), **window_constants(x.shape[2:], (P, Q), kernel_size, stride),
        ARGMAX=save_argmax, INDEX=runtime.index_type(x),
        **tiles.lookup("lrn_max_pool2d", x, N * P * Q, C, math.prod(kernel_size)),
    )  # fmt: skip


def launch_lrn_max_pool2d_gradient(
    gradient: torch.Tensor, input: torch.Tensor, argmax: torch.Tensor, size: int, alpha: float, beta: float, k: float,
    kernel_size: Sequence[int], stride: Sequence[int], dx: torch.Tensor,
) -> None:  # fmt: skip
    if any(step > window for step, window in zip(stride, kernel_size, strict=True)):
        dx.zero_()  # the kernel does not visit pixels between the windows
    x, dy, argmax = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (input, gradient, argmax))
    N, C, H, W = x.shape
    cells = N * triton.cdiv(H, stride[0]) * triton.cdiv(W, stride[1])
    vectors = lambda META: triton.cdiv(C, META["BLOCK_C"] * 16 // x.element_size())  # per pixel
    runtime.launch(
        _lrn_max_pool2d_gradient_kernel, lambda META: (triton.cdiv(cells * vectors(META), META["BLOCK_M"]),),
        x, dy, argmax, dx, N,
        **formula(size, alpha, beta, k, C, gradient=True),
        **window_constants((H, W), dy.shape[2:], kernel_size, stride), INDEX=runtime.index_type(x),
        **tiles.lookup("lrn_max_pool2d_gradient", x, cells, C, math.prod(kernel_size)),
    )  # fmt: skip


def _output(input, size, alpha, beta, k, kernel_size, stride, save_argmax):
    mode = "tap" if save_argmax else "none"
    return max_pool2d.empty_output(input, kernel_size, stride, (0, 0), (1, 1), False, mode)


_gradient = runtime.register(
    "lrn_max_pool2d_gradient", launch_lrn_max_pool2d_gradient,
    lambda gradient, input, *_: channels_last(input.shape, input),
)  # fmt: skip
_lrn_max_pool2d = runtime.register(
    "lrn_max_pool2d", launch_lrn_max_pool2d, _output,
    *runtime.gradient_of_input(_gradient, lambda inputs, results: (inputs[0], stored(results), *inputs[1:-1])),
)  # fmt: skip


def lrn_max_pool2d(
    input: torch.Tensor, size: int, alpha: float, beta: float, k: float,
    kernel_size: int | Sequence[int], stride: int | Sequence[int],
) -> torch.Tensor:  # fmt: skip
    """:func:`kernels.local_response_norm`, then :func:`kernels.max_pool2d`, in one pass over memory.

    The result is that of the two in sequence: they would round before they compare, which keeps the order.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16 or bfloat16. Any strides; channels_last is not copied.
            (:func:`kernels.local_response_norm` on its own reads (C, H, W) as (N, C, length).)
        size, alpha, beta, k: as :func:`kernels.local_response_norm`.
        kernel_size, stride: as :func:`kernels.max_pool2d`, without padding.

    Returns:
        (N, C, P, Q) or (C, P, Q) in channels_last memory; computed in float32.

    Raises:
        TypeError, ArgumentError: what one of the two operators refuses.

    Example:
        >>> kernels.lrn_max_pool2d(torch.randn(1, 96, 55, 55), 5, 1e-4, 0.75, 1.0, kernel_size=3, stride=2).shape
        torch.Size([1, 96, 27, 27])
    """
    batch = batched("lrn_max_pool2d", input, filled=3)
    size = integer("lrn_max_pool2d", "size", size, low=1)
    alpha, beta, k = (number("lrn_max_pool2d", *given) for given in (("alpha", alpha), ("beta", beta), ("k", k)))
    kernel_size = pair("lrn_max_pool2d", "kernel_size", kernel_size, low=1)
    stride = pair("lrn_max_pool2d", "stride", stride, low=1)
    fits = all(window <= pixels for window, pixels in zip(kernel_size, input.shape[-2:], strict=True))
    window = f"kernel_size={tuple(kernel_size)}"
    check(fits, f"lrn_max_pool2d: {window} does not fit in input of shape {tuple(input.shape)}")

    output, _ = _lrn_max_pool2d(batch, size, alpha, beta, k, kernel_size, stride, gradient_wanted(input))
    return output if input.dim() == 4 else output.squeeze(0)


def cost(input: Shape, size: int, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4) -> Cost:
    """For shape (N, C, H, W). Each pixel is normalised once; the normalised map is neither written nor read."""
    norm = local_response_norm.cost(input, size)
    pool = max_pool2d.cost(input, kernel_size, stride, itemsize=itemsize)
    return Cost(pool.output, 0, norm.flops + pool.flops, pool.bytes)


def gradient_cost(
    input: Shape, size: int, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4
) -> Cost:
    """For shape (N, C, H, W): one pass, as the forward."""
    norm = local_response_norm.gradient_cost(input, size)
    pool = max_pool2d.gradient_cost(input, kernel_size, stride, itemsize=itemsize)
    return Cost(input, 0, norm.flops + pool.flops, pool.bytes + math.prod(input) * itemsize)
