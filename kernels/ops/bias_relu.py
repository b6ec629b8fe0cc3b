"""Bias and ReLU in one pass over memory.

    y = max(0, x + bias)

Written as two operators, x + bias and then relu, the sum is written to memory and read back: 4 passes over the
tensor where 2 will do. Inside a convolution's epilogue it is none at all, which is where the network has it.

Backwards, from g, the gradient of y:

    dx = g where y > 0, else 0        dbias = the sum of dx over all that share an element of the bias

The mask is read off y, so x need not be kept. dx is g's matrix, [M rows, K columns], masked; dbias is its K column sums
(of a product's gradient, M pixels or examples and K channels: the pass that conv2d and linear share). Both come from
one pass: each program writes the masked rows of its share and their sums, one row of them, and these rows are added up
in the same way until one is left. Always in the same order: atomics would round differently from run to run.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor
from kernels.ops.cost import Cost, Shape
from kernels.tiles.choices import ITEMSIZE, Choices, Config, Problem, power
from kernels.tiles.families import ELEMENTWISE


@triton.jit
def _bias_relu_kernel(
    x_ptr,  # [elements], in memory order
    bias_ptr,  # [LENGTH]
    y_ptr,  # [elements]
    elements,
    LENGTH: tl.constexpr,  # elements of the bias
    STEP: tl.constexpr,  # elements of x in memory from one bias element to the next
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs // STEP % LENGTH, mask=mask, other=0.0).to(tl.float32)
    y = tl.maximum(x + bias, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _bias_relu_gradient_kernel(
    grad_ptr,  # [M, K]
    y_ptr,  # [M, K]
    masked_ptr,  # [M, K]
    sums_ptr,  # [shares of M, K]
    M,
    K: tl.constexpr,
    RELU: tl.constexpr,  # without it the gradient is summed as it is
    BIAS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEPS: tl.constexpr,
):
    # Each program has BLOCK_N columns of BLOCK_M * STEPS rows.
    share = tl.program_id(0) // tl.cdiv(K, BLOCK_N)
    offs_m = share.to(INDEX) * (BLOCK_M * STEPS) + tl.arange(0, BLOCK_M)
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
            grad = tl.where(y <= 0.0, 0.0, grad)  # where y is NaN the gradient passes, as in PyTorch
            tl.store(masked_ptr + offs, runtime.cast(grad, masked_ptr.dtype.element_ty), mask=mask)
        acc += grad
    if BIAS:
        sums = runtime.cast(tl.sum(acc, 0), sums_ptr.dtype.element_ty)
        tl.store(sums_ptr + share.to(INDEX) * K + offs_n, sums, mask=mask_n)


tiles.register("bias_relu", ELEMENTWISE)


def _default(architecture: str, problem: Problem) -> Config:
    """8 KB of the matrix per step. If it has few rows, a program takes all of them; if many, about a thousandth."""
    _, dtype, M, N, _ = problem
    few = M <= 1024
    block_n = power(N, 1, 64 // ITEMSIZE[dtype] if few else 128)
    block_m = power(M, 2, 8192 // ITEMSIZE[dtype] // block_n)  # with 1, the sums of rows would never end
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


def launch_bias_relu(input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    output = torch.empty_like(input)
    elements = input.numel()
    if elements == 0:
        return output
    # The usual bias varies along one dimension of a tensor without holes, whose memory can be read in order.
    # Any other is expanded to the input's shape first: one element of bias for one of x.
    varying = [d for d in range(-bias.dim(), 0) if bias.shape[d] != 1]
    if len(varying) > 1:
        bias = torch.empty_like(output).copy_(bias.expand_as(input))
        length, step = elements, 1
    else:
        length, step = bias.numel(), (output.stride(varying[0]) if varying else 1)
        bias = bias.contiguous()
    x = input if input.stride() == output.stride() else torch.empty_like(output).copy_(input)
    tile = tiles.lookup("bias_relu", x, elements, 1, 1)
    runtime.launch(
        _bias_relu_kernel,
        lambda META: (triton.cdiv(elements, META["BLOCK_M"]),),
        x,
        bias,
        output,
        elements,
        LENGTH=length,
        STEP=step,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def launch_bias_relu_gradient(
    grad: torch.Tensor, output: torch.Tensor | None, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`epilogue_gradient`; the first is empty without an output, the second unless it is asked for."""
    masked, total = _bias_relu_gradient_output(grad, output, bias)
    if grad.numel() == 0:
        return masked, total.zero_()  # the bias has a gradient, of an empty batch too
    M, K = grad.shape
    source = grad.contiguous()
    relu = output is not None
    y = source if output is None else output.contiguous()
    grid = lambda shares: lambda META: (shares * triton.cdiv(K, META["BLOCK_N"]),)
    while True:
        tile = tiles.lookup("bias_relu_gradient" if relu else "column_sums", source, M, K, 1)
        shares = triton.cdiv(M, tile["BLOCK_M"] * tile["STEPS"])
        sums = total if shares == 1 or not bias else torch.empty((shares, K), dtype=torch.float32, device=grad.device)
        runtime.launch(
            _bias_relu_gradient_kernel,
            grid(shares),
            source,
            y,
            masked,
            sums,
            M,
            K=K,
            RELU=relu,
            BIAS=bias,
            INDEX=runtime.index_type(source),
            **tile,
        )
        if sums is total:
            return masked, total
        source, y, M, relu = sums, sums, shares, False


def _bias_relu_gradient_output(grad, output, bias):
    empty = lambda *shape: torch.empty(shape, dtype=grad.dtype, device=grad.device)
    return empty(*grad.shape) if output is not None else empty(0), empty(grad.shape[1]) if bias else empty(0)


_bias_relu_gradient = runtime.register("bias_relu_gradient", launch_bias_relu_gradient, _bias_relu_gradient_output)


def epilogue_gradient(grad: torch.Tensor, output: torch.Tensor | None, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Backwards through a product's epilogue: ReLU, where there was one, and bias.

    Args:
        grad: the gradient of the product's output as a matrix [M, K], K channels; any strides.
        output: what came out of the ReLU, [M, K]; None where there was none.
        bias: whether the bias' gradient is wanted.

    Returns:
        The gradient before the ReLU, [M, K] and contiguous (``grad`` itself where it is that already and there was
        no ReLU), and the bias', [K] (empty where it is not wanted); in ``grad``'s dtype, summed in float32.
    """
    grad = grad.contiguous()
    if output is None and not bias:
        return grad, grad.new_empty(0)
    masked, total = _bias_relu_gradient(grad, output, bias)
    return grad if output is None else masked, total


def _bias_relu_output(input, bias):
    return torch.empty_like(input)


def _save(ctx, inputs, output):
    ctx.bias_shape = inputs[1].shape
    ctx.save_for_backward(output)


def _gradients(ctx, grad):
    """As a matrix: what the bias is expanded along are rows, in the order of memory; what it has are columns."""
    (output,) = ctx.saved_tensors
    bias_shape = (1,) * (output.dim() - len(ctx.bias_shape)) + ctx.bias_shape
    columns = [d for d, size in enumerate(bias_shape) if size != 1]
    rows = sorted((d for d, size in enumerate(bias_shape) if size == 1), key=lambda d: -output.stride(d))
    order = rows + columns
    matrix = lambda x: x.permute(order).reshape(*(math.prod(x.shape[d] for d in some) for some in (rows, columns)))
    masked, total = epilogue_gradient(matrix(grad), matrix(output), ctx.needs_input_grad[1])
    restore = sorted(range(len(order)), key=order.__getitem__)
    grad_input = masked.reshape([output.shape[d] for d in order]).permute(restore)
    return grad_input, total.reshape(ctx.bias_shape) if ctx.needs_input_grad[1] else None


_bias_relu = runtime.register("bias_relu", launch_bias_relu, _bias_relu_output, _save, _gradients)


def bias_relu(input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``torch.relu(input + bias)`` in one pass.

    Args:
        input: any shape and strides; float32, float16 or bfloat16.
        bias: broadcast to ``input``'s shape as PyTorch does it: (C,) for (N, C), (C, 1, 1) for (N, C, H, W).

    Returns:
        A tensor of ``input``'s shape, dtype and memory order; computed in float32.

    Raises:
        TypeError: an argument that is not a tensor.
        ArgumentError: a bias that does not broadcast to ``input``'s shape, or another dtype or device.

    Example:
        >>> kernels.bias_relu(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5, 0.5]))
        tensor([[1.5000, 0.0000]])
    """
    check_tensor("bias_relu", "input", input)
    check_tensor("bias_relu", "bias", bias, like=input)
    fits = bias.dim() <= input.dim() and all(
        b in (1, x) for b, x in zip(reversed(bias.shape), reversed(input.shape), strict=False)
    )
    check(fits, f"bias_relu: bias of shape {tuple(bias.shape)} does not broadcast to input's {tuple(input.shape)}")
    return _bias_relu(input, bias)


def cost(input: Shape, bias: Shape, *, itemsize: int = 4) -> Cost:
    """For any shapes that broadcast to ``input``'s."""
    elements = math.prod(input)
    return Cost(input, 0, 2 * elements, (2 * elements + math.prod(bias)) * itemsize)


def gradient_cost(input: Shape, bias: Shape, *, itemsize: int = 4) -> Cost:
    """For any shapes that broadcast to ``input``'s."""
    elements = math.prod(input)
    return Cost(input, 0, 2 * elements, (3 * elements + math.prod(bias)) * itemsize)
