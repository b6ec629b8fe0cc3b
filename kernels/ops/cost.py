"""What operators cost at the least: multiply-accumulates, FLOPs, and bytes to and from memory.

Each operator's file has the formulas, ``cost`` and, if it has a gradient, ``gradient_cost``. Their conventions:

- A multiply-accumulate is 2 FLOPs. Bias and ReLU in a product's epilogue count none.
- Local response normalisation counts 2 FLOPs for each channel of the window and 4 for x / (k + scale * sum)^beta.
  Pooling counts one comparison for each tap except the first, softmax 4 per element, dropout and bias_relu 2.
- Bytes: each input is read once, weights included, and each output is written once. ``itemsize`` is an element's bytes.
- A gradient reads the output's gradient and what the forward pass keeps for it. It writes the gradients of the
  operator's inputs. A product's gradient is two more products: one for the input, one for the weight.
"""

import math
from typing import NamedTuple

Shape = tuple[int, ...]


class Cost(NamedTuple):
    """The least that an operator must do, and the shape of its output."""

    output: Shape
    macs: int
    flops: int
    bytes: int


def elementwise(input: Shape, flops: int, tensors: int, itemsize: int, others: int = 0) -> Cost:
    """Takes FLOPs per element, how many tensors of the input's shape are read or written, and elements of others."""
    elements = math.prod(input)
    return Cost(input, 0, flops * elements, (tensors * elements + others) * itemsize)


def product_gradient(
    forward: Cost, input: Shape, weight: Shape, *, relu: bool, bias: bool, first: bool, itemsize: int
) -> Cost:
    """The gradients of a product, bias and ReLU. ``first``: of the first layer, whose input needs no gradient."""
    macs = forward.macs if first else 2 * forward.macs
    read = math.prod(forward.output) * (2 if relu else 1) + math.prod(input) + math.prod(weight) * (not first)
    written = math.prod(weight) + weight[0] * bias + math.prod(input) * (not first)
    return Cost(input, macs, 2 * macs, (read + written) * itemsize)
