"""Softmax over one dimension.

    y[i] = exp(x[i] - max x) / sum over j of exp(x[j] - max x)

Subtracting the maximum changes nothing but keeps exp from overflowing. A first sweep over a row finds the maximum
and the sum together, rescaling the sum whenever the maximum grows (Milakov and Gimelshein 2018,
https://arxiv.org/abs/1805.02867); a second writes the row.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check_tensor, integer


@triton.jit
def _softmax_kernel(
    x_ptr,  # [M, N]
    y_ptr,  # [M, N]
    M,
    N: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    x_ptrs = x_ptr + (offs_m * N)[:, None] + offs_n[None, :]  # [BLOCK_M, BLOCK_N]
    y_ptrs = y_ptr + (offs_m * N)[:, None] + offs_n[None, :]
    mask_m = (offs_m < M)[:, None]

    # Lowest finite value rather than -inf: a row that begins with a block of -inf would give exp(-inf + inf) = NaN.
    LOWEST: tl.constexpr = -3.4028234663852886e38
    largest = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for n0 in range(0, N, BLOCK_N):
        x = tl.load(x_ptrs + n0, mask=mask_m & (n0 + offs_n < N)[None, :], other=float("-inf")).to(tl.float32)
        previous = largest
        largest = tl.maximum(previous, tl.max(x, 1))
        total = total * tl.exp(previous - largest) + tl.sum(tl.exp(x - largest[:, None]), 1)
    for n0 in range(0, N, BLOCK_N):
        mask = mask_m & (n0 + offs_n < N)[None, :]
        x = tl.load(x_ptrs + n0, mask=mask, other=float("-inf")).to(tl.float32)
        y = tl.exp(x - largest[:, None]) / total[:, None]
        tl.store(y_ptrs + n0, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


def launch_softmax(input: torch.Tensor) -> torch.Tensor:
    """Over the last dimension of an (M, N) tensor."""
    x = input.contiguous()
    output = torch.empty_like(x)
    M, N = x.shape
    if x.numel() == 0:
        return output
    tile = tiles.lookup("softmax", x, M, N, 1)
    runtime.launch(
        _softmax_kernel,
        lambda META: (triton.cdiv(M, META["BLOCK_M"]),),
        x,
        output,
        M,
        N=N,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def _softmax_output(input):
    return torch.empty_like(input, memory_format=torch.contiguous_format)


_softmax = runtime.register("softmax", launch_softmax, _softmax_output)


def softmax(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax along ``dim``, as :func:`torch.nn.functional.softmax`.

    Args:
        input: any shape; float32, float16 or bfloat16.
        dim: the dimension that sums to one.

    Returns:
        A tensor of ``input``'s shape and dtype; computed in float32.

    Raises:
        TypeError: an argument of the wrong type.
        IndexError: ``dim`` outside the tensor's dimensions.
        ArgumentError: another dtype.
    """
    check_tensor("softmax", "input", input)
    dim = integer("softmax", "dim", dim)
    dims = max(input.dim(), 1)
    if not -dims <= dim < dims:
        raise IndexError(f"softmax: dim must be from {-dims} to {dims - 1} for {input.dim()}-D input, got {dim}")
    rows = input.movedim(dim, -1) if input.dim() else input.reshape(1)
    output = _softmax(rows.reshape(-1, rows.shape[-1]) if rows.numel() else rows.reshape(0, 0))
    return output.reshape(rows.shape).movedim(-1, dim).reshape(input.shape)
