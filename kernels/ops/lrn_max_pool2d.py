"""Local response normalisation and max pooling in one pass over memory.

    max_pool2d(local_response_norm(x, size, alpha, beta, k), kernel_size, stride)

In sequence the two read and write the full-size feature map once each, and then read it again. Here each program
normalises the pixels under its windows as it reads them, and only the maxima are written. Windows overlap, and a
pixel that several threads need is normalised by each: arithmetic in exchange for memory traffic. A thread therefore
takes a block of windows. Of 3 x 3 windows at stride 2, a block of 3 x 3 needs 7 x 7 pixels, 5.4 a window instead of 9.

The gradient is one pass too. Kept are x and, in a byte, which tap of each window won; a thread gathers the gradients of
its pixels' normalised channels from the windows that they won, and those of the neighbouring channels, which it needs
to differentiate the normalisation. So x is read once and dx written once; unpooled and then differentiated, they would
have a feature map written and read between them. Two vectors of channels a thread share neighbours: 20 channels are
gathered and normalised for 16, instead of 12 for 8.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, gradient_wanted, integer, number, pair
from kernels.ops import local_response_norm, max_pool2d
from kernels.ops.cost import Cost, Shape
from kernels.ops.geometry import output_size
from kernels.ops.local_response_norm import divisor, lanes, load_lanes, normalise, normalise_gradient, rows
from kernels.ops.max_pool2d import gather, tap_dtype
from kernels.tiles.choices import Choices, Config, Problem, vectors, warp_size
from kernels.tiles.families import VECTORISED


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _winner(a, b, at_a, at_b):
    """Where the maximum of a and of b, which comes later, lies: the first of equals, the last NaN, as in PyTorch."""
    return tl.where((b > a) | (b != b), at_b, at_a)


@triton.jit
def _lrn_max_pool2d_kernel(
    x_ptr,  # [N, H, W, C]
    y_ptr,  # [N, P, Q, C]
    tap_ptr,  # [N, P, Q, C], r * S + s of each maximum
    N,
    scale,  # alpha / SIZE
    beta,
    k,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    SIZE: tl.constexpr,
    ROOTS: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    # A thread has 16 bytes of channels of BLOCK_P x BLOCK_Q output pixels.
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # of a pixel
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
    y_ptrs = y_ptr + offs
    tap_ptrs = tap_ptr + offs

    # Squares keep the order: x|x| / d^1.5 takes one root less a pixel than x / d^0.75. Only float16's fit in fp32.
    SQUARED: tl.constexpr = ROOTS and x_ptr.dtype.element_ty == tl.float16
    # Rows that a window shares with the one below are normalised once: their maxima are carried over.
    CARRIED: tl.constexpr = R - STRIDE_H if STRIDE_H < R and R <= 2 * STRIDE_H else 0
    nothing = ()
    nowhere = ()
    for _ in tl.static_range(BLOCK_Q):
        nothing += (tl.full((BLOCK_M, VECTOR), float("-inf"), dtype=tl.float32),)
        nowhere += (tl.zeros((BLOCK_M, VECTOR), dtype=tl.int32),)
    carry = nothing
    carry_tap = nowhere
    for p in range(BLOCK_P):
        best = carry  # BLOCK_Q tiles [BLOCK_M, VECTOR]
        carry = nothing
        if TAPS:
            tap = carry_tap
            carry_tap = nowhere
        for r in range(min(p, 1) * CARRIED, R):
            h = p * STRIDE_H + r
            row = ()  # of normalised pixels
            for s in tl.static_range((BLOCK_Q - 1) * STRIDE_W + S):
                mask = (n < N) & (h0 + h < H) & (w0 + s < W)
                x, d = divisor(x_ptrs + (h * W + s) * C, offs_c, mask[:, None], scale, k, C, SIZE)
                if SQUARED:
                    root = tl.rsqrt(d)
                    x *= root
                    row += (x * tl.abs(x) * root,)
                else:
                    row += (normalise(x, d, beta, ROOTS),)
            better = ()
            later = ()
            better_tap = ()
            later_tap = ()
            for q in tl.static_range(BLOCK_Q):
                y = row[q * STRIDE_W]
                at = r * S
                for s in tl.static_range(1, S):
                    if TAPS:
                        at = _winner(y, row[q * STRIDE_W + s], at, r * S + s)
                    y = _maximum(y, row[q * STRIDE_W + s])
                if TAPS:
                    better_tap += (_winner(best[q], y, tap[q], at),)
                    shared = _winner(carry[q], y, carry_tap[q], at - STRIDE_H * S)
                    later_tap += (tl.where(r >= STRIDE_H, shared, carry_tap[q]),)
                better += (_maximum(best[q], y),)
                later += (tl.where(r >= STRIDE_H, _maximum(carry[q], y), carry[q]),)
            best = better
            if TAPS:
                tap = better_tap
            if CARRIED > 0:
                carry = later
                if TAPS:
                    carry_tap = later_tap
        for q in tl.static_range(BLOCK_Q):
            y = best[q]
            if SQUARED:
                root = tl.sqrt(tl.abs(y))
                y = tl.where(y < 0, -root, root)
            mask = (n < N) & (p0 + p < P) & (q0 + q < Q)
            y = runtime.cast(y, y_ptr.dtype.element_ty)
            tl.store(y_ptrs + (p * Q + q) * C, y, mask=mask[:, None] & (offs_c < C))
            if TAPS:
                at = tap[q].to(tap_ptr.dtype.element_ty)
                tl.store(tap_ptrs + (p * Q + q) * C, at, mask=mask[:, None] & (offs_c < C))


@triton.jit
def _lrn_max_pool2d_gradient_kernel(
    x_ptr,  # [N, H, W, C]
    dy_ptr,  # [N, P, Q, C]
    tap_ptr,  # [N, P, Q, C]
    dx_ptr,  # [N, H, W, C]
    N,
    scale,  # alpha / SIZE
    factor,  # 2 * scale * beta
    beta,
    k,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    SIZE: tl.constexpr,
    ROOTS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
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

    # The gradients of the normalised pixels, of the neighbouring channels too: read from L1, like those of x below.
    FIRST: tl.constexpr = ((SIZE - 1) // 2 + VECTOR - 1) // VECTOR
    LAST: tl.constexpr = (SIZE // 2 + VECTOR - 1) // VECTOR + BLOCK_C - 1
    ROWS: tl.constexpr = min(STRIDE_H, R)
    COLUMNS: tl.constexpr = min(STRIDE_W, S)
    cells = ()
    for j in tl.static_range(-FIRST, LAST + 1):
        c = offs_c + j * VECTOR
        dy_ptrs = dy_ptr + offs_y + j * VECTOR
        tap_ptrs = tap_ptr + offs_y + j * VECTOR
        mask = (n < N)[:, None] & (c >= 0) & (c < C)
        cells += (
            gather(dy_ptrs, tap_ptrs, p, q, mask, None, ROWS, COLUMNS, C, W, P, Q, R, S, STRIDE_H, STRIDE_W, 1, 1),
        )

    x = ()
    for i in tl.static_range(ROWS * COLUMNS + 1):
        previous = x
        if i < ROWS * COLUMNS:  # is read while the pixel before it is computed
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


tiles.register(
    "lrn_max_pool2d",
    Choices(_default, _tried, lambda problem: VECTORISED.interpreter(problem) | {"BLOCK_P": 1, "BLOCK_Q": 1}),
)
tiles.register(
    "lrn_max_pool2d_gradient",
    Choices(_default_gradient, _tried_gradient, lambda problem: VECTORISED.interpreter(problem) | {"BLOCK_C": 1}),
)


def launch_lrn_max_pool2d(
    input: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    taps: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    output, tap = _lrn_max_pool2d_output(input, size, alpha, beta, k, kernel_size, stride, taps)
    if output.numel() == 0:
        return output, tap
    x = input.contiguous(memory_format=torch.channels_last)
    N, C, H, W = x.shape
    _, _, P, Q = output.shape
    tile = tiles.lookup("lrn_max_pool2d", x, N * P * Q, C, kernel_size[0] * kernel_size[1])
    vectors = triton.cdiv(C, 16 // x.element_size())  # of a pixel
    blocks = lambda META: N * triton.cdiv(P, META["BLOCK_P"]) * triton.cdiv(Q, META["BLOCK_Q"])
    grid = lambda META: (triton.cdiv(blocks(META) * vectors, META["BLOCK_M"]),)
    runtime.launch(
        _lrn_max_pool2d_kernel,
        grid,
        x,
        output,
        tap,
        N,
        alpha / size,
        beta,
        k,
        C=C,
        H=H,
        W=W,
        P=P,
        Q=Q,
        R=kernel_size[0],
        S=kernel_size[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        SIZE=min(size, 2 * C),  # reaches all channels from any
        ROOTS=beta == 0.75,
        TAPS=taps,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output, tap


def launch_lrn_max_pool2d_gradient(
    gradient: torch.Tensor,
    input: torch.Tensor,
    tap: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: Sequence[int],
    stride: Sequence[int],
) -> torch.Tensor:
    output = _lrn_max_pool2d_gradient_output(gradient, input, tap, size, alpha, beta, k, kernel_size, stride)
    if output.numel() == 0:
        return output
    if any(step > window for step, window in zip(stride, kernel_size, strict=True)):
        output.zero_()  # pixels between the windows, which the kernel does not visit
    x, dy, tap = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (input, gradient, tap))
    N, C, H, W = x.shape
    _, _, P, Q = dy.shape
    cells = N * triton.cdiv(H, stride[0]) * triton.cdiv(W, stride[1])
    tile = tiles.lookup("lrn_max_pool2d_gradient", x, cells, C, kernel_size[0] * kernel_size[1])
    vectors = lambda META: triton.cdiv(C, META["BLOCK_C"] * 16 // x.element_size())  # of a pixel
    grid = lambda META: (triton.cdiv(cells * vectors(META), META["BLOCK_M"]),)
    scale = alpha / size
    runtime.launch(
        _lrn_max_pool2d_gradient_kernel,
        grid,
        x,
        dy,
        tap,
        output,
        N,
        scale,
        2 * scale * beta,
        beta,
        k,
        C=C,
        H=H,
        W=W,
        P=P,
        Q=Q,
        R=kernel_size[0],
        S=kernel_size[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        SIZE=min(size, 2 * C),  # reaches all channels from any
        ROOTS=beta == 0.75,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def _lrn_max_pool2d_output(input, size, alpha, beta, k, kernel_size, stride, taps):
    N, C, H, W = input.shape
    P = output_size(H, kernel_size[0], stride[0])
    Q = output_size(W, kernel_size[1], stride[1])
    like = {"device": input.device, "memory_format": torch.channels_last}
    output = torch.empty((N, C, P, Q), dtype=input.dtype, **like)
    return output, torch.empty((N, C, P, Q) if taps else (0, 0, 0, 0), dtype=tap_dtype(kernel_size), **like)


def _lrn_max_pool2d_gradient_output(gradient, input, tap, size, alpha, beta, k, kernel_size, stride):
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


_lrn_max_pool2d_gradient = runtime.register(
    "lrn_max_pool2d_gradient", launch_lrn_max_pool2d_gradient, _lrn_max_pool2d_gradient_output
)


def _save(ctx, inputs, output):
    x, *ctx.arguments, taps = inputs
    check(taps, "lrn_max_pool2d: a gradient takes the taps")
    ctx.save_for_backward(x, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the gradient that taps do not have


def _gradient(ctx, dy, _):
    dx = None if dy is None else _lrn_max_pool2d_gradient(dy, *ctx.saved_tensors, *ctx.arguments)
    return dx, None, None, None, None, None, None, None


_lrn_max_pool2d = runtime.register("lrn_max_pool2d", launch_lrn_max_pool2d, _lrn_max_pool2d_output, _save, _gradient)


def lrn_max_pool2d(
    input: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
) -> torch.Tensor:
    """:func:`kernels.local_response_norm`, then :func:`kernels.max_pool2d`, in one pass over memory.

    The normalised values are not rounded to the tensor's dtype before they are compared; rounding keeps order, so
    the result is that of the two in sequence.

    Args:
        input: (N, C, H, W), or (C, H, W), which the two in sequence would not both read as one image; float32,
            float16 or bfloat16. Any strides; channels_last is not copied.
        size, alpha, beta, k: as :func:`kernels.local_response_norm`.
        kernel_size, stride: as :func:`kernels.max_pool2d`, without padding.

    Returns:
        (N, C, P, Q) or (C, P, Q) in channels_last memory; computed in float32.

    Raises:
        TypeError: an argument of the wrong type.
        ArgumentError: whatever else the two operators refuse.

    Example:
        >>> kernels.lrn_max_pool2d(torch.randn(1, 96, 55, 55), 5, 1e-4, 0.75, 1.0, kernel_size=3, stride=2).shape
        torch.Size([1, 96, 27, 27])
    """
    check_tensor("lrn_max_pool2d", "input", input)
    check(
        input.dim() in (3, 4) and min(input.shape[-3:]) > 0,
        f"lrn_max_pool2d: input must be (N, C, H, W) or (C, H, W), empty in N only, got shape {tuple(input.shape)}",
    )
    size = integer("lrn_max_pool2d", "size", size)
    alpha, beta, k = (number("lrn_max_pool2d", *given) for given in (("alpha", alpha), ("beta", beta), ("k", k)))
    kernel_size = pair("lrn_max_pool2d", "kernel_size", kernel_size)
    stride = pair("lrn_max_pool2d", "stride", stride)
    for name, value in (("size", [size]), ("kernel_size", kernel_size), ("stride", stride)):
        check(min(value) >= 1, f"lrn_max_pool2d: {name} must be at least 1, got {', '.join(map(str, value))}")
    check(
        all(w <= x for w, x in zip(kernel_size, input.shape[-2:], strict=True)),
        f"lrn_max_pool2d: kernel_size={tuple(kernel_size)} does not fit in input of shape {tuple(input.shape)}",
    )

    batched = input if input.dim() == 4 else input.unsqueeze(0)
    output, _ = _lrn_max_pool2d(batched, size, alpha, beta, k, kernel_size, stride, gradient_wanted(input))
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
