"""Bias and ReLU in one pass over memory.

    y = max(0, x + bias)

Written as two operators, x + bias and then relu, the sum is written to memory and read back: 4 passes over the
tensor where 2 will do. Inside a convolution's epilogue it is none at all, which is where the network has it.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor


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


def _bias_relu_output(input, bias):
    return torch.empty_like(input)


_bias_relu = runtime.register("bias_relu", launch_bias_relu, _bias_relu_output)


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
    """
    check_tensor("bias_relu", "input", input)
    check_tensor("bias_relu", "bias", bias, like=input)
    fits = bias.dim() <= input.dim() and all(
        b in (1, x) for b, x in zip(reversed(bias.shape), reversed(input.shape), strict=False)
    )
    check(fits, f"bias_relu: bias of shape {tuple(bias.shape)} does not broadcast to input's {tuple(input.shape)}")
    return _bias_relu(input, bias)
