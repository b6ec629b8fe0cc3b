"""kernels.bias_relu against relu(input + bias) in float64."""

import pytest
import torch

import kernels
from kernels.ops.epilogue import epilogue_gradient
from kernels.tools.workloads import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_gradients, assert_refused, cases, exact, name, randn

DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float32"))

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
    "one-for-all-4d": ((3, 5, 2, 7), (1,)),
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


@DTYPE
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, dtype, guarded):
    check(guarded, *(randn(*shape, dtype=dtype) for shape in case))


@DTYPE
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


@DTYPE
@pytest.mark.parametrize("layer", [x for x in ALEXNET if x.parameters], ids=lambda layer: layer.name)
def test_alexnet(layer, dtype, guarded):
    x = randn(*layer.cost().output, dtype=dtype)
    check(
        guarded,
        LAYOUTS["channels_last"](x) if x.dim() == 4 else x,
        randn(*x.shape[1:2], *[1] * (x.dim() - 2), dtype=dtype),
    )


@DTYPE
def test_nan_and_infinity(dtype, guarded):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, inf, -inf, inf, 1.0, -1.0, 1.0, -0.0], dtype=dtype)
    b = torch.tensor([1.0, 1.0, 1.0, -inf, nan, inf, -inf, 0.0], dtype=dtype)
    check(guarded, x, b)


def test_overflow_in_float16_is_infinity(guarded):
    check(guarded, torch.tensor([6e4, 1.0]).half(), torch.tensor([6e4, 1.0]).half())


@DTYPE
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients(case, dtype, guarded):
    tensors = [randn(*shape, dtype=dtype) for shape in case]
    assert_gradients(kernels.bias_relu, reference.bias_relu, tensors, guarded)


@DTYPE
@pytest.mark.parametrize("case", [case for case in CASES if case != "227"])
def test_gradients_of_small_tiles(case, dtype, guarded, small_tiles):
    x, b = (randn(*shape, dtype=dtype) for shape in CASES[case])
    tensors = [LAYOUTS["channels_last"](x) if x.dim() == 4 else x, b]
    assert_gradients(kernels.bias_relu, reference.bias_relu, tensors, guarded)


@pytest.mark.parametrize("case", ["channels", "batch", "one-for-all-4d", "per-pixel", "per-image-and-column"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_layouts(layout, case, guarded):
    x, b = (randn(*shape) for shape in CASES[case])
    assert_gradients(kernels.bias_relu, reference.bias_relu, [LAYOUTS[layout](x), b], guarded)
    if layout != "expanded":  # the output's gradient too
        laid_out = lambda x: guarded(LAYOUTS[layout](x) if x.dim() == 4 else x)
        assert_gradients(kernels.bias_relu, reference.bias_relu, [x, b], laid_out)


def test_gradient_of_channels_last_is_channels_last(guarded):
    x = guarded(LAYOUTS["channels_last"](randn(2, 5, 3, 7))).requires_grad_()
    y = kernels.bias_relu(x, guarded(randn(5, 1, 1)))
    (gradient,) = torch.autograd.grad(y.sum(), x)  # a sum's gradient is one number, expanded
    assert gradient.is_contiguous(memory_format=torch.channels_last)


MATRICES = [(1, 1), (1, 7), (31, 1), (7, 31), (130, 96), (33, 227), (300, 1000), (0, 7), (7, 0)]


def check_epilogue(guarded, grad, y, bias):
    """dz has exactly the gradients that pass, and dbias their sums."""
    masked, total = epilogue_gradient(guarded(grad), guarded(y), bias)
    expected = exact(grad) if y is None else torch.where(exact(y) <= 0, 0.0, exact(grad))
    assert torch.equal(exact(masked), expected) and masked.dtype == grad.dtype and masked.is_contiguous()
    assert_close(total, expected.sum(0) if bias else torch.empty(0).double(), grad.dtype)


@DTYPE
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_epilogue(shape, bias, relu, dtype, guarded):
    check_epilogue(guarded, randn(*shape, dtype=dtype), randn(*shape, dtype=dtype).relu() if relu else None, bias)


@DTYPE
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (31, 1), (7, 31), (66, 33), (0, 7), (7, 0)], ids=str)
def test_epilogue_of_small_tiles(shape, relu, dtype, guarded, small_tiles):
    """Up to three passes, until one row of partial sums is left."""
    check_epilogue(guarded, randn(*shape, dtype=dtype), randn(*shape, dtype=dtype).relu() if relu else None, True)


def test_epilogue_without_a_relu_is_the_gradient_itself(guarded):
    grad = guarded(randn(3, 5))
    assert epilogue_gradient(grad, None, True)[0] is grad
    assert epilogue_gradient(grad, None, False)[0] is grad


def test_gradient_passes_where_the_output_is_nan_or_infinite(guarded):
    """As in PyTorch's threshold_backward. If the output is zero, so is the gradient."""
    nan, inf = float("nan"), float("inf")
    x, b = torch.tensor([[nan, inf, -inf, -0.0, 1.0], [1.0, -1.0, -1.0, -0.0, nan]]), torch.zeros(5)
    assert_gradients(kernels.bias_relu, reference.bias_relu, [x, b], guarded)


def test_gradient_that_is_nan_or_infinite(guarded):
    nan, inf = float("nan"), float("inf")
    grad, y = torch.tensor([[nan, inf, -inf, nan, inf]]), torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    masked, total = epilogue_gradient(guarded(grad), guarded(y), True)
    assert_close(masked, torch.tensor([[nan, inf, -inf, 0.0, 0.0]]).double())
    assert_close(total, torch.tensor([nan, inf, -inf, 0.0, 0.0]).double())


def test_sums_are_rounded_once(guarded, small_tiles):
    """In float16 2048 + 1 is 2048: the partial sums of 8 rows must not be rounded to it."""
    grad = torch.zeros(64, 1).half()
    grad[::16], grad[1::16], grad[8::16] = 2048, 1, -2048
    assert epilogue_gradient(guarded(grad), None, True)[1].item() == 4


@pytest.mark.filterwarnings("ignore:.*double precision.*")
def test_gradients_against_finite_differences(device):
    x, b = randn(2, 3, 2, 2), randn(3, 1, 1)
    x = torch.where((x + b).abs() < 0.1, x + 0.3, x)  # away from the kink
    tensors = [tensor.to(device).requires_grad_() for tensor in (x, b)]
    assert torch.autograd.gradcheck(kernels.bias_relu, tensors, eps=1e-2, atol=1e-3, rtol=1e-3)


@pytest.mark.unguarded  # a guarded tensor is a view, and its fake counterpart is not
def test_operators_are_as_pytorch_wants_them(device):
    x, b = randn(2, 5, 3, 4).to(device).requires_grad_(), randn(5, 1, 1).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.alexnet.bias_relu.default, (x, b))
    grad = randn(7, 5).to(device)
    for arguments in ((grad, grad.relu(), True), (grad, grad.relu(), False), (grad, None, True)):
        overload = torch.ops.alexnet.bias_relu_gradient.default
        torch.library.opcheck(overload, arguments)


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
def test_bias_that_would_change_the_result_is_refused(bias, device):
    """PyTorch's result would not have the input's shape or dtype."""
    with pytest.raises(kernels.ArgumentError, match="bias_relu: bias "):
        kernels.bias_relu(T(2, 5).to(device), bias.to(device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"bias_relu: input must be float32.*got {dtype}"):
        kernels.bias_relu(T(3, 5, dtype=dtype), T(5, dtype=dtype))
