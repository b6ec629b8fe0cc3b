"""kernels.local_response_norm against torch.nn.functional.local_response_norm in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.tools.workloads import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_gradients, assert_refused, cases, name, randn

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
DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float32"))
LAYOUT = pytest.mark.parametrize("layout", cases(list(LAYOUTS), "channels_last", "sliced"))


def check(guarded, x, size, **arguments):
    actual = kernels.local_response_norm(guarded(x), size, **arguments)
    assert_close(actual, reference.local_response_norm(x, size, **arguments), x.dtype)
    assert actual.movedim(1, -1).is_contiguous()


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "case", cases(CASES, "7-square", "window-4", "window-over-channels", "channels-31", "3d", "empty-batch")
)
def test_shapes(case, dtype, guarded):
    shape, size = case
    check(guarded, channels_last(randn(*shape, dtype=dtype)), size, **STRONG)


@DTYPE
@pytest.mark.parametrize("case", cases([case for case in CASES if case != "227"], "window-4", "channels-31"))
def test_small_tiles(case, dtype, guarded, small_tiles):
    shape, size = CASES[case]
    check(guarded, channels_last(randn(*shape, dtype=dtype)), size, **STRONG)


@DTYPE
@pytest.mark.parametrize(
    "arguments",
    [{}, {"alpha": 5e-4}, {"alpha": 5e-4, "k": 2.0}, {"alpha": 0.0}, {"beta": 0.0}, {"beta": -0.5}, {"k": 0.0},
     {"alpha": 1, "beta": 1, "k": 1}, {"alpha": np.float32(0.5), "beta": np.float64(0.5), "k": np.int64(2)}],
    ids=str,
)  # fmt: skip
def test_formulas(arguments, dtype, guarded):
    check(guarded, channels_last(10 * randn(2, 9, 3, 5, dtype=dtype)), 5, **arguments)


@LAYOUT
def test_layouts(layout, guarded):
    check(guarded, LAYOUTS[layout](randn(2, 5, 7, 3)), 3, **STRONG)


@DTYPE
@pytest.mark.parametrize("layer", cases(["pool1", "pool2"], "pool2"))
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
def test_windows_that_end_inside_a_threads_16_bytes_or_far_outside(size, guarded):
    check(guarded, channels_last(randn(1, 24, 3, 2, dtype=torch.float16)), size, **STRONG)


def check_gradient(guarded, x, size, **arguments):
    ours = lambda x: kernels.local_response_norm(x, size, **arguments)
    assert_gradients(ours, lambda x: reference.local_response_norm(x, size, **arguments), [x], guarded)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "case",
    cases(
        [case for case in CASES if case not in {"empty-with-window-0", "no-channels"}],
        "window-4",
        "channels-31",
        "3d",
        "empty-batch",
    ),
)
def test_gradient(case, dtype, guarded):
    shape, size = CASES[case]
    check_gradient(guarded, channels_last(randn(*shape, dtype=dtype)), size, **STRONG)


@pytest.mark.parametrize("size", [2**40, 2**40 + 1])
def test_windows_far_larger_than_the_channels(size, guarded):
    """Like a window of 11, which also holds all 5 channels. PyTorch would pad with as many as the window has."""
    ours = lambda x: kernels.local_response_norm(x, size, alpha=float(size))
    theirs = lambda x: reference.local_response_norm(x, 11, alpha=11.0)
    x = randn(2, 5, 3, 3)
    assert_close(ours(guarded(x)), theirs(x))
    assert_gradients(ours, theirs, [x], guarded)


@pytest.mark.parametrize("shape, size", [((0, 5, 3, 3), 0), ((2, 0, 3, 3), 5)], ids=["window-0", "no-channels"])
def test_gradient_of_nothing(shape, size, guarded):
    """PyTorch fails on these: on the first in the forward pass, on the second in the backward pass."""
    x = guarded(randn(*shape)).requires_grad_()
    (dx,) = torch.autograd.grad(kernels.local_response_norm(x, size).sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize("case", cases(["window-4", "window-over-channels", "channels-31"], "channels-31"))
def test_gradient_in_small_tiles(case, guarded, small_tiles):
    shape, size = CASES[case]
    check_gradient(guarded, channels_last(randn(*shape, dtype=torch.float16)), size, **STRONG)


@pytest.mark.parametrize("beta", [0.6, 0.75])
@pytest.mark.parametrize("size", cases([1, 2, 3, 4, 8, 17, 40], "1", "4", "17"))
def test_gradient_of_windows_of_any_size(size, beta, guarded):
    """The mirror image of an even window is another window: it reaches one channel more up than down.

    The gradients' windows begin and end inside a thread's 16 bytes, at their edges, and far outside.
    """
    x = channels_last(randn(1, 24, 3, 2, dtype=torch.float16))
    check_gradient(guarded, x, size, **{**STRONG, "beta": beta})


@DTYPE
@pytest.mark.parametrize(
    "arguments",
    [{}, {"alpha": 5e-4, "k": 2.0}, {"alpha": 0.0}, {"beta": 0.0}, {"beta": -0.5}, {"k": 0.0}, {"beta": 1.0}],
    ids=str,
)
def test_gradient_of_formulas(arguments, dtype, guarded):
    check_gradient(guarded, channels_last(10 * randn(2, 9, 3, 5, dtype=dtype)), 5, **arguments)


@LAYOUT
def test_gradient_layouts(layout, guarded):
    check_gradient(guarded, LAYOUTS[layout](randn(2, 5, 7, 3)), 3, **STRONG)


@DTYPE
@pytest.mark.parametrize("layer", cases(["pool1", "pool2"], "pool2"))
def test_gradient_alexnet(layer, dtype, guarded):
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    check_gradient(guarded, channels_last(30 * randn(1, *shape, dtype=dtype)), 5)


def test_gradient_where_squares_overflow_float16(guarded):
    check_gradient(guarded, channels_last(3e4 * randn(1, 9, 2, 3).clamp(-2, 2)).half(), 5)


@pytest.mark.parametrize("scale", cases([1e-10, 1e-5, 1e5, 1e12], "1e-10", "1000000000000.0"))
@pytest.mark.parametrize("beta", [0.6, 0.75])
def test_gradient_of_large_and_small_numbers(beta, scale, guarded):
    """With k = 0, d is as large or small as the squares."""
    check_gradient(guarded, channels_last(scale * randn(1, 9, 2, 3)), 5, alpha=1.0, beta=beta, k=0.0)


@pytest.mark.parametrize("k", [0.0, -0.5])
def test_gradient_at_the_edges_of_the_channels(k, guarded):
    """Windows of channels outside the tensor are empty: k = 0 makes them 0 / 0, which must not reach a channel."""
    x = 3 + randn(1, 9, 2, 3).abs()
    x[:, 0] = x[:, -1] = 0.0
    check_gradient(guarded, channels_last(x), 5, alpha=1.0, beta=0.75, k=k)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradient_spreads_nan_as_in_pytorch(dtype, guarded):
    x = randn(1, 12, 2, 3, dtype=dtype)
    x[0, 3, 0, 0] = float("nan")
    check_gradient(guarded, channels_last(x), 5, **STRONG)


def test_gradient_of_a_sum_is_expanded(guarded):
    x = randn(2, 5, 3, 3)
    ours = guarded(x).requires_grad_()
    theirs = reference.exact(x).requires_grad_()
    kernels.local_response_norm(ours, 5, **STRONG).sum().backward()
    F.local_response_norm(theirs, 5, **STRONG).sum().backward()
    assert_close(ours.grad, theirs.grad)


def test_a_second_derivative_is_refused(guarded):
    x = guarded(randn(1, 2, 5, 5)).requires_grad_()
    (dx,) = torch.autograd.grad(kernels.local_response_norm(x, 3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="local_response_norm_gradient has no gradient"):
        dx.sum().backward()


def test_gradcheck(guarded):
    """In float32, errors of 1e-7 divided by steps of 0.02 are 1e-5. The steps themselves cause errors of 1e-4."""
    x = guarded(randn(1, 5, 2, 1)).requires_grad_()
    norm = lambda x: kernels.local_response_norm(x, 4, 0.7, 0.75, 1.0)
    assert torch.autograd.gradcheck(norm, (x,), eps=1e-2, atol=1e-3, rtol=1e-3)


@pytest.mark.unguarded  # a guarded tensor is a view, unlike its fake counterpart
@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 5, 7)], ids=str)
def test_registered_with_its_gradient(shape, device):
    x = torch.randn(shape, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.alexnet.local_response_norm.default, (x, 5, 1e-4, 0.75, 1.0))


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
