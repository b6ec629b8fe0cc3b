"""Split-K: if a product has few tiles, several programs share the K terms of one tile. This kernel adds what they made.

    y[m, k] = relu(bias[k] + sum over split of partials[split, m, k])

in float32 and in the same order every time: atomics would round differently from run to run.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.tiles.choices import ELEMENTWISE


@triton.jit
def _add_partials_kernel(
    partials_ptr,  # [SPLIT_K, elements]
    bias_ptr,  # [K]
    y_ptr,  # [elements], K channels fastest
    elements, K: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, INDEX: tl.constexpr,
    SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    mask = offs < elements
    y = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for split in tl.static_range(SPLIT_K):
        y += tl.load(partials_ptr + split * tl.cast(elements, INDEX) + offs, mask=mask, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + offs % K, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


tiles.register("add_partials", ELEMENTWISE)


def launch_add_partials(
    partials: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None = None, relu: bool = False
) -> None:
    """Adds ``partials``, float32 [SPLIT_K, *output.shape], into ``output``: in one memory order, channels fastest."""
    splits, elements = len(partials), output.numel()
    runtime.launch(
        _add_partials_kernel, lambda META: (triton.cdiv(elements, META["BLOCK_M"]),),
        partials,
        output if bias is None else bias.contiguous(),  # without a bias the kernel does not read it
        output, elements, K=1 if bias is None else len(bias),
        HAS_BIAS=bias is not None, RELU=relu, INDEX=runtime.index_type(partials),
        SPLIT_K=splits, **tiles.lookup("add_partials", output, elements, 1, splits),
    )  # fmt: skip
