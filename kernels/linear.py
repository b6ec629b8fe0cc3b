"""Fully connected layer: a matrix product with bias and ReLU in the epilogue.

    y[m, n] = relu(bias[n] + sum over k of x[m, k] * w[n, k])

x is [M, K], one row an example; w is [N, K], one row an output, as ``torch.nn.Linear`` keeps it; y is [M, N].
That is 2 * M * N * K FLOPs for M * K + N * K + M * N elements: a large batch is bound by arithmetic, a small one by
reading the weights. Many rows go through tiles, [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N] on the tensor cores; a single
row streams the weights past the vector units, where tensor cores would multiply 15 rows of nothing.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import boolean, check, check_tensor


@triton.jit
def _linear_kernel(
    x_ptr,  # [M, K]
    w_ptr,  # [N, K]
    bias_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    pid_m, pid_n = runtime.tile_order(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    offs_m = pid_m.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m = offs_m < M
    mask_n = offs_n < N
    x_ptrs = x_ptr + (offs_m * K)[:, None] + offs_k[None, :]  # [BLOCK_M, BLOCK_K]
    w_ptrs = w_ptr + (offs_n * K)[:, None] + offs_k[None, :]  # [BLOCK_N, BLOCK_K]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        mask_a = mask_m[:, None]
        mask_b = mask_n[:, None]
        if K % BLOCK_K != 0:
            mask_a = mask_a & (k0 + offs_k < K)[None, :]
            mask_b = mask_b & (k0 + offs_k < K)[None, :]
        a = tl.load(x_ptrs + k0, mask=mask_a, other=0.0)
        b = tl.load(w_ptrs + k0, mask=mask_b, other=0.0)
        acc = runtime.dot(a, tl.trans(b), acc, PRECISION)  # [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N]

    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    y_ptrs = y_ptr + (offs_m * N)[:, None] + offs_n[None, :]
    tl.store(y_ptrs, runtime.cast(acc, y_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


@triton.jit
def _linear_row_kernel(
    x_ptr,  # [K]
    w_ptr,  # [N, K]
    bias_ptr,  # [N]
    y_ptr,  # [N]
    N: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    offs_n = tl.program_id(0).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_n = offs_n < N
    x_ptrs = x_ptr + offs_k
    w_ptrs = w_ptr + (offs_n * K)[:, None] + offs_k[None, :]  # [BLOCK_N, BLOCK_K]

    # Each thread adds up its own columns; the threads' sums meet once, after the loop.
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        mask_w = mask_n[:, None]
        if K % BLOCK_K != 0:
            mask_w = mask_w & (k0 + offs_k < K)[None, :]
            x = tl.load(x_ptrs + k0, mask=k0 + offs_k < K, other=0.0)
        else:
            x = tl.load(x_ptrs + k0)
        w = tl.load(w_ptrs + k0, mask=mask_w, other=0.0)
        acc += w.to(tl.float32) * x.to(tl.float32)[None, :]
    y = tl.sum(acc, 1)

    if HAS_BIAS:
        y += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offs_n, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask_n)


def launch_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, relu: bool) -> torch.Tensor:
    output = _linear_output(input, weight, bias, relu)
    if output.numel() == 0:
        return output
    x = input.contiguous()
    w = weight.contiguous()
    has_bias = bias is not None
    M, N = output.shape
    K = w.shape[1]
    bias = w if bias is None else bias.contiguous()  # the kernels do not read it without a bias
    constants = {"N": N, "K": K, "HAS_BIAS": has_bias, "RELU": relu, "INDEX": runtime.index_type(x, w, output)}
    if M == 1:
        tile = tiles.lookup("linear_row", x, M, N, K)
        grid = lambda META: (triton.cdiv(N, META["BLOCK_N"]),)
        runtime.launch(_linear_row_kernel, grid, x, w, bias, output, **constants, **tile)
    else:
        tile = tiles.lookup("linear", x, M, N, K)
        grid = lambda META: (triton.cdiv(M, META["BLOCK_M"]) * triton.cdiv(N, META["BLOCK_N"]),)
        precision = runtime.dot_precision(x.dtype)
        runtime.launch(_linear_kernel, grid, x, w, bias, output, M, **constants, PRECISION=precision, **tile)
    return output


def _linear_output(input, weight, bias, relu):
    return torch.empty((input.shape[0], weight.shape[0]), dtype=input.dtype, device=input.device)


_linear = runtime.register("linear", launch_linear, _linear_output)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, relu: bool = False
) -> torch.Tensor:
    """``input @ weight.T + bias``, as :func:`torch.nn.functional.linear`, with an optional ReLU in the same kernel.

    Args:
        input: (*, K), any number of leading dimensions, none included; float32, float16 or bfloat16.
        weight: (N, K), or (K,) without a bias; dtype and device of ``input``.
        bias: (N,), (1,), () or (1, N); or None.
        relu: max(0, y) before y is stored.

    Returns:
        (*, N), or (*) for a one-dimensional weight; accumulated in float32.

    Raises:
        TypeError: an argument that is not a tensor.
        ArgumentError: whatever else ``torch.nn.functional.linear`` refuses; also other dtypes, and a bias
            that varies from row to row.
    """
    check_tensor("linear", "input", input)
    check_tensor("linear", "weight", weight, like=input)
    relu = boolean("linear", "relu", relu)
    check(input.dim() >= 1, "linear: input must be (*, K), got a tensor without dimensions")
    check(weight.dim() in (1, 2), f"linear: weight must be (N, K) or (K,), got shape {tuple(weight.shape)}")
    check(
        input.shape[-1] == weight.shape[-1],
        f"linear: weight of shape {tuple(weight.shape)} takes input of {weight.shape[-1]} features, "
        f"got {input.shape[-1]} in shape {tuple(input.shape)}",
    )
    if bias is not None:
        check_tensor("linear", "bias", bias, like=input)
        check(weight.dim() == 2, f"linear: a bias takes weight (N, K), got shape {tuple(weight.shape)}")
        N = weight.shape[0]
        check(
            bias.shape in ((N,), (1,), (), (1, N)),
            f"linear: bias must be of shape ({N},), (1,), () or (1, {N}), got {tuple(bias.shape)}",
        )
        bias = bias.reshape(-1).expand(N)

    leading = input.shape[:-1]
    rows = input.reshape(math.prod(leading), input.shape[-1])
    output = _linear(rows, weight if weight.dim() == 2 else weight.unsqueeze(0), bias, relu)
    return output.reshape((*leading, *weight.shape[:-1]))
