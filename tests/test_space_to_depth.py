"""kernels.ops.space_to_depth against pixel_unshuffle, and the strided convolutions that run folded."""

import pytest
import torch
from torch.nn import functional as F

import kernels
from kernels import runtime
from kernels.ops.space_to_depth import folds, launch_space_to_depth
from tests import reference
from tests.reference import DTYPES, assert_close, cases, randn

DTYPE = pytest.mark.parametrize("dtype", cases(DTYPES, "float32"))

LAYOUTS = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.stack([x, x], -1)[..., 0],
}


def expected(x, block, top, left, height, width):
    """pixel_unshuffle of the padded or cropped input. Its channels are (c, dr, ds), ours are (dr, ds, c)."""
    _, C, H, W = x.shape
    padded = F.pad(x, (left, max(width * block - left - W, 0), top, max(height * block - top - H, 0)))
    cropped = padded[:, :, : height * block, : width * block]
    folded = F.pixel_unshuffle(cropped, block).unflatten(1, (C, block * block))
    return folded.transpose(1, 2).flatten(1, 2)


@DTYPE
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 3, 227, 227), (4, 0, 0, 57, 57)),
        ((96, 3, 11, 11), (4, 0, 0, 3, 3)),
        ((2, 5, 7, 9), (2, 0, 0, 4, 5)),
        ((2, 5, 7, 9), (2, 1, 2, 6, 7)),
        ((1, 1, 31, 7), (3, 2, 1, 9, 2)),
        ((3, 2, 1, 1), (4, 3, 3, 1, 1)),
    ],
    ids=["photo", "filters", "rest", "padded", "cropped", "pixel"],
)
def test_matches_pixel_unshuffle(shape, arguments, layout, dtype, guarded):
    x = randn(*shape, dtype=dtype)
    actual = launch_space_to_depth(guarded(LAYOUTS[layout](x)), *arguments)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(actual.cpu(), expected(x, *arguments))


def test_small_tiles(small_tiles, guarded):
    x = randn(2, 3, 13, 11)
    assert torch.equal(launch_space_to_depth(guarded(x), 4, 1, 2, 4, 4).cpu(), expected(x, 4, 1, 2, 4, 4))


@pytest.mark.parametrize(
    ("input", "weight", "stride", "padding"),
    [
        ((2, 3, 31, 35), (6, 3, 11, 11), 4, 0),
        ((2, 3, 31, 35), (6, 3, 11, 11), 4, 2),
        ((1, 3, 30, 29), (5, 3, 4, 5), 4, (1, 3)),
        ((1, 2, 9, 8), (4, 2, 3, 2), 2, 1),
        ((1, 4, 11, 11), (4, 4, 3, 3), 2, (0, 1)),
    ],
    ids=["conv1", "padded", "filter-of-a-block", "even", "one-side"],
)
def test_folded_convolution(input, weight, stride, padding, guarded):
    x, w, b = randn(*input), randn(*weight), randn(weight[0])
    assert folds(w.shape, [stride, stride], [1, 1], 1)
    actual = kernels.conv2d(guarded(x), guarded(w), guarded(b), stride, padding, relu=True)
    assert_close(actual, reference.conv2d(x, w, b, stride, padding, relu=True), torch.float32)


@pytest.mark.parametrize(
    ("weight", "stride", "dilation", "groups"),
    [
        ((6, 8, 3, 3), (2, 2), (1, 1), 1),
        ((6, 3, 3, 3), (1, 1), (1, 1), 1),
        ((6, 3, 3, 3), (4, 4), (1, 1), 1),
        ((6, 3, 5, 5), (4, 2), (1, 1), 1),
        ((6, 3, 5, 5), (4, 4), (2, 2), 1),
        ((6, 3, 5, 5), (4, 4), (1, 1), 2),
        ((6, 1, 5, 5), (2, 2), (1, 1), 1),
    ],
    ids=["wide-enough", "dense", "filter-under-a-block", "oblong", "dilated", "groups", "still-narrow"],
)
def test_what_is_not_folded(weight, stride, dilation, groups):
    assert not folds(weight, stride, dilation, groups)


def test_conv1_launches_three_kernels(device):
    with runtime.record_launches() as launches:
        kernels.conv2d(torch.empty(1, 3, 227, 227, device=device), torch.empty(96, 3, 11, 11, device=device), stride=4)
    names = [launch.kernel.__name__ for launch in launches]
    split = [] if runtime.mode() == "interpreted" else ["_add_partials_kernel"]  # one photo is too little for a GPU
    assert names == ["_space_to_depth_kernel", "_space_to_depth_kernel", "_conv2d_kernel", *split]
