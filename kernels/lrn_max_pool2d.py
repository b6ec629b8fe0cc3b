"""Local response normalisation and max pooling in one pass over memory.

    max_pool2d(local_response_norm(x, size, alpha, beta, k), kernel_size, stride)

In sequence the two read and write the full-size feature map once each, and then read it again. Here each program
normalises the pixels under its windows as it reads them, and only the maxima are written. Windows overlap, and a
pixel that several threads need is normalised by each: arithmetic in exchange for memory traffic. A thread therefore
takes a block of windows. Of 3 x 3 windows at stride 2, a block of 3 x 3 needs 7 x 7 pixels, 5.4 a window instead of 9.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, integer, number, pair
from kernels.local_response_norm import divisor, normalise
from kernels.max_pool2d import output_size


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _lrn_max_pool2d_kernel(
    x_ptr,  # [N, H, W, C]
    y_ptr,  # [N, P, Q, C]
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
    y_ptrs = y_ptr + (((n * P + p0) * Q + q0) * C)[:, None] + offs_c

    # Squares keep the order: x|x| / d^1.5 takes one root less a pixel than x / d^0.75. Only float16's fit in fp32.
    SQUARED: tl.constexpr = ROOTS and x_ptr.dtype.element_ty == tl.float16
    # Rows that a window shares with the one below are normalised once: their maxima are carried over.
    CARRIED: tl.constexpr = R - STRIDE_H if STRIDE_H < R and R <= 2 * STRIDE_H else 0
    nothing = ()
    for _ in tl.static_range(BLOCK_Q):
        nothing += (tl.full((BLOCK_M, VECTOR), float("-inf"), dtype=tl.float32),)
    carry = nothing
    for p in range(BLOCK_P):
        best = carry  # BLOCK_Q tiles [BLOCK_M, VECTOR]
        carry = nothing
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
            for q in tl.static_range(BLOCK_Q):
                y = row[q * STRIDE_W]
                for s in tl.static_range(1, S):
                    y = _maximum(y, row[q * STRIDE_W + s])
                better += (_maximum(best[q], y),)
                later += (tl.where(r >= STRIDE_H, _maximum(carry[q], y), carry[q]),)
            best = better
            if CARRIED > 0:
                carry = later
        for q in tl.static_range(BLOCK_Q):
            y = best[q]
            if SQUARED:
                root = tl.sqrt(tl.abs(y))
                y = tl.where(y < 0, -root, root)
            mask = (n < N) & (p0 + p < P) & (q0 + q < Q)
            y = runtime.cast(y, y_ptr.dtype.element_ty)
            tl.store(y_ptrs + (p * Q + q) * C, y, mask=mask[:, None] & (offs_c < C))


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
    tile = tiles.lookup("lrn_max_pool2d", x, N * P * Q, C, kernel_size[0] * kernel_size[1])
    vectors = triton.cdiv(C, 16 // x.element_size())  # of a pixel
    blocks = lambda META: N * triton.cdiv(P, META["BLOCK_P"]) * triton.cdiv(Q, META["BLOCK_Q"])
    grid = lambda META: (triton.cdiv(blocks(META) * vectors, META["BLOCK_M"]),)
    runtime.launch(
        _lrn_max_pool2d_kernel,
        grid,
        x,
        output,
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
        SIZE=size,
        ROOTS=beta == 0.75,
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
