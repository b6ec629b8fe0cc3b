"""kernels.linear against torch.nn.functional.linear in float64."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import runtime
from kernels.layers import ALEXNET
from tests import reference
from tests.reference import DTYPES, assert_close, assert_refused, name, randn

LAYERS = [layer for layer in ALEXNET if layer.operator == "linear"]

CASES = {  # input, weight, bias
    "1x1x1": ((1, 1), (1, 1), (1,)),
    "7x31x5": ((7, 5), (31, 5), (31,)),
    "31x1x227": ((31, 227), (1, 227), (1,)),
    "3x227x31": ((3, 31), (227, 31), (227,)),
    "17x33x64": ((17, 64), (33, 64), (33,)),
    "3d": ((2, 3, 5), (7, 5), (7,)),
    "4d": ((2, 1, 3, 5), (7, 5), (7,)),
    "vector": ((5,), (7, 5), (7,)),
    "one-bias-for-all": ((3, 5), (7, 5), (1,)),
    "0d-bias": ((3, 5), (7, 5), ()),
    "row-bias": ((3, 5), (7, 5), (1, 7)),
    "row-bias-for-vector": ((5,), (7, 5), (1, 7)),
    "row-bias-3d": ((2, 3, 5), (7, 5), (1, 7)),
    "vector-weight": ((3, 5), (5,), None),
    "vector-weight-3d": ((2, 3, 5), (5,), None),
    "two-vectors": ((5,), (5,), None),
    "empty-batch": ((0, 5), (7, 5), (7,)),
    "empty-inside": ((2, 0, 5), (7, 5), (7,)),
    "no-features": ((3, 0), (7, 0), (7,)),
    "no-features-no-bias": ((3, 0), (7, 0), None),
    "no-outputs": ((3, 5), (0, 5), (0,)),
}


def check(guarded, x, w, b, relu=False):
    actual = kernels.linear(guarded(x), guarded(w), guarded(b), relu=relu)
    assert_close(actual, reference.linear(x, w, b, relu=relu), x.dtype)


def tensors(case, dtype):
    return [None if shape is None else randn(*shape, dtype=dtype) for shape in case]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, relu, dtype, guarded):
    check(guarded, *tensors(case, dtype), relu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_small_tiles(case, dtype, guarded, small_tiles):
    check(guarded, *tensors(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_many_small_tiles(dtype, guarded, small_tiles):
    """More rows and columns of tiles than a swizzled group has."""
    check(guarded, *tensors(((90, 50), (75, 50), (75,)), dtype), relu=True)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "sliced": lambda x: torch.stack([x, x], 2).flatten(1)[:, ::2],
    "expanded-rows": lambda x: x[:1].expand_as(x),
    "expanded-columns": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", LAYOUTS)
def test_layouts(input_layout, weight_layout, guarded):
    x, w, b = tensors(CASES["7x31x5"], torch.float32)
    check(guarded, LAYOUTS[input_layout](x), LAYOUTS[weight_layout](w), LAYOUTS["sliced"](b[:, None])[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_alexnet(layer, dtype, guarded):
    if layer.name == "fc6" and dtype is torch.bfloat16 and runtime.INTERPRETED:
        pytest.skip("ten seconds in the interpreter; fc7 and fc8 run")
    x, w = randn(1, *layer.input, dtype=dtype), randn(*layer.parameters[0]).to(dtype)
    check(guarded, x, w, randn(len(w), dtype=dtype), relu=layer.name != "fc8")


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_infinity_spread_as_in_pytorch(dtype, relu, guarded):
    x, w, b = tensors(CASES["7x31x5"], dtype)
    x[1, 2], x[3, 4], x[5, 0] = float("nan"), float("inf"), float("-inf")
    w[2, 1], b[3] = float("inf"), float("nan")
    check(guarded, x, w, b, relu)


def test_overflow_in_float16_is_infinity(guarded):
    check(guarded, torch.full((2, 48), 60.0).half(), torch.full((3, 48), 60.0).half(), None)


def test_float16_accumulates_in_float32(guarded):
    """In float16 2048 + 1 is 2048."""
    x, w = torch.ones(1, 2049).half(), torch.ones(1, 2049).half()
    w[0, 0] = 2048
    assert kernels.linear(guarded(x), guarded(w)).item() == 4096


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(3, 5), "weight": T(7, 5), "bias": T(7)}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "input-0d": ({"input": T()}, ("input",)),
    "weight-none": ({"weight": None}, ("weight", "NoneType")),
    "weight-0d": ({"weight": T()}, ("weight", "()")),
    "weight-3d": ({"weight": T(1, 7, 5)}, ("weight", "(1, 7, 5)")),
    "weight-dtype": ({"weight": T(7, 5, dtype=torch.bfloat16)}, ("weight", "bfloat16")),
    "features": ({"weight": T(7, 4)}, ("4 features", "got 5")),
    "features-of-vector": ({"weight": T(4), "bias": None}, ("4 features", "got 5")),
    "bias-length": ({"bias": T(3)}, ("bias", "(3,)")),
    "bias-empty": ({"bias": T(0)}, ("bias", "(0,)")),
    "bias-column-too-long": ({"bias": T(4, 1)}, ("bias", "(4, 1)")),
    "bias-3d": ({"bias": T(1, 1, 7)}, ("bias", "(1, 1, 7)")),
    "bias-dtype": ({"bias": T(7, dtype=torch.float16)}, ("bias", "float16")),
    "bias-number": ({"bias": 1.0}, ("bias", "float")),
    "bias-for-vector-weight": ({"weight": T(5), "bias": T(3)}, ("bias", "(5,)")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.linear, F.linear, {**BASE, **arguments}, words)


@pytest.mark.parametrize("shape", [(3, 7), (3, 1)], ids=str)
def test_bias_that_varies_by_row_is_refused(shape):
    """PyTorch takes it, as an accident of broadcasting; here it would cost every launch a second index."""
    with pytest.raises(kernels.ArgumentError, match="linear: bias must be"):
        kernels.linear(T(3, 5), T(7, 5), T(*shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"linear: input must be float32.*got {dtype}"):
        kernels.linear(T(3, 5, dtype=dtype), T(7, 5, dtype=dtype))


@pytest.mark.parametrize("relu", [1, None, "yes"])
def test_relu_is_a_bool(relu):
    with pytest.raises(TypeError, match=f"linear: relu must be True or False, got {relu!r}"):
        kernels.linear(T(3, 5), T(7, 5), relu=relu)
