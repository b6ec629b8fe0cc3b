"""Max pooling; windows overlap if they are larger than the stride.

    y[n, c, p, q] = max over r, s of x[n, c, p * stride - padding + r * dilation, q * stride - padding + s * dilation]

AlexNet pools 3 x 3 windows at stride 2, so that neighbours share a row or a column: 55 -> 27 -> 13 and 13 -> 6.
Memory is NHWC: each thread reads 16 bytes of channels of each of a window's R * S pixels.

The gradient of a window goes to the pixel that had the maximum:

    dx[n, c, h, w] = sum of dy[n, c, p, q] over the windows (p, q) whose maximum lies at (h, w)

For that the forward pass saves each window's argmax, the tap r * S + s, in one byte. To scatter dy, overlapping windows
would need atomic additions. Instead each pixel gathers from the windows that hold it.
Names as in kernels/ops/conv2d.py.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import batched, boolean, check, gradient_wanted, pair
from kernels.ops.cost import Cost, Shape
from kernels.ops.geometry import channels_last, output_size, window_constants
from kernels.tiles.choices import VECTORISED


@triton.jit
def maximum(a, b):
    """NaN if one of the two is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def argmax_of_two(a, b, argmax_a, argmax_b):
    """The argmax of ``maximum(a, b)``, where b comes later: the first of equals, the last NaN, as in PyTorch."""
    return tl.where((b > a) | (b != b), argmax_b, argmax_a)


@triton.jit
def _max_pool2d_kernel(
    x_ptr, y_ptr, argmax_ptr,  # [N, H, W, C], [N, P, Q, C], [N, P, Q, C]
    M, C: tl.constexpr,  # M = N * P * Q output pixels
    H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ARGMAX: tl.constexpr,  # "tap": r * S + s; "plane": h * W + w; both -1 in the padding alone; "none": not stored
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # per pixel
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] vectors of 16 bytes
    offs_c = (v % VECTORS * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    offs_m = v // VECTORS  # [BLOCK_M] output pixels
    mask_m = offs_m < M
    mask_c = offs_c < C
    n = offs_m // (P * Q)
    h0 = (offs_m // Q) % P * STRIDE_H - PAD_H
    w0 = offs_m % Q * STRIDE_W - PAD_W
    x_ptrs = x_ptr + (((n * H + h0) * W + w0) * C)[:, None] + offs_c  # [BLOCK_M, VECTOR]

    # Whether all windows lie inside the input.
    WHOLE: tl.constexpr = (
        PAD_H + PAD_W == 0
        and (P - 1) * STRIDE_H + (R - 1) * DILATION_H < H
        and (Q - 1) * STRIDE_W + (S - 1) * DILATION_W < W
    )
    best = tl.full((BLOCK_M, VECTOR), float("-inf"), dtype=tl.float32)
    if ARGMAX != "none":
        # The first pixel inside the input: the argmax if all are -inf.
        r0 = (tl.maximum(-h0, 0) + DILATION_H - 1) // DILATION_H
        s0 = (tl.maximum(-w0, 0) + DILATION_W - 1) // DILATION_W
        h = h0 + r0 * DILATION_H
        w = w0 + s0 * DILATION_W
        first = h * W + w if ARGMAX == "plane" else r0 * S + s0
        argmax = tl.where((h < H) & (w < W), first, -1)[:, None].broadcast_to((BLOCK_M, VECTOR))
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            h = h0 + r * DILATION_H
            w = w0 + s * DILATION_W
            inside = mask_m if WHOLE else mask_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            x = tl.load(
                x_ptrs + (r * DILATION_H * W + s * DILATION_W) * C,
                mask=inside[:, None] & mask_c,
                other=float("-inf"),
            ).to(tl.float32)
            if ARGMAX != "none":
                argmax = argmax_of_two(best, x, argmax, (h * W + w)[:, None] if ARGMAX == "plane" else r * S + s)
            best = maximum(best, x)

    offs = (offs_m * C)[:, None] + offs_c
    mask = mask_m[:, None] & mask_c
    tl.store(y_ptr + offs, runtime.cast(best, y_ptr.dtype.element_ty), mask=mask)
    if ARGMAX != "none":
        tl.store(argmax_ptr + offs, argmax.to(argmax_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gather(
    dy_ptrs, argmax_ptrs, p, q, mask,  # window (p, q): [M, VECTOR], [M, VECTOR], [M], [M], [M, VECTOR]
    first,  # [M], h * W + w of the cell's first pixel; None if argmax is a tap
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    C: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """The gradients of ROWS x COLUMNS pixels of the cell (p, q), row by row, each [M, VECTOR] in fp32.

    The strides cut the padded input into cells, and window (p, q) begins in the corner of cell (p, q). A tap falls on
    the same pixel of a cell everywhere, and its window begins the same number of cells earlier. So every tap belongs to
    one pixel, and the few windows that reach into a cell are read once for all its pixels.
    """
    cell = ()
    for _ in tl.static_range(ROWS * COLUMNS):
        cell += (tl.zeros(dy_ptrs.shape, dtype=tl.float32),)
    for r in tl.static_range(R):
        up = r * DILATION_H // STRIDE_H
        row = r * DILATION_H % STRIDE_H
        mask_p = mask & ((p >= up) & (p < P + up))[:, None]
        for s in tl.static_range(S):
            left = s * DILATION_W // STRIDE_W
            column = s * DILATION_W % STRIDE_W
            inside = mask_p & ((q >= left) & (q < Q + left))[:, None]
            offs = (up * Q + left) * C
            dy = tl.load(dy_ptrs - offs, mask=inside, other=0.0).to(tl.float32)
            argmax = tl.load(argmax_ptrs - offs, mask=inside, other=0)  # any number: dy is 0
            won = argmax == (r * S + s if first is None else (first + (row * W + column))[:, None])
            updated = ()
            for i in tl.static_range(ROWS * COLUMNS):
                updated += (cell[i] + tl.where(won, dy, 0.0) if i == row * COLUMNS + column else cell[i],)
            cell = updated
    return cell


@triton.jit
def _max_pool2d_gradient_kernel(
    dy_ptr, argmax_ptr, dx_ptr,  # [N, P, Q, C], [N, P, Q, C], [N, H, W, C]
    N, C: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ARGMAX: tl.constexpr,  # "tap" or "plane"
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # A thread has 16 bytes of channels of a cell, STRIDE_H x STRIDE_W pixels, without those that no tap reaches.
    VECTOR: tl.constexpr = 128 // dy_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # per pixel
    FIRST_P: tl.constexpr = PAD_H // STRIDE_H  # the first cell that holds pixels
    FIRST_Q: tl.constexpr = PAD_W // STRIDE_W
    CELLS_P: tl.constexpr = (H + PAD_H + STRIDE_H - 1) // STRIDE_H - FIRST_P
    CELLS_Q: tl.constexpr = (W + PAD_W + STRIDE_W - 1) // STRIDE_W - FIRST_Q
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M], in the order N, P, Q, C
    offs_c = (v % VECTORS * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    q = v // VECTORS % CELLS_Q + FIRST_Q
    p = v // (VECTORS * CELLS_Q) % CELLS_P + FIRST_P
    n = v // (VECTORS * CELLS_Q * CELLS_P)
    mask = (n < N)[:, None] & (offs_c < C)
    offs = (((n * P + p) * Q + q) * C)[:, None] + offs_c

    ROWS: tl.constexpr = min(STRIDE_H, (R - 1) * DILATION_H + 1)
    COLUMNS: tl.constexpr = min(STRIDE_W, (S - 1) * DILATION_W + 1)
    h0 = p * STRIDE_H - PAD_H
    w0 = q * STRIDE_W - PAD_W
    first = h0 * W + w0
    cell = gather(
        dy_ptr + offs, argmax_ptr + offs, p, q, mask, first if ARGMAX == "plane" else None, ROWS, COLUMNS,
        C, W, P, Q, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
    )  # fmt: skip
    dx_ptrs = dx_ptr + ((n * (H * W) + first) * C)[:, None] + offs_c
    for i in tl.static_range(ROWS):
        for j in tl.static_range(COLUMNS):
            inside = (h0 + i >= 0) & (h0 + i < H) & (w0 + j >= 0) & (w0 + j < W)
            dx = runtime.cast(cell[i * COLUMNS + j], dx_ptr.dtype.element_ty)
            tl.store(dx_ptrs + (i * W + j) * C, dx, mask=inside[:, None] & mask)


tiles.register("max_pool2d", VECTORISED)
tiles.register("max_pool2d_gradient", VECTORISED)


def launch_max_pool2d(
    input: torch.Tensor,
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool,
    mode: str, results: tuple[torch.Tensor, torch.Tensor],
) -> None:  # fmt: skip
    """The results are (output, argmax); ``mode`` is the kernel's ARGMAX."""
    output, argmax = results
    x = input.contiguous(memory_format=torch.channels_last)
    N, C, P, Q = output.shape
    M = N * P * Q
    vectors = triton.cdiv(C, 16 // x.element_size())  # per pixel
    runtime.launch(
        _max_pool2d_kernel, lambda META: (triton.cdiv(M * vectors, META["BLOCK_M"]),), x, output, argmax, M,
        C=C, **window_constants(x.shape[2:], (P, Q), kernel_size, stride, padding, dilation),
        ARGMAX=mode, INDEX=runtime.index_type(x, output),
        **tiles.lookup("max_pool2d", x, M, C, math.prod(kernel_size)),
    )  # fmt: skip


def launch_max_pool2d_gradient(
    gradient: torch.Tensor, argmax: torch.Tensor, size: Sequence[int],
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    dx: torch.Tensor,
) -> None:  # fmt: skip
    if any(step > d * (window - 1) + 1 for step, window, d in zip(stride, kernel_size, dilation, strict=True)):
        dx.zero_()  # the kernel does not visit pixels between the windows
    dy, argmax = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (gradient, argmax))
    N, C, P, Q = dy.shape
    cells = N
    for pixels, step, pad in zip(size, stride, padding, strict=True):
        cells *= triton.cdiv(pixels + pad, step) - pad // step
    vectors = triton.cdiv(C, 16 // dy.element_size())  # per pixel
    runtime.launch(
        _max_pool2d_gradient_kernel, lambda META: (triton.cdiv(cells * vectors, META["BLOCK_M"]),), dy, argmax, dx, N,
        C=C, **window_constants(size, (P, Q), kernel_size, stride, padding, dilation),
        ARGMAX="plane" if argmax.dtype is torch.int64 else "tap", INDEX=runtime.index_type(dx, dy),
        **tiles.lookup("max_pool2d_gradient", dy, cells, C, math.prod(kernel_size)),
    )  # fmt: skip


def empty_output(input, kernel_size, stride, padding, dilation, ceil_mode, mode):
    N, C, H, W = input.shape
    P = output_size(H, kernel_size[0], stride[0], 2 * padding[0], dilation[0], ceil_mode)
    Q = output_size(W, kernel_size[1], stride[1], 2 * padding[1], dilation[1], ceil_mode)
    small = math.prod(kernel_size) < 256  # a byte holds every tap, and one value more for none
    dtype = torch.int64 if mode == "plane" else torch.uint8 if small else torch.int32
    shape = (N, C, P, Q)
    return channels_last(shape, input), channels_last((0, 0, 0, 0) if mode == "none" else shape, input, dtype)


def stored(results):
    """The argmax among the results."""
    output, argmax = results
    check(argmax.shape == output.shape, "pooling: the gradient needs the argmax, which was not stored")
    return argmax


_gradient = runtime.register(
    "max_pool2d_gradient", launch_max_pool2d_gradient,
    lambda gradient, argmax, size, *_: channels_last((*gradient.shape[:2], *size), gradient),
)  # fmt: skip
_max_pool2d = runtime.register(
    "max_pool2d", launch_max_pool2d, empty_output,
    *runtime.gradient_of_input(
        _gradient, lambda inputs, results: (stored(results), inputs[0].shape[2:], *inputs[1:-2])
    ),
)  # fmt: skip


def max_pool2d(
    input: torch.Tensor, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """2-D max pooling, as :func:`torch.nn.functional.max_pool2d`; a NaN in a window makes its maximum NaN.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16 or bfloat16. Any strides; channels_last is not copied.
        kernel_size, stride, dilation: an int or a pair (vertical, horizontal), at least 1; stride None: kernel_size.
        padding: an int or a pair, at most half of ``kernel_size``; padded pixels never win.
        ceil_mode: keep a last window that hangs over the end.
        return_indices: also return the argmax of each window.

    Returns:
        (N, C, P, Q) or (C, P, Q) in channels_last memory. With ``return_indices`` a pair: it, and an int64 tensor of
        its shape, h * W + w. With dilation a window can lie in the padding alone; its index is -1.

    Raises:
        TypeError, ArgumentError: what ``torch.nn.functional.max_pool2d`` refuses, and other dtypes.

    Example:
        Overlapping windows: 3 x 3 pixels at stride 2.

        >>> x = torch.arange(25.0).reshape(1, 1, 5, 5)
        >>> kernels.max_pool2d(x, kernel_size=3, stride=2)
        tensor([[[[12., 14.],
                  [22., 24.]]]])
    """
    batch = batched("max_pool2d", input, filled=3)
    kernel_size = pair("max_pool2d", "kernel_size", kernel_size, low=1)
    if stride is None or (isinstance(stride, (tuple, list)) and not stride):
        stride = kernel_size
    stride = pair("max_pool2d", "stride", stride, low=1)
    padding = pair("max_pool2d", "padding", padding, low=0)
    dilation = pair("max_pool2d", "dilation", dilation, low=1)
    ceil_mode = boolean("max_pool2d", "ceil_mode", ceil_mode)
    return_indices = bool(return_indices)  # PyTorch takes any object here
    window = f"kernel_size={tuple(kernel_size)}"
    half = all(p <= k // 2 for p, k in zip(padding, kernel_size, strict=True))
    check(half, f"max_pool2d: padding must be at most half of {window}, got {tuple(padding)}")
    axes = zip(input.shape[-2:], kernel_size, stride, padding, dilation, strict=True)
    fits = all(output_size(pixels, k, s, 2 * p, d, ceil_mode) >= 1 for pixels, k, s, p, d in axes)
    window += f" with dilation={tuple(dilation)}"
    check(fits, f"max_pool2d: {window} does not fit in the padded input of shape {tuple(input.shape)}")

    mode = "plane" if return_indices else "tap" if gradient_wanted(input) else "none"
    output, indices = _max_pool2d(batch, kernel_size, stride, padding, dilation, ceil_mode, mode)
    if input.dim() == 3:
        output, indices = output.squeeze(0), indices.squeeze(0)
    return (output, indices) if return_indices else output


def cost(input: Shape, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4) -> Cost:
    """For shape (N, C, H, W), without padding, as AlexNet pools."""
    N, C, H, W = input
    output = (N, C, output_size(H, kernel_size[0], stride[0]), output_size(W, kernel_size[1], stride[1]))
    flops = math.prod(output) * (math.prod(kernel_size) - 1)
    return Cost(output, 0, flops, (math.prod(input) + math.prod(output)) * itemsize)


def gradient_cost(input: Shape, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4) -> Cost:
    """For shape (N, C, H, W): one addition per output, whose argmax is a byte."""
    outputs = math.prod(cost(input, kernel_size, stride).output)
    return Cost(input, 0, outputs, (outputs + math.prod(input)) * itemsize + outputs)
