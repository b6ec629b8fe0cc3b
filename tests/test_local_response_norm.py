"""kernels.local_response_norm against torch.nn.functional.local_response_norm in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.layers import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_refused, name, randn

CASES = {  # input, size
    "1x1": ((1, 1, 1, 1), 1),
    "7-square": ((2, 5, 7, 7), 5),
    "window-1": ((2, 5, 3, 7), 1),
    "window-2": ((2, 5, 3, 7), 2),
    "window-3": ((2, 5, 3, 7), 3),
    "window-4": ((2, 5, 3, 7), 4),
    "window-of-all-channels": ((3, 5, 2, 3), 5),
    "window-over-channels": ((3, 3, 2, 3), 8),
    "window-far-over-channels": ((1, 2, 2, 3), 13),
    "one-channel": ((2, 1, 7, 5), 5),
    "channels-48": ((1, 48, 5, 3), 5),
    "channels-31": ((1, 31, 3, 1), 6),
    "227": ((1, 3, 227, 5), 5),
    "3d": ((2, 7, 31), 5),
    "5d": ((2, 7, 3, 2, 5), 5),
    "6d": ((2, 3, 2, 1, 2, 3), 4),
    "empty-batch": ((0, 5, 3, 3), 5),
    "no-channels": ((2, 0, 3, 3), 5),
    "no-pixels": ((2, 5, 0, 3), 5),
    "empty-with-window-0": ((0, 5, 3, 3), 0),
}
STRONG = {"alpha": 0.7, "beta": 0.6, "k": 0.5}  # so that neighbours weigh as much as the element itself


def check(guarded, x, size, **arguments):
    actual = kernels.local_response_norm(guarded(x), size, **arguments)
    assert_close(actual, reference.local_response_norm(x, size, **arguments), x.dtype)
    assert actual.movedim(1, -1).is_contiguous()


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, dtype, guarded):
    shape, size = case
    check(guarded, channels_last(randn(*shape, dtype=dtype)), size, **STRONG)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", [case for case in CASES if case != "227"])
def test_small_tiles(case, dtype, guarded, small_tiles):
    shape, size = CASES[case]
    check(guarded, channels_last(randn(*shape, dtype=dtype)), size, **STRONG)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"alpha": 5e-4}, {"alpha": 5e-4, "k": 2.0}, {"alpha": 0.0}, {"beta": 0.0}, {"beta": -0.5}, {"k": 0.0},
     {"alpha": 1, "beta": 1, "k": 1}, {"alpha": np.float32(0.5), "beta": np.float64(0.5), "k": np.int64(2)}],
    ids=str,
)  # fmt: skip
def test_formulas(arguments, dtype, guarded):
    check(guarded, channels_last(10 * randn(2, 9, 3, 5, dtype=dtype)), 5, **arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, guarded):
    check(guarded, LAYOUTS[layout](randn(2, 5, 7, 3)), 3, **STRONG)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layer", ["pool1", "pool2"])
def test_alexnet(layer, dtype, guarded):
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    check(guarded, channels_last(30 * randn(1, *shape, dtype=dtype)), 5)


def test_squares_may_overflow_float16(guarded):
    """30000^2 is infinite in float16; the result is not."""
    check(guarded, channels_last(3e4 * randn(1, 9, 2, 3).clamp(-2, 2)).half(), 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_infinity_spread_as_in_pytorch(dtype, guarded):
    x = randn(1, 12, 2, 3, dtype=dtype)
    x[0, 3, 0, 0], x[0, 5, 1, 1], x[0, 11, 0, 2] = float("nan"), float("inf"), float("-inf")
    for beta in (0.6, 0.75):
        check(guarded, channels_last(x), 5, **{**STRONG, "beta": beta})


@pytest.mark.parametrize("beta", [0.6, 0.75])
def test_negative_base_is_nan_as_in_pytorch(beta, guarded):
    check(guarded, channels_last(randn(1, 5, 2, 3)), 3, alpha=1.0, beta=beta, k=-0.5)


@pytest.mark.parametrize("size", [1, 2, 8, 17, 40])
def test_windows_that_end_within_a_threads_16_bytes_or_far_beyond(size, guarded):
    check(guarded, channels_last(randn(1, 24, 3, 2, dtype=torch.float16)), size, **STRONG)


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(2, 5, 3, 3), "size": 5}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "input-2d": ({"input": T(2, 5)}, ("input", "(2, 5)")),
    "input-0d": ({"input": T()}, ("input", "()")),
    "size-0": ({"size": 0}, ("size", "0")),
    "size-negative": ({"size": -3}, ("size", "-3")),
    "size-float": ({"size": 5.0}, ("size", "5.0")),
    "size-none": ({"size": None}, ("size", "None")),
    "size-pair": ({"size": (5, 5)}, ("size", "(5, 5)")),
    "alpha-none": ({"alpha": None}, ("alpha", "None")),
    "alpha-string": ({"alpha": "1"}, ("alpha", "'1'")),
    "beta-none": ({"beta": None}, ("beta", "None")),
    "k-none": ({"k": None}, ("k", "None")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.local_response_norm, F.local_response_norm, {**BASE, **arguments}, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"local_response_norm: input must be float32.*got {dtype}"):
        kernels.local_response_norm(T(2, 5, 3, 3, dtype=dtype), 5)
