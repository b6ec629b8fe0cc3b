"""Local response normalisation across channels.

    y[n, c] = x[n, c] / (k + alpha / size * sum over c' of x[n, c']^2) ^ beta
    c - size // 2 <= c' <= c + (size - 1) // 2

at every pixel; channels outside the tensor count as zero, and the divisor is ``size`` at the edges too. This is the
formula of Caffe, PyTorch and ONNX. Krizhevsky et al. 2012, section 3.3
(https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks), and TensorFlow
have alpha itself before the sum: multiply alpha by ``size`` to get theirs.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, integer, number


@triton.jit
def normalise(x_ptrs, offs_c, mask, scale, beta, k, C: tl.constexpr, SIZE: tl.constexpr):
    """LRN of the elements at ``x_ptrs``, whose channels are ``offs_c`` and contiguous in memory; in fp32.

    ``scale`` is alpha / SIZE. Where ``mask`` is off, the result means nothing.
    """
    # The neighbours are loaded again rather than shuffled between threads: they were just read, and lie in L1.
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros_like(x)
    for j in tl.static_range(-(SIZE // 2), (SIZE - 1) // 2 + 1):
        inside = mask & (offs_c + j >= 0) & (offs_c + j < C)
        neighbour = tl.load(x_ptrs + j, mask=inside, other=0.0).to(tl.float32)
        total += neighbour * neighbour
    return x / tl.exp2(beta * tl.log2(k + scale * total))


@triton.jit
def _local_response_norm_kernel(
    x_ptr,  # [M, C]: pixels x channels
    y_ptr,  # [M, C]
    M,
    scale,  # alpha / SIZE
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_c < C)[None, :]  # [BLOCK_M, BLOCK_N]
    offs = (offs_m * C)[:, None] + offs_c[None, :]
    y = normalise(x_ptr + offs, offs_c[None, :], mask, scale, beta, k, C, SIZE)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask)


def launch_local_response_norm(input: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> torch.Tensor:
    output = _local_response_norm_output(input, size, alpha, beta, k)
    if output.numel() == 0:
        return output
    C = input.shape[1]
    x = input.movedim(1, -1).contiguous()
    M = x.numel() // C
    tile = tiles.lookup("local_response_norm", x, M, C, size)
    grid = lambda META: (triton.cdiv(M, META["BLOCK_M"]), triton.cdiv(C, META["BLOCK_N"]))
    runtime.launch(
        _local_response_norm_kernel,
        grid,
        x,
        output,
        M,
        alpha / size,
        beta,
        k,
        C=C,
        SIZE=size,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def _local_response_norm_output(input, size, alpha, beta, k):
    N, C, *spatial = input.shape
    return torch.empty((N, *spatial, C), dtype=input.dtype, device=input.device).movedim(-1, 1)


_local_response_norm = runtime.register("local_response_norm", launch_local_response_norm, _local_response_norm_output)


def local_response_norm(
    input: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """Local response normalisation, as :func:`torch.nn.functional.local_response_norm`.

    Args:
        input: (N, C, ...), at least three dimensions; float32, float16 or bfloat16. Channels-last memory
            (NHWC) is not copied.
        size: channels in the window; an even window reaches one channel further down than up.
        alpha, beta, k: the formula's factor, exponent and constant; alpha is divided by ``size``.

    Returns:
        A tensor of ``input``'s shape in channels-last memory; computed in float32.

    Raises:
        TypeError: an argument of the wrong type.
        ArgumentError: fewer than three dimensions, ``size`` under 1, another dtype.
    """
    check_tensor("local_response_norm", "input", input)
    check(
        input.dim() >= 3,
        f"local_response_norm: input must be (N, C, ...), at least 3 dimensions, got shape {tuple(input.shape)}",
    )
    size = integer("local_response_norm", "size", size)
    check(size >= 1 or input.numel() == 0, f"local_response_norm: size must be at least 1, got {size}")
    alpha, beta, k = (number("local_response_norm", *given) for given in (("alpha", alpha), ("beta", beta), ("k", k)))
    return _local_response_norm(input, size, alpha, beta, k)
