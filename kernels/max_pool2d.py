"""Max pooling, overlapping where the window is larger than the stride.

    y[n, c, p, q] = max over r, s of x[n, c, p * stride - padding + r * dilation, q * stride - padding + s * dilation]

AlexNet pools 3 x 3 windows at stride 2, so that neighbours share a row or a column: 55 -> 27 -> 13 and 13 -> 6.
Memory is NHWC: each thread reads 16 bytes of channels of the R * S pixels in a window.
Names as in kernels/conv2d.py.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import boolean, check, check_tensor, pair


@triton.jit
def _max_pool2d_kernel(
    x_ptr,  # [N, H, W, C]
    y_ptr,  # [N, P, Q, C]
    indices_ptr,  # [N, P, Q, C] int64, h * W + w of each maximum
    M,  # N * P * Q
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDICES: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # of a pixel
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] vectors of 16 bytes
    offs_c = (v % VECTORS * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    offs_m = v // VECTORS  # [BLOCK_M] output pixels
    mask_m = offs_m < M
    mask_c = offs_c < C
    n = offs_m // (P * Q)
    h0 = (offs_m // Q) % P * STRIDE_H - PAD_H
    w0 = offs_m % Q * STRIDE_W - PAD_W
    x_ptrs = x_ptr + (((n * H + h0) * W + w0) * C)[:, None] + offs_c  # [BLOCK_M, VECTOR]

    best = tl.full((BLOCK_M, VECTOR), float("-inf"), dtype=tl.float32)
    where = tl.full((BLOCK_M, VECTOR), -1, dtype=tl.int64)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            h = h0 + r * DILATION_H
            w = w0 + s * DILATION_W
            inside = mask_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            x = tl.load(
                x_ptrs + (r * DILATION_H * W + s * DILATION_W) * C,
                mask=inside[:, None] & mask_c,
                other=float("-inf"),
            ).to(tl.float32)
            if INDICES:
                # The first of equals, the last NaN, and the first element of a window that is all -inf: as PyTorch.
                better = inside[:, None] & ((x > best) | (x != x) | (where < 0))
                best = tl.where(better, x, best)
                where = tl.where(better, (h * W + w).to(tl.int64)[:, None], where)
            else:
                best = tl.maximum(best, x, propagate_nan=tl.PropagateNan.ALL)

    offs = (offs_m * C)[:, None] + offs_c
    mask = mask_m[:, None] & mask_c
    tl.store(y_ptr + offs, runtime.cast(best, y_ptr.dtype.element_ty), mask=mask)
    if INDICES:
        tl.store(indices_ptr + offs, where, mask=mask)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Output pixels along one axis, with ``padding`` at each end.

    With ``ceil_mode`` a last window may hang over the end, as long as it starts inside the input or before it.
    """
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def launch_max_pool2d(
    input: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    return_indices: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    output, indices = _max_pool2d_output(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if output.numel() == 0:
        return output, indices
    x = input.contiguous(memory_format=torch.channels_last)
    N, C, H, W = x.shape
    _, _, P, Q = output.shape
    M = N * P * Q
    tile = tiles.lookup("max_pool2d", x, M, C, kernel_size[0] * kernel_size[1])
    vectors = triton.cdiv(C, 16 // x.element_size())  # of a pixel
    grid = lambda META: (triton.cdiv(M * vectors, META["BLOCK_M"]),)
    runtime.launch(
        _max_pool2d_kernel,
        grid,
        x,
        output,
        indices,
        M,
        C=C,
        H=H,
        W=W,
        P=P,
        Q=Q,
        R=kernel_size[0],
        S=kernel_size[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        PAD_H=padding[0],
        PAD_W=padding[1],
        DILATION_H=dilation[0],
        DILATION_W=dilation[1],
        INDICES=return_indices,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output, indices


def _max_pool2d_output(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    N, C, H, W = input.shape
    P = output_size(H, kernel_size[0], stride[0], padding[0], dilation[0], ceil_mode)
    Q = output_size(W, kernel_size[1], stride[1], padding[1], dilation[1], ceil_mode)
    like = {"device": input.device, "memory_format": torch.channels_last}
    output = torch.empty((N, C, P, Q), dtype=input.dtype, **like)
    indices = torch.empty((N, C, P, Q) if return_indices else (0, 0, 0, 0), dtype=torch.int64, **like)
    return output, indices


_max_pool2d = runtime.register("max_pool2d", launch_max_pool2d, _max_pool2d_output)


def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """2-D max pooling, as :func:`torch.nn.functional.max_pool2d`; a NaN in a window makes its maximum NaN.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16 or bfloat16. Any strides; channels_last is not copied.
        kernel_size, stride, dilation: an int or a pair (vertical, horizontal), at least 1; ``stride`` is
            ``kernel_size`` where it is not given.
        padding: an int or a pair, at most half of ``kernel_size``; padded pixels never win.
        ceil_mode: keep a last window that hangs over the end.
        return_indices: also return where in its H x W plane each maximum lies.

    Returns:
        (N, C, P, Q) or (C, P, Q) in channels_last memory; with ``return_indices`` a pair of it and an int64
        tensor of its shape, h * W + w; -1 for a window, possible with dilation, that lies in the padding alone.

    Raises:
        TypeError: an argument of the wrong type.
        ArgumentError: whatever else ``torch.nn.functional.max_pool2d`` refuses; also other dtypes.
    """
    check_tensor("max_pool2d", "input", input)
    check(
        input.dim() in (3, 4) and min(input.shape[-3:]) > 0,
        f"max_pool2d: input must be (N, C, H, W) or (C, H, W), empty in N only, got shape {tuple(input.shape)}",
    )
    kernel_size = pair("max_pool2d", "kernel_size", kernel_size)
    omitted = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    stride = kernel_size if omitted else pair("max_pool2d", "stride", stride)
    padding = pair("max_pool2d", "padding", padding)
    dilation = pair("max_pool2d", "dilation", dilation)
    ceil_mode = boolean("max_pool2d", "ceil_mode", ceil_mode)
    return_indices = bool(return_indices)  # PyTorch takes any object here
    for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        check(min(value) >= 1, f"max_pool2d: {name} must be at least 1, got {tuple(value)}")
    check(
        all(0 <= p <= k // 2 for p, k in zip(padding, kernel_size, strict=True)),
        f"max_pool2d: padding must be from 0 to half of kernel_size={tuple(kernel_size)}, got {tuple(padding)}",
    )
    size = [
        output_size(*axis, ceil_mode)
        for axis in zip(input.shape[-2:], kernel_size, stride, padding, dilation, strict=True)
    ]
    check(
        min(size) >= 1,
        f"max_pool2d: kernel_size={tuple(kernel_size)} with dilation={tuple(dilation)} does not fit in the padded "
        f"input of shape {tuple(input.shape)}",
    )

    batched = input if input.dim() == 4 else input.unsqueeze(0)
    output, indices = _max_pool2d(batched, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if input.dim() == 3:
        output = output.squeeze(0)
        indices = indices.squeeze(0) if return_indices else indices
    return (output, indices) if return_indices else output
