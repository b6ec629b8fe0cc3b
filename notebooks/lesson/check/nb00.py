"""Exercises of 00_start_here: kernels that the checker launches."""

from lesson.check import Checker, given, output, same

import torch
import triton


@Checker
def saxpy(kernel) -> str:
    sizes = (1, 4, 1000, 257)
    for n in sizes:
        x, y = torch.randn(n), torch.randn(n)
        out = output(x)
        kernel[(triton.cdiv(n, 64),)](given(x), given(y), out, 2.5, n, BLOCK=64)
        same(out, 2.5 * x + y, f"with n = {n}, BLOCK = 64")
    return f"right for {len(sizes)} sizes, from 1 to 1,000 elements"


@Checker
def mirror(kernel) -> str:
    shapes = ((1, 1), (16, 32), (31, 7), (5, 227))
    for H, W in shapes:
        x = torch.randn(H, W)
        out = output(x)
        kernel[(triton.cdiv(H, 16), triton.cdiv(W, 32))](given(x), out, H, W, BLOCK_H=16, BLOCK_W=32)
        same(out, x.flip(1), f"with H = {H}, W = {W}, tiles of 16 x 32")
    return f"right for {len(shapes)} shapes, from 1 x 1 to 5 x 227 pixels"


@Checker
def row_max(kernel) -> str:
    shapes = ((1, 1), (16, 64), (5, 100), (33, 227))
    for M, N in shapes:
        x = -torch.rand(M, N) - 1.0  # all negative
        out = output(torch.empty(M))
        kernel[(triton.cdiv(M, 16),)](given(x), out, M, N=N, BLOCK_M=16, BLOCK_N=32)
        same(out, x.amax(1), f"with M = {M}, N = {N}, all negative, tiles of 16 x 32")
    return f"right for {len(shapes)} shapes, from 1 x 1 to 33 x 227"
