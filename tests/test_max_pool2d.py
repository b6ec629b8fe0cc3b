"""kernels.max_pool2d against torch.nn.functional.max_pool2d: exactly, since a maximum rounds nothing."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import runtime
from kernels.tools.workloads import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_gradients, assert_refused, cases, name, randn

CASES = {
    "1x1": {"input": (1, 1, 1, 1), "kernel_size": 1},
    "7-square": {"input": (2, 3, 7, 7), "kernel_size": 3, "stride": 2},
    "31-not-square": {"input": (1, 5, 31, 7), "kernel_size": (2, 3), "stride": (3, 1), "padding": (1, 0)},
    "227": {"input": (1, 3, 227, 5), "kernel_size": (5, 2), "stride": (4, 3)},
    "channels-48": {"input": (1, 48, 7, 5), "kernel_size": 3, "stride": 2},
    "stride-is-window": {"input": (3, 3, 7, 9), "kernel_size": (2, 3)},
    "stride-over-window": {"input": (1, 3, 11, 13), "kernel_size": 2, "stride": (5, 4)},
    "padding": {"input": (2, 3, 7, 5), "kernel_size": 3, "padding": 1, "stride": 2},
    "padding-uneven": {"input": (2, 3, 7, 5), "kernel_size": (2, 5), "padding": (0, 2), "stride": 1},
    "dilation": {"input": (2, 3, 9, 11), "kernel_size": (3, 2), "dilation": (2, 3), "padding": (1, 0), "stride": 2},
    "ceil-mode": {"input": (2, 3, 8, 6), "kernel_size": 3, "stride": 2, "ceil_mode": True},
    "ceil-mode-dropped-window": {"input": (1, 3, 3, 3), "kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
    "ceil-mode-dilated": {"input": (1, 3, 9, 8), "kernel_size": 2, "stride": 3, "dilation": 2, "ceil_mode": True},
    "whole-image": {"input": (2, 3, 7, 5), "kernel_size": (7, 5)},
    "image-only": {"input": (3, 7, 5), "kernel_size": 3, "stride": 2},
    "empty-batch": {"input": (0, 3, 7, 5), "kernel_size": 3},
    "pair-of-one": {"input": (1, 2, 9, 9), "kernel_size": (3,), "stride": [2], "padding": (1,), "dilation": (2,)},
    "numpy-ints": {"input": (1, 2, 9, 9), "kernel_size": np.int64(3), "stride": np.int64(2), "padding": np.int32(1)},
    "stride-none": {"input": (1, 2, 9, 9), "kernel_size": (3, 2), "stride": None},
    "stride-empty": {"input": (1, 2, 9, 9), "kernel_size": (3, 2), "stride": ()},
}
INDICES = pytest.mark.parametrize("indices", [False, True], ids=["", "indices"])
LAYOUT = pytest.mark.parametrize("layout", cases(list(LAYOUTS), "channels_last", "sliced"))


def check(guarded, x, indices=False, **arguments):
    actual = kernels.max_pool2d(guarded(x), **arguments, return_indices=indices)
    expected = reference.max_pool2d(x, **arguments, return_indices=indices)
    if indices:
        (actual, argmax), (expected, expected_argmax) = actual, expected
        assert argmax.dtype == torch.int64
        assert torch.equal(argmax.cpu(), expected_argmax)
    assert_close(actual, expected, x.dtype, bound=0)
    if actual.dim() == 4:
        assert actual.is_contiguous(memory_format=torch.channels_last)


def tensor(case, dtype):
    case = dict(case)
    x = randn(*case.pop("input"), dtype=dtype)
    return (LAYOUTS["channels_last"](x) if x.dim() == 4 else x), case


@pytest.mark.parametrize("dtype", cases(DTYPES, "float32", "bfloat16"))
@INDICES
@pytest.mark.parametrize(
    "case",
    cases(CASES, "7-square", "31-not-square", "channels-48", "stride-over-window", "dilation", "ceil-mode-dilated"),
)
def test_shapes(case, indices, dtype, guarded):
    x, arguments = tensor(case, dtype)
    check(guarded, x - 5, indices, **arguments)  # negative: a zero from padding would win


@INDICES
@pytest.mark.parametrize("case", cases([case for case in CASES if case != "227"], "7-square", "dilation"))
def test_small_tiles(case, indices, guarded, small_tiles):
    x, arguments = tensor(CASES[case], torch.float32)
    check(guarded, x, indices, **arguments)


@pytest.mark.parametrize("ceil_mode", [False, True], ids=["", "ceil"])
@pytest.mark.parametrize("kernel", cases([1, 2, 3], "2"))
@pytest.mark.parametrize("size", cases([3, 5, 8], "5"))
def test_output_sizes(size, kernel, ceil_mode, guarded):
    for stride, padding, dilation in itertools.product((1, 2, 3, 4), (0, 1), (1, 2)):
        arguments = {"stride": (stride, 2), "padding": (padding, 0), "dilation": (dilation, 1), "ceil_mode": ceil_mode}
        if padding <= kernel // 2 and dilation * (kernel - 1) < size:
            check(guarded, randn(1, 1, size, 5), True, kernel_size=(kernel, 2), **arguments)


@INDICES
@LAYOUT
def test_layouts(layout, indices, guarded):
    check(guarded, LAYOUTS[layout](randn(2, 5, 7, 9)), indices, kernel_size=3, stride=2, padding=1)


@pytest.mark.parametrize("dtype", cases(DTYPES, "float16"))
@pytest.mark.parametrize("layer", cases(["pool1", "pool2", "pool5"], "pool5"))
def test_alexnet(layer, dtype, guarded):
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    check(guarded, LAYOUTS["channels_last"](randn(1, *shape, dtype=dtype)), True, kernel_size=3, stride=2)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("numbers", [1, 2, 3])
def test_first_of_equals_wins(numbers, padding, guarded):
    x = torch.randint(numbers, (2, 3, 9, 9)).float()
    check(guarded, x, True, kernel_size=3, stride=2, padding=padding)


@INDICES
@pytest.mark.parametrize("padding", [0, 1])
def test_windows_of_nothing_but_minus_infinity(padding, indices, guarded):
    x = randn(1, 2, 9, 9)
    x[:, :, :5] = float("-inf")
    check(guarded, x, indices, kernel_size=3, stride=2, padding=padding)


@INDICES
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_wins_and_infinity_spreads(dtype, indices, guarded):
    x = randn(1, 3, 9, 9, dtype=dtype)
    x[0, 0, 2, 2] = x[0, 0, 3, 3] = x[0, 0, 4, 2] = float("nan")
    x[0, 1, 2, 2], x[0, 1, 3, 3], x[0, 1, 6, 6] = float("inf"), float("nan"), float("-inf")
    x[0, 2] = float("nan")
    check(guarded, x, indices, kernel_size=3, stride=2, padding=1)


def test_window_in_the_padding_alone(guarded):
    """Such windows exist with dilation. Their index is -1; PyTorch's is that of a pixel that does not exist."""
    x = randn(1, 1, 1, 4)
    arguments = {"kernel_size": (2, 1), "stride": 1, "padding": (1, 0), "dilation": (2, 1)}
    check(guarded, x, **arguments)
    y, argmax = kernels.max_pool2d(guarded(x), **arguments, return_indices=True)
    assert y.isneginf().all()
    assert argmax.flatten().tolist() == [-1] * 4


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (2, 3, 2, 7), (2, 3, 3, 4)], ids=str)
def test_gradient_of_windows_in_the_padding_alone(shape, guarded):
    """They have none. PyTorch stores one at the pixel that does not exist; a process with many of them crashed."""
    arguments = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 3, "ceil_mode": True}
    x = randn(*shape)
    assert_gradients(
        lambda x: kernels.max_pool2d(x, **arguments),
        lambda x: reference.padded_max_pool2d(x, **arguments),
        [x],
        guarded,
    )


def check_gradient(guarded, x, indices=False, **arguments):
    def ours(x):
        y = kernels.max_pool2d(x, **arguments, return_indices=indices)
        return y[0] if indices else y

    assert_gradients(ours, lambda x: reference.max_pool2d(x, **arguments), [x], guarded)


@pytest.mark.parametrize(
    "case",
    cases(
        [case for case in CASES if case not in {"numpy-ints", "stride-none", "stride-empty"}],
        "7-square", "31-not-square", "channels-48", "stride-over-window", "padding", "dilation", "ceil-mode-dilated",
    ),
)  # fmt: skip
def test_gradient(case, guarded):
    x, arguments = tensor(CASES[case], torch.float32)
    check_gradient(guarded, x, **arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
@pytest.mark.parametrize(
    "case", cases(["1x1", "7-square", "channels-48", "padding", "stride-over-window", "image-only"], "channels-48")
)
def test_gradient_of_16_bits(case, dtype, guarded):
    x, arguments = tensor(CASES[case], dtype)
    check_gradient(guarded, x, **arguments)


@pytest.mark.parametrize(
    "case", cases(["31-not-square", "padding-uneven", "dilation", "ceil-mode-dilated", "image-only"], "dilation")
)
def test_gradient_by_the_indices_that_are_returned(case, guarded):
    x, arguments = tensor(CASES[case], torch.float32)
    check_gradient(guarded, x, True, **arguments)


@pytest.mark.parametrize(
    "case", cases(["7-square", "padding", "dilation", "stride-over-window", "ceil-mode"], "dilation")
)
def test_gradient_in_small_tiles(case, guarded, small_tiles):
    x, arguments = tensor(CASES[case], torch.float16)
    check_gradient(guarded, x, **arguments)


@pytest.mark.parametrize("kernel, indices", [(1, False), (2, True), (3, False)])
def test_gradients_of_every_geometry(kernel, indices, guarded):
    """With few distinct numbers, so that windows have many equals: the result shows which of them is the argmax."""
    for stride, padding, dilation in itertools.product((1, 2, 4), (0, 1), (1, 2)):
        arguments = {"stride": (stride, 3), "padding": (padding, 0), "dilation": (dilation, 1)}
        if padding <= kernel // 2:
            x = torch.randint(3, (1, 2, 8, 5)).float()
            ceil_mode = (stride + dilation) % 2 == 0
            check_gradient(guarded, x, indices, kernel_size=(kernel, 2), ceil_mode=ceil_mode, **arguments)


@LAYOUT
def test_gradient_layouts(layout, guarded):
    check_gradient(guarded, LAYOUTS[layout](randn(2, 5, 7, 9)), kernel_size=3, stride=2, padding=1)


@pytest.mark.parametrize("dtype", cases(DTYPES, "float16"))
@pytest.mark.parametrize("layer", cases(["pool1", "pool2", "pool5"], "pool5"))
def test_gradient_alexnet(layer, dtype, guarded):
    """After a ReLU, so that half of the numbers are equal."""
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    x = LAYOUTS["channels_last"](randn(1, *shape, dtype=dtype).relu())
    check_gradient(guarded, x, kernel_size=3, stride=2)


def test_gradient_of_a_sum_is_expanded(guarded, device):
    x = randn(2, 3, 7, 7)
    ours = guarded(x).requires_grad_()
    theirs = reference.exact(x).requires_grad_()
    kernels.max_pool2d(ours, 3, 2).sum().backward()
    F.max_pool2d(theirs, 3, 2).sum().backward()
    assert_close(ours.grad, theirs.grad, bound=0)


@pytest.mark.parametrize("kernel_size", cases([(15, 17), (16, 17)], "(16, 17)"))
def test_gradient_of_windows_whose_argmax_does_or_does_not_fit_in_a_byte(kernel_size, guarded):
    """A byte holds at most 255 taps and a value for none."""
    x = randn(1, 1, 17, 18)
    x[..., kernel_size[0] - 1, kernel_size[1] - 1] = 9  # the last tap of the first window
    check_gradient(guarded, x, kernel_size=kernel_size, stride=1)


@INDICES
@pytest.mark.parametrize("padding", [0, 1])
def test_gradient_goes_to_the_first_infinity_and_to_the_last_nan(padding, indices, guarded):
    x = randn(1, 3, 9, 9)
    x[0, 0, 2, 2] = x[0, 0, 3, 3] = x[0, 0, 4, 2] = float("nan")
    x[0, 1, 2, 2], x[0, 1, 3, 3], x[0, 1, 6, 6] = float("inf"), float("nan"), float("inf")
    x[0, 2, :5] = float("-inf")
    check_gradient(guarded, x, indices, kernel_size=3, stride=2, padding=padding)


@INDICES
def test_no_gradient_comes_from_a_window_in_the_padding_alone(indices, guarded):
    x = guarded(randn(1, 1, 1, 4)).requires_grad_()
    y = kernels.max_pool2d(x, (2, 1), 1, (1, 0), (2, 1), return_indices=indices)
    (y[0] if indices else y).sum().backward()
    assert x.grad.flatten().tolist() == [0] * 4


def test_gradients_of_float16_are_summed_in_float32(guarded, device):
    """In float16 2048 + 1 is 2048."""
    x = torch.zeros(1, 1, 5, 5).half()
    x[0, 0, 2, 2] = 1
    x = guarded(x).requires_grad_()
    y = kernels.max_pool2d(x, 3, 1)
    gradient = torch.ones(1, 1, 3, 3, device=device).half()
    gradient[0, 0, 0, 0] = 2048
    (dx,) = torch.autograd.grad(y, x, gradient)
    assert dx[0, 0, 2, 2].item() == 2056


def test_indices_are_not_differentiable(guarded):
    y, argmax = kernels.max_pool2d(guarded(randn(1, 2, 5, 5)).requires_grad_(), 3, return_indices=True)
    assert y.requires_grad and not argmax.requires_grad


@pytest.mark.parametrize("recorded", [False, True], ids=["inference", "training"])
def test_the_argmax_is_stored_only_for_a_gradient(recorded, guarded):
    x = guarded(randn(2, 3, 7, 7))
    with runtime.record_launches() as launches:
        kernels.max_pool2d(x.requires_grad_(recorded), 3)
        with torch.no_grad():
            kernels.max_pool2d(x, 3)
    assert [launch.constants["ARGMAX"] for launch in launches] == ["tap" if recorded else "none", "none"]
    sizes = [(launch.args[2].dtype, launch.args[2].numel()) for launch in launches]
    assert sizes == [(torch.uint8, launches[0].args[1].numel() if recorded else 0), (torch.uint8, 0)]


def test_a_second_derivative_is_refused(guarded):
    x = guarded(randn(1, 2, 5, 5)).requires_grad_()
    (dx,) = torch.autograd.grad(kernels.max_pool2d(x, 3, 1).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="max_pool2d_gradient has no gradient"):
        dx.sum().backward()


def spread(*shape: int) -> torch.Tensor:
    """Numbers so far apart that a small step changes no argmax."""
    return torch.randperm(torch.Size(shape).numel()).reshape(shape) / 10


def test_gradcheck(guarded):
    x = guarded(spread(1, 1, 4, 3)).requires_grad_()
    pool = lambda x: kernels.max_pool2d(x, 2, 1, (1, 0))
    assert torch.autograd.gradcheck(pool, (x,), eps=1e-2, atol=1e-3)


@pytest.mark.unguarded  # a guarded tensor is a view, unlike its fake counterpart
@pytest.mark.parametrize("mode", ["tap", "plane"])
def test_registered_with_its_gradient(mode, device):
    x = torch.randn(2, 4, 7, 7, device=device, requires_grad=True)
    arguments = (x, [3, 3], [2, 2], [1, 1], [1, 1], False, mode)
    torch.library.opcheck(torch.ops.alexnet.max_pool2d.default, arguments)


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(2, 4, 7, 7), "kernel_size": 3}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "input-2d": ({"input": T(7, 7)}, ("input", "(7, 7)")),
    "input-5d": ({"input": T(1, 1, 1, 7, 7)}, ("input", "(1, 1, 1, 7, 7)")),
    "no-channels": ({"input": T(2, 0, 7, 7)}, ("input", "(2, 0, 7, 7)")),
    "no-channels-3d": ({"input": T(0, 7, 7)}, ("input", "(0, 7, 7)")),
    "no-height": ({"input": T(2, 4, 0, 7)}, ("input", "(2, 4, 0, 7)")),
    "kernel-0": ({"kernel_size": 0}, ("kernel_size", "0")),
    "kernel-negative": ({"kernel_size": (2, -1)}, ("kernel_size", "-1")),
    "kernel-float": ({"kernel_size": 2.0}, ("kernel_size", "2.0")),
    "kernel-none": ({"kernel_size": None}, ("kernel_size", "None")),
    "kernel-empty": ({"kernel_size": ()}, ("kernel_size", "()")),
    "kernel-three": ({"kernel_size": (2, 2, 2)}, ("kernel_size", "(2, 2, 2)")),
    "kernel-too-large": ({"kernel_size": (3, 8)}, ("kernel_size=(3, 8)", "(2, 4, 7, 7)")),
    "kernel-too-large-dilated": ({"dilation": (1, 4)}, ("dilation=(1, 4)", "(2, 4, 7, 7)")),
    "stride-0": ({"stride": 0}, ("stride", "0")),
    "stride-negative": ({"stride": -2}, ("stride", "-2")),
    "stride-float": ({"stride": 1.5}, ("stride", "1.5")),
    "stride-of-32-bits": ({"stride": 2**31}, ("stride must be below 2^31", f"got {2**31}")),
    "stride-three": ({"stride": (1, 1, 1)}, ("stride", "(1, 1, 1)")),
    "stride-array": ({"stride": np.array([2, 2])}, ("stride", "array([2, 2])")),
    "stride-range": ({"stride": range(1, 3)}, ("stride", "range(1, 3)")),
    "padding-negative": ({"padding": -1}, ("padding", "-1")),
    "padding-over-half": ({"padding": 2}, ("padding", "(2, 2)", "kernel_size=(3, 3)")),
    "padding-over-half-dilated": ({"padding": 2, "dilation": 2}, ("padding", "(2, 2)", "kernel_size=(3, 3)")),
    "padding-word": ({"padding": "same"}, ("padding", "'same'")),
    "dilation-0": ({"dilation": 0}, ("dilation", "0")),
    "dilation-negative": ({"dilation": -1}, ("dilation", "-1")),
    "dilation-float": ({"dilation": 1.0}, ("dilation", "1.0")),
    "ceil-mode-int": ({"ceil_mode": 1}, ("ceil_mode", "1")),
    "ceil-mode-none": ({"ceil_mode": None}, ("ceil_mode", "None")),
}


@INDICES
@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words, indices):
    assert_refused(kernels.max_pool2d, F.max_pool2d, {**BASE, **arguments, "return_indices": indices}, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"max_pool2d: input must be float32.*got {dtype}"):
        kernels.max_pool2d(T(2, 4, 7, 7, dtype=dtype), 3)
