"""Fully connected layer: a matrix product with bias and ReLU in the epilogue.

    y[m, n] = relu(bias[n] + sum over k of x[m, k] * w[n, k])

x is [M, K], one row per example; w is [N, K], one row per output, as in ``torch.nn.Linear``; y is [M, N].
That is 2 * M * N * K FLOPs for M * K + N * K + M * N elements. Arithmetic limits a large batch; reading the weights
limits a small one. Many rows are computed in tiles, [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N], on the tensor cores. For a
single row these would multiply 15 rows of zeros, so it has a kernel that streams the weights past the vector units.

From dz, the gradient of y before bias and ReLU (see :mod:`kernels.ops.epilogue`):

    dx[m, k] = sum over n of dz[m, n] * w[n, k]        dw[n, k] = sum over m of dz[m, n] * x[m, k]

Each is one more product of the same size. One kernel makes all three: y = x w^T, dx = dz w and dw = dz^T x. A matrix
and its transpose differ only in their strides. These are constants for the compiler, which arranges the threads so that
neighbours read neighbouring elements either way.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import boolean, check, check_tensor
from kernels.ops.cost import Cost, Shape, product_gradient
from kernels.ops.epilogue import epilogue_gradient, save_product
from kernels.tiles import products
from kernels.tiles.choices import ITEMSIZE, Choices, Config, Problem, power


@triton.jit
def _linear_kernel(
    a_ptr,  # [M, K]
    b_ptr,  # [K, N]
    bias_ptr,  # [N]
    c_ptr,  # [M, N]
    batch,  # examples: the rows of y and dx, the terms of dw; the only size that varies
    M: tl.constexpr,  # None if it is the batch
    N: tl.constexpr,
    K: tl.constexpr,  # if it is the batch, rounded up to whole steps, so that fewer batches need a kernel of their own
    STRIDE_AM: tl.constexpr, STRIDE_AK: tl.constexpr, STRIDE_BK: tl.constexpr, STRIDE_BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    rows = batch if M is None else M
    terms = K if M is None else batch
    pid_m, pid_n = runtime.tile_order(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    offs_m = pid_m.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K).to(INDEX)
    mask_m = offs_m < rows
    mask_n = offs_n < N
    a_ptrs = a_ptr + (offs_m * STRIDE_AM)[:, None] + (offs_k * STRIDE_AK)[None, :]  # [BLOCK_M, BLOCK_K]
    b_ptrs = b_ptr + (offs_k * STRIDE_BK)[:, None] + (offs_n * STRIDE_BN)[None, :]  # [BLOCK_K, BLOCK_N]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        mask_a = mask_m[:, None]
        mask_b = mask_n[None, :]
        if M is not None or K % BLOCK_K != 0:
            mask_a = mask_a & (k0 + offs_k < terms)[None, :]
            mask_b = mask_b & (k0 + offs_k < terms)[:, None]
        a = tl.load(a_ptrs + tl.cast(k0, INDEX) * STRIDE_AK, mask=mask_a, other=0.0)
        b = tl.load(b_ptrs + tl.cast(k0, INDEX) * STRIDE_BK, mask=mask_b, other=0.0)
        acc = runtime.dot(a, b, acc, PRECISION)  # [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N]

    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    c_ptrs = c_ptr + (offs_m * N)[:, None] + offs_n[None, :]
    tl.store(c_ptrs, runtime.cast(acc, c_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


@triton.jit
def _linear_row_kernel(
    x_ptr,  # [K]
    w_ptr,  # [N, K]
    bias_ptr,  # [N]
    y_ptr,  # [N]
    N: tl.constexpr, K: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_n = offs_n < N
    x_ptrs = x_ptr + offs_k
    w_ptrs = w_ptr + (offs_n * K)[:, None] + offs_k[None, :]  # [BLOCK_N, BLOCK_K]

    # Each thread adds up its own columns. The threads' sums are added once, after the loop.
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


tiles.register("linear", products.by_rule())
tiles.register("linear_input_gradient", products.by_rule(transposed=True))
tiles.register("linear_weight_gradient", products.by_rule(transposed=True, four_warps_in_float32=True))


# BLOCK_N, bytes of a row of the weight per step, warps; the first is the default
ROW_CONFIGS = ((2, 2048, 4), (1, 4096, 4), (4, 1024, 2), (4, 2048, 4), (4, 4096, 8), (8, 1024, 4), (8, 2048, 4))


def _row_configs(architecture: str, problem: Problem) -> list[Config]:
    size = ITEMSIZE[problem.dtype]
    return [{"BLOCK_N": n, "BLOCK_K": run // size, "num_warps": warps} for n, run, warps in ROW_CONFIGS]


def _row_interpreter(problem: Problem) -> Config:
    block_k = power(problem.K, 1, 1024)
    return {"BLOCK_N": power(problem.N, 1, 2**19 // block_k), "BLOCK_K": block_k}


tiles.register("linear_row", Choices(lambda *given: _row_configs(*given)[0], _row_configs, _row_interpreter))


def _launch_product(
    operator: str, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, output: torch.Tensor, relu: bool = False
) -> None:
    """``output = a @ b``. Each of a and b is contiguous, or is the transpose of a contiguous tensor."""
    M, K = a.shape
    N = b.shape[1]
    config = tiles.lookup(operator, a, M, N, K)
    over_batch = operator == "linear_weight_gradient"
    runtime.launch(
        _linear_kernel, lambda META: (triton.cdiv(M, META["BLOCK_M"]) * triton.cdiv(N, META["BLOCK_N"]),),
        a, b,
        a if bias is None else bias,  # without a bias the kernel does not read it
        output,
        K if over_batch else M,
        M=M if over_batch else None, N=N, K=triton.cdiv(K, config["BLOCK_K"]) * config["BLOCK_K"] if over_batch else K,
        STRIDE_AM=a.stride(0), STRIDE_AK=a.stride(1), STRIDE_BK=b.stride(0), STRIDE_BN=b.stride(1),
        HAS_BIAS=bias is not None, RELU=relu,
        PRECISION=runtime.dot_precision(a.dtype), INDEX=runtime.index_type(a, b, output), **config,
    )  # fmt: skip


def launch_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, relu: bool, output: torch.Tensor
) -> None:
    M, N = output.shape
    x = input.contiguous()
    w = weight.contiguous()
    b = None if bias is None else bias.expand(N).contiguous()
    if M > 1:
        _launch_product("linear", x, w.T, b, output, relu)
        return
    K = w.shape[1]
    runtime.launch(
        _linear_row_kernel, lambda META: (triton.cdiv(N, META["BLOCK_N"]),),
        x, w,
        w if b is None else b,  # without a bias the kernel does not read it
        output, N=N, K=K, HAS_BIAS=b is not None, RELU=relu,
        INDEX=runtime.index_type(x, w, output), **tiles.lookup("linear_row", x, M, N, K),
    )  # fmt: skip


def launch_linear_input_gradient(grad: torch.Tensor, weight: torch.Tensor, dx: torch.Tensor) -> None:
    _launch_product("linear_input_gradient", grad.contiguous(), weight.contiguous(), None, dx)


def launch_linear_weight_gradient(grad: torch.Tensor, input: torch.Tensor, dw: torch.Tensor) -> None:
    _launch_product("linear_weight_gradient", grad.contiguous().T, input.contiguous(), None, dw)


_input_gradient = runtime.register(
    "linear_input_gradient", launch_linear_input_gradient,
    lambda grad, weight: grad.new_empty(grad.shape[0], weight.shape[1]),
)  # fmt: skip
_weight_gradient = runtime.register(
    "linear_weight_gradient", launch_linear_weight_gradient,
    lambda grad, input: grad.new_empty(grad.shape[1], input.shape[1]),
)  # fmt: skip


def _gradients(ctx, grad):
    input, weight, output = ctx.saved_tensors
    need_input, need_weight, need_bias, _ = ctx.needs_input_grad
    # If all outputs share one bias, its gradient is the sum of a matrix of one column.
    matrix = lambda x: x.reshape(x.numel(), 1) if ctx.bias_shape == (1,) and x is not None else x
    dz, db = epilogue_gradient(matrix(grad), matrix(output), need_bias)
    dz = dz.reshape(grad.shape)
    dx = _input_gradient(dz, weight) if need_input else None
    dw = _weight_gradient(dz, input) if need_weight else None
    return dx, dw, db if need_bias else None, None


_linear = runtime.register(
    "linear", launch_linear, lambda input, weight, bias, relu: input.new_empty(input.shape[0], weight.shape[0]),
    save_product, _gradients,
)  # fmt: skip


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, relu: bool = False
) -> torch.Tensor:
    """``input @ weight.T + bias``, as :func:`torch.nn.functional.linear`, with an optional ReLU in the same kernel.

    Args:
        input: (*, K), any number of leading dimensions or none; float32, float16 or bfloat16.
        weight: (N, K), or (K,) without a bias; dtype and device of ``input``.
        bias: (N,), (1,), () or (1, N); or None.
        relu: stores max(0, y) instead of y.

    Returns:
        (*, N), or (*) for a one-dimensional weight; accumulated in float32. Under :class:`torch.autocast` of its dtype.

    Raises:
        TypeError, ArgumentError: what PyTorch refuses, other dtypes, and a bias that varies from row to row.

    Example:
        >>> kernels.linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [-5.0, 1.0]]), relu=True)
        tensor([[11.,  0.]])
    """
    input, weight, bias = runtime.autocast(input, weight, bias)
    check_tensor("linear", "input", input)
    check_tensor("linear", "weight", weight, like=input)
    relu = boolean("linear", "relu", relu)
    check(input.dim() >= 1, "linear: input must be (*, K), got a tensor without dimensions")
    check(weight.dim() in (1, 2), f"linear: weight must be (N, K) or (K,), got shape {tuple(weight.shape)}")
    K = weight.shape[-1]
    check(input.shape[-1] == K, f"linear: weight takes input of {K} features, got {input.shape[-1]}")
    if bias is not None:
        check_tensor("linear", "bias", bias, like=input)
        check(weight.dim() == 2, f"linear: a bias takes weight (N, K), got shape {tuple(weight.shape)}")
        N, got = weight.shape[0], tuple(bias.shape)
        check(got in ((N,), (1,), (), (1, N)), f"linear: bias must be ({N},), (1,), () or (1, {N}), got shape {got}")
        bias = bias.reshape(-1)

    leading = input.shape[:-1]
    rows = input.reshape(math.prod(leading), K)
    output = _linear(rows, weight if weight.dim() == 2 else weight.unsqueeze(0), bias, relu)
    return output.reshape((*leading, *weight.shape[:-1]))


def cost(input: Shape, weight: Shape, *, bias: bool = True, itemsize: int = 4) -> Cost:
    """For shapes (M, K) and (N, K)."""
    M, K = input
    N, _ = weight
    macs = M * N * K
    return Cost((M, N), macs, 2 * macs, (M * K + N * K + N * bias + M * N) * itemsize)


def gradient_cost(
    input: Shape, weight: Shape, *, relu: bool = False, bias: bool = True, first: bool = False, itemsize: int = 4
) -> Cost:
    """As :func:`cost`. ``first``: of the first layer, whose input needs no gradient."""
    return product_gradient(cost(input, weight), input, weight, relu=relu, bias=bias, first=first, itemsize=itemsize)
