"""kernels.conv2d against torch.nn.functional.conv2d in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.tools.workloads import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_refused, cases, name, randn

DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float32"))
LAYERS = [layer for layer in ALEXNET if layer.operator == "conv2d"]

CASES = {
    "1x1-image": {"input": (1, 1, 1, 1), "weight": (1, 1, 1, 1)},
    "1x1-filter": {"input": (2, 5, 7, 7), "weight": (3, 5, 1, 1)},
    "whole-image": {"input": (3, 3, 7, 5), "weight": (5, 3, 7, 5)},
    "7-square": {"input": (2, 3, 7, 7), "weight": (5, 3, 3, 3)},
    "31-not-square": {"input": (1, 3, 31, 7), "weight": (5, 3, 3, 2), "stride": (2, 1), "padding": (0, 1)},
    "227-by-9": {"input": (1, 1, 227, 9), "weight": (3, 1, 11, 3), "stride": (4, 2)},
    "channels-48": {"input": (1, 48, 7, 9), "weight": (5, 48, 3, 3), "padding": 1},
    "channels-32": {"input": (1, 32, 5, 6), "weight": (17, 32, 2, 3), "padding": 1},
    "groups-2": {"input": (2, 6, 7, 7), "weight": (4, 3, 3, 3), "groups": 2},
    "groups-2-of-48": {"input": (1, 96, 5, 5), "weight": (34, 48, 3, 3), "padding": (1, 1), "groups": 2},
    "groups-3": {"input": (1, 15, 7, 5), "weight": (9, 5, 3, 3), "padding": 2, "groups": 3},
    "depthwise": {"input": (1, 3, 7, 7), "weight": (6, 1, 3, 3), "groups": 3},
    "stride-over-filter": {"input": (1, 3, 31, 31), "weight": (4, 3, 3, 2), "stride": (5, 4)},
    "dilation-2": {"input": (1, 3, 9, 9), "weight": (4, 3, 3, 3), "dilation": 2},
    "dilation-uneven": {"input": (2, 3, 11, 7), "weight": (4, 3, 3, 2), "dilation": (3, 2), "padding": (2, 1)},
    "everything-uneven": {
        "input": (3, 6, 13, 17),
        "weight": (10, 3, 3, 5),
        "stride": (3, 2),
        "padding": (2, 1),
        "dilation": (2, 3),
        "groups": 2,
    },
    "padding-over-filter": {"input": (1, 2, 3, 3), "weight": (3, 2, 2, 2), "padding": (5, 4)},
    "valid": {"input": (2, 3, 7, 8), "weight": (4, 3, 3, 2), "padding": "valid", "stride": 2},
    "same": {"input": (2, 3, 7, 8), "weight": (4, 3, 3, 5), "padding": "same"},
    "same-even-filter": {"input": (2, 3, 7, 8), "weight": (4, 3, 2, 4), "padding": "same"},
    "same-even-dilated": {"input": (1, 3, 9, 8), "weight": (4, 3, 4, 2), "padding": "same", "dilation": (1, 3)},
    "image-only": {"input": (3, 7, 7), "weight": (5, 3, 3, 3)},
    "image-only-groups": {"input": (4, 7, 9), "weight": (6, 2, 3, 3), "groups": 2, "padding": 1},
    "empty-batch": {"input": (0, 3, 7, 7), "weight": (5, 3, 3, 3)},
    "no-channels": {"input": (2, 0, 7, 7), "weight": (5, 0, 3, 3)},
    "pair-of-one": {"input": (1, 3, 9, 9), "weight": (4, 3, 3, 3), "stride": (2,), "padding": (1,), "dilation": [2]},
    "numpy-ints": {
        "input": (1, 4, 9, 9),
        "weight": (4, 2, 3, 3),
        "stride": np.int64(2),
        "padding": (np.int32(1), 0),
        "dilation": np.int64(1),
        "groups": np.int64(2),
    },
    "padding-from-list": {"input": (1, 3, 9, 9), "weight": (4, 3, 3, 3), "stride": [2, 1], "padding": [1, 0]},
}


def tensors(case, dtype, bias=True):
    """Input, weight, bias; scaled so that sums stay near 1."""
    case = dict(case)
    x, w = randn(*case.pop("input"), dtype=dtype), randn(*case.pop("weight"), dtype=dtype)
    return x, w, randn(len(w), dtype=dtype) if bias else None, case


def check(guarded, x, w, b, arguments, relu=False):
    actual = kernels.conv2d(guarded(x), guarded(w), guarded(b), **arguments, relu=relu)
    assert_close(actual, reference.conv2d(x, w, b, **arguments, relu=relu), x.dtype)
    if actual.dim() == 4:
        assert actual.is_contiguous(memory_format=torch.channels_last)


@DTYPE
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, dtype, guarded):
    x, w, b, arguments = tensors(case, dtype)
    if x.dim() == 4:
        x = LAYOUTS["channels_last"](x)
    check(guarded, x, LAYOUTS["channels_last"](w), b, arguments)


@pytest.mark.parametrize("dtype", cases([torch.float32, torch.bfloat16], "float32"))
@pytest.mark.parametrize("case", cases(CASES, "31-not-square", "channels-32", "everything-uneven", "no-channels"))
def test_small_tiles(case, dtype, guarded, small_tiles):
    x, w, b, arguments = tensors(case, dtype)
    if x.dim() == 4 and x.shape[-2] < 100:
        x = LAYOUTS["channels_last"](x)
    elif x.dim() == 4:
        x = x[:, :, :31]
    check(guarded, x, LAYOUTS["channels_last"](w), b, arguments, relu=True)


EPILOGUES = ("everything-uneven", "image-only-groups", "same-even-filter", "no-channels")


@DTYPE
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("case", cases(EPILOGUES, "everything-uneven", "no-channels"))
def test_epilogue(case, relu, bias, dtype, guarded):
    x, w, b, arguments = tensors(CASES[case], dtype, bias)
    check(guarded, x, w, b, arguments, relu)


@pytest.mark.parametrize("case", cases(["everything-uneven", "depthwise", "1x1-filter"], "everything-uneven"))
@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", LAYOUTS)
def test_layouts(input_layout, weight_layout, case, guarded):
    x, w, b, arguments = tensors(CASES[case], torch.float32)
    check(guarded, LAYOUTS[input_layout](x), LAYOUTS[weight_layout](w), torch.stack([b, b], 1)[:, 0], arguments)


@DTYPE
@pytest.mark.parametrize("layer", cases({layer.name: layer for layer in LAYERS}, "conv1", "conv2"))
def test_alexnet(layer, dtype, guarded):
    geometry = {name: value for name, value in layer.arguments.items() if name != "relu"}
    case = {"input": (1, *layer.input), "weight": layer.parameters[0], **geometry}
    x, w, b, arguments = tensors(case, dtype)
    check(guarded, LAYOUTS["channels_last"](x), LAYOUTS["channels_last"](w), b, arguments, relu=True)


@DTYPE
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
def test_nan_and_infinity_spread_as_in_pytorch(relu, dtype, guarded):
    x, w, b, _ = tensors({"input": (1, 4, 9, 9), "weight": (4, 2, 3, 3)}, dtype)
    x[0, 0, 1, 1], x[0, 1, 7, 7], x[0, 2, 1, 7] = float("nan"), float("inf"), float("-inf")
    check(guarded, x, w, b, {"groups": 2}, relu)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
def test_nan_and_infinity_in_weight_and_bias(relu, value, guarded):
    x, w, b, _ = tensors(CASES["7-square"], torch.float32)
    w[1, 0, 1, 1] = value
    b[3] = value
    check(guarded, x, w, b, {}, relu)


def test_overflow_in_float16_is_infinity(guarded):
    x, w = torch.full((1, 48, 3, 3), 60.0).half(), torch.full((2, 48, 3, 3), 60.0).half()
    check(guarded, x, w, None, {})


def test_float16_accumulates_in_float32(guarded):
    """In float16 2048 + 1 is 2048."""
    x, w = torch.ones(1, 2049, 1, 1).half(), torch.ones(1, 2049, 1, 1).half()
    w[0, 0] = 2048
    assert kernels.conv2d(guarded(x), guarded(w)).item() == 4096


def test_tf32_keeps_its_bound(guarded, fp32_precision):
    fp32_precision("tf32")
    check(guarded, *tensors(CASES["channels-48"], torch.float32))


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(2, 4, 7, 7), "weight": T(6, 4, 3, 3), "bias": None}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "input-none": ({"input": None}, ("input", "NoneType")),
    "input-2d": ({"input": T(7, 7)}, ("input", "(7, 7)")),
    "input-5d": ({"input": T(1, 1, 4, 7, 7)}, ("input", "(1, 1, 4, 7, 7)")),
    "weight-none": ({"weight": None}, ("weight", "NoneType")),
    "weight-3d": ({"weight": T(4, 3, 3)}, ("weight", "(4, 3, 3)")),
    "weight-dtype": ({"weight": T(6, 4, 3, 3, dtype=torch.float16)}, ("weight", "float16")),
    "weight-without-filters": ({"weight": T(0, 4, 3, 3)}, ("weight", "(0, 4, 3, 3)")),
    "weight-without-taps": ({"weight": T(6, 4, 0, 3)}, ("weight", "(6, 4, 0, 3)")),
    "channels": ({"weight": T(6, 3, 3, 3)}, ("input", "3 channels", "got 4")),
    "no-channels-in-input": ({"input": T(2, 0, 7, 7)}, ("input", "4 channels", "got 0")),
    "bias-length": ({"bias": T(5)}, ("bias", "(5,)")),
    "bias-one": ({"bias": T(1)}, ("bias", "(1,)")),
    "bias-2d": ({"bias": T(6, 1)}, ("bias", "(6, 1)")),
    "bias-0d": ({"bias": T()}, ("bias", "()")),
    "bias-dtype": ({"bias": T(6, dtype=torch.float16)}, ("bias", "float16")),
    "bias-number": ({"bias": 1.0}, ("bias", "float")),
    "stride-0": ({"stride": 0}, ("stride", "0")),
    "stride-negative": ({"stride": (1, -1)}, ("stride", "-1")),
    "stride-float": ({"stride": 1.5}, ("stride", "1.5")),
    "stride-floats": ({"stride": (1.0, 2.0)}, ("stride", "1.0")),
    "stride-three": ({"stride": (1, 1, 1)}, ("stride", "(1, 1, 1)")),
    "stride-of-64-bits": ({"stride": 2**63}, ("stride", f"got {2**63}")),
    "stride-none": ({"stride": None}, ("stride", "None")),
    "stride-string": ({"stride": "1"}, ("stride", "'1'")),
    "stride-range": ({"stride": range(1, 3)}, ("stride", "range(1, 3)")),
    "padding-array": ({"padding": np.array([1, 1])}, ("padding", "array([1, 1])")),
    "padding-negative": ({"padding": -1}, ("padding", "-1")),
    "padding-three": ({"padding": (1, 1, 1)}, ("padding", "(1, 1, 1)")),
    "padding-float": ({"padding": 0.5}, ("padding", "0.5")),
    "padding-none": ({"padding": None}, ("padding", "None")),
    "padding-word": ({"padding": "full"}, ("padding", "'full'")),
    "same-with-stride": ({"padding": "same", "stride": 2}, ("padding='same'", "(2, 2)")),
    "dilation-0": ({"dilation": 0}, ("dilation", "0")),
    "dilation-negative": ({"dilation": (-1, 1)}, ("dilation", "-1")),
    "dilation-three": ({"dilation": (1, 1, 1)}, ("dilation", "(1, 1, 1)")),
    "groups-0": ({"groups": 0}, ("groups", "0")),
    "groups-negative": ({"groups": -1}, ("groups", "-1")),
    "groups-float": ({"groups": 1.0}, ("groups", "1.0")),
    "groups-none": ({"groups": None}, ("groups", "None")),
    "groups-not-of-input": ({"groups": 2}, ("groups=2", "8 channels", "got 4")),
    "groups-not-of-filters": ({"weight": T(5, 2, 3, 3), "groups": 2}, ("5 filters", "groups=2")),
    "filter-too-tall": ({"weight": T(6, 4, 8, 3)}, ("8 x 3", "7 x 7")),
    "filter-too-wide": ({"weight": T(6, 4, 3, 10), "padding": (0, 1)}, ("3 x 10", "7 x 9")),
    "filter-too-wide-dilated": ({"dilation": (1, 4)}, ("3 x 9", "7 x 7")),
    "empty-height": ({"input": T(2, 4, 0, 7), "padding": 3}, ("input", "(2, 4, 0, 7)")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.conv2d, F.conv2d, {**BASE, **arguments}, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64, torch.bool], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"conv2d: input must be float32.*got {dtype}"):
        kernels.conv2d(T(1, 4, 7, 7, dtype=dtype), T(6, 4, 3, 3, dtype=dtype))


@pytest.mark.parametrize("relu", [1, None, "yes"])
def test_relu_is_a_bool(relu, device):
    with pytest.raises(TypeError, match=f"conv2d: relu must be True or False, got {relu!r}"):
        kernels.conv2d(T(2, 4, 7, 7).to(device), T(6, 4, 3, 3).to(device), relu=relu)
