"""Exercises of 02_bias_relu_fusion: kernels that the checker launches."""

from lesson.check import Checker, Wrong, given, output, same

import torch
import triton

from kernels.tools.trace import trace

CASES = (  # shape, memory order, its name
    ((2, 3, 5, 7), torch.channels_last, "channels_last"),
    ((2, 3, 5, 7), torch.contiguous_format, "contiguous"),
    ((1, 96, 4, 4), torch.channels_last, "channels_last"),
    ((3, 1, 1, 1), torch.contiguous_format, "contiguous"),
)


def _cases():
    """Yields (input, bias, pattern of the channels in memory, grid, name) of each case."""
    for shape, order, name in CASES:
        x = torch.randn(shape).contiguous(memory_format=order)
        bias = torch.randn(shape[1])
        pattern = {"LENGTH": shape[1], "STEP": 1 if order is torch.channels_last else shape[2] * shape[3]}
        yield x, bias, pattern, (triton.cdiv(x.numel(), 64),), f"with x of {shape}, {name}"


@Checker
def leaky(kernel) -> str:
    for x, bias, pattern, grid, case in _cases():
        out = output(x)
        kernel[grid](given(x), given(bias), out, x.numel(), 0.1, **pattern, BLOCK_M=64)
        same(out, torch.nn.functional.leaky_relu(x + bias[:, None, None], 0.1), case)
    return f"right for {len(CASES)} tensors, in both orders of memory"


@Checker
def residual(kernel) -> str:
    for x, bias, pattern, grid, case in _cases():
        before = torch.randn_like(x)
        out = output(x)
        launch = lambda x=x, bias=bias, before=before, out=out, grid=grid, pattern=pattern: kernel[grid](
            given(x), given(bias), given(before), out, x.numel(), **pattern, BLOCK_M=64
        )
        launch()
        same(out, torch.relu(x + bias[:, None, None] + before), case)
        counts = [0, 0]
        for pid in range(grid[0]):
            for step in trace(launch, kernel.fn.__name__, (pid,)).steps:
                for access in step.accesses:
                    if access.argument != "bias_ptr":
                        counts[access.kind == "store"] += int(access.mask.sum())
        loads, stores = counts
        if (loads, stores) != (2 * x.numel(), x.numel()):
            raise Wrong(
                f"{case}: right, but with {loads / x.numel():g} passes to read and {stores / x.numel():g} to write; "
                "2 and 1 are enough"
            )
    return f"right for {len(CASES)} tensors, in three passes"


@Checker
def epilogue(kernel) -> str:
    shapes = ((1, 1, 16), (16, 32, 16), (33, 50, 32), (7, 129, 64))
    for M, N, K in shapes:
        x, w, bias = torch.randn(M, K), torch.randn(K, N), torch.randn(N)
        out = output(torch.empty(M, N))
        grid = (triton.cdiv(M, 16), triton.cdiv(N, 32))
        kernel[grid](given(x), given(w), given(bias), out, M, N, K=K, BLOCK_M=16, BLOCK_N=32)
        expected = torch.relu(x.double() @ w.double() + bias.double())
        same(out, expected, f"with M = {M}, N = {N}, K = {K}")
    return f"right for {len(shapes)} products, from 1 x 1 to 33 x 50 and 7 x 129"
