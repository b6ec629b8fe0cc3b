"""Exercises of 09_training."""

from lesson.check import Checker, given, output, same

import torch
import torch.nn.functional as F
import triton

import kernels
from kernels import runtime


@Checker
def loss_gradient(kernel) -> str:
    shapes = ((1, 2), (16, 10), (33, 100), (5, 7))
    for M, C in shapes:
        x = torch.randn(M, C) * torch.logspace(0, 3, M)[:, None]
        target = torch.randint(C, (M,))
        out = output(x)
        blocks = {"BLOCK_M": 8, "BLOCK_C": triton.next_power_of_2(C)}
        kernel[(triton.cdiv(M, 8),)](given(x), given(target), out, M, C=C, **blocks)
        exact = x.double().requires_grad_()
        F.cross_entropy(exact, target).backward()
        same(out, exact.grad, f"with M = {M}, C = {C}, logits up to {x.abs().max():.0f}")
    return f"right for {len(shapes)} shapes, from 1 x 2 to 33 x 100"


@Checker
def relu_dropout_gradient(kernel) -> str:
    cases = ((1, 0.5, 1), (1000, 0.5, 2012), (257, 0.2, 7), (300, 0.9, 123))
    for n, p, seed in cases:
        y = torch.relu(torch.randn(n))
        dout = torch.randn(n)
        out = output(y)
        kernel[(triton.cdiv(n, 64),)](given(dout), given(y), out, n, p, seed, BLOCK_M=64)
        kept = kernels.dropout(torch.ones(n, device=runtime.default_device()), p, seed=seed).cpu()
        same(out, dout * kept * (y > 0), f"with {n} elements, p = {p}, seed {seed}")
    return f"right for {len(cases)} cases, from 1 to 1,000 elements"


@Checker
def weight_gradient(function) -> str:
    cases = ((1, 2, 5, 5, 3, 3, 1, 0), (2, 3, 7, 6, 4, 3, 2, 1), (3, 1, 11, 11, 2, 5, 3, 2), (1, 4, 4, 4, 1, 1, 1, 0))
    for N, C, H, W, K, size, stride, padding in cases:
        x = torch.randn(N, C, H, W, dtype=torch.float64)
        shape = (K, C, size, size)
        dz = torch.randn_like(F.conv2d(x, x.new_zeros(shape), None, stride, padding))
        expected = torch.nn.grad.conv2d_weight(x, shape, dz, stride, padding)
        case = f"with x of {tuple(x.shape)}, {K} filters of {size} x {size}, stride {stride}, padding {padding}"
        same(function(x, dz, size, stride, padding), expected, case)
    return f"right for {len(cases)} convolutions"
