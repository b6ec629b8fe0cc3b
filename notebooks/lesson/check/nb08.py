"""Exercises of 08_against_cublas."""

from lesson.check import Checker, Wrong, given, output, same

import torch
import triton


@Checker
def right(function) -> str:
    ref = torch.randn(7, 31, dtype=torch.float64)
    scale = ref.abs().max().item()

    def with_one(value: float) -> torch.Tensor:
        out = ref.clone()
        out[6, 30] = value
        return out

    cases = (
        ("an exact result", ref.clone(), ref, 1e-6, True),
        ("an error just within the bound", ref + 0.9e-3 * scale, ref, 1e-3, True),
        ("an error just beyond the bound", ref + 1.1e-3 * scale, ref, 1e-3, False),
        ("a result in fp16", ref.half(), ref, 2e-3, True),
        ("a result in fp16, with a bound smaller than its rounding", ref.half(), ref, 1e-6, False),
        ("one wrong element", with_one(ref[6, 30].item() + 2e-3 * scale), ref, 1e-3, False),
        ("a NaN", with_one(float("nan")), ref, 1e-3, False),
        ("an infinity", with_one(float("inf")), ref, 1e-3, False),
        ("all NaN", torch.full_like(ref, float("nan")), ref, 1e-3, False),
        ("the transpose", ref.T.clone(), ref, 1e-3, False),
        ("one row for all", torch.ones(1, 5), torch.ones(3, 5, dtype=torch.float64), 1e-3, False),
    )
    for what, out, expected, bound, answer in cases:
        got = function(out, expected, bound)
        if not isinstance(got, bool) or got is not answer:
            raise Wrong(f"for {what}, with a bound of {bound:g}: expected {answer}, got {got!r}")
    return f"right for {len(cases)} results, {sum(not case[-1] for case in cases)} of them wrong"


@Checker
def verdict(function) -> str:
    steady = [1.0 + 0.001 * (i % 10) for i in range(50)]
    wide = [1.0 + 0.1 * (i % 10) for i in range(50)]
    scaled = lambda times, by: [by * time for time in times]
    cases = (
        ("times half as long", scaled(steady, 0.5), steady, 0, "faster"),
        ("times twice as long", scaled(steady, 2.0), steady, 0, "slower"),
        ("the same times", list(steady), steady, 0, "no difference"),
        ("a median that is a tenth better, with wide ranges", scaled(wide, 0.9), wide, 0, "no difference"),
        ("one lucky run", [0.01, *scaled(steady, 1.5)], steady, 0, "slower"),
        ("20 slow runs, all warm-up", [9.0] * 20 + scaled(steady, 0.9), steady[:30], 20, "faster"),
        ("20 slow runs of theirs, all warm-up", scaled(steady, 1.2), [9.0] * 20 + steady[:20], 20, "slower"),
    )
    for what, ours, theirs, warmup, answer in cases:
        got = function(list(ours), list(theirs), warmup)
        if got != answer:
            raise Wrong(f"for {what}: expected {answer!r}, got {got!r}")
    return f"right for {len(cases)} pairs of measurements"


@Checker
def linear_softmax(kernel) -> str:
    shapes = ((1, 1, 1, 100), (16, 32, 64, 0), (5, 10, 100, -100), (33, 31, 227, 100))
    for M, N, K, shift in shapes:  # exp(100) is too large for fp32
        x, w, b = torch.randn(M, K), torch.randn(N, K), torch.randn(N) + shift
        y = output(torch.empty(M, N))
        tile = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64}
        kernel[(triton.cdiv(M, 16),)](given(x), given(w), given(b), y, M, N, K=K, **tile)
        expected = torch.softmax(x.double() @ w.double().T + b.double(), 1)
        same(y, expected, f"with M = {M}, N = {N}, K = {K}, biases around {shift}, tiles of 16 x 32 x 64", 1e-4)
    return f"right for {len(shapes)} shapes, from 1 x 1 x 1 to 33 x 31 x 227"
