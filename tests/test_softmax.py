"""kernels.softmax against torch.nn.functional.softmax in float64."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import kernels
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_gradients, assert_refused, cases, name, randn

CASES = {  # input, dim
    "0d": ((), 0),
    "0d-last": ((), -1),
    "1": ((1,), 0),
    "vector": ((7,), -1),
    "alexnet": ((1, 1000), -1),
    "alexnet-batch": ((3, 1000), 1),
    "rows-227": ((31, 227), 1),
    "columns": ((7, 31), 0),
    "one-per-row": ((31, 1), 1),
    "channels": ((2, 48, 3, 5), 1),
    "batch": ((3, 5, 2, 7), 0),
    "height": ((3, 5, 2, 7), -2),
    "width": ((3, 5, 2, 7), 3),
    "empty-batch": ((0, 5), 1),
    "empty-batch-over-batch": ((0, 5), 0),
    "empty-rows": ((5, 0), 1),
    "empty-vector": ((0,), 0),
}


def check(guarded, x, dim):
    assert_close(kernels.softmax(guarded(x), dim), reference.softmax(x, dim), x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", cases(CASES, "0d", "alexnet-batch", "rows-227", "columns", "channels", "empty-rows"))
def test_shapes(case, dtype, guarded):
    shape, dim = case
    check(guarded, 3 * randn(*shape, dtype=dtype), dim)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", cases(CASES, "alexnet", "channels", "one-per-row"))
def test_rows_longer_than_a_tile(case, dtype, guarded, small_tiles):
    shape, dim = case
    check(guarded, 3 * randn(*shape, dtype=dtype), dim)


@pytest.mark.parametrize("tiles", ["one-tile", "small-tiles"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", cases(CASES, "vector", "channels", "empty-rows"))
def test_gradients(case, dtype, tiles, guarded, request):
    if tiles == "small-tiles":
        request.getfixturevalue("small_tiles")
    shape, dim = case
    x = 3 * randn(*shape, dtype=dtype)
    assert_gradients(lambda x: kernels.softmax(x, dim), lambda x: reference.softmax(x, dim), [x], guarded)


def test_gradcheck(device):
    """In float32: steps of 1e-2 cause errors of about 1e-4, and rounding causes as much again."""
    x = torch.randn(3, 5, device=device, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that float32 will likely fail
        torch.autograd.gradcheck(kernels.softmax, (x,), eps=1e-2, atol=1e-3, rtol=1e-2)


@pytest.mark.unguarded
def test_registered(device):
    torch.library.opcheck(torch.ops.alexnet.softmax.default, (torch.randn(3, 5, device=device, requires_grad=True),))


def test_autocast_computes_in_float32(device):
    x = torch.randn(3, 5, device=device, dtype=torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16):
        assert_close(kernels.softmax(x), reference.softmax(x), torch.float32)


@pytest.mark.parametrize("dim", cases([0, 1, 2, 3], "1"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dim, guarded):
    check(guarded, LAYOUTS[layout](randn(2, 5, 3, 4)), dim)


def test_last_dimension_is_the_default(guarded):
    x = randn(3, 4, 5)
    assert_close(kernels.softmax(guarded(x)), reference.softmax(x, -1))


@pytest.mark.parametrize("tiles", ["one-tile", "small-tiles"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_infinity_as_in_pytorch(dtype, tiles, guarded, request):
    if tiles == "small-tiles":
        request.getfixturevalue("small_tiles")
    inf = float("inf")
    x = randn(9, 40, dtype=dtype)
    x[0] = -inf  # nothing to choose from: NaN
    x[1, 3] = inf
    x[2, 3] = x[2, 30] = inf
    x[3, 7] = float("nan")
    x[4, :20] = -inf  # a row that begins with whole tiles of -inf
    x[5, 20:] = -inf
    x[6, 1:] = -inf
    x[7, 3], x[7, 5] = inf, -inf
    check(guarded, x, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_large_numbers_do_not_overflow(dtype, guarded, small_tiles):
    x = torch.linspace(-6e4, 6e4, 100).reshape(2, 50).flip(0).to(dtype)
    check(guarded, x, 1)
    check(guarded, x.flip(1), 1)


def test_lowest_float32(guarded):
    lowest = torch.finfo(torch.float32).min
    check(guarded, torch.tensor([[lowest, lowest, lowest], [lowest, 0.0, lowest]]), 1)


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(2, 3, 4), "dim": -1}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "dim-too-large": ({"dim": 3}, ("dim", "got 3", "-3 to 2")),
    "dim-too-small": ({"dim": -4}, ("dim", "got -4", "-3 to 2")),
    "dim-of-0d": ({"input": T(), "dim": 1}, ("dim", "got 1", "-1 to 0")),
    "dim-of-0d-negative": ({"input": T(), "dim": -2}, ("dim", "got -2")),
    "dim-float": ({"dim": 1.0}, ("dim", "1.0")),
    "dim-pair": ({"dim": (0, 1)}, ("dim", "(0, 1)")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.softmax, F.softmax, {**BASE, **arguments}, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"softmax: input must be float32.*got {dtype}"):
        kernels.softmax(T(2, 3, dtype=dtype))
