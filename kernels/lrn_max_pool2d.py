"""Local response normalisation and max pooling in one pass over memory.

    max_pool2d(local_response_norm(x, size, alpha, beta, k), kernel_size, stride)

In sequence the two read and write the full-size feature map once each, and then read it again. Here each program
normalises the pixels under its windows as it reads them, and only the maxima are written. Windows overlap, so a
pixel is normalised up to (kernel_size / stride)^2 times: arithmetic in exchange for memory traffic.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, integer, number, pair
from kernels.local_response_norm import normalise
from kernels.max_pool2d import output_size


@triton.jit
def _lrn_max_pool2d_kernel(
    x_ptr,  # [N, H, W, C]
    y_ptr,  # [N, P, Q, C]
    M,  # N * P * Q
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
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] output pixels
    offs_c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] channels
    mask = (offs_m < M)[:, None] & (offs_c < C)[None, :]
    n = offs_m // (P * Q)
    h0 = (offs_m // Q) % P * STRIDE_H
    w0 = offs_m % Q * STRIDE_W
    x_ptrs = x_ptr + (((n * H + h0) * W + w0) * C)[:, None] + offs_c[None, :]  # [BLOCK_M, BLOCK_N]

    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), dtype=tl.float32)
    for tap in range(R * S):  # not unrolled: R * S windows of SIZE loads each would spill
        offset = ((tap // S) * W + tap % S) * C
        y = normalise(x_ptrs + offset, offs_c[None, :], mask, scale, beta, k, C, SIZE)
        best = tl.maximum(best, y, propagate_nan=tl.PropagateNan.ALL)

    offs = (offs_m * C)[:, None] + offs_c[None, :]
    tl.store(y_ptr + offs, runtime.cast(best, y_ptr.dtype.element_ty), mask=mask)


def launch_lrn_max_pool2d(
    input: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: Sequence[int],
    stride: Sequence[int],
) -> torch.Tensor:
    output = _lrn_max_pool2d_output(input, size, alpha, beta, k, kernel_size, stride)
    if output.numel() == 0:
        return output
    x = input.contiguous(memory_format=torch.channels_last)
    N, C, H, W = x.shape
    _, _, P, Q = output.shape
    M = N * P * Q
    tile = tiles.lookup("lrn_max_pool2d", x, M, C, kernel_size[0] * kernel_size[1])
    grid = lambda META: (triton.cdiv(M, META["BLOCK_M"]), triton.cdiv(C, META["BLOCK_N"]))
    runtime.launch(
        _lrn_max_pool2d_kernel,
        grid,
        x,
        output,
        M,
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
        SIZE=size,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def _lrn_max_pool2d_output(input, size, alpha, beta, k, kernel_size, stride):
    N, C, H, W = input.shape
    P = output_size(H, kernel_size[0], stride[0], 0, 1, ceil_mode=False)
    Q = output_size(W, kernel_size[1], stride[1], 0, 1, ceil_mode=False)
    return torch.empty((N, C, P, Q), dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


_lrn_max_pool2d = runtime.register("lrn_max_pool2d", launch_lrn_max_pool2d, _lrn_max_pool2d_output)


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
    output = _lrn_max_pool2d(batched, size, alpha, beta, k, kernel_size, stride)
    return output if input.dim() == 4 else output.squeeze(0)
