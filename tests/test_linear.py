"""kernels.linear against torch.nn.functional.linear in float64."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import runtime, tiles
from kernels.tools.workloads import ALEXNET
from tests import reference
from tests.reference import DTYPES, assert_close, assert_gradients, assert_refused, cases, name, randn

DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float32"))
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


@DTYPE
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapes(case, relu, dtype, guarded):
    check(guarded, *tensors(case, dtype), relu)


@pytest.mark.parametrize("dtype", cases([torch.float32, torch.bfloat16], "float32"))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_small_tiles(case, dtype, guarded, small_tiles):
    check(guarded, *tensors(case, dtype))


@DTYPE
def test_many_small_tiles(dtype, guarded, small_tiles):
    """More rows and columns of tiles than one group of GROUP_M rows."""
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


@DTYPE
@pytest.mark.parametrize("layer", cases({layer.name: layer for layer in LAYERS}, "fc8"))
def test_alexnet(layer, dtype, guarded):
    if layer.name == "fc6" and dtype is torch.bfloat16 and runtime.INTERPRETED:
        pytest.skip("ten seconds in the interpreter; fc7 and fc8 run")
    x, w = randn(1, *layer.input, dtype=dtype), randn(*layer.parameters[0]).to(dtype)
    check(guarded, x, w, randn(len(w), dtype=dtype), relu=layer.name != "fc8")


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@DTYPE
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


def check_gradients(guarded, x, w, b, relu=False):
    ours = lambda x, w, b: kernels.linear(x, w, b, relu=relu)
    theirs = lambda x, w, b: reference.linear(x, w, b, relu=relu)
    assert_gradients(ours, theirs, [x, w, b], guarded)


@DTYPE
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients(case, relu, dtype, guarded):
    check_gradients(guarded, *tensors(case, dtype), relu)


@pytest.mark.parametrize("dtype", cases([torch.float32, torch.bfloat16], "float32"))
@pytest.mark.parametrize("case", ["7x31x5", "3x227x31", "17x33x64", "one-bias-for-all", "vector", "vector-weight"])
def test_gradients_of_small_tiles(case, dtype, guarded, small_tiles):
    check_gradients(guarded, *tensors(CASES[case], dtype), relu=True)


@pytest.mark.parametrize("dtype", cases([torch.float32, torch.bfloat16], "float32"))
def test_gradients_of_many_small_tiles(dtype, guarded, small_tiles):
    """More rows and columns of tiles than one group of GROUP_M rows, in each of the three products."""
    check_gradients(guarded, *tensors(((50, 40), (45, 40), (45,)), dtype), relu=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_layouts(layout, guarded):
    x, w, b = tensors(CASES["7x31x5"], torch.float32)
    check_gradients(guarded, LAYOUTS[layout](x), w, b)
    check_gradients(guarded, x, LAYOUTS[layout](w), b, relu=True)
    if not layout.startswith("expanded"):  # the output's gradient too
        laid_out = lambda tensor: guarded(LAYOUTS[layout](tensor) if tensor.dim() == 2 else tensor)
        check_gradients(laid_out, x, w, b, relu=layout == "sliced")


def test_gradient_of_a_sum(guarded):
    """The output's gradient is one number, expanded."""
    x, w, b = tensors(CASES["7x31x5"], torch.float32)
    ours = lambda x, w, b: kernels.linear(x, w, b).sum()
    assert_gradients(ours, lambda x, w, b: reference.linear(x, w, b).sum(), [x, w, b], guarded)


@DTYPE
@pytest.mark.parametrize("batch", cases([1, 7], "7"))
def test_gradients_in_alexnet(batch, dtype, guarded):
    """Only the last layer: the others take ten seconds in the interpreter."""
    layer = LAYERS[-1]
    x, w = randn(batch, *layer.input, dtype=dtype), randn(*layer.parameters[0]).to(dtype)
    check_gradients(guarded, x, w, randn(len(w), dtype=dtype))


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
def test_nan_and_infinity_spread_backwards_as_in_pytorch(relu, guarded):
    x, w, b = tensors(CASES["7x31x5"], torch.float32)
    x[1, 2], x[3, 4], x[5, 0] = float("nan"), float("inf"), float("-inf")
    w[2, 1], b[3] = float("inf"), float("nan")
    check_gradients(guarded, x, w, b, relu)


def test_gradients_in_float16_accumulate_in_float32(guarded):
    """In float16 2048 + 1 is 2048."""
    x, w = guarded(torch.ones(2049, 1).half()).requires_grad_(), guarded(torch.ones(1, 1).half()).requires_grad_()
    gradient = torch.ones(2049, 1).half()
    gradient[0] = 2048
    assert torch.autograd.grad(kernels.linear(x, w), w, guarded(gradient))[0].item() == 4096
    x, w = guarded(torch.ones(2, 1).half()).requires_grad_(), guarded(torch.ones(2049, 1).half()).requires_grad_()
    assert torch.autograd.grad(kernels.linear(x, w), x, guarded(gradient.T.expand(2, 2049)))[0].tolist() == [[4096]] * 2


@pytest.mark.parametrize(
    ("wanted", "operators"),
    [
        ("x", ["bias_relu_gradient", "linear_input_gradient"]),
        ("w", ["bias_relu_gradient", "linear_weight_gradient"]),
        ("b", ["bias_relu_gradient"]),
        ("xw", ["bias_relu_gradient", "linear_input_gradient", "linear_weight_gradient"]),
    ],
)
def test_what_is_not_wanted_is_not_computed(wanted, operators, device):
    x, w, b = (tensor.to(device) for tensor in tensors(CASES["7x31x5"], torch.float32))
    leaves = [{"x": x, "w": w, "b": b}[name].requires_grad_() for name in wanted]
    y = kernels.linear(x, w, b, relu=True)
    with tiles.record_configs() as recorded:
        torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert [problem.operator for problem, _ in recorded] == operators


def test_batches_of_as_many_steps_share_their_kernels():
    """No kernel has the number of examples as a constant. The weight's gradient has the number of steps over them."""
    constants = {}
    for batch in (100, 128, 129):
        x, w = (torch.empty(rows, 64, dtype=torch.float16).requires_grad_() for rows in (batch, 32))
        with runtime.record_launches() as launches, tiles.target("sm_90"):
            y = kernels.linear(x, w)
            torch.autograd.grad(y, [x, w], torch.empty_like(y))
        constants[batch] = [launch.constants for launch in launches]
    assert constants[100] == constants[128]
    assert constants[128] != constants[129]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_autocast(dtype, guarded, device):
    """The product has autocast's dtype, and the gradients have their tensors' dtypes."""
    x, w, b = randn(7, 5), randn(31, 5, dtype=dtype), randn(31)
    given = [guarded(tensor).requires_grad_() for tensor in (x, w, b)]
    with torch.autocast(device.type, dtype):
        y = kernels.linear(*given)
    assert_close(y, reference.linear(*(tensor.to(dtype) for tensor in (x, w, b))), dtype)
    gradients = torch.autograd.grad(y, given, torch.ones_like(y))
    assert [gradient.dtype for gradient in gradients] == [torch.float32, dtype, torch.float32]


@pytest.mark.parametrize("wanted", ["input", "weight"])
def test_only_what_the_gradients_need_is_kept(wanted, device):
    x, w = torch.randn(3, 5, device=device), torch.randn(7, 5, device=device)
    (x if wanted == "input" else w).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        kernels.linear(x, w)
    assert [tensor.shape for tensor in saved] == [w.shape if wanted == "input" else x.shape]


@pytest.mark.filterwarnings("ignore:.*double precision.*")
@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_against_finite_differences(rows, device):
    given = [randn(*shape).to(device).requires_grad_() for shape in ((rows, 5), (2, 5), (2,))]
    assert torch.autograd.gradcheck(kernels.linear, given, eps=1e-2, atol=1e-3, rtol=1e-3)


@pytest.mark.unguarded  # a guarded tensor is a view, and its fake counterpart is not
def test_operators_are_as_pytorch_wants_them(device):
    x, w, b, grad = (randn(*shape).to(device) for shape in ((3, 5), (7, 5), (7,), (3, 7)))
    parameters = [tensor.clone().requires_grad_() for tensor in (x, w, b)]
    torch.library.opcheck(torch.ops.alexnet.linear.default, (*parameters, True))
    torch.library.opcheck(torch.ops.alexnet.linear_input_gradient.default, (grad, w))
    torch.library.opcheck(torch.ops.alexnet.linear_weight_gradient.default, (grad, x))


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
def test_bias_that_varies_by_row_is_refused(shape, device):
    """PyTorch takes it by accident of broadcasting. Here every launch would need a second index."""
    with pytest.raises(kernels.ArgumentError, match="linear: bias must be"):
        kernels.linear(*(x.to(device) for x in (T(3, 5), T(7, 5), T(*shape))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"linear: input must be float32.*got {dtype}"):
        kernels.linear(T(3, 5, dtype=dtype), T(7, 5, dtype=dtype))


@pytest.mark.parametrize("relu", [1, None, "yes"])
def test_relu_is_a_bool(relu, device):
    with pytest.raises(TypeError, match=f"linear: relu must be True or False, got {relu!r}"):
        kernels.linear(T(3, 5).to(device), T(7, 5).to(device), relu=relu)
