"""Split-K: a product of few tiles has its K terms shared out, and the shares are added up here.

    y[m, k] = relu(bias[k] + sum over shares of sums[share, m, k])

in float32 and in the same order every time: atomics would round differently from run to run.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.tiles.families import ELEMENTWISE


@triton.jit
def _add_shares_kernel(
    sums_ptr,  # [SPLIT_K, elements]
    bias_ptr,  # [K]
    y_ptr,  # [elements], K channels fastest
    elements,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    INDEX: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    y = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for split in tl.static_range(SPLIT_K):
        y += tl.load(sums_ptr + split * tl.cast(elements, INDEX) + offs, mask=mask, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + offs % K, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


tiles.register("add_shares", ELEMENTWISE)


def launch_add_shares(
    sums: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None = None, relu: bool = False
) -> None:
    """``sums``, float32 [shares, *output.shape] in ``output``'s memory order, into ``output``: [..., K] in memory."""
    shares, elements = len(sums), output.numel()
    tile = tiles.lookup("add_shares", output, elements, 1, shares)
    runtime.launch(
        _add_shares_kernel,
        lambda META: (triton.cdiv(elements, META["BLOCK_M"]),),
        sums,
        output if bias is None else bias.contiguous(),  # the kernel does not read it without a bias
        output,
        elements,
        K=1 if bias is None else len(bias),
        HAS_BIAS=bias is not None,
        RELU=relu,
        INDEX=runtime.index_type(sums),
        SPLIT_K=shares,
        **tile,
    )
