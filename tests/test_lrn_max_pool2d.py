"""kernels.lrn_max_pool2d against PyTorch's two operators in sequence, in float64."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import runtime, tiles
from kernels.tools import torch_ops
from kernels.tools.workloads import ALEXNET
from tests import reference
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_gradients, assert_refused, cases, exact, name, randn

CASES = {  # input, size, kernel_size, stride
    "1x1": ((1, 1, 1, 1), 1, 1, 1),
    "7-square": ((2, 5, 7, 7), 5, 3, 2),
    "31-not-square": ((1, 3, 31, 7), 3, (2, 3), (3, 1)),
    "227": ((1, 3, 227, 5), 5, (3, 2), (2, 3)),
    "channels-48": ((1, 48, 5, 7), 5, 3, 2),
    "even-window": ((2, 7, 5, 7), 4, (3, 2), (2, 1)),
    "window-over-channels": ((3, 3, 5, 5), 9, 3, 2),
    "stride-over-window": ((1, 5, 11, 9), 5, 2, (5, 4)),
    "whole-image": ((2, 5, 5, 3), 5, (5, 3), 1),
    "image-only": ((5, 7, 5), 5, 3, 2),
    "empty-batch": ((0, 5, 7, 5), 5, 3, 2),
    "pair-of-one": ((1, 5, 7, 5), 5, (3,), [2]),
}
STRONG = (0.7, 0.6, 0.5)  # alpha, beta, k: neighbours weigh as much as the element itself
DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float16"))
FORMULA = pytest.mark.parametrize(
    "formula",
    cases(
        [(1e-4, 0.75, 1.0), (5e-4, 0.75, 2.0), (1, 1, 1), (1.0, -0.5, 0.0)], "(0.0001, 0.75, 1.0)", "(1.0, -0.5, 0.0)"
    ),
)
LAYOUT = pytest.mark.parametrize("layout", cases(list(LAYOUTS), "channels_last", "sliced"))


def check(guarded, x, size, formula, kernel_size, stride):
    actual = kernels.lrn_max_pool2d(guarded(x), size, *formula, kernel_size, stride)
    assert_close(actual, reference.lrn_max_pool2d(x, size, *formula, kernel_size, stride), x.dtype)
    if actual.dim() == 4:
        assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "case", cases(CASES, "7-square", "31-not-square", "channels-48", "stride-over-window", "image-only")
)
def test_shapes(case, dtype, guarded):
    shape, size, kernel_size, stride = case
    x = randn(*shape, dtype=dtype)
    check(guarded, LAYOUTS["channels_last"](x) if x.dim() == 4 else x, size, STRONG, kernel_size, stride)


@pytest.mark.parametrize(
    "case", cases(["7-square", "channels-48", "even-window", "stride-over-window", "image-only"], "even-window")
)
def test_small_tiles(case, guarded, small_tiles):
    shape, size, kernel_size, stride = CASES[case]
    x = randn(*shape)
    check(guarded, LAYOUTS["channels_last"](x) if x.dim() == 4 else x, size, STRONG, kernel_size, stride)


@pytest.mark.parametrize("blocks", cases([(1, 3), (3, 2), (9, 1)], "(3, 2)"))
@pytest.mark.parametrize("kernel_size", cases([1, 2, 3, (4, 5), (5, 2)], "2", "3", "(5, 2)"))
@pytest.mark.parametrize("stride", cases([1, 2, (3, 4)], "2"))
def test_blocks_of_pixels(stride, kernel_size, blocks, guarded):
    """Rows that two windows share are carried over. Rows that more than two share are read again."""
    tile = dict(zip(("BLOCK_P", "BLOCK_Q"), blocks, strict=True))
    with tiles.use("lrn_max_pool2d", {"BLOCK_M": 256, **tile}):
        check(guarded, LAYOUTS["channels_last"](randn(2, 5, 11, 8)), 3, STRONG, kernel_size, stride)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("scale", cases([1e-3, 1.0, 1e4], "1.0"))
def test_three_quarters(scale, dtype, guarded):
    """The exponent that needs only square roots. In float16 the kernel compares squares, also negative ones."""
    x = scale * randn(2, 9, 9, 7)
    x[1] = -x[1].abs()
    check(guarded, x.to(dtype), 5, (0.7, 0.75, 0.5), 3, 2)


@pytest.mark.parametrize("size", cases([1, 2, 8, 17, 40], "2", "17"))
def test_windows_of_channels(size, guarded):
    """Windows that end inside a thread's 16 bytes, at their edges, and far outside."""
    check(guarded, LAYOUTS["channels_last"](randn(1, 24, 5, 5, dtype=torch.float16)), size, STRONG, 3, 2)


def test_a_window_far_larger_than_the_channels(guarded):
    """Like a window of 11, which also holds all 5 channels. PyTorch would pad with as many as the window has."""
    ours = lambda x: kernels.lrn_max_pool2d(x, 2**40, 2.0**40, 0.75, 1.0, 3, 2)
    theirs = lambda x: reference.lrn_max_pool2d(x, 11, 11.0, 0.75, 1.0, 3, 2)
    x = randn(2, 5, 7, 7)
    assert_close(ours(guarded(x)), theirs(x))
    assert_gradients(ours, theirs, [x], guarded)


@FORMULA
def test_formulas(formula, guarded):
    check(guarded, 10 * randn(2, 9, 5, 5), 5, formula, 3, 2)


def test_negative_numbers(guarded):
    check(guarded, -randn(2, 9, 5, 5).abs(), 5, STRONG, 3, 2)


@LAYOUT
def test_layouts(layout, guarded):
    check(guarded, LAYOUTS[layout](randn(2, 5, 7, 9)), 5, STRONG, 3, 2)


@DTYPE
@pytest.mark.parametrize("layer", cases(["pool1", "pool2"], "pool2"))
def test_alexnet(layer, dtype, guarded):
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    x = LAYOUTS["channels_last"](30 * randn(1, *shape, dtype=dtype))
    check(guarded, x, 5, (1e-4, 0.75, 1.0), 3, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_and_infinity_spread_as_in_pytorch(dtype, guarded):
    x = randn(1, 12, 9, 9, dtype=dtype)
    x[0, 3, 0, 0], x[0, 5, 4, 4], x[0, 11, 8, 1] = float("nan"), float("inf"), float("-inf")
    for formula in (STRONG, (0.7, 0.75, 0.5)):
        check(guarded, x, 5, formula, 3, 2)


def test_squares_may_overflow_float16(guarded):
    check(guarded, (3e4 * randn(1, 9, 5, 5).clamp(-2, 2)).half(), 5, (1e-4, 0.75, 1.0), 3, 2)


def undecided(x, size, formula, kernel_size, stride):
    """Windows whose two largest pixels are so close that float32 may choose one, and float64 the other."""
    y = F.local_response_norm(exact(x) if x.dim() == 4 else exact(x)[None], size, *formula)
    (R, S), (U, V) = ((v, v) if isinstance(v, int) else v for v in (kernel_size, stride))
    windows = y.unfold(2, R, U).unfold(3, S, V).flatten(4)  # [N, C, P, Q, R * S]
    best = windows.amax(-1, keepdim=True)
    close = ((windows < best) & (windows > best - 3e-6 * best.abs())).any(-1)
    return close if x.dim() == 4 else close[0]


def check_gradient(guarded, x, size, formula, kernel_size, stride):
    close = undecided(x, size, formula, kernel_size, stride)
    assert close.sum() <= 1e-3 * close.numel()
    arguments = (size, *formula, kernel_size, stride)
    ours = lambda x: kernels.lrn_max_pool2d(x, *arguments).masked_fill(close.to(x.device), 0.0)
    assert_gradients(ours, lambda x: reference.lrn_max_pool2d(x, *arguments).masked_fill(close, 0.0), [x], guarded)


@pytest.mark.parametrize(
    "case",
    cases(
        [case for case in CASES if case != "pair-of-one"], "7-square", "channels-48", "stride-over-window", "image-only"
    ),
)
def test_gradient(case, guarded):
    shape, size, kernel_size, stride = CASES[case]
    x = randn(*shape)
    check_gradient(guarded, LAYOUTS["channels_last"](x) if x.dim() == 4 else x, size, STRONG, kernel_size, stride)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
@pytest.mark.parametrize("beta", cases([0.6, 0.75], "0.75"))
@pytest.mark.parametrize("case", cases(["7-square", "channels-48", "even-window"], "even-window"))
def test_gradient_of_16_bits(case, beta, dtype, guarded):
    shape, size, kernel_size, stride = CASES[case]
    x = LAYOUTS["channels_last"](randn(*shape, dtype=dtype))
    check_gradient(guarded, x, size, (0.7, beta, 0.5), kernel_size, stride)


@pytest.mark.parametrize("case", cases(["even-window", "stride-over-window"], "stride-over-window"))
def test_gradient_in_small_tiles(case, guarded, small_tiles):
    shape, size, kernel_size, stride = CASES[case]
    check_gradient(guarded, LAYOUTS["channels_last"](randn(*shape)), size, STRONG, kernel_size, stride)


def check_argmax(guarded, x, formula, kernel_size, stride, config):
    """Against PyTorch's indices. Windows of one channel, so that equal numbers stay equal when they are normalised."""
    (R, S), (U, V) = ((v, v) if isinstance(v, int) else v for v in (kernel_size, stride))
    with tiles.use("lrn_max_pool2d", config):
        y, argmax = torch.ops.alexnet.lrn_max_pool2d(guarded(x), 1, *formula, [R, S], [U, V], True)
    normalised = reference.local_response_norm(x, 1, *formula)
    expected, indices = F.max_pool2d(normalised, (R, S), (U, V), return_indices=True)
    h, w = torch.arange(y.shape[2])[:, None] * U, torch.arange(y.shape[3]) * V
    assert_close(y, expected, x.dtype)
    assert torch.equal(argmax.cpu(), (indices // x.shape[3] - h) * S + indices % x.shape[3] - w)


@pytest.mark.parametrize("blocks", cases([(1, 1), (1, 3), (3, 2)], "(3, 2)"))
@pytest.mark.parametrize("kernel_size", cases([1, 3, (4, 5)], "3", "(4, 5)"))
@pytest.mark.parametrize("stride", cases([1, 2, (3, 4)], "2"))
def test_argmax_of_blocks_of_pixels(stride, kernel_size, blocks, guarded):
    """It is carried from window to window with the maxima: the first of equals, which few distinct numbers make likely,
    and the last NaN."""
    x = torch.randint(-1, 3, (1, 2, 11, 8)).float()
    x[torch.rand(x.shape) < 0.05] = float("nan")
    config = {"BLOCK_M": 256, "BLOCK_P": blocks[0], "BLOCK_Q": blocks[1]}
    check_argmax(guarded, LAYOUTS["channels_last"](x), (0.1, 0.6, 1.0), kernel_size, stride, config)


def test_argmax_of_squares(guarded):
    """In float16 with beta = 3/4 the kernel compares squares."""
    x = torch.randint(-2, 3, (1, 3, 11, 8)).half()
    x[torch.rand(x.shape) < 0.05] = float("nan")
    check_argmax(guarded, x, (0.1, 0.75, 1.0), 3, 2, {"BLOCK_M": 256, "BLOCK_P": 3, "BLOCK_Q": 2})


@pytest.mark.parametrize(
    "size, vectors",
    [
        *((5, 2), (17, 2)),
        *(pytest.param(*case, marks=pytest.mark.full) for case in ((1, 2), (2, 2), (5, 1), (5, 3), (8, 2), (40, 3))),
    ],
)
def test_gradient_of_windows_of_channels(size, vectors, guarded):
    """``vectors`` of 16 bytes per thread."""
    with tiles.use("lrn_max_pool2d_gradient", {"BLOCK_M": 64, "BLOCK_C": vectors}):
        x = LAYOUTS["channels_last"](randn(1, 24, 3, 3, dtype=torch.float16))
        check_gradient(guarded, x, size, STRONG, 2, 1)


@FORMULA
def test_gradient_of_formulas(formula, guarded):
    check_gradient(guarded, 10 * randn(2, 9, 5, 5), 5, formula, 3, 2)


@LAYOUT
def test_gradient_layouts(layout, guarded):
    check_gradient(guarded, LAYOUTS[layout](randn(2, 5, 7, 9)), 5, STRONG, 3, 2)


@DTYPE
@pytest.mark.parametrize("layer", cases(["pool1", "pool2"], "pool2"))
def test_gradient_alexnet(layer, dtype, guarded):
    """After a ReLU, so that half of the numbers are equal."""
    (shape,) = (x.input for x in ALEXNET if x.name == layer)
    x = LAYOUTS["channels_last"](30 * randn(1, *shape, dtype=dtype).relu())
    check_gradient(guarded, x, 5, (1e-4, 0.75, 1.0), 3, 2)


@pytest.mark.parametrize("beta", [0.6, 0.75])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_the_argmax_is_chosen_before_rounding(dtype, beta, guarded):
    """The second pixel is larger by too little for 16 bits: rounded, the two are equal, and the first would win."""
    formula = (0.02, beta, 1.0)
    x = torch.ones(1, 2, 1, 2, dtype=dtype)
    x[0, 0, 0, 1] -= 2 * torch.finfo(dtype).eps  # a smaller neighbour below divides by less
    first, second = reference.local_response_norm(x, 2, *formula)[0, 1, 0]
    assert second > first and second.to(dtype) == first.to(dtype)
    check_gradient(guarded, x, 2, formula, (1, 2), 1)


def test_gradient_of_a_sum_is_expanded(guarded):
    x = randn(2, 5, 7, 7)
    ours = guarded(x).requires_grad_()
    theirs = exact(x).requires_grad_()
    kernels.lrn_max_pool2d(ours, 5, *STRONG, 3, 2).sum().backward()
    reference.lrn_max_pool2d(theirs, 5, *STRONG, 3, 2).sum().backward()
    assert_close(ours.grad, theirs.grad)


@pytest.mark.full
def test_gradient_of_windows_whose_argmax_does_not_fit_in_a_byte(guarded):
    x = randn(1, 1, 17, 17)
    x[..., 15, 15] = 5  # the last tap of the first window
    check_gradient(guarded, x, 1, (0.1, 0.5, 1.0), 16, 1)


@pytest.mark.parametrize("recorded", [False, True], ids=["inference", "training"])
def test_the_argmax_is_stored_only_for_a_gradient(recorded, guarded):
    x = guarded(randn(2, 3, 7, 7))
    with runtime.record_launches() as launches:
        kernels.lrn_max_pool2d(x.requires_grad_(recorded), 5, *STRONG, 3, 2)
        with torch.no_grad():
            kernels.lrn_max_pool2d(x, 5, *STRONG, 3, 2)
    assert [launch.constants["ARGMAX"] for launch in launches] == [recorded, False]
    sizes = [(launch.args[2].dtype, launch.args[2].numel()) for launch in launches]
    assert sizes == [(torch.uint8, launches[0].args[1].numel() if recorded else 0), (torch.uint8, 0)]


def test_a_second_derivative_is_refused(guarded):
    x = guarded(randn(1, 2, 5, 5)).requires_grad_()
    (dx,) = torch.autograd.grad(kernels.lrn_max_pool2d(x, 3, *STRONG, 3, 1).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="lrn_max_pool2d_gradient has no gradient"):
        dx.sum().backward()


def test_gradcheck(guarded):
    """Of numbers so far apart that no step changes an argmax."""
    x = guarded(torch.randperm(2 * 2 * 3).reshape(1, 2, 2, 3) / 10 + 0.5).requires_grad_()
    both = lambda x: kernels.lrn_max_pool2d(x, 2, 0.01, 0.75, 1.0, (1, 2), 1)
    assert torch.autograd.gradcheck(both, (x,), eps=1e-2, atol=1e-3, rtol=1e-3)


@pytest.mark.unguarded  # a guarded tensor is a view, unlike its fake counterpart
def test_registered_with_its_gradient(device):
    x = torch.randn(2, 4, 7, 7, device=device, requires_grad=True)
    arguments = (x, 5, 1e-4, 0.75, 1.0, [3, 3], [2, 2], True)
    torch.library.opcheck(torch.ops.alexnet.lrn_max_pool2d.default, arguments)


def plain(input, size, alpha, beta, k, kernel_size, stride):
    return F.max_pool2d(F.local_response_norm(input, size, alpha, beta, k), kernel_size, stride)


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(2, 5, 7, 7), "size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0, "kernel_size": 3, "stride": 2}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "input-2d": ({"input": T(7, 7)}, ("input", "(7, 7)")),
    "input-5d": ({"input": T(1, 1, 1, 7, 7)}, ("input", "(1, 1, 1, 7, 7)")),
    "no-channels": ({"input": T(2, 0, 7, 7)}, ("input", "(2, 0, 7, 7)")),
    "size-0": ({"size": 0}, ("size", "0")),
    "size-float": ({"size": 5.0}, ("size", "5.0")),
    "alpha-none": ({"alpha": None}, ("alpha", "None")),
    "beta-string": ({"beta": "1"}, ("beta", "'1'")),
    "k-none": ({"k": None}, ("k", "None")),
    "kernel-0": ({"kernel_size": 0}, ("kernel_size", "0")),
    "kernel-float": ({"kernel_size": 3.0}, ("kernel_size", "3.0")),
    "kernel-three": ({"kernel_size": (3, 3, 3)}, ("kernel_size", "(3, 3, 3)")),
    "kernel-too-large": ({"kernel_size": (3, 8)}, ("kernel_size=(3, 8)", "(2, 5, 7, 7)")),
    "stride-0": ({"stride": 0}, ("stride", "0")),
    "stride-negative": ({"stride": (1, -1)}, ("stride", "-1")),
    "stride-float": ({"stride": 1.5}, ("stride", "1.5")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.lrn_max_pool2d, plain, {**BASE, **arguments}, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"lrn_max_pool2d: input must be float32.*got {dtype}"):
        kernels.lrn_max_pool2d(**{**BASE, "input": T(2, 5, 7, 7, dtype=dtype)})


@pytest.mark.parametrize("size", [1, 2, 4, 5, 9])
def test_plain_pytorch_on_a_cpu(size):
    """torch_ops' own form, which is faster without a GPU, equals PyTorch's; also under autocast."""
    x = torch.randn(2, 7, 6, 5, dtype=torch.float64, requires_grad=True)
    results = [
        torch_ops.lrn_max_pool2d(x, size, *STRONG, 3, 2),
        F.max_pool2d(F.local_response_norm(x, size, *STRONG), 3, 2),
    ]
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    assert torch.allclose(*results, rtol=1e-13, atol=0)
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch_ops.lrn_max_pool2d(x.float(), size, *STRONG, 3, 2)
    assert y.dtype == torch.float32 and torch.allclose(y.double(), results[1], rtol=1e-5, atol=0)
