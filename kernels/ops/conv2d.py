"""Convolution as an implicit GEMM, with groups, and with bias and ReLU in the epilogue.

    y[n, k, p, q] = relu(bias[k] + sum over c, r, s of x[n, c, h, w] * w[k, c, r, s])
    h = p * stride - padding + r * dilation,   w = q * stride - padding + s * dilation

becomes a matrix product if (n, p, q) is read as one row index and (r, s, c) as one reduction index:

    y[M, N] = A[M, K] @ B[K, N],   M = N * P * Q pixels,   N = filters of a group,   K = R * S * C taps

A is never stored: each program computes in the input itself the address of every element of its tile of A.

| here       | PyTorch                       | here    | PyTorch                  |
|------------|-------------------------------|---------|--------------------------|
| N, C, H, W | the input's shape             | K       | out_channels (per group) |
| R, S       | kernel_size                   | C       | in_channels (per group)  |
| P, Q       | the output's height and width | x, w, y | input, weight, output    |

These are the names of cuDNN (Chetlur et al. 2014, https://arxiv.org/abs/1410.0759) and of CUTLASS's implicit GEMM.
Memory is NHWC, PyTorch's `channels_last`, so that the C channels of a tap are contiguous.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import batched, boolean, check, check_tensor, integer, pair
from kernels.ops import conv2d_backward
from kernels.ops.cost import Cost, Shape, product_gradient
from kernels.ops.epilogue import save_product
from kernels.ops.geometry import channels_last, convolution_constants, output_size
from kernels.ops.space_to_depth import fold_input, fold_weight, folds
from kernels.ops.split_k import launch_add_partials
from kernels.tiles import products


@triton.jit
def _conv2d_kernel(
    x_ptr,  # [N, H, W, GROUPS * C]
    w_ptr,  # [GROUPS * K, R, S, C]
    bias_ptr,  # [GROUPS * K]
    y_ptr,  # [N, P, Q, GROUPS * K]; if SPLIT_K > 1, float32 partial sums [SPLIT_K, N, P, Q, GROUPS * K]
    M,  # N * P * Q
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, GROUPS: tl.constexpr,
    PADDED: tl.constexpr,  # whether any tap can fall outside the input
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    # Each program makes one [BLOCK_M, BLOCK_N] tile of one group's output, from one of SPLIT_K parts of the taps.
    group = tl.program_id(1)
    split = tl.program_id(2) if SPLIT_K > 1 else 0
    pid_m, pid_n = runtime.tile_order(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_N), GROUP_M)
    offs_m = pid_m.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] pixels
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] filters
    mask_m = offs_m < M
    mask_n = offs_n < K

    # The input pixel under tap (0, 0) of every output pixel; it may lie in the padding.
    n = offs_m // (P * Q)
    h0 = (offs_m // Q) % P * STRIDE_H - PAD_H
    w0 = offs_m % Q * STRIDE_W - PAD_W
    x_ptrs = x_ptr + group * C + (((n * H + h0) * W + w0) * (GROUPS * C))[:, None]  # [BLOCK_M, 1]
    w_ptrs = w_ptr + ((group * K + offs_n).to(INDEX) * (R * S * C))[:, None]  # [BLOCK_N, 1]

    TAPS: tl.constexpr = R * S * C
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(TAPS, BLOCK_K * SPLIT_K)):
        k0 = (step * SPLIT_K + split) * BLOCK_K
        offs_k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K], channels fastest
        # The tap (r, s) and the channel c of each. If the block lies within one tap, r and s are single numbers: then
        # one mask per pixel is enough for the whole block.
        if C % BLOCK_K == 0:
            r = k0 // (S * C)
            s = k0 // C % S
            c = tl.multiple_of(k0 % C, BLOCK_K) + tl.arange(0, BLOCK_K)[None, :]
        else:
            r = (offs_k // (S * C))[None, :]
            s = (offs_k // C % S)[None, :]
            c = (offs_k % C)[None, :]
        mask_a = mask_m[:, None]
        if PADDED:
            h = h0[:, None] + r * DILATION_H
            w = w0[:, None] + s * DILATION_W
            mask_a = mask_a & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        mask_b = mask_n[:, None]
        if TAPS % (BLOCK_K * SPLIT_K) != 0:
            mask_a = mask_a & (offs_k < TAPS)[None, :]
            mask_b = mask_b & (offs_k < TAPS)[None, :]
        a = tl.load(x_ptrs + (r * (DILATION_H * W) + s * DILATION_W) * (GROUPS * C) + c, mask=mask_a, other=0.0)
        b = tl.load(w_ptrs + offs_k[None, :], mask=mask_b, other=0.0)
        acc = runtime.dot(a, tl.trans(b), acc, PRECISION)  # [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N]

    if SPLIT_K > 1:
        y_ptr += split.to(INDEX) * M * (GROUPS * K)  # bias and ReLU follow when the partial sums are added
    else:
        if HAS_BIAS:
            acc += tl.load(bias_ptr + group * K + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        if RELU:
            acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    y_ptrs = y_ptr + (offs_m * (GROUPS * K))[:, None] + group * K + offs_n[None, :]
    tl.store(y_ptrs, runtime.cast(acc, y_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


tiles.register("conv2d", products.by_rule(split=True))


def launch_conv2d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, relu: bool,
    output: torch.Tensor,
) -> None:  # fmt: skip
    """See :func:`conv2d`; ``padding`` is (top, bottom, left, right)."""
    if folds(weight.shape, stride, dilation, groups):
        x = fold_input(input, weight.shape, stride[0], padding, *output.shape[2:])
        w = fold_weight(weight, stride[0])
        stride, padding = (1, 1), (0, 0, 0, 0)
    else:
        x = input.contiguous(memory_format=torch.channels_last)
        w = weight.contiguous(memory_format=torch.channels_last)
    sizes = convolution_constants(x.shape, w.shape, output.shape, stride, padding, dilation, groups)
    M, K = len(x) * sizes["P"] * sizes["Q"], sizes["K"]
    config = tiles.lookup("conv2d", x, M, K, w[0].numel())
    splits = config["SPLIT_K"]
    y = output if splits == 1 else torch.empty((splits, *output.shape), dtype=torch.float32, device=x.device)
    runtime.launch(
        _conv2d_kernel,
        lambda META: (triton.cdiv(M, META["BLOCK_M"]) * triton.cdiv(K, META["BLOCK_N"]), groups, splits),
        x, w,
        w if bias is None else bias.contiguous(),  # without a bias the kernel does not read it
        y, M, **sizes,
        PADDED=any(padding), HAS_BIAS=bias is not None, RELU=relu,
        PRECISION=runtime.dot_precision(x.dtype), INDEX=runtime.index_type(x, w, y), **config,
    )  # fmt: skip
    if splits > 1:
        launch_add_partials(y, output, bias, relu)


def _conv2d_output(input, weight, bias, stride, padding, dilation, groups, relu):
    N, channels, H, W = input.shape
    K, _, R, S = weight.shape
    P = output_size(H, R, stride[0], padding[0] + padding[1], dilation[0])
    Q = output_size(W, S, stride[1], padding[2] + padding[3], dilation[1])
    K = K if channels else 0  # no channels in, no channels out, as in PyTorch
    return channels_last((N, K, P, Q), input)


_conv2d = runtime.register("conv2d", launch_conv2d, _conv2d_output, save_product, conv2d_backward.gradients)


def _both_ends(padding, stride, dilation, kernel_size) -> list[int]:
    """``padding`` as [top, bottom, left, right]."""
    if not isinstance(padding, str):
        vertical, horizontal = pair("conv2d", "padding", padding, low=0)
        return [vertical, vertical, horizontal, horizontal]
    check(padding in ("same", "valid"), f"conv2d: padding must be 'same', 'valid', an int or a pair, got {padding!r}")
    if padding == "valid":
        return [0, 0, 0, 0]
    check(stride == [1, 1], f"conv2d: padding='same' takes stride 1, got stride={tuple(stride)}")
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
    return [height // 2, height - height // 2, width // 2, width - width // 2]  # an odd pixel goes to the end


def conv2d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0, dilation: int | Sequence[int] = 1,
    groups: int = 1, *, relu: bool = False,
) -> torch.Tensor:  # fmt: skip
    """2-D convolution, as :func:`torch.nn.functional.conv2d`, with an optional ReLU in the same kernel.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16 or bfloat16. Any strides; channels_last is not copied.
        weight: (K, C / groups, R, S), dtype and device of ``input``. channels_last is not copied.
        bias: (K,), or None.
        stride, dilation: an int or a pair (vertical, horizontal), at least 1.
        padding: an int or a pair, at least 0; ``'valid'`` is none, ``'same'`` keeps H and W at stride 1.
        groups: C and K are split into this many groups; each is convolved alone.
        relu: stores max(0, y) instead of y.

    Returns:
        (N, K, P, Q) or (K, P, Q) in channels_last memory; accumulated in float32.

    Raises:
        TypeError, ArgumentError: what ``torch.nn.functional.conv2d`` refuses, and other dtypes.

    Example:
        conv1 of AlexNet for a photo of 227 x 227 pixels.

        >>> x = torch.randn(1, 3, 227, 227)
        >>> kernels.conv2d(x, torch.randn(96, 3, 11, 11), torch.zeros(96), stride=4, relu=True).shape
        torch.Size([1, 96, 55, 55])
    """
    input, weight, bias = runtime.autocast(input, weight, bias)
    batch = batched("conv2d", input, filled=2)
    check_tensor("conv2d", "weight", weight, like=input)
    stride = pair("conv2d", "stride", stride, low=1)
    dilation = pair("conv2d", "dilation", dilation, low=1)
    groups = integer("conv2d", "groups", groups, low=1)
    relu = boolean("conv2d", "relu", relu)

    shape = tuple(weight.shape)
    check(
        weight.dim() == 4 and 0 not in (shape[0], *shape[2:]),
        f"conv2d: weight must be (K, C / groups, R, S), with filters and taps, got shape {shape}",
    )
    K, C, R, S = shape
    _, channels, H, W = batch.shape
    padding = _both_ends(padding, stride, dilation, (R, S))
    check(K % groups == 0, f"conv2d: weight's {K} filters must be divisible by groups={groups}")
    takes = f"weight of shape {shape} with groups={groups} takes input of {C * groups} channels"
    check(channels == C * groups, f"conv2d: {takes}, got {channels}")
    height, width = H + padding[0] + padding[1], W + padding[2] + padding[3]
    rows, columns = dilation[0] * (R - 1) + 1, dilation[1] * (S - 1) + 1
    fits = rows <= height and columns <= width
    check(fits, f"conv2d: the filter spans {rows} x {columns}, more than the padded input's {height} x {width}")
    if bias is not None:
        check_tensor("conv2d", "bias", bias, like=input)
        check(bias.shape == (K,), f"conv2d: bias must be of shape ({K},), got {tuple(bias.shape)}")

    output = _conv2d(batch, weight, bias, stride, padding, dilation, groups, relu)
    return output if input.dim() == 4 else output.squeeze(0)


def cost(
    input: Shape, weight: Shape,
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), *,
    bias: bool = True, itemsize: int = 4,
) -> Cost:  # fmt: skip
    """For shapes (N, C, H, W) and (K, C / groups, R, S), with ``padding`` at each end."""
    N, _, H, W = input
    K, C, R, S = weight
    P = output_size(H, R, stride[0], 2 * padding[0], dilation[0])
    Q = output_size(W, S, stride[1], 2 * padding[1], dilation[1])
    output = (N, K, P, Q)
    macs = math.prod(output) * C * R * S
    elements = math.prod(input) + math.prod(weight) + K * bias + math.prod(output)
    return Cost(output, macs, 2 * macs, elements * itemsize)


def gradient_cost(
    input: Shape, weight: Shape,
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), *,
    relu: bool = False, bias: bool = True, first: bool = False, itemsize: int = 4,
) -> Cost:  # fmt: skip
    """As :func:`cost`. ``first``: of the first layer, whose input needs no gradient."""
    forward = cost(input, weight, stride, padding, dilation)
    return product_gradient(forward, input, weight, relu=relu, bias=bias, first=first, itemsize=itemsize)
