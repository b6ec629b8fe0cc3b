"""Every operator on arguments that nobody chose, against PyTorch: hypothesis draws shapes, strides, dtypes and values.

The tests draw the same few every time. ``HYPOTHESIS_PROFILE=long pytest -m '' tests/test_properties.py`` looks for new
ones for about an hour. What it finds becomes a test with a name, in the operator's own file.

The numbers of products and pools are small integers, whose sums are exact in any order: results have to be equal.
"""

import contextlib
import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

import kernels
from kernels import tiles
from kernels.runtime import default_device
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, exact
from tests.small_tiles import small_tile

settings.register_profile(
    "short", max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", settings.get_profile("short"), max_examples=5000, derandomize=False, print_blob=True)
drawn = settings(settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "short")))

SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(sorted(LAYOUTS))
sizes = st.integers(1, 12)


def pairs(least: int, most: int):
    """An integer, or one for each direction."""
    return st.integers(least, most) | st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def images(draw, channels=sizes, special: bool = False):
    """(N, C, H, W), rarely (C, H, W), in any order of memory: small integers, NaN and inf among them if ``special``."""
    shape = (draw(st.integers(0, 3)), draw(channels), draw(sizes), draw(sizes))
    x = draw(values(shape, special=special))
    x = LAYOUTS[draw(layouts)](x)
    return x[0] if shape[0] and draw(st.integers(0, 5)) == 0 else x


@st.composite
def values(draw, shape, dtype=None, special: bool = False):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randint(-4, 5, shape, generator=generator).to(dtype or draw(dtypes))
    if special and x.numel():
        for _ in range(draw(st.integers(0, 3))):
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    return x


def outcome(function, tensors, arguments):
    """What a function returns, or what it raises."""
    try:
        return function(*tensors, **arguments)
    except Exception as error:
        return error


def compare(ours, theirs, tensors, arguments, small, gradients=False, equal=True):
    """The same numbers from both or an error from both; the same gradients too."""
    device = default_device()
    place = lambda tensor, put: None if tensor is None else put(tensor).detach().requires_grad_(gradients)
    given_ = [place(tensor, lambda tensor: tensor.to(device)) for tensor in tensors]
    wanted = [
        place(tensor, lambda tensor: exact(tensor) if tensor.is_floating_point() else tensor) for tensor in tensors
    ]
    expected = outcome(theirs, wanted, arguments)
    with mock.patch.object(tiles, "lookup", small_tile) if small else contextlib.nullcontext():
        actual = outcome(ours, given_, arguments)
        if currently_in_test_context():
            event("refused" if isinstance(expected, Exception) else "computed")
        if isinstance(expected, Exception):
            assert isinstance(actual, (kernels.ArgumentError, TypeError, IndexError)), f"{actual!r}, not {expected!r}"
            return
        if isinstance(actual, Exception):
            raise actual
        check(actual, expected, equal)
        if not gradients:
            return
        gradient = torch.randint(-3, 4, expected.shape).to(actual.dtype)
        present = lambda tensors: [tensor for tensor in tensors if tensor is not None]
        got = torch.autograd.grad(actual, present(given_), gradient.to(device))
    want = torch.autograd.grad(expected, present(wanted), exact(gradient))
    for one, other in zip(got, want, strict=True):
        check(one, other, equal)


def check(actual, expected, equal):
    if equal:  # up to the last rounding
        assert_close(actual, exact(expected.to(actual.dtype)), bound=0)
    else:
        assert_close(actual, expected)


@drawn
@given(data=st.data(), small=st.booleans())
def test_conv2d(data, small):
    draw = data.draw
    groups, each, filters = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    x = draw(images(channels=st.just(groups * each) | sizes))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    weight = draw(values((groups * filters, each, *kernel), x.dtype))
    bias = draw(st.none() | values((groups * filters,), x.dtype))
    arguments = {
        "stride": draw(pairs(1, 5)),
        "padding": draw(pairs(0, 4) | st.sampled_from(["same", "valid"])),
        "dilation": draw(pairs(1, 3)),
        "groups": groups,
        "relu": draw(st.booleans()),
    }
    compare(kernels.conv2d, reference.conv2d, [x, weight, bias], arguments, small, gradients=draw(st.booleans()))


@pytest.mark.full
@drawn
@given(data=st.data(), small=st.booleans())
def test_linear(data, small):
    draw = data.draw
    features, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    x = draw(values((*draw(st.lists(st.integers(0, 5), max_size=3)), features)))
    weight = draw(values((outputs, features), x.dtype))
    weight = weight.T.contiguous().T if draw(st.booleans()) else weight
    bias = draw(st.none() | values((outputs,), x.dtype))
    compare(
        kernels.linear,
        reference.linear,
        [x, weight, bias],
        {"relu": draw(st.booleans())},
        small,
        gradients=draw(st.booleans()),
    )


@pytest.mark.full
@drawn
@given(data=st.data(), small=st.booleans())
def test_bias_relu(data, small):
    draw = data.draw
    special = draw(st.booleans())
    x = draw(images(special=special))
    shape = [size if draw(st.booleans()) else 1 for size in x.shape][draw(st.integers(0, x.dim() - 1)) :]
    bias = draw(values(tuple(shape), x.dtype, special=special))
    compare(kernels.bias_relu, reference.bias_relu, [x, bias], {}, small, gradients=not special)


@pytest.mark.full
@drawn
@given(data=st.data(), small=st.booleans())
def test_max_pool2d(data, small):
    draw = data.draw
    special = draw(st.booleans())
    arguments = {
        "kernel_size": draw(pairs(1, 4)),
        "stride": draw(st.none() | pairs(1, 4)),
        "padding": draw(pairs(0, 2)),
        "dilation": draw(pairs(1, 3)),
        "ceil_mode": draw(st.booleans()),
    }
    theirs = reference.max_pool2d if special else reference.padded_max_pool2d  # whose gradient is right
    compare(kernels.max_pool2d, theirs, [draw(images(special=special))], arguments, small, gradients=not special)


@drawn
@given(data=st.data(), small=st.booleans())
def test_max_pool2d_indices(data, small):
    x, kernel = data.draw(images(special=True)), data.draw(pairs(1, 4))
    ours, theirs = (
        lambda x, function=function, **arguments: function(x, **arguments, return_indices=True)[1].double()
        for function in (kernels.max_pool2d, F.max_pool2d)
    )
    compare(ours, theirs, [x], {"kernel_size": kernel}, small)


formulas = st.fixed_dictionaries(
    {
        "size": st.integers(1, 9),
        "alpha": st.sampled_from([1e-4, 0.5, 2.0]),
        "beta": st.sampled_from([0.5, 0.75, 1.0, 0.6]),
        "k": st.sampled_from([1.0, 2.0, 0.5]),
    }
)


@pytest.mark.full
@drawn
@given(x=images(channels=st.integers(1, 20), special=True), arguments=formulas, small=st.booleans())
def test_local_response_norm(x, arguments, small):
    compare(kernels.local_response_norm, reference.local_response_norm, [x], arguments, small, equal=False)


@pytest.mark.full
@drawn
@given(
    x=images(channels=st.integers(1, 20), special=True),
    formula=formulas,
    window=st.fixed_dictionaries({"kernel_size": pairs(1, 4), "stride": pairs(1, 4)}),
    small=st.booleans(),
)
def test_lrn_max_pool2d(x, formula, window, small):
    compare(kernels.lrn_max_pool2d, reference.lrn_max_pool2d, [x], formula | window, small, equal=False)


@pytest.mark.full
@drawn
@given(data=st.data(), small=st.booleans())
def test_softmax(data, small):
    draw = data.draw
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    x = draw(values(tuple(shape), special=True)) * draw(st.sampled_from([1.0, 30.0, 1e4]))
    compare(
        kernels.softmax,
        reference.softmax,
        [x],
        {"dim": draw(st.integers(-len(shape) - 1, len(shape)))},
        small,
        equal=False,
    )


@drawn
@given(data=st.data(), small=st.booleans())
def test_cross_entropy(data, small):
    draw = data.draw
    classes = draw(st.integers(2, 40))
    batch, inside = draw(st.integers(0, 5)), draw(st.lists(st.integers(1, 3), max_size=2))
    x = draw(values((batch, classes, *inside), torch.float32))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    target = torch.randint(classes, (batch, *inside), generator=generator)
    arguments = {
        "weight": draw(st.none() | st.just(torch.arange(1.0, classes + 1))),
        "ignore_index": draw(st.sampled_from([-100, 0, 1])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }

    # The logarithm of a sum of 1 and more is as exact as that sum, so a loss near 0 is as exact as 1.
    def ours(*operands, **arguments):
        return 1.0 + kernels.cross_entropy(*operands, **arguments)

    def theirs(x, target, weight=None, **arguments):
        return 1.0 + F.cross_entropy(x, target, exact(weight), **arguments)

    compare(ours, theirs, [x, target], arguments, small, equal=False)


@pytest.mark.parametrize(
    ("broken", "kernel_size"), [(lambda x, **_: x + 1, 1), (lambda x, **_: x, 5)], ids=["values", "errors"]
)
def test_a_difference_is_seen(broken, kernel_size):
    """That these tests can fail: of other numbers, and of an error that does not come."""
    with pytest.raises(AssertionError):
        compare(broken, reference.max_pool2d, [torch.ones(1, 1, 2, 2)], {"kernel_size": kernel_size}, False)
