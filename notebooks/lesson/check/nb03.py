"""Exercises of 03_local_response_norm."""

from lesson.check import Checker, Wrong, given, output, same

import torch
import torch.nn.functional as F
import triton


@Checker
def from_tensorflow(function) -> str:
    cases = ((2, 1.0, 1e-4, 0.75), (2, 2.0, 1e-4, 0.75), (0, 1.0, 0.5, 1.0), (4, 0.5, 0.03, 0.5))
    for radius, bias, alpha, beta in cases:
        case = f"for depth_radius {radius}, bias {bias:g}, alpha {alpha:g}, beta {beta:g}"
        arguments = function(radius, bias, alpha, beta)
        if not isinstance(arguments, dict) or set(arguments) != {"size", "alpha", "beta", "k"}:
            raise Wrong(f"{case}: expected a dict with size, alpha, beta and k, got {arguments!r}")
        x = 10 * torch.randn(2, 11, 3, dtype=torch.float64)
        squares = F.pad(x.square(), (0, 0, radius, radius))
        sums = squares.unfold(1, 2 * radius + 1, 1).sum(-1)
        same(F.local_response_norm(x, **arguments), x / (bias + alpha * sums) ** beta, case)
    return f"right for {len(cases)} formulas, with radius 0 to 4"


@Checker
def contiguous(kernel) -> str:
    cases = (((1, 6, 3, 5), 5), ((2, 7, 4, 4), 4), ((3, 2, 1, 9), 5), ((2, 5, 2, 3), 2), ((1, 1, 2, 2), 3))
    for shape, size in cases:
        x = 3 * torch.randn(shape)
        out = output(x)
        grid = (triton.cdiv(x.numel(), 64),)
        constants = {"C": shape[1], "PLANE": shape[2] * shape[3], "SIZE": size, "BLOCK_M": 64}
        kernel[grid](given(x), out, x.numel(), 2.0 / size, 0.75, 1.5, **constants)
        expected = F.local_response_norm(x.double(), size, 2.0, 0.75, 1.5)
        same(out, expected, f"with x of {shape}, size {size}")
    return f"right for {len(cases)} tensors, with windows of 2 to 5"


@Checker
def rms_norm(kernel) -> str:
    shapes = ((1, 1), (16, 64), (33, 96), (5, 7))
    for M, C in shapes:
        x = torch.randn(M, C) * torch.logspace(-1, 3, M)[:, None]
        out = output(x)
        kernel[(triton.cdiv(M, 8),)](given(x), out, M, 1e-3, C=C, BLOCK_M=8, BLOCK_C=triton.next_power_of_2(C))
        exact = x.double()
        same(out, exact / (1e-3 + exact.square().mean(1, keepdim=True)).sqrt(), f"with M = {M}, C = {C}")
    return f"right for {len(shapes)} shapes, from 1 x 1 to 33 x 96"
