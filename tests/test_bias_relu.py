"""kernels.bias_relu against relu(input + bias) in float64."""

import pytest
import torch

import kernels
from kernels.layers import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_refused, name, randn

CASES = {  # input, bias
    "0d": ((), ()),
    "1": ((1,), (1,)),
    "vector": ((7,), (7,)),
    "rows": ((3, 7), (7,)),
    "columns": ((31, 5), (31, 1)),
    "one-for-all": ((31, 5), ()),
    "one-for-all-2d": ((31, 5), (1, 1)),
    "channels": ((2, 5, 7, 3), (5, 1, 1)),
    "channels-4d": ((2, 48, 3, 7), (1, 48, 1, 1)),
    "batch": ((3, 5, 2, 7), (3, 1, 1, 1)),
    "width": ((3, 5, 2, 7), (7,)),
    "per-pixel": ((3, 5, 2, 7), (2, 7)),
    "per-image-and-column": ((3, 5, 2, 7), (3, 1, 1, 7)),
    "everything": ((3, 5, 2, 7), (3, 5, 2, 7)),
    "5d": ((2, 3, 1, 2, 5), (3, 1, 1, 1)),
    "227": ((1, 3, 227, 31), (3, 1, 1)),
    "empty-batch": ((0, 5, 7, 3), (5, 1, 1)),
    "no-channels": ((2, 0, 7, 3), (0, 1, 1)),
    "no-channels-bias-of-one": ((2, 0), (1,)),
}


def check(guarded, x, b):
    actual = kernels.bias_relu(guarded(x), guarded(b))
    assert_close(actual, reference.bias_relu(x, b), x.dtype)
    assert actual.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, dtype, guarded):
    check(guarded, *(randn(*shape, dtype=dtype) for shape in case))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", [case for case in CASES if case != "227"])
def test_small_tiles(case, dtype, guarded, small_tiles):
    x, b = (randn(*shape, dtype=dtype) for shape in CASES[case])
    check(guarded, LAYOUTS["channels_last"](x) if x.dim() == 4 else x, b)


@pytest.mark.parametrize("case", ["channels", "batch", "width", "per-pixel", "per-image-and-column", "everything"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, case, guarded):
    x, b = (randn(*shape) for shape in CASES[case])
    check(guarded, LAYOUTS[layout](x), b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_layouts(layout, guarded):
    check(guarded, randn(2, 5, 3, 4), LAYOUTS[layout](randn(2, 5, 3, 4)))
    check(guarded, randn(2, 5, 3, 4), LAYOUTS[layout](randn(1, 5, 1, 1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layer", [x for x in ALEXNET if x.parameters], ids=lambda layer: layer.name)
def test_alexnet(layer, dtype, guarded):
    x = randn(*layer.cost().output, dtype=dtype)
    check(
        guarded,
        LAYOUTS["channels_last"](x) if x.dim() == 4 else x,
        randn(*x.shape[1:2], *[1] * (x.dim() - 2), dtype=dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_infinity(dtype, guarded):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, inf, -inf, inf, 1.0, -1.0, 1.0, -0.0], dtype=dtype)
    b = torch.tensor([1.0, 1.0, 1.0, -inf, nan, inf, -inf, 0.0], dtype=dtype)
    check(guarded, x, b)


def test_overflow_in_float16_is_infinity(guarded):
    check(guarded, torch.tensor([6e4, 1.0]).half(), torch.tensor([6e4, 1.0]).half())


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


REFUSED = {
    "input-list": ({"input": [1.0], "bias": None}, ("input", "list")),
    "bias-none": ({"bias": None}, ("bias", "NoneType")),
    "bias-string": ({"bias": "1"}, ("bias", "str")),
    "bias-length": ({"bias": T(4)}, ("bias", "(4,)", "(2, 5)")),
    "bias-column-length": ({"bias": T(3, 1)}, ("bias", "(3, 1)", "(2, 5)")),
    "bias-empty": ({"bias": T(0)}, ("bias", "(0,)", "(2, 5)")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    plain = lambda input, bias: torch.relu(input + bias)
    assert_refused(kernels.bias_relu, plain, {"input": T(2, 5), **arguments}, words)


@pytest.mark.parametrize("bias", [T(2, 2, 5), T(1, 2, 5), T(5, dtype=torch.float16), T(5).double()], ids=str)
def test_bias_that_would_change_the_result_is_refused(bias):
    """PyTorch would give another shape or dtype than the input's."""
    with pytest.raises(kernels.ArgumentError, match="bias_relu: bias "):
        kernels.bias_relu(T(2, 5), bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"bias_relu: input must be float32.*got {dtype}"):
        kernels.bias_relu(T(3, 5, dtype=dtype), T(5, dtype=dtype))
