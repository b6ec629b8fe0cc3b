"""Exercises of 06_alexnet."""

from lesson.check import Checker, Wrong, given, same

import torch

import kernels


@Checker
def sees(function) -> str:
    cases = (
        [(3, 1, 1)],
        [(11, 4, 0), (3, 2, 0)],
        [(5, 3, 2), (2, 2, 0), (7, 1, 3)],
        [(1, 1, 0), (4, 5, 1), (3, 2, 1), (3, 1, 0)],
    )
    for layers in cases:
        for index in (0, 3):
            # The set of input pixels that an output pixel is computed from.
            pixels = {index}
            for window, stride, padding in reversed(layers):
                pixels = {i * stride - padding + offset for i in pixels for offset in range(window)}
            expected = min(pixels), max(pixels)
            got = function(list(layers), index)
            if not isinstance(got, (tuple, list)) or tuple(map(int, got)) != expected:
                raise Wrong(f"for layers {layers}, output {index} sees pixels {expected}, got {got!r}")
    return f"right for {len(cases)} chains of layers"


@Checker
def grouped(function) -> str:
    cases = (  # N, C, H, W, K, R, S, stride, padding, groups
        (1, 4, 6, 6, 6, 3, 3, 1, 1, 2),
        (2, 6, 7, 9, 9, 2, 3, 2, 0, 3),
        (1, 3, 5, 4, 2, 5, 3, 1, 2, 1),
        (1, 5, 4, 4, 10, 1, 1, 1, 0, 5),
    )
    original, called = kernels.conv2d, []

    def ungrouped(*arguments, **named):
        if named.get("groups", 1) != 1 or (len(arguments) > 6 and arguments[6] != 1):
            raise Wrong("call kernels.conv2d without groups")
        called.append(True)
        return original(*arguments, **named)

    kernels.conv2d = ungrouped
    try:
        for N, C, H, W, K, R, S, stride, padding, groups in cases:
            x, weight, bias = torch.randn(N, C, H, W), torch.randn(K, C // groups, R, S), torch.randn(K)
            called.clear()
            got = function(given(x), given(weight), given(bias), stride, padding, groups)
            case = f"with x {tuple(x.shape)}, weight {tuple(weight.shape)}, groups = {groups}"
            exact = (tensor.double() for tensor in (x, weight, bias))
            same(got, torch.nn.functional.conv2d(*exact, stride, padding, groups=groups), case)
            if not called:
                raise Wrong(f"{case}: right, but kernels.conv2d was not called")
    finally:
        kernels.conv2d = original
    return f"right for {len(cases)} convolutions of 1 to 5 groups"


@Checker
def fold_mean(function) -> str:
    cases = ((4, 3, 11, 11, 4), (7, 1, 3, 2, 1), (5, 6, 2, 5, 2))  # K, C, R, S, stride
    for K, C, R, S, stride in cases:
        weight, bias, mean = torch.randn(K, C, R, S), torch.randn(K), 100 * torch.rand(C)
        got = function(weight.clone(), bias.clone(), mean.clone())
        # conv1 of the shifted photo with the new bias must equal conv1 of the photo with the old bias.
        x = torch.randn(2, C, 23, 20, dtype=torch.float64)
        exact = torch.nn.functional.conv2d(x, weight.double(), bias.double(), stride)
        case = f"with weight {tuple(weight.shape)}"
        if not isinstance(got, torch.Tensor) or got.shape != bias.shape:
            raise Wrong(f"{case}: expected a bias of shape {tuple(bias.shape)}")
        shifted = x + mean.double()[:, None, None]
        same(torch.nn.functional.conv2d(shifted, weight.double(), got.double(), stride), exact, case, 1e-4)
    return f"right for {len(cases)} convolutions"
