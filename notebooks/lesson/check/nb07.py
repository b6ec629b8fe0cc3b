"""Exercises of 07_roofline."""

from lesson.check import Checker, Wrong, given, output, same

import torch
import triton

from kernels.tools.cost import Cost
from kernels.tools.trace import multiplications


def number(got: object, expected: float, case: str) -> None:
    """Raises :class:`Wrong` unless ``got`` is a number within a millionth of ``expected``."""
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise Wrong(f"{case}: expected a number, got {got!r}")
    if not abs(got - expected) <= 1e-6 * abs(expected):
        raise Wrong(f"{case}: expected {expected:.6g}, got {got:.6g}")


@Checker
def polynomial(kernel) -> str:
    cases = ((1, 0), (64, 1), (1000, 5), (257, 12))
    for n, order in cases:
        x, c = torch.rand(n) * 2 - 1, torch.randn(order + 1)
        y, programs = output(x), triton.cdiv(n, 64)
        with multiplications() as found:
            kernel[(programs,)](given(x), given(c), y, n, ORDER=order, BLOCK=64)
        powers = torch.stack([x.double() ** i for i in range(order + 1)])
        case = f"with n = {n}, ORDER = {order}, BLOCK = 64"
        same(y, c.double() @ powers, case)
        each = sum(found) / (programs * 64)
        if each > order:
            raise Wrong(f"{case}: right, but with {each:g} multiplications per number; {order} are enough")
    return f"right for {len(cases)} polynomials, of orders 0 to 12, with no more multiplications than their order"


@Checker
def tile_use(function) -> str:
    cases = (  # M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, multiprocessors
        (128, 128, 64, 128, 128, 64, 1),
        (1, 1, 1, 16, 16, 16, 8),
        (21_632, 384, 2304, 128, 128, 64, 132),
        (387_200, 96, 363, 128, 64, 64, 108),
        (300, 70, 100, 64, 32, 48, 5),
    )
    for M, N, K, block_m, block_n, block_k, multiprocessors in cases:
        rounds = triton.cdiv(triton.cdiv(M, block_m) * triton.cdiv(N, block_n), multiprocessors)
        possible = rounds * multiprocessors * block_m * block_n * triton.cdiv(K, block_k) * block_k
        got = function(M, N, K, block_m, block_n, block_k, multiprocessors)
        case = f"{M:,} x {N} x {K} in tiles of {block_m} x {block_n} x {block_k} on {multiprocessors}"
        number(got, M * N * K / possible, case)
    return f"right for {len(cases)} products and devices"


@Checker
def photos_a_second(function) -> str:
    memory, arithmetic, both = (Cost((1,), 0, *pair) for pair in ((10**6, 10**9), (10**12, 10**6), (10**11, 10**9)))
    cases = (
        ([memory], 1, 1e14, 1e12),
        ([arithmetic], 7, 1e14, 1e12),
        ([memory, arithmetic, both, memory], 128, 1e14, 1e12),
        ([both, arithmetic], 3, 3e13, 2e12),
    )
    for costs, batch, rate, bandwidth in cases:
        seconds = sum(max(cost.flops / rate, cost.bytes / bandwidth) for cost in costs)
        got = function(list(costs), batch, rate, bandwidth)
        number(got, batch / seconds, f"with {len(costs)} layers and a batch of {batch}")
    return f"right for {len(cases)} networks, of 1 to 4 layers"
