"""Dropout whose mask is computed from a seed and never stored.

    y[i] = x[i] * (1 / (1 - p) if u[i] >= p else 0),   u[i] uniform in [0, 1) from Philox(seed, i)

Dropout as in Srivastava et al. 2014, scaled in training so that evaluation is the identity. Philox (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405) is a counter-based generator: the number of element i depends only on the seed
and on i. So the mask is the same for every tile size, and can be made again: the gradient of x is the gradient of y
under the same dropout, and needs only the seed.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import boolean, check, check_tensor, integer, number
from kernels.ops.cost import Cost, Shape, elementwise
from kernels.tiles.choices import ELEMENTWISE


@triton.jit
def _dropout_kernel(
    x_ptr, y_ptr,  # [elements]
    elements, p, scale, seed,  # scale is 1 / (1 - p)
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    mask = offs < elements
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    # A product, as in PyTorch: NaN that is dropped stays NaN.
    y = x * tl.where(tl.rand(seed, offs) >= p, scale, 0.0)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


tiles.register("dropout", ELEMENTWISE)


def launch_dropout(input: torch.Tensor, p: float, seed: int, output: torch.Tensor) -> None:
    elements = input.numel()
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    runtime.launch(
        _dropout_kernel, lambda META: (triton.cdiv(elements, META["BLOCK_M"]),), input.contiguous(), output,
        elements, p, scale, seed,
        INDEX=runtime.index_type(input), **tiles.lookup("dropout", input, elements, 1, 1),
    )  # fmt: skip


_dropout: Callable = runtime.register(
    "dropout", launch_dropout,
    lambda input, p, seed: torch.empty_like(input, memory_format=torch.contiguous_format),
    *runtime.gradient_of_input(lambda grad, p, seed: _dropout(grad, p, seed), saves=lambda inputs, _: inputs[1:]),
)  # fmt: skip


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, *, seed: int | None = None) -> torch.Tensor:
    """Dropout, as :func:`torch.nn.functional.dropout`, reproducible from ``seed``.

    Args:
        input: any shape; float32, float16 or bfloat16.
        p: the probability that an element becomes zero, from 0 to 1.
        training: if False, ``input`` is returned as it is.
        seed: a non-negative 63-bit integer; without it, one is drawn from PyTorch's CPU generator. Whether element i,
            in row-major order, is dropped depends only on (seed, i).

    Returns:
        A contiguous tensor of ``input``'s shape and dtype; kept elements are divided by 1 - p.

    Raises:
        TypeError, ArgumentError: an argument has the wrong type or is out of its range, or ``input`` has another dtype.

    Example:
        >>> x = torch.ones(1000)
        >>> torch.equal(kernels.dropout(x, 0.5, seed=7), kernels.dropout(x, 0.5, seed=7))
        True
        >>> kernels.dropout(x, 0.5, seed=7).unique()
        tensor([0., 2.])
    """
    check_tensor("dropout", "input", input)
    p = number("dropout", "p", p)
    training = boolean("dropout", "training", training)
    check(0.0 <= p <= 1.0, f"dropout: p must be from 0 to 1, got {p}")
    if seed is not None:
        seed = integer("dropout", "seed", seed, low=0)
    if not training:
        return input
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    return _dropout(input, p, seed)


def cost(input: Shape, *, itemsize: int = 4) -> Cost:
    return elementwise(input, 2, 2, itemsize)


gradient_cost = cost  # the mask is computed again, not read
