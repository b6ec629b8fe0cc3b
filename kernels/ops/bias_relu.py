"""Bias and ReLU in one pass over memory.

    y = max(0, x + bias)

As two operators, x + bias and then relu, the sum is written to memory and read back: 4 passes over the tensor instead
of 2. In a convolution's epilogue, where the network has it, it takes no pass at all.

The gradients, dx and dbias, come from one more pass: see :mod:`kernels.ops.epilogue`.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor
from kernels.ops.cost import Cost, Shape, elementwise
from kernels.ops.epilogue import epilogue_gradient
from kernels.tiles.choices import ELEMENTWISE


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
    offs = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    mask = offs < elements
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs // STEP % LENGTH, mask=mask, other=0.0).to(tl.float32)
    y = tl.maximum(x + bias, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


tiles.register("bias_relu", ELEMENTWISE)


def launch_bias_relu(input: torch.Tensor, bias: torch.Tensor, output: torch.Tensor) -> None:
    elements = input.numel()
    # Usually the bias varies along one dimension only, and the input is read in memory order. Any other bias is first
    # expanded to the input's shape: one element of bias for each of x.
    varying = [d for d in range(-bias.dim(), 0) if bias.shape[d] != 1]
    if len(varying) > 1:
        bias = torch.empty_like(output).copy_(bias.expand_as(input))
        length, step = elements, 1
    else:
        length, step = bias.numel(), (output.stride(varying[0]) if varying else 1)
        bias = bias.contiguous()
    x = input if input.stride() == output.stride() else torch.empty_like(output).copy_(input)
    runtime.launch(
        _bias_relu_kernel, lambda META: (triton.cdiv(elements, META["BLOCK_M"]),),
        x, bias, output, elements, LENGTH=length, STEP=step,
        INDEX=runtime.index_type(x), **tiles.lookup("bias_relu", x, elements, 1, 1),
    )  # fmt: skip


def _save(ctx, inputs, output):
    ctx.bias_shape = inputs[1].shape
    ctx.save_for_backward(output)


def _gradients(ctx, grad):
    """The tensor as a matrix: the bias varies along its columns, and its rows are in memory order."""
    (output,) = ctx.saved_tensors
    bias_shape = (1,) * (output.dim() - len(ctx.bias_shape)) + ctx.bias_shape
    columns = [d for d, size in enumerate(bias_shape) if size != 1]
    rows = sorted((d for d, size in enumerate(bias_shape) if size == 1), key=lambda d: -output.stride(d))
    order = rows + columns
    matrix = lambda x: x.permute(order).reshape(*(math.prod(x.shape[d] for d in dims) for dims in (rows, columns)))
    dz, total = epilogue_gradient(matrix(grad), matrix(output), ctx.needs_input_grad[1])
    restore = sorted(range(len(order)), key=order.__getitem__)
    grad_input = dz.reshape([output.shape[d] for d in order]).permute(restore)
    return grad_input, total.reshape(ctx.bias_shape) if ctx.needs_input_grad[1] else None


_bias_relu = runtime.register(
    "bias_relu", launch_bias_relu, lambda input, bias: torch.empty_like(input), _save, _gradients
)


def bias_relu(input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``torch.relu(input + bias)`` in one pass.

    Args:
        input: any shape and strides; float32, float16 or bfloat16.
        bias: broadcast to ``input``'s shape as PyTorch does it: (C,) for (N, C), (C, 1, 1) for (N, C, H, W).

    Returns:
        A tensor of ``input``'s shape, dtype and memory order; computed in float32.

    Raises:
        TypeError, ArgumentError: no tensor, another dtype or device, or a bias that does not broadcast.

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
    return elementwise(input, 2, 2, itemsize, others=math.prod(bias))


def gradient_cost(input: Shape, bias: Shape, *, itemsize: int = 4) -> Cost:
    return elementwise(input, 2, 3, itemsize, others=math.prod(bias))
