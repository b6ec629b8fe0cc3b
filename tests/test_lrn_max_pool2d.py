"""kernels.lrn_max_pool2d against PyTorch's two operators in sequence, in float64."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import tiles
from kernels.layers import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_refused, name, randn

CASES = {  # input, size, kernel_size, stride
    "1x1": ((1, 1, 1, 1), 1, 1, 1),
    "7-square": ((2, 5, 7, 7), 5, 3, 2),
    "31-not-square": ((1, 3, 31, 7), 3, (2, 3), (3, 1)),
    "227": ((1, 3, 227, 5), 5, (3, 2), (2, 3)),
    "channels-48": ((1, 48, 5, 7), 5, 3, 2),
    "even-window": ((2, 7, 5, 7), 4, (3, 2), (2, 1)),
    "window-over-channels": ((3, 3, 5, 5), 9, 3, 2),
    "stride-over-window": ((1, 5, 11, 9), 5, 2, (5, 4)),
    "whole-image": ((2, 5, 5, 3), 5, (5, 3), 1),
    "image-only": ((5, 7, 5), 5, 3, 2),
    "empty-batch": ((0, 5, 7, 5), 5, 3, 2),
    "pair-of-one": ((1, 5, 7, 5), 5, (3,), [2]),
}
STRONG = (0.7, 0.6, 0.5)  # alpha, beta, k: neighbours weigh as much as the element itself


def check(guarded, x, size, formula, kernel_size, stride):
    actual = kernels.lrn_max_pool2d(guarded(x), size, *formula, kernel_size, stride)
    assert_close(actual, reference.lrn_max_pool2d(x, size, *formula, kernel_size, stride), x.dtype)
    if actual.dim() == 4:
        assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, dtype, guarded):
    shape, size, kernel_size, stride = case
    x = randn(*shape, dtype=dtype)
    check(guarded, LAYOUTS["channels_last"](x) if x.dim() == 4 else x, size, STRONG, kernel_size, stride)


@pytest.mark.parametrize("case", ["7-square", "channels-48", "even-window", "stride-over-window", "image-only"])
def test_small_tiles(case, guarded, small_tiles):
    shape, size, kernel_size, stride = CASES[case]
    x = randn(*shape)
    check(guarded, LAYOUTS["channels_last"](x) if x.dim() == 4 else x, size, STRONG, kernel_size, stride)


@pytest.mark.parametrize("blocks", [(1, 3), (3, 2), (9, 1)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (4, 5), (5, 2)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 4)], ids=str)
def test_blocks_of_pixels(stride, kernel_size, blocks, guarded):
    """Rows that windows share are carried over, or where that would take more than one window, read again."""
    tile = dict(zip(("BLOCK_P", "BLOCK_Q"), blocks, strict=True))
    with tiles.use("lrn_max_pool2d", {"BLOCK_M": 256, **tile}):
        check(guarded, LAYOUTS["channels_last"](randn(2, 5, 11, 8)), 3, STRONG, kernel_size, stride)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4], ids=str)
def test_three_quarters(scale, dtype, guarded):
    """The exponent with a way of its own; in float16 squares are compared, negative ones too."""
    x = scale * randn(2, 9, 9, 7)
    x[1] = -x[1].abs()
    check(guarded, x.to(dtype), 5, (0.7, 0.75, 0.5), 3, 2)


@pytest.mark.parametrize("size", [1, 2, 8, 17, 40])
def test_windows_of_channels(size, guarded):
    """Windows that end within a thread's 16 bytes, with them, and far beyond."""
    check(guarded, LAYOUTS["channels_last"](randn(1, 24, 5, 5, dtype=torch.float16)), size, STRONG, 3, 2)


@pytest.mark.parametrize("formula", [(1e-4, 0.75, 1.0), (5e-4, 0.75, 2.0), (1, 1, 1), (1.0, -0.5, 0.0)], ids=str)
def test_formulas(formula, guarded):
    check(guarded, 10 * randn(2, 9, 5, 5), 5, formula, 3, 2)


def test_negative_numbers(guarded):
    check(guarded, -randn(2, 9, 5, 5).abs(), 5, STRONG, 3, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, guarded):
    check(guarded, LAYOUTS[layout](randn(2, 5, 7, 9)), 5, STRONG, 3, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layer", ["pool1", "pool2"])
def test_alexnet(layer, dtype, guarded):
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    x = LAYOUTS["channels_last"](30 * randn(1, *shape, dtype=dtype))
    check(guarded, x, 5, (1e-4, 0.75, 1.0), 3, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_infinity_spread_as_in_pytorch(dtype, guarded):
    x = randn(1, 12, 9, 9, dtype=dtype)
    x[0, 3, 0, 0], x[0, 5, 4, 4], x[0, 11, 8, 1] = float("nan"), float("inf"), float("-inf")
    for formula in (STRONG, (0.7, 0.75, 0.5)):
        check(guarded, x, 5, formula, 3, 2)


def test_squares_may_overflow_float16(guarded):
    check(guarded, (3e4 * randn(1, 9, 5, 5).clamp(-2, 2)).half(), 5, (1e-4, 0.75, 1.0), 3, 2)


def plain(input, size, alpha, beta, k, kernel_size, stride):
    return F.max_pool2d(F.local_response_norm(input, size, alpha, beta, k), kernel_size, stride)


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(2, 5, 7, 7), "size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0, "kernel_size": 3, "stride": 2}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "input-2d": ({"input": T(7, 7)}, ("input", "(7, 7)")),
    "input-5d": ({"input": T(1, 1, 1, 7, 7)}, ("input", "(1, 1, 1, 7, 7)")),
    "no-channels": ({"input": T(2, 0, 7, 7)}, ("input", "(2, 0, 7, 7)")),
    "size-0": ({"size": 0}, ("size", "0")),
    "size-float": ({"size": 5.0}, ("size", "5.0")),
    "alpha-none": ({"alpha": None}, ("alpha", "None")),
    "beta-string": ({"beta": "1"}, ("beta", "'1'")),
    "k-none": ({"k": None}, ("k", "None")),
    "kernel-0": ({"kernel_size": 0}, ("kernel_size", "0")),
    "kernel-float": ({"kernel_size": 3.0}, ("kernel_size", "3.0")),
    "kernel-three": ({"kernel_size": (3, 3, 3)}, ("kernel_size", "(3, 3, 3)")),
    "kernel-too-large": ({"kernel_size": (3, 8)}, ("kernel_size=(3, 8)", "(2, 5, 7, 7)")),
    "stride-0": ({"stride": 0}, ("stride", "0")),
    "stride-negative": ({"stride": (1, -1)}, ("stride", "-1")),
    "stride-float": ({"stride": 1.5}, ("stride", "1.5")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.lrn_max_pool2d, plain, {**BASE, **arguments}, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"lrn_max_pool2d: input must be float32.*got {dtype}"):
        kernels.lrn_max_pool2d(**{**BASE, "input": T(2, 5, 7, 7, dtype=dtype)})
