"""Softmax over one dimension.

    y[i] = exp(x[i] - max x) / sum over j of exp(x[j] - max x)

Subtracting the maximum changes nothing, but keeps exp from overflowing. A first sweep over a row finds the maximum and
the sum together (`online_softmax`); a second sweep writes the row.

The gradient, from g, the gradient of y:

    dx[i] = y[i] * (g[i] - sum over j of g[j] * y[j])

The difference cancels digits, so a y that was rounded to 16 bits would show. The kernel computes y from x again, which
costs no more than reading y.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check_tensor, integer
from kernels.ops.cost import Cost, Shape, elementwise
from kernels.tiles.choices import ROWS_OF_CLASSES

# A running maximum starts here. From -inf, a row that begins with a block of -inf would give exp(-inf + inf) = NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)  # the lowest finite float32


@triton.jit
def online_softmax(x, largest):
    """Takes one more block of columns into a sweep that finds each row's maximum and its sum of exp(x - maximum).

    ``x`` is [BLOCK_M, BLOCK_N], ``largest`` the maximum before it, [BLOCK_M]. Returns (new maximum, rescale, powers):
    a sum over the earlier blocks was made with their maximum, and ``rescale`` corrects it; ``powers`` are
    exp(x - new maximum). So ``total * rescale + tl.sum(powers, 1)`` is the new sum, and no sweep is needed for the
    maximum alone (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867).
    """
    previous = largest
    largest = tl.maximum(previous, tl.max(x, 1))
    return largest, tl.exp(previous - largest), tl.exp(x - largest[:, None])


@triton.jit
def _softmax_kernel(
    x_ptr, y_ptr,  # [M, N]
    M, N: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs = (offs_m * N)[:, None] + offs_n[None, :]  # [BLOCK_M, BLOCK_N]
    mask_m = (offs_m < M)[:, None]

    largest = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for n0 in range(0, N, BLOCK_N):
        mask = mask_m & (n0 + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs + n0, mask=mask, other=float("-inf")).to(tl.float32)
        largest, rescale, powers = online_softmax(x, largest)
        total = total * rescale + tl.sum(powers, 1)
    for n0 in range(0, N, BLOCK_N):
        mask = mask_m & (n0 + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs + n0, mask=mask, other=float("-inf")).to(tl.float32)
        y = tl.exp(x - largest[:, None]) / total[:, None]
        tl.store(y_ptr + offs + n0, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _softmax_gradient_kernel(
    grad_ptr, x_ptr, dx_ptr,  # [M, N]
    M, N: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs = (offs_m * N)[:, None] + offs_n[None, :]  # [BLOCK_M, BLOCK_N]
    mask_m = (offs_m < M)[:, None]

    largest = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_M,), dtype=tl.float32)  # sum of grad * exp(x - largest)
    for n0 in range(0, N, BLOCK_N):
        mask = mask_m & (n0 + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs + n0, mask=mask, other=float("-inf")).to(tl.float32)
        grad = tl.load(grad_ptr + offs + n0, mask=mask, other=0.0).to(tl.float32)
        largest, rescale, powers = online_softmax(x, largest)
        total = total * rescale + tl.sum(powers, 1)
        weighted = weighted * rescale + tl.sum(grad * powers, 1)
    for n0 in range(0, N, BLOCK_N):
        mask = mask_m & (n0 + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs + n0, mask=mask, other=float("-inf")).to(tl.float32)
        grad = tl.load(grad_ptr + offs + n0, mask=mask, other=0.0).to(tl.float32)
        y = tl.exp(x - largest[:, None]) / total[:, None]
        dx = y * (grad - (weighted / total)[:, None])
        tl.store(dx_ptr + offs + n0, runtime.cast(dx, dx_ptr.dtype.element_ty), mask=mask)


tiles.register("softmax", ROWS_OF_CLASSES)
tiles.register("softmax_gradient", ROWS_OF_CLASSES)


def launch_softmax(input: torch.Tensor, output: torch.Tensor) -> None:
    """Over the last dimension of (M, N) tensors."""
    M, N = input.shape
    runtime.launch(
        _softmax_kernel, lambda META: (triton.cdiv(M, META["BLOCK_M"]),), input.contiguous(), output,
        M, N=N, INDEX=runtime.index_type(input), **tiles.lookup("softmax", input, M, N, 1),
    )  # fmt: skip


def launch_softmax_gradient(grad: torch.Tensor, input: torch.Tensor, dx: torch.Tensor) -> None:
    M, N = input.shape
    runtime.launch(
        _softmax_gradient_kernel, lambda META: (triton.cdiv(M, META["BLOCK_M"]),),
        grad.contiguous(), input.contiguous(), dx,
        M, N=N, INDEX=runtime.index_type(input), **tiles.lookup("softmax_gradient", input, M, N, 1),
    )  # fmt: skip


def _output(*inputs):
    return torch.empty_like(inputs[-1], memory_format=torch.contiguous_format)


_gradient = runtime.register("softmax_gradient", launch_softmax_gradient, _output)
_softmax = runtime.register(
    "softmax", launch_softmax, _output, *runtime.gradient_of_input(_gradient, saves=lambda inputs, _: inputs)
)


def softmax(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax along ``dim``, as :func:`torch.nn.functional.softmax`.

    Args:
        input: any shape; float32, float16 or bfloat16. Under torch.autocast it is cast to float32.
        dim: the dimension that sums to one.

    Returns:
        A tensor of ``input``'s shape and dtype; computed in float32.

    Raises:
        TypeError, ArgumentError: an argument has the wrong type, or ``input`` another dtype.
        IndexError: ``dim`` is not a dimension of ``input``.

    Example:
        >>> kernels.softmax(torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    (input,) = runtime.autocast(input, dtype=torch.float32)
    check_tensor("softmax", "input", input)
    dim = integer("softmax", "dim", dim)
    dims = max(input.dim(), 1)
    if not -dims <= dim < dims:
        raise IndexError(f"softmax: dim must be from {-dims} to {dims - 1} for {input.dim()}-D input, got {dim}")
    rows = input.movedim(dim, -1) if input.dim() else input.reshape(1)
    output = _softmax(rows.reshape(-1, rows.shape[-1]) if rows.numel() else rows.reshape(0, 0))
    return output.reshape(rows.shape).movedim(-1, dim).reshape(input.shape)


def cost(input: Shape, *, itemsize: int = 4) -> Cost:
    return elementwise(input, 4, 2, itemsize)


def gradient_cost(input: Shape, *, itemsize: int = 4) -> Cost:
    return elementwise(input, 4, 3, itemsize)
