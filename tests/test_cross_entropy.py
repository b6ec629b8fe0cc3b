"""kernels.cross_entropy against torch.nn.functional.cross_entropy in float64."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import runtime
from tests import reference
from tests.reference import DTYPES, assert_close, assert_gradients, assert_refused, cases, name, randn

SHAPES = {
    "1": (1,),
    "7": (7,),
    "1x1": (1, 1),
    "31x7": (31, 7),
    "3x1000": (3, 1000),
    "2x1100": (2, 1100),
    "2x5x3": (2, 5, 3),
    "2x3x4x1": (2, 3, 4, 1),
    "empty-batch": (0, 5),
    "empty-inside": (2, 5, 0),
}
OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "all-smoothing": {"label_smoothing": 1.0, "reduction": "sum"},
    "ignore": {"ignore_index": 0},
    "ignore-none": {"ignore_index": 0, "reduction": "none", "label_smoothing": 0.3},
}
WEIGHT = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float32"))


def classes(shape):
    return torch.randint(shape[min(len(shape) - 1, 1)], shape[: min(len(shape) - 1, 1)] + shape[2:])


def tensors(shape, dtype=torch.float32, weighted=False, probabilities=False):
    x = randn(*shape, dtype=dtype) * 3
    weight = torch.rand(shape[min(len(shape) - 1, 1)]).to(dtype) if weighted else None
    target = F.softmax(torch.randn(shape), min(len(shape) - 1, 1)).to(dtype) if probabilities else classes(shape)
    return x, target, weight


def run(x, target, weight, options, guarded):
    place = lambda tensor: None if tensor is None else guarded(tensor)
    return kernels.cross_entropy(place(x), place(target), place(weight), **options)


@DTYPE
@WEIGHT
@pytest.mark.parametrize("options", cases(OPTIONS, "mean", "smoothing", "ignore-none"))
@pytest.mark.parametrize("shape", cases(SHAPES, "7", "3x1000", "2x5x3", "empty-batch"))
def test_losses(shape, options, weighted, dtype, guarded):
    x, target, weight = tensors(shape, dtype, weighted)
    expected = F.cross_entropy(x.double(), target, None if weight is None else weight.double(), **options)
    assert_close(run(x, target, weight, options, guarded), expected, dtype)


@DTYPE
@WEIGHT
@pytest.mark.parametrize("options", cases(OPTIONS, "mean", "sum", "ignore-none"))
@pytest.mark.parametrize("shape", cases([(7,), (31, 7), (3, 1000), (2, 5, 3)], "(31, 7)", "(2, 5, 3)"))
def test_gradients(shape, options, weighted, dtype, guarded):
    x, target, weight = tensors(shape, dtype, weighted)
    target.view(-1)[0] = 3
    assert_gradients(
        lambda x: run(x, target, weight, options, guarded),
        lambda x: F.cross_entropy(x, target, None if weight is None else weight.double(), **options),
        [x],
        guarded,
    )


@WEIGHT
@pytest.mark.parametrize(
    "options", cases({option: OPTIONS[option] for option in ("mean", "sum", "none", "smoothing")}, "mean", "smoothing")
)
@pytest.mark.parametrize("shape", cases([(7,), (31, 7), (2, 5, 3), (0, 5)], "(2, 5, 3)"))
def test_probabilities(shape, options, weighted, guarded):
    x, target, weight = tensors(shape, torch.float32, weighted, probabilities=True)
    exact = lambda x: F.cross_entropy(
        x.double(), target.double(), None if weight is None else weight.double(), **options
    )
    assert_close(run(x, target, weight, options, guarded), exact(x), torch.float32)
    if x.numel():
        assert_gradients(lambda x: run(x, target, weight, options, guarded), exact, [x], guarded)


@pytest.mark.parametrize("options", cases(OPTIONS, "mean", "ignore-none"))
def test_small_tiles(options, guarded, small_tiles):
    """Several blocks of rows and of classes, and more rows than one step of the sum has."""
    x, target, weight = tensors((37, 50), weighted=True)
    exact = lambda x: F.cross_entropy(x.double(), target, weight.double(), **options)
    assert_close(run(x, target, weight, options, guarded), exact(x), torch.float32)
    assert_gradients(lambda x: run(x, target, weight, options, guarded), exact, [x], guarded)


@pytest.mark.parametrize("layout", cases(list(reference.LAYOUTS), "channels_last", "sliced"))
def test_layouts(layout, guarded):
    x, target, _ = tensors((2, 5, 3, 4))
    x, target = reference.LAYOUTS[layout](x), target.transpose(1, 2).contiguous().transpose(1, 2)
    exact = lambda x: F.cross_entropy(x.double(), target)
    assert_close(run(x, target, None, {}, guarded), exact(x), torch.float32)
    assert_gradients(lambda x: run(x, target, None, {}, guarded), exact, [x.contiguous()], guarded)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_large_logits(dtype, guarded):
    """Their exp would overflow, or vanish."""
    x = torch.tensor([[200.0, -200.0, 199.0], [-200.0, -201.0, -203.0]]).to(dtype)
    target = torch.tensor([2, 0])
    exact = lambda x: F.cross_entropy(x.double(), target, reduction="none")
    assert_close(run(x, target, None, {"reduction": "none"}, guarded), exact(x), dtype)
    assert_gradients(lambda x: run(x, target, None, {"reduction": "none"}, guarded), exact, [x], guarded)


def test_a_common_offset_changes_nothing(guarded):
    """The loss is as exact as without the offset, which may be much larger than the loss."""
    x, (_, target, _) = torch.randint(-64, 65, (31, 7)) / 16 + 4096.0, tensors((31, 7))  # exact in float32
    exact = lambda x: F.cross_entropy(x.double(), target, reduction="none")
    assert_close(run(x, target, None, {"reduction": "none"}, guarded), exact(x), torch.float32)
    assert_gradients(lambda x: run(x, target, None, {"reduction": "none"}, guarded), exact, [x], guarded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nan_and_infinity_as_in_pytorch(value, smoothing, guarded):
    x, target, _ = tensors((6, 5))
    x[1, 2], x[3, 0], target[3] = value, value, 0
    options = {"reduction": "none", "label_smoothing": smoothing, "ignore_index": 4}
    x[4, 1], target[4] = value, 4  # ignored, also if it holds NaN or inf
    actual = run(x, target, None, options, guarded)
    assert_close(actual, F.cross_entropy(x.double(), target, **options), torch.float32)


def test_all_ignored_is_nan_as_in_pytorch(guarded):
    x, target = torch.randn(3, 5), torch.full((3,), -100)
    assert run(x, target, None, {}, guarded).isnan()
    assert run(x, target, None, {"reduction": "sum"}, guarded) == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_classes_out_of_range(reduction, guarded):
    x, target = torch.randn(3, 5), torch.tensor([0, 5, 1])
    if runtime.mode() == "interpreted":
        with pytest.raises(IndexError, match="cross_entropy: target must be from 0 to 4, got 5"):
            run(x, target, None, {"reduction": reduction}, guarded)
    else:
        loss = run(x, target, None, {"reduction": reduction}, guarded)
        assert loss.isnan().tolist() == ([False, True, False] if reduction == "none" else True)


def test_autocast_computes_in_float32(device):
    x, target = torch.randn(3, 5, device=device, dtype=torch.bfloat16), torch.tensor([0, 4, 1], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        loss = kernels.cross_entropy(x, target)
    assert_close(loss, F.cross_entropy(x.cpu().double(), target.cpu()), torch.float32)


def test_gradcheck(device):
    """In float32: steps of 1e-2 cause errors of about 1e-4, and rounding causes as much again."""
    target = torch.tensor([0, 4, 1], device=device)
    x = torch.randn(3, 5, device=device, requires_grad=True)
    function = lambda x: kernels.cross_entropy(x, target, label_smoothing=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that float32 will likely fail
        torch.autograd.gradcheck(function, (x,), eps=1e-2, atol=1e-3, rtol=1e-2)


@pytest.mark.unguarded
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_registered(reduction, device):
    x = torch.randn(3, 5, device=device, requires_grad=True)
    arguments = (x, torch.tensor([0, 4, 1], device=device), torch.rand(5, device=device), -100, reduction, 0.1)
    torch.library.opcheck(torch.ops.alexnet.cross_entropy.default, arguments)


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.zeros(shape, dtype=dtype)


BASE = {"input": T(3, 5), "target": T(3, dtype=torch.int64)}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "target-none": ({"target": None}, ("target", "NoneType")),
    "target-shape": ({"target": T(4, dtype=torch.int64)}, ("target", "(3,)", "(4,)")),
    "target-dims": ({"target": T(3, 1, dtype=torch.int64)}, ("target", "(3, 1)")),
    "target-dtype": ({"target": T(3, dtype=torch.int32)}, ("target", "int32")),
    "probabilities-shape": ({"target": T(3, 4)}, ("probabilities", "(3, 4)")),
    "weight-shape": ({"weight": T(4)}, ("weight", "(4,)")),
    "weight-dtype": ({"weight": T(5, dtype=torch.float16)}, ("weight", "float16")),
    "reduction": ({"reduction": "median"}, ("reduction", "'median'")),
    "smoothing": ({"label_smoothing": 1.5}, ("label_smoothing", "1.5")),
    "ignore": ({"ignore_index": "x"}, ("ignore_index", "'x'")),
    "ignore-of-64-bits": ({"ignore_index": 2**63}, ("ignore_index", f"got {2**63}")),
    "ignore-with-probabilities": ({"target": T(3, 5), "ignore_index": 2}, ("ignore_index", "got 2", "probabilities")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.cross_entropy, F.cross_entropy, {**BASE, **arguments}, words)


@pytest.mark.parametrize("old", ["size_average", "reduce"])
def test_deprecated_arguments_are_refused(old):
    with pytest.raises(kernels.ArgumentError, match=f"{old} is not accepted, got True; use reduction"):
        kernels.cross_entropy(**BASE, **{old: True})


def test_probabilities_and_weights_get_no_gradient():
    with pytest.raises(kernels.ArgumentError, match="target must not require a gradient"):
        kernels.cross_entropy(T(3, 5), T(3, 5).requires_grad_())
    with pytest.raises(kernels.ArgumentError, match="weight must not require a gradient"):
        kernels.cross_entropy(**BASE, weight=T(5).requires_grad_())


def test_probabilities_and_weights_that_have_a_gradient_elsewhere(device):
    x, target, weight = torch.randn(3, 5), torch.rand(3, 5), torch.rand(5)
    with torch.no_grad():
        loss = kernels.cross_entropy(
            x.to(device), target.to(device).requires_grad_(), weight.to(device).requires_grad_()
        )
    assert_close(loss, F.cross_entropy(x.double(), target.double(), weight.double()))


@pytest.mark.unguarded
def test_compiles_and_exports(device):
    x, target = torch.randn(3, 5, device=device), torch.tensor([0, 4, 1], device=device)
    loss = kernels.cross_entropy(x, target)

    class Loss(torch.nn.Module):
        def forward(self, x):
            return kernels.cross_entropy(x, target)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(kernels.cross_entropy, fullgraph=True, backend="aot_eager")(x, target), loss)
    torch._dynamo.reset()
    assert torch.equal(torch.export.export(Loss(), (x,)).module()(x), loss)
