"""Backward through a product's epilogue: ReLU and bias.

    y[m, k] = max(0, z[m, k] + bias[k])

where z is the product, a matrix of M rows (pixels or examples) and K channels. From g, the gradient of y:

    dz = g where y > 0, else 0        dbias[k] = sum over m of dz[m, k]

The mask is read from y, so z need not be kept. One pass makes both. Each program takes some rows and writes their dz
and their sums, which are one row of partial sums. The same kernel then adds up these rows until one is left, in the
same order every time: atomics would round differently from run to run.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.tiles.choices import ITEMSIZE, Choices, Config, Problem, power


@triton.jit
def _bias_relu_gradient_kernel(
    grad_ptr,  # [M, K]
    y_ptr,  # [M, K]
    dz_ptr,  # [M, K]
    partials_ptr,  # [programs along M, K]
    M, K: tl.constexpr,
    RELU: tl.constexpr,  # without it only the sums are made
    BIAS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    # Each program has BLOCK_N columns of BLOCK_M * STEPS rows.
    pid_m = tl.program_id(0) // tl.cdiv(K, BLOCK_N)
    offs_m = pid_m.to(INDEX) * (BLOCK_M * STEPS) + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) % tl.cdiv(K, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < K

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(STEPS):
        rows = offs_m + step * BLOCK_M
        offs = (rows * K)[:, None] + offs_n[None, :]  # [BLOCK_M, BLOCK_N]
        mask = (rows < M)[:, None] & mask_n[None, :]
        grad = tl.load(grad_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            y = tl.load(y_ptr + offs, mask=mask, other=0.0).to(tl.float32)
            grad = tl.where(y <= 0.0, 0.0, grad)  # if y is NaN the gradient passes, as in PyTorch
            tl.store(dz_ptr + offs, runtime.cast(grad, dz_ptr.dtype.element_ty), mask=mask)
        acc += grad
    if BIAS:
        sums = runtime.cast(tl.sum(acc, 0), partials_ptr.dtype.element_ty)
        tl.store(partials_ptr + pid_m.to(INDEX) * K + offs_n, sums, mask=mask_n)


def _default(architecture: str, problem: Problem) -> Config:
    """8 KB of the matrix per step. If it has few rows, a program takes all of them; if many, about a thousandth."""
    _, dtype, M, N, _ = problem
    few = M <= 1024
    block_n = power(N, 1, 64 // ITEMSIZE[dtype] if few else 128)
    block_m = power(M, 2, 8192 // ITEMSIZE[dtype] // block_n)  # at least 2, so that each pass leaves fewer rows
    steps = power(triton.cdiv(M, block_m if few else block_m * 1024), 1, 128)
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "STEPS": steps, "num_warps": 8}  # with 4, some spill registers


def _tried(architecture: str, problem: Problem) -> list[Config]:
    default = _default(architecture, problem)
    rows = default["BLOCK_M"] * default["STEPS"]
    return [
        {"BLOCK_M": block_m, "BLOCK_N": block_n, "STEPS": rows // block_m, "num_warps": warps}
        for block_n in (default["BLOCK_N"] // 2, default["BLOCK_N"], default["BLOCK_N"] * 2)
        for block_m in (default["BLOCK_M"] // 2, default["BLOCK_M"])
        if 0 < block_n < 2 * problem.N
        for warps in (4, 8)
    ]


def _interpreter(problem: Problem) -> Config:
    block_n = power(problem.N, 1, 2**12)
    return {"BLOCK_M": power(problem.M, 1, 2**18 // block_n), "BLOCK_N": block_n, "STEPS": 1}


tiles.register("bias_relu_gradient", Choices(_default, _tried, _interpreter))
tiles.register("column_sums", Choices(_default, _tried, _interpreter))


def launch_bias_relu_gradient(
    grad: torch.Tensor, output: torch.Tensor | None, bias: bool, results: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Without an output the first result is empty, without ``bias`` the second."""
    dz, total = results
    if grad.numel() == 0:
        total.zero_()  # an empty batch too has a gradient of the bias
        return
    M, K = grad.shape
    source = grad.contiguous()
    relu = output is not None
    y = source if output is None else output.contiguous()
    grid = lambda programs: lambda META: (programs * triton.cdiv(K, META["BLOCK_N"]),)
    while True:
        config = tiles.lookup("bias_relu_gradient" if relu else "column_sums", source, M, K, 1)
        programs = triton.cdiv(M, config["BLOCK_M"] * config["STEPS"])  # along M
        last = programs == 1 or not bias
        partials = total if last else torch.empty((programs, K), dtype=torch.float32, device=grad.device)
        runtime.launch(
            _bias_relu_gradient_kernel, grid(programs),
            source, y, dz, partials, M, K=K, RELU=relu, BIAS=bias, INDEX=runtime.index_type(source), **config,
        )  # fmt: skip
        if last:
            return
        source, y, M, relu = partials, partials, programs, False


def _bias_relu_gradient_output(grad, output, bias):
    return grad.new_empty(grad.shape if output is not None else 0), grad.new_empty(grad.shape[1] if bias else 0)


_bias_relu_gradient = runtime.register("bias_relu_gradient", launch_bias_relu_gradient, _bias_relu_gradient_output)


def epilogue_gradient(grad: torch.Tensor, output: torch.Tensor | None, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients (dz, dbias) of a product, before bias and ReLU, and of the bias, in ``grad``'s dtype.

    From ``grad`` of the epilogue's output, [M, K] of any strides, and the ReLU's ``output``, [M, K], or None without a
    ReLU. dz is [M, K] and contiguous, and without a ReLU a contiguous ``grad`` itself. dbias is [K], summed in float32,
    and empty unless ``bias``.
    """
    grad = grad.contiguous()
    if output is None and not bias:
        return grad, grad.new_empty(0)
    dz, total = _bias_relu_gradient(grad, output, bias)
    return grad if output is None else dz, total


def save_product(ctx, inputs, output):
    """Keeps what the gradients of conv2d or linear need: of (input, weight, bias, ..., relu) and the output."""
    input, weight, bias, *ctx.geometry, relu = inputs
    need_input, need_weight, *_ = ctx.needs_input_grad
    ctx.sizes = input.shape, weight.shape
    ctx.bias_shape = None if bias is None else bias.shape
    ctx.save_for_backward(input if need_weight else None, weight if need_input else None, output if relu else None)
