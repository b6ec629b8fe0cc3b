"""Exercises of 05_fully_connected."""

from lesson.check import Checker, Wrong, given, output, same

import torch
import triton

from kernels.tools import cost


@Checker
def meeting_batch(function) -> str:
    cases = (  # N, K, itemsize, rate, bandwidth
        (4096, 9216, 2, 300e12, 2e12),
        (1000, 4096, 4, 60e12, 3e12),
        (10, 4096, 2, 100e12, 1e12),  # they never meet
        (7, 5, 4, 1e9, 1e10),  # from the first photo on
        (1000, 4, 2, 3e12, 1e12),  # the bias counts
        (513, 257, 1, 90e12, 1e12),
    )
    for N, K, itemsize, rate, bandwidth in cases:
        got = function(N, K, itemsize, rate, bandwidth)
        case = f"with N = {N}, K = {K}, {itemsize} bytes, {rate:.3g} FLOP/s and {bandwidth:.3g} bytes/s"

        def reached(batch: int, N=N, K=K, itemsize=itemsize, rate=rate, bandwidth=bandwidth) -> bool:
            least = cost.linear((batch, K), (N, K), itemsize=itemsize)
            return least.flops / rate >= least.bytes / bandwidth

        if not reached(10**9):
            if got is not None:
                raise Wrong(f"{case}: the two times never meet: expected None, got {got}")
            continue
        if not isinstance(got, int) or got < 1:
            raise Wrong(f"{case}: expected a number of photos, an int, got {got!r}")
        if not reached(got):
            raise Wrong(f"{case}: for {got} photos the bytes still take longer")
        if got > 1 and reached(got - 1):
            raise Wrong(f"{case}: {got} photos are too many, {got - 1} are enough")
    return f"right for {len(cases)} layers and devices, one of them without such a batch"


@Checker
def linear_kn(kernel) -> str:
    shapes = ((1, 1, 1), (16, 16, 32), (5, 100, 70), (33, 7, 227))
    for M, N, K in shapes:
        x, w, b = torch.randn(M, K), torch.randn(K, N), torch.randn(N)
        y = output(torch.empty(M, N))
        tile = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32}
        kernel[(triton.cdiv(M, 16), triton.cdiv(N, 16))](given(x), given(w), given(b), y, M, N, K=K, **tile)
        expected = torch.relu(x.double() @ w.double() + b.double())
        same(y, expected, f"with M = {M}, N = {N}, K = {K}, tiles of 16 x 16 x 32")
    return f"right for {len(shapes)} shapes, from 1 x 1 x 1 to 33 x 7 x 227"


@Checker
def row_int8(kernel) -> str:
    shapes = ((1, 1), (16, 64), (10, 100), (33, 227))
    for N, K in shapes:
        x, scale = torch.randn(K), torch.rand(N) + 0.5
        w = torch.randint(-127, 128, (N, K), dtype=torch.int8)
        y = output(torch.empty(N))
        kernel[(triton.cdiv(N, 16),)](given(x), given(w), given(scale), y, N, K=K, BLOCK_N=16, BLOCK_K=64)
        expected = scale.double() * (w.double() @ x.double())
        same(y, expected, f"with N = {N}, K = {K}, tiles of 16 x 64")
    return f"right for {len(shapes)} shapes, from 1 x 1 to 33 x 227"
