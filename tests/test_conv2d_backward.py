"""The gradients of kernels.conv2d against those of torch.nn.functional.conv2d in float64."""

import itertools

import pytest
import torch

import kernels
from kernels import runtime, tiles
from kernels.ops.conv2d_backward import conv2d_input_gradient, conv2d_weight_gradient
from kernels.ops.space_to_depth import folds
from tests import reference
from tests.reference import LAYOUTS, assert_close, assert_gradients, cases, name, randn
from tests.test_conv2d import CASES as FORWARD_CASES
from tests.test_conv2d import LAYERS, tensors

CASES = {
    **FORWARD_CASES,
    "stride-4": {"input": (2, 8, 17, 14), "weight": (5, 8, 7, 5), "stride": 4, "padding": (2, 1)},
    "stride-divides-dilation": {"input": (1, 2, 16, 15), "weight": (3, 2, 4, 3), "stride": (2, 3), "dilation": (4, 3)},
    "stride-shares-a-factor": {
        "input": (1, 2, 33, 27),
        "weight": (3, 2, 5, 4),
        "stride": (4, 6),
        "dilation": (6, 4),
        "padding": (3, 2),
    },
    "pixels-under-no-tap": {"input": (2, 2, 10, 11), "weight": (3, 2, 2, 2), "stride": 3, "dilation": 3},
    "two-pixels-odd-width": {"input": (1, 48, 3, 7), "weight": (16, 48, 2, 5), "padding": (1, 2)},
    "two-pixels-groups": {"input": (1, 40, 5, 6), "weight": (32, 20, 2, 3), "padding": (0, 2), "groups": 2},
    "one-column": {"input": (2, 3, 9, 1), "weight": (4, 3, 3, 3), "padding": 1},
    "channels-72": {"input": (1, 72, 4, 3), "weight": (32, 72, 2, 3), "padding": 1},
}
FOLDED = {
    "conv1": {"input": (2, 3, 31, 35), "weight": (6, 3, 11, 11), "stride": 4},
    "padded": {"input": (2, 3, 31, 35), "weight": (6, 3, 11, 11), "stride": 4, "padding": 2},
    "filter-of-a-block": {"input": (1, 3, 30, 29), "weight": (5, 3, 4, 5), "stride": 4, "padding": (1, 3)},
    "even": {"input": (1, 2, 9, 8), "weight": (4, 2, 3, 2), "stride": 2, "padding": 1},
    "one-side": {"input": (1, 4, 11, 11), "weight": (4, 4, 3, 3), "stride": 2, "padding": (0, 1)},
    "empty-batch": {"input": (0, 3, 31, 35), "weight": (6, 3, 11, 11), "stride": 4},
}


def check(guarded, given, arguments, relu=False):
    """The gradients of input, weight and bias, which may be None."""
    ours = lambda *tensors: kernels.conv2d(*tensors, **arguments, relu=relu)
    theirs = lambda *tensors: reference.conv2d(*tensors, **arguments, relu=relu)
    assert_gradients(ours, theirs, given, guarded)


AWKWARD = ("31-not-square", "channels-48", "everything-uneven", "same-even-filter", "two-pixels-groups", "image-only")


SHAPES = {case: (case, torch.float32) for case in CASES} | {
    f"{case}-{name(dtype)}": (case, dtype) for case in AWKWARD for dtype in (torch.float16, torch.bfloat16)
}
QUICK = (
    *AWKWARD,
    "everything-uneven-float16",
    "stride-4",
    "pixels-under-no-tap",
    "one-column",
    "no-channels",
    "empty-batch",
)


@pytest.mark.parametrize("shape", cases(SHAPES, *QUICK))
def test_shapes(shape, guarded):
    case, dtype = shape
    x, w, b, arguments = tensors(CASES[case], dtype)
    if x.dim() == 4:
        x = LAYOUTS["channels_last"](x)
    check(guarded, [x, LAYOUTS["channels_last"](w), b], arguments, relu=True)


TILED = [case for case in CASES if case not in ("groups-2-of-48", "227-by-9", "channels-32")]


@pytest.mark.parametrize("case", cases(TILED, "31-not-square", "everything-uneven", "stride-shares-a-factor"))
def test_small_tiles(case, guarded, small_tiles):
    x, w, b, arguments = tensors(CASES[case], torch.float32)
    check(guarded, [x, w, b], arguments)


@pytest.mark.full
def test_small_tiles_in_bfloat16(guarded, small_tiles):
    x, w, b, arguments = tensors(CASES["two-pixels-groups"], torch.bfloat16)
    check(guarded, [x, w, b], arguments, relu=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("case", ["7-square", "image-only-groups", "no-channels", "empty-batch"])
def test_epilogue(case, relu, bias, guarded):
    x, w, b, arguments = tensors(CASES[case], torch.float32, bias)
    check(guarded, [x, w, b], arguments, relu)


def test_a_stride_far_past_the_input(guarded):
    x, w = randn(2, 3, 5, 6), randn(4, 3, 3, 2)
    arguments = {"stride": (2**20, 2**31 - 1), "padding": 1}
    ours = lambda x, w: kernels.conv2d(x, w, **arguments)
    assert_gradients(ours, lambda x, w: reference.conv2d(x, w, **arguments), [x, w], guarded)


@pytest.mark.parametrize("dtype", cases([torch.float32, torch.float16], "float32"))
@pytest.mark.parametrize("case", FOLDED.values(), ids=FOLDED)
def test_folded(case, dtype, guarded):
    x, w, b, arguments = tensors(case, dtype)
    assert folds(w.shape, [arguments["stride"]] * 2, [1, 1], 1)
    check(guarded, [x, w, b], arguments, relu=True)


def test_folded_in_small_tiles(guarded, small_tiles):
    x, w, b, arguments = tensors(FOLDED["even"], torch.float32)
    check(guarded, [x, w, b], arguments, relu=True)


@pytest.mark.parametrize(("input_layout", "weight_layout"), zip(LAYOUTS, reversed(LAYOUTS), strict=True))
def test_layouts(input_layout, weight_layout, guarded):
    x, w, b, arguments = tensors(CASES["groups-2"], torch.float32)
    given = [LAYOUTS[input_layout](x), LAYOUTS[weight_layout](w), torch.stack([b, b], 1)[:, 0]]
    check(guarded, given, arguments, relu=True)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no-relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_incoming_gradient(layout, relu, guarded):
    x, w, b, arguments = tensors(CASES["groups-2"], torch.float32)
    given = [guarded(t).requires_grad_() for t in (x, w, b)]
    wanted = [t.double().requires_grad_() for t in (x, w, b)]
    y, expected = kernels.conv2d(*given, **arguments, relu=relu), reference.conv2d(*wanted, **arguments, relu=relu)
    gradient = LAYOUTS[layout](randn(*y.shape))
    got = torch.autograd.grad(y, given, guarded(gradient))
    for actual, true in zip(got, torch.autograd.grad(expected, wanted, gradient.double()), strict=True):
        assert_close(actual, true, torch.float32)


@pytest.mark.parametrize("case", ["7-square", "groups-2", "conv1"])
def test_gradients_are_in_channels_last_memory(case, guarded):
    x, w, _, arguments = tensors({**CASES, **FOLDED}[case], torch.float32)
    given = [guarded(t).requires_grad_() for t in (x, w)]
    for gradient in torch.autograd.grad(kernels.conv2d(*given, **arguments).sum(), given):
        assert gradient.is_contiguous(memory_format=torch.channels_last)


OTHER_DTYPES = {"conv1-float16": (LAYERS[0], torch.float16), "conv2-bfloat16": (LAYERS[1], torch.bfloat16)}


@pytest.mark.parametrize("layer", cases({x.name: (x, torch.float32) for x in LAYERS} | OTHER_DTYPES, "conv5"))
def test_alexnet(layer, guarded):
    layer, dtype = layer
    geometry = {name: value for name, value in layer.arguments.items() if name != "relu"}
    case = {"input": (1, *layer.input), "weight": layer.parameters[0], **geometry}
    x, w, b, arguments = tensors(case, dtype)
    check(guarded, [LAYOUTS["channels_last"](x), LAYOUTS["channels_last"](w), b], arguments, relu=True)


def test_tf32_keeps_its_bound(guarded, fp32_precision):
    fp32_precision("tf32")
    x, w, b, arguments = tensors(CASES["channels-48"], torch.float32)
    check(guarded, [x, w, b], arguments)


def test_float16_accumulates_in_float32(guarded):
    """In float16 2048 + 1 is 2048."""
    ones = torch.ones(2049, 1, 1, 1).half()
    dz = ones.clone()
    dz[0] = 2048
    size, geometry = [1, 2049, 1, 1], ([1, 1], [0] * 4, [1, 1], 1)
    assert conv2d_weight_gradient(guarded(dz), guarded(ones), [1, 1, 1, 1], *geometry).item() == 4096
    assert conv2d_input_gradient(guarded(dz.view(size)), guarded(ones), [1, 1, 1, 1], *geometry).item() == 4096


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_split_k(splits, guarded):
    """Also with more splits than blocks of pixels: some have nothing to add."""
    x, w, _, arguments = tensors(CASES["channels-48"], torch.float32)
    tile = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16, "GROUP_M": 2, "SPLIT_K": splits}
    with tiles.use("conv2d_weight_gradient", tile):
        check(guarded, [x, w, None], arguments)


def test_the_same_bits_every_time(device):
    x, w, b, arguments = tensors(CASES["channels-48"], torch.float32)
    given = [t.to(device).requires_grad_() for t in (x, w, b)]
    y = kernels.conv2d(*given, **arguments, relu=True)
    tile = {"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_K": 16, "GROUP_M": 2, "SPLIT_K": 3}
    with tiles.use("conv2d_weight_gradient", tile):
        first, second = (torch.autograd.grad(y, given, torch.ones_like(y), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


KERNELS = {
    "input": "_conv2d_input_gradient_kernel",
    "weight": "_conv2d_weight_gradient_kernel",
    "bias": "_bias_relu_gradient_kernel",
}


@pytest.mark.parametrize("wanted", [c for n in (1, 2, 3) for c in itertools.combinations(KERNELS, n)], ids="-".join)
def test_only_needed_gradients_are_computed(wanted, device):
    x, w, b, arguments = tensors(CASES["groups-2"], torch.float32)
    given = {"input": x, "weight": w, "bias": b}
    given = {key: tensor.to(device).requires_grad_(key in wanted) for key, tensor in given.items()}
    y = kernels.conv2d(**given, **arguments)
    with runtime.record_launches() as launches:
        gradients = torch.autograd.grad(y, [given[key] for key in wanted], torch.ones_like(y))
    assert {launch.kernel.__name__ for launch in launches} == {KERNELS[key] for key in wanted}
    assert [g.shape for g in gradients] == [given[key].shape for key in wanted]


@pytest.mark.parametrize("wanted", KERNELS)
def test_only_needed_tensors_are_kept(wanted, device):
    x, w, b, arguments = tensors(CASES["groups-2"], torch.float32)
    given = {"input": x, "weight": w, "bias": b}
    given = {key: tensor.to(device).requires_grad_(key == wanted) for key, tensor in given.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        kernels.conv2d(**given, **arguments)
    assert [t.shape for t in kept] == {"input": [w.shape], "weight": [x.shape], "bias": []}[wanted]


@pytest.mark.parametrize("needs", [True, False], ids=["input-too", "parameters-only"])
def test_conv1_is_differentiated_folded(needs, device):
    x, w, _, arguments = tensors(FOLDED["conv1"], torch.float32)
    x, w = x.to(device).requires_grad_(needs), w.to(device).requires_grad_()
    y = kernels.conv2d(x, w, **arguments)
    with runtime.record_launches() as launches:
        torch.autograd.grad(y, [x, w] if needs else [w], torch.ones_like(y))
    fold, unfold = "_space_to_depth_kernel", "_depth_to_space_kernel"
    input, weight = [fold, KERNELS["input"], unfold], [fold, KERNELS["weight"], unfold]
    assert [launch.kernel.__name__ for launch in launches] == (input + weight if needs else weight)


def test_a_gradient_of_a_gradient_is_refused(device):
    x, w = randn(1, 4, 7, 7).to(device).requires_grad_(), randn(6, 4, 3, 3).to(device).requires_grad_()
    (dx,) = torch.autograd.grad(kernels.conv2d(x, w).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="conv2d_input_gradient has no gradient"):
        dx.sum().backward()


@pytest.mark.filterwarnings("ignore:.*double precision.*")
@pytest.mark.unguarded  # guards would be kept for about a hundred passes
@pytest.mark.parametrize("case", cases(["uneven", "folded"], "uneven"))
def test_gradcheck(case, device):
    """Against finite differences of the forward pass: a convolution is linear in each argument."""
    shapes = {
        "uneven": ((1, 2, 2, 3), (2, 1, 2, 2), {"stride": (1, 2), "padding": (0, 1), "groups": 2}),
        "folded": ((1, 2, 3, 3), (1, 2, 2, 2), {"stride": 2, "padding": (0, 1)}),
    }
    x, w, arguments = shapes[case]
    given = [randn(*shape).to(device).requires_grad_() for shape in (x, w, w[:1])]
    assert torch.autograd.gradcheck(
        lambda *tensors: kernels.conv2d(*tensors, **arguments), given, eps=0.25, atol=1e-4, rtol=1e-4
    )


@pytest.mark.unguarded  # a guarded tensor is a view, and its fake counterpart is not
@pytest.mark.parametrize("case", cases(["uneven", "folded"], "uneven"))
def test_registered_as_pytorch_wants(case, device):
    shapes = {
        "uneven": ((2, 4, 5, 6), (6, 2, 3, 3), ([2, 1], [1, 1, 0, 2], [1, 2], 2)),
        "folded": ((2, 3, 9, 9), (6, 3, 4, 5), ([4, 4], [1, 1, 1, 1], [1, 1], 1)),
    }
    x, w, geometry = shapes[case]
    x, w = (randn(*shape).to(device).requires_grad_() for shape in (x, w))
    b = randn(len(w)).to(device).requires_grad_()
    conv2d = torch.ops.alexnet.conv2d.default
    for relu, bias in ((True, b), (False, None)):
        torch.library.opcheck(conv2d, (x, w, bias, *geometry, relu))
    dz = torch.randn_like(conv2d(x, w, b, *geometry, False))
    basic = ("test_schema", "test_faketensor")
    x, w = x.detach(), w.detach()
    torch.library.opcheck(conv2d_input_gradient, (dz, w, list(x.shape), *geometry), test_utils=basic)
    torch.library.opcheck(conv2d_weight_gradient, (dz, x, list(w.shape), *geometry), test_utils=basic)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_autocast(dtype, device):
    x, w, b, arguments = tensors(CASES["groups-2"], torch.float32)
    given = [t.to(device).requires_grad_() for t in (x, w, b)]
    with torch.autocast(device.type, dtype):
        y = kernels.conv2d(*given, **arguments, relu=True)
    assert y.dtype == dtype
    wanted = [t.to(dtype).double().requires_grad_() for t in (x, w, b)]
    expected = reference.conv2d(*wanted, **arguments, relu=True)
    assert_close(y.detach(), expected.detach(), dtype)
    gradient = randn(*y.shape, dtype=dtype)
    got = torch.autograd.grad(y, given, gradient.to(device))
    for actual, true in zip(got, torch.autograd.grad(expected, wanted, gradient.double()), strict=True):
        assert_close(actual, true, torch.float32, reference.BOUNDS[dtype])
