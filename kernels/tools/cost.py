"""What each operator costs at the least: multiply-accumulates, FLOPs, and bytes to and from memory.

The only place with such a formula. Conventions:

- a multiply-accumulate is 2 FLOPs; bias and ReLU, in a product's epilogue, count none;
- local response normalisation counts 2 FLOPs for each channel of the window and 4 for x / (k + scale * sum)^beta,
  pooling one comparison for each tap but the first, softmax 4 for each element, dropout and bias_relu 2;
- bytes: each input read once, weights included, and each output written once;
- a gradient, ``<operator>_gradient``, reads the gradient of the output and what the forward pass keeps for it, and
  writes the gradients of its inputs, whose shape is the input's: a product is two products more, one for the input's
  and one for the weight's; the output that ReLU's mask is taken from counts, a pooling's kept choice is a byte.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Cost(NamedTuple):
    """The least that an operator must do, and the shape of what it makes."""

    output: Shape
    macs: int
    flops: int
    bytes: int


def conv2d(
    input: Shape,
    weight: Shape,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    bias: bool = True,
    itemsize: int = 4,
) -> Cost:
    """Shapes (N, C, H, W) and (K, C / groups, R, S); ``padding`` at each end; ``itemsize`` in bytes."""
    N, _, H, W = input
    K, C, R, S = weight
    P = (H + 2 * padding[0] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + 2 * padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    output = (N, K, P, Q)
    macs = math.prod(output) * C * R * S
    elements = math.prod(input) + math.prod(weight) + K * bias + math.prod(output)
    return Cost(output, macs, 2 * macs, elements * itemsize)


def linear(input: Shape, weight: Shape, *, bias: bool = True, itemsize: int = 4) -> Cost:
    """Shapes (M, K) and (N, K)."""
    M, K = input
    N, _ = weight
    macs = M * N * K
    return Cost((M, N), macs, 2 * macs, (M * K + N * K + N * bias + M * N) * itemsize)


def local_response_norm(input: Shape, size: int, *, itemsize: int = 4) -> Cost:
    """Shape (N, C, ...)."""
    elements = math.prod(input)
    return Cost(input, 0, elements * (2 * size + 4), 2 * elements * itemsize)


def max_pool2d(input: Shape, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4) -> Cost:
    """Shape (N, C, H, W); without padding, as AlexNet pools."""
    N, C, H, W = input
    output = (N, C, (H - kernel_size[0]) // stride[0] + 1, (W - kernel_size[1]) // stride[1] + 1)
    flops = math.prod(output) * (math.prod(kernel_size) - 1)
    return Cost(output, 0, flops, (math.prod(input) + math.prod(output)) * itemsize)


def lrn_max_pool2d(
    input: Shape, size: int, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4
) -> Cost:
    """Shape (N, C, H, W); each pixel normalised once, and the normalised map neither written nor read."""
    norm = local_response_norm(input, size)
    pool = max_pool2d(input, kernel_size, stride, itemsize=itemsize)
    return Cost(pool.output, 0, norm.flops + pool.flops, pool.bytes)


def bias_relu(input: Shape, bias: Shape, *, itemsize: int = 4) -> Cost:
    """Any shapes that broadcast to ``input``'s."""
    elements = math.prod(input)
    return Cost(input, 0, 2 * elements, (2 * elements + math.prod(bias)) * itemsize)


def dropout(input: Shape, *, itemsize: int = 4) -> Cost:
    """Any shape."""
    elements = math.prod(input)
    return Cost(input, 0, 2 * elements, 2 * elements * itemsize)


def softmax(input: Shape, *, itemsize: int = 4) -> Cost:
    """Any shape."""
    elements = math.prod(input)
    return Cost(input, 0, 4 * elements, 2 * elements * itemsize)


def cross_entropy(input: Shape, *, itemsize: int = 4) -> Cost:
    """Shape (N, C), for classes as targets, 8 bytes each; the loss of each row in float32."""
    N, C = input
    return Cost((N,), 0, 5 * N * C, N * C * itemsize + N * (8 + 4))


def conv2d_gradient(
    input: Shape,
    weight: Shape,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    relu: bool = False,
    bias: bool = True,
    first: bool = False,
    itemsize: int = 4,
) -> Cost:
    """As :func:`conv2d`; ``first``: of the first layer, where nobody wants the input's gradient."""
    forward = conv2d(input, weight, stride, padding, dilation)
    return _product_gradient(forward, input, weight, relu=relu, bias=bias, first=first, itemsize=itemsize)


def linear_gradient(
    input: Shape, weight: Shape, *, relu: bool = False, bias: bool = True, first: bool = False, itemsize: int = 4
) -> Cost:
    """As :func:`linear`; ``first`` as in :func:`conv2d_gradient`."""
    return _product_gradient(linear(input, weight), input, weight, relu=relu, bias=bias, first=first, itemsize=itemsize)


def _product_gradient(
    forward: Cost, input: Shape, weight: Shape, *, relu: bool, bias: bool, first: bool, itemsize: int
) -> Cost:
    products = 1 if first else 2
    macs = forward.macs * products
    read = math.prod(forward.output) * (2 if relu else 1) + math.prod(input) + math.prod(weight) * (not first)
    written = math.prod(weight) + weight[0] * bias + math.prod(input) * (not first)
    return Cost(input, macs, 2 * macs, (read + written) * itemsize)


def local_response_norm_gradient(input: Shape, size: int, *, itemsize: int = 4) -> Cost:
    """Shape (N, C, ...); two sums over the window, of squares and of what comes back, and 10 FLOPs more."""
    elements = math.prod(input)
    return Cost(input, 0, elements * (4 * size + 10), 3 * elements * itemsize)


def max_pool2d_gradient(input: Shape, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4) -> Cost:
    """Shape (N, C, H, W); one addition for each output."""
    outputs = math.prod(max_pool2d(input, kernel_size, stride).output)
    return Cost(input, 0, outputs, (outputs + math.prod(input)) * itemsize + outputs)


def lrn_max_pool2d_gradient(
    input: Shape, size: int, kernel_size: Sequence[int], stride: Sequence[int], *, itemsize: int = 4
) -> Cost:
    """Shape (N, C, H, W); in one pass, as the forward."""
    norm = local_response_norm_gradient(input, size)
    pool = max_pool2d_gradient(input, kernel_size, stride, itemsize=itemsize)
    return Cost(input, 0, norm.flops + pool.flops, pool.bytes + math.prod(input) * itemsize)


def bias_relu_gradient(input: Shape, bias: Shape, *, itemsize: int = 4) -> Cost:
    """Any shapes that broadcast to ``input``'s."""
    elements = math.prod(input)
    return Cost(input, 0, 2 * elements, (3 * elements + math.prod(bias)) * itemsize)


def dropout_gradient(input: Shape, *, itemsize: int = 4) -> Cost:
    """Any shape; the mask is computed again, not read."""
    return dropout(input, itemsize=itemsize)


def softmax_gradient(input: Shape, *, itemsize: int = 4) -> Cost:
    """Any shape."""
    elements = math.prod(input)
    return Cost(input, 0, 4 * elements, 3 * elements * itemsize)
