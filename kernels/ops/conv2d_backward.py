"""The gradients of a convolution: two more implicit GEMMs, with groups.

From dz, the gradient of the convolution's output before bias and ReLU, [n, k, p, q]:

    dx[n, c, h, w] = sum over k, r, s of dz[n, k, p, q] * w[k, c, r, s]
    dw[k, c, r, s] = sum over n, p, q of dz[n, k, p, q] * x[n, c, h, w]
    h = p * stride - padding + r * dilation,   w = q * stride - padding + s * dilation

where pixels outside x or dz count 0. Names are those of :mod:`kernels.ops.conv2d`. As matrix products:

| gradient | M                    | N                     | K                                     |
|----------|----------------------|-----------------------|---------------------------------------|
| dx       | N * H * W pixels     | C channels of a group | R * S * K taps, with filters fastest  |
| dw       | K filters of a group | R * S * C taps        | N * P * Q pixels of dz                |

dx: at stride 2, a pixel of x is under every other tap only. Which ones depends on whether h and w are even or odd. The
remainders of h and w modulo the stride are a pixel's phase. The pixels of one phase share their taps and make one dense
product. The alternative, a dilated copy of dz, would multiply mostly by zeros.

dw: few outputs are sums of many terms. So several programs share the pixels, and :mod:`kernels.ops.split_k` adds their
partial sums.

Memory is NHWC: the filters of a pixel of dz are contiguous, and so are the channels of a pixel of x, as dw's taps are.
So neither operand needs a transposed copy: tensor cores read both from shared memory as they are.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.ops.epilogue import epilogue_gradient
from kernels.ops.geometry import channels_last, convolution_constants
from kernels.ops.space_to_depth import fold_input, fold_weight, folds, launch_depth_to_space
from kernels.ops.split_k import launch_add_partials
from kernels.tiles import products


@triton.jit
def _taps(phase, R: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr):
    """Along one axis, the taps that reach a phase's pixels.

    Returns (first tap, number of taps, pixel of dz under the first tap at the phase's first pixel).
    """
    if STRIDE == 1:
        first, count, p0 = 0, R, PAD
    else:
        first = R
        for r in tl.static_range(R - 1, -1, -1):
            first = tl.where((phase + PAD - r * DILATION) % STRIDE == 0, r, first)
        count = (R - first + STEP - 1) // STEP
        p0 = (phase + PAD - first * DILATION) // STRIDE
    return first, count, p0


@triton.jit
def _conv2d_input_gradient_kernel(
    dz_ptr,  # [N, P, Q, GROUPS * K]
    w_ptr,  # [GROUPS * K, R, S, C]
    dx_ptr,  # [N, H, W, GROUPS * C]
    M,  # rows of a phase: N * ceil(H / STRIDE_H) * ceil(W / STRIDE_W / PIXELS)
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,  # from a phase's tap to its next: STRIDE / gcd(STRIDE, DILATION)
    GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,  # side by side in one row of the product; more than one only at stride and dilation 1
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # Each program makes one [BLOCK_M, BLOCK_N] tile of one group's channels of one phase's pixels.
    group = tl.program_id(1)
    phase_h = tl.program_id(2) // STRIDE_W
    phase_w = tl.program_id(2) % STRIDE_W
    pid_m, pid_n = runtime.tile_order(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(PIXELS * C, BLOCK_N), GROUP_M)
    offs_m = pid_m.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] pixels
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] channels, of one pixel and then the next
    mask_m = offs_m < M
    mask_n = offs_n < PIXELS * C

    # The phase's pixels are i * STRIDE + phase. Under its tap number t lies pixel p0 + i - t * BACK of dz.
    ROWS: tl.constexpr = (H + STRIDE_H - 1) // STRIDE_H
    COLUMNS: tl.constexpr = (W + STRIDE_W * PIXELS - 1) // (STRIDE_W * PIXELS)
    BACK_H: tl.constexpr = STEP_H * DILATION_H // STRIDE_H
    BACK_W: tl.constexpr = STEP_W * DILATION_W // STRIDE_W
    r0, taps_h, p0 = _taps(phase_h, R, STRIDE_H, PAD_H, DILATION_H, STEP_H)
    s0, taps_w, q0 = _taps(phase_w, S, STRIDE_W, PAD_W, DILATION_W, STEP_W)
    n = offs_m // (ROWS * COLUMNS)
    i = offs_m // COLUMNS % ROWS
    j = offs_m % COLUMNS * PIXELS
    p = p0 + i  # [BLOCK_M]; may lie outside dz, under this tap and under others
    q = q0 + j + (PIXELS - 1)
    dz_ptrs = dz_ptr + group * K + (((n * P + p) * Q + q) * (GROUPS * K))[:, None]  # [BLOCK_M, 1]
    w_ptrs = w_ptr + (((group * K).to(INDEX) * R + r0) * S + s0) * C

    taps_w += PIXELS - 1  # the taps of all pixels side by side
    terms = taps_h * taps_w * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(runtime.trips(tl.cdiv(terms, BLOCK_K))):
        k0 = step * BLOCK_K
        offs_k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K], filters fastest
        # The tap (t, u) and the filter k of each. If the block lies within one tap, t and u are single numbers: then
        # one mask per pixel is enough for the whole block.
        if K % BLOCK_K == 0:
            tap_a = k0 // K
            tap_b = k0 // K
            k = tl.multiple_of(k0 % K, BLOCK_K) + tl.arange(0, BLOCK_K)
        else:
            tap_a = (offs_k // K)[None, :]
            tap_b = (offs_k // K)[:, None]
            k = offs_k % K
        t = tap_a // taps_w
        u = tap_a % taps_w
        p_t = p[:, None] - t * BACK_H
        q_u = q[:, None] - u * BACK_W
        mask_a = mask_m[:, None] & (p_t >= 0) & (p_t < P) & (q_u >= 0) & (q_u < Q)
        dz_offs = k[None, :] - (t * (BACK_H * Q) + u * BACK_W) * (GROUPS * K)
        # Tap u of the second pixel is tap u + 1 of the first, C elements further in a row of S * C.
        column = (tap_b % taps_w * STEP_W - (PIXELS - 1)) * C + offs_n[None, :]
        mask_b = mask_n[None, :]
        if PIXELS > 1:
            mask_b = mask_b & (column >= 0) & (column < S * C)
        w_offs = k.to(INDEX)[:, None] * (R * S * C) + tap_b // taps_w * (STEP_H * S * C) + column
        if K % BLOCK_K != 0:
            mask_a = mask_a & (offs_k < terms)[None, :]
            mask_b = mask_b & (offs_k < terms)[:, None]
        dz = tl.load(dz_ptrs + dz_offs, mask=mask_a, other=0.0)
        w = tl.load(w_ptrs + w_offs, mask=mask_b, other=0.0)
        acc = runtime.dot(dz, w, acc, PRECISION)  # [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N]

    h = (i * STRIDE_H + phase_h)[:, None]
    w = (j * STRIDE_W + phase_w)[:, None] + offs_n[None, :] // C
    mask = mask_m[:, None] & mask_n[None, :] & (h < H) & (w < W)  # a phase, or the second pixel, may end outside
    dx_ptrs = dx_ptr + ((n[:, None] * H + h) * W + w) * (GROUPS * C) + group * C + offs_n[None, :] % C
    tl.store(dx_ptrs, runtime.cast(acc, dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _conv2d_weight_gradient_kernel(
    dz_ptr,  # [N, P, Q, GROUPS * K]
    x_ptr,  # [N, H, W, GROUPS * C]
    dw_ptr,  # [GROUPS * K, R, S, C]; if SPLIT_K > 1, float32 partial sums [SPLIT_K, GROUPS * K, R, S, C]
    pixels,  # N * P * Q
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, GROUPS: tl.constexpr,
    PADDED: tl.constexpr,  # whether any tap can fall outside the input
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    # Each program makes one [BLOCK_M, BLOCK_N] tile of one group's gradient, from one of SPLIT_K parts of the pixels.
    group = tl.program_id(1)
    split = tl.program_id(2)
    TAPS: tl.constexpr = R * S * C
    pid_m, pid_n = runtime.tile_order(tl.program_id(0), tl.cdiv(K, BLOCK_M), tl.cdiv(TAPS, BLOCK_N), GROUP_M)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] filters
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] taps, channels fastest
    mask_m = offs_m < K
    mask_n = offs_n < TAPS

    # The tap (r, s) and the channel c of each column. If the block lies within one tap, r and s are single numbers.
    if C % BLOCK_N == 0:
        n0 = pid_n * BLOCK_N
        r = n0 // (S * C)
        s = n0 // C % S
        c = tl.multiple_of(n0 % C, BLOCK_N) + tl.arange(0, BLOCK_N)[None, :]
    else:
        r = (offs_n // (S * C))[None, :]
        s = (offs_n // C % S)[None, :]
        c = (offs_n % C)[None, :]
    dz_ptrs = dz_ptr + group * K + offs_m[:, None]  # [BLOCK_M, 1]
    x_ptrs = x_ptr + group * C + (r * (DILATION_H * W) + s * DILATION_W) * (GROUPS * C) + c  # [1, BLOCK_N]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(runtime.trips(tl.cdiv(pixels, BLOCK_K * SPLIT_K))):
        offs_k = (step * SPLIT_K + split).to(INDEX) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K] pixels of dz
        mask_k = offs_k < pixels
        row = offs_k // Q
        n = row // P
        h0 = (row - n * P) * STRIDE_H - PAD_H
        w0 = (offs_k - row * Q) * STRIDE_W - PAD_W
        mask_b = mask_k[:, None] & mask_n[None, :]
        if PADDED:
            h = h0[:, None] + r * DILATION_H
            w = w0[:, None] + s * DILATION_W
            mask_b = mask_b & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        dz = tl.load(dz_ptrs + (offs_k * (GROUPS * K))[None, :], mask=mask_k[None, :] & mask_m[:, None], other=0.0)
        x = tl.load(x_ptrs + (((n * H + h0) * W + w0) * (GROUPS * C))[:, None], mask=mask_b, other=0.0)
        acc = runtime.dot(dz, x, acc, PRECISION)  # [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N]

    filters = (split * (GROUPS * K) + group * K + offs_m).to(INDEX)
    dw_ptrs = dw_ptr + (filters * TAPS)[:, None] + offs_n[None, :]
    tl.store(dw_ptrs, runtime.cast(acc, dw_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


tiles.register("conv2d_input_gradient", products.by_model())
tiles.register("conv2d_weight_gradient", products.by_model(sums_the_batch=True))


def launch_conv2d_input_gradient(
    grad: torch.Tensor, weight: torch.Tensor, size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, output: torch.Tensor,
) -> None:  # fmt: skip
    """dx from dz. ``size`` is the input's shape, ``padding`` is (top, bottom, left, right)."""
    if folds(weight.shape, stride, dilation, groups):
        N, C, _, _ = size
        B = stride[0]
        w = fold_weight(weight, B)
        dx = channels_last((N, C * B * B, grad.shape[2] + w.shape[2] - 1, grad.shape[3] + w.shape[3] - 1), grad)
        launch_conv2d_input_gradient(grad, w, dx.shape, (1, 1), (0, 0, 0, 0), (1, 1), 1, dx)
        launch_depth_to_space(dx, B, padding[0], padding[2], output)
        return
    dz = grad.contiguous(memory_format=torch.channels_last)
    w = weight.contiguous(memory_format=torch.channels_last)
    _, _, H, W = size
    _, C, R, S = w.shape
    # A stride beyond the number of places where the filter fits would give the same output, with more phases.
    places = (H + padding[0] + padding[1] - dilation[0] * (R - 1), W + padding[2] + padding[3] - dilation[1] * (S - 1))
    stride = [min(step, count) for step, count in zip(stride, places, strict=True)]
    sizes = convolution_constants(size, w.shape, dz.shape, stride, padding, dilation, groups)
    STEP_H, STEP_W = (step // math.gcd(step, d) for step, d in zip(stride, dilation, strict=True))
    phases = stride[0] * stride[1]
    pixels = 2 if C <= 64 and S >= 3 and stride[1] == dilation[1] == 1 else 1
    M = len(dz) * triton.cdiv(H, stride[0]) * triton.cdiv(W, stride[1] * pixels)
    terms = sizes["K"] * triton.cdiv(R, STEP_H) * (triton.cdiv(S, STEP_W) + pixels - 1)
    config = tiles.lookup("conv2d_input_gradient", dz, M * phases * groups, C * pixels, terms)
    runtime.launch(
        _conv2d_input_gradient_kernel,
        lambda META: (triton.cdiv(M, META["BLOCK_M"]) * triton.cdiv(C * pixels, META["BLOCK_N"]), groups, phases),
        dz, w, output, M, **sizes,
        STEP_H=STEP_H, STEP_W=STEP_W, PIXELS=pixels,
        PRECISION=runtime.dot_precision(dz.dtype), INDEX=runtime.index_type(dz, w, output), **config,
    )  # fmt: skip


def launch_conv2d_weight_gradient(
    grad: torch.Tensor, input: torch.Tensor, size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, output: torch.Tensor,
) -> None:  # fmt: skip
    """dw from dz. ``size`` is the weight's shape, ``padding`` is (top, bottom, left, right)."""
    if grad.numel() == 0:
        output.zero_()
        return
    if folds(size, stride, dilation, groups):
        K, C, R, S = size
        B = stride[0]
        x = fold_input(input, size, B, padding, *grad.shape[2:])
        dw = channels_last((K, C * B * B, triton.cdiv(R, B), triton.cdiv(S, B)), grad)
        launch_conv2d_weight_gradient(grad, x, dw.shape, (1, 1), (0, 0, 0, 0), (1, 1), 1, dw)
        launch_depth_to_space(dw, B, 0, 0, output)
        return
    dz = grad.contiguous(memory_format=torch.channels_last)
    x = input.contiguous(memory_format=torch.channels_last)
    sizes = convolution_constants(x.shape, size, dz.shape, stride, padding, dilation, groups)
    K, taps, pixels = sizes["K"], math.prod(size[1:]), len(dz) * sizes["P"] * sizes["Q"]
    config = tiles.lookup("conv2d_weight_gradient", dz, K, groups * taps, pixels)
    splits = config["SPLIT_K"]
    dw = output if splits == 1 else torch.empty((splits, *size), dtype=torch.float32, device=dz.device)
    runtime.launch(
        _conv2d_weight_gradient_kernel,
        lambda META: (triton.cdiv(K, META["BLOCK_M"]) * triton.cdiv(taps, META["BLOCK_N"]), groups, splits),
        dz, x, dw, pixels, **sizes,
        PADDED=any(padding),
        PRECISION=runtime.dot_precision(dz.dtype), INDEX=runtime.index_type(dz, x, dw), **config,
    )  # fmt: skip
    if splits > 1:
        launch_add_partials(dw, output)


def _gradient_output(grad, other, size, *_):
    return channels_last(size, grad)


conv2d_input_gradient = runtime.register("conv2d_input_gradient", launch_conv2d_input_gradient, _gradient_output)
conv2d_weight_gradient = runtime.register("conv2d_weight_gradient", launch_conv2d_weight_gradient, _gradient_output)


def gradients(ctx, grad):
    need_input, need_weight, need_bias, *_ = ctx.needs_input_grad
    input, weight, output = ctx.saved_tensors
    input_size, weight_size = ctx.sizes
    N, K, P, Q = grad.shape
    matrix = lambda tensor: tensor.movedim(1, -1).reshape(N * P * Q, K)
    dz, db = epilogue_gradient(matrix(grad), None if output is None else matrix(output), need_bias)
    dz = dz.view(N, P, Q, K).movedim(-1, 1)
    dx = conv2d_input_gradient(dz, weight, input_size, *ctx.geometry) if need_input else None
    dw = conv2d_weight_gradient(dz, input, weight_size, *ctx.geometry) if need_weight else None
    if weight_size[0] != K:  # no channels in: no channels out, for any number of filters
        db = grad.new_zeros(weight_size[0])
    return dx, dw, db if need_bias else None, None, None, None, None, None
