"""Exercises of 04_overlapping_pooling."""

import itertools

from lesson.check import Checker, Wrong, given, output, same

import torch
import torch.nn.functional as F
import triton


@Checker
def windows(function) -> str:
    cases = [
        case
        for case in itertools.product((1, 2, 5, 6, 13, 55), (1, 2, 3, 5), (1, 2, 3, 4), (0, 1, 2), (False, True))
        if case[3] <= case[1] // 2 and case[0] + 2 * case[3] >= case[1]
    ]
    for size, kernel, stride, padding, ceil_mode in cases:
        expected = F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, 1, ceil_mode).shape[-1]
        found = function(size, kernel, stride, padding, ceil_mode)
        if found != expected:
            raise Wrong(
                f"for size {size}, kernel {kernel}, stride {stride}, padding {padding}, ceil_mode {ceil_mode}: "
                f"expected {expected} windows, got {found!r}"
            )
    return f"right for {len(cases)} cases, as PyTorch counts"


@Checker
def padded(kernel) -> str:
    cases = (((1, 3, 7, 7), 3, 2, 1), ((2, 5, 4, 9), 3, 1, 1), ((1, 1, 6, 5), 2, 2, 0), ((3, 2, 1, 1), 3, 2, 1))
    for shape, size, stride, padding in cases:
        x = (-torch.rand(shape) - 1).contiguous(memory_format=torch.channels_last)
        expected = F.max_pool2d(x, size, stride, padding).contiguous(memory_format=torch.channels_last)
        out = output(expected)
        _, C, H, W = shape
        _, _, P, Q = expected.shape
        geometry = {"C": C, "H": H, "W": W, "P": P, "Q": Q, "SIZE": size, "STRIDE": stride, "PAD": padding}
        kernel[(triton.cdiv(out.numel(), 64),)](given(x), out, out.numel(), **geometry, BLOCK_M=64)
        case = f"with x of {shape}, all negative, {size} x {size} at stride {stride}, padding {padding}"
        same(out, expected, case)
    return f"right for {len(cases)} poolings, with and without padding"


@Checker
def winner(kernel) -> str:
    cases = (((1, 3, 7, 7), 3, 2), ((2, 5, 4, 9), 3, 1), ((1, 2, 6, 5), 2, 2), ((1, 1, 11, 11), 5, 3))
    for shape, size, stride in cases:
        x = torch.randint(-2, 3, shape).float().contiguous(memory_format=torch.channels_last)  # many equal values
        _, C, H, W = shape
        y, argmax = F.max_pool2d(x, size, stride, return_indices=True)
        _, _, P, Q = y.shape
        rows, columns = argmax // W, argmax % W
        taps = (rows - torch.arange(P)[:, None] * stride) * size + columns - torch.arange(Q) * stride
        expected = taps.float().contiguous(memory_format=torch.channels_last)
        out = output(expected)
        geometry = {"C": C, "H": H, "W": W, "P": P, "Q": Q, "SIZE": size, "STRIDE": stride}
        kernel[(triton.cdiv(out.numel(), 64),)](given(x), out, out.numel(), **geometry, BLOCK_M=64)
        same(out, expected, f"with x of {shape}, many equal, {size} x {size} at stride {stride}")
    return f"right for {len(cases)} poolings of maps with many equal elements"
