"""The operators' costs: AlexNet's published numbers, and cases that are small enough to count by hand."""

import itertools
import math

import pytest
import torch

from kernels.tools import cost, workloads
from kernels.tools.workloads import ALEXNET
from tests import reference

# BVLC's deploy.prototxt: output of one image, parameters, multiply-accumulates.
PUBLISHED = {
    "conv1": ((96, 55, 55), 34_944, 105_415_200),
    "pool1": ((96, 27, 27), 0, 0),
    "conv2": ((256, 27, 27), 307_456, 223_948_800),
    "pool2": ((256, 13, 13), 0, 0),
    "conv3": ((384, 13, 13), 885_120, 149_520_384),
    "conv4": ((384, 13, 13), 663_936, 112_140_288),
    "conv5": ((256, 13, 13), 442_624, 74_760_192),
    "pool5": ((256, 6, 6), 0, 0),
    "fc6": ((4096,), 37_752_832, 37_748_736),
    "fc7": ((4096,), 16_781_312, 16_777_216),
    "fc8": ((1000,), 4_097_000, 4_096_000),
}
LAYERS = {layer.name: layer for layer in ALEXNET}


def parameters(layer):
    return sum(math.prod(shape) for shape in layer.parameters)


def test_layers_in_order():
    assert list(LAYERS) == list(PUBLISHED)


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("layer", PUBLISHED)
def test_published_layers(layer, batch):
    output, parameters_, macs = PUBLISHED[layer]
    least = LAYERS[layer].cost(batch)
    assert least.output == (batch, *output)
    assert parameters(LAYERS[layer]) == parameters_
    assert least.macs == batch * macs


def test_published_totals():
    assert sum(parameters(layer) for layer in ALEXNET) == 60_965_224
    assert sum(layer.cost().macs for layer in ALEXNET) == 724_406_816


@pytest.mark.parametrize("before, after", list(itertools.pairwise(ALEXNET)), ids=lambda x: x.name)
def test_layers_fit_together(before, after):
    assert math.prod(before.cost().output) == math.prod(after.input)


@pytest.mark.parametrize("batch, floor", [(1, 42), (16, 73), (128, 314), (256, 588), (1024, 2327)])
def test_floor(batch, floor):
    """Microseconds in float16 at 800 TFLOP/s and 3.0 TB/s: the larger of arithmetic and memory, layer by layer."""
    costs = [layer.cost(batch, itemsize=2) for layer in ALEXNET]
    assert round(sum(max(c.flops / 800e12, c.bytes / 3.0e12) for c in costs) * 1e6) == floor


@pytest.mark.parametrize(
    "input, weight, arguments",
    [
        ((2, 3, 7, 9), (5, 3, 3, 2), {}),
        ((2, 3, 7, 9), (5, 3, 3, 2), {"stride": (2, 3), "padding": (1, 2)}),
        ((1, 3, 11, 9), (5, 3, 3, 2), {"dilation": (3, 2)}),
    ],
)
def test_conv2d(input, weight, arguments):
    output = reference.conv2d(torch.ones(input), torch.ones(weight), **arguments)
    least = cost.conv2d(input, weight, **arguments)
    assert least.output == output.shape
    assert least.macs == output.numel() * math.prod(weight[1:])
    assert least.flops == 2 * least.macs
    assert least.bytes == 4 * (math.prod(input) + math.prod(weight) + weight[0] + output.numel())
    assert cost.conv2d(input, weight, **arguments, bias=False).bytes == least.bytes - 4 * weight[0]


def test_groups_divide_the_work():
    """With two groups, each half of the filters sees half of the channels."""
    assert cost.conv2d((1, 4, 1, 1), (6, 2, 1, 1)).macs * 2 == cost.conv2d((1, 4, 1, 1), (6, 4, 1, 1)).macs


@pytest.mark.parametrize("bias, elements", [(True, 10 + 35 + 7 + 14), (False, 10 + 35 + 14)])
def test_linear(bias, elements):
    assert cost.linear((2, 5), (7, 5), bias=bias, itemsize=2) == ((2, 7), 70, 140, 2 * elements)


def test_local_response_norm():
    assert cost.local_response_norm((1, 2, 3, 4), 5) == ((1, 2, 3, 4), 0, 24 * 14, 4 * 48)


def test_max_pool2d():
    assert cost.max_pool2d((1, 2, 7, 5), (3, 2), (2, 1)) == ((1, 2, 3, 4), 0, 24 * 5, 4 * (70 + 24))


def test_lrn_max_pool2d():
    least = cost.lrn_max_pool2d((1, 2, 7, 5), 5, (3, 2), (2, 1), itemsize=2)
    assert least == ((1, 2, 3, 4), 0, 70 * 14 + 24 * 5, 2 * (70 + 24))


def test_elementwise():
    assert cost.bias_relu((2, 3), (3,)) == ((2, 3), 0, 12, 4 * (12 + 3))
    assert cost.dropout((2, 3), itemsize=2) == ((2, 3), 0, 12, 2 * 12)
    assert cost.softmax((2, 3), itemsize=2) == ((2, 3), 0, 24, 2 * 12)


def test_cross_entropy():
    assert cost.cross_entropy((2, 3), itemsize=2) == ((2,), 0, 30, 2 * 6 + 2 * 12)


@pytest.mark.parametrize("layer", [*LAYERS, "relu1", "norm1", "drop6", "prob"])
def test_gradients_have_the_inputs_shape_and_a_product_is_two_more(layer):
    layer = workloads.WORKLOADS[layer]
    forward, backward = layer.cost(2), layer.cost(2, backward=True)
    assert backward.output == (2, *layer.input)
    assert backward.macs == forward.macs * (1 if layer.first else 2)


def test_bytes_of_gradients():
    """Read are the gradient and what was kept; written are the needed gradients. A pooling's argmax is one byte."""
    x, w, y = 2 * 5, 7 * 5, 2 * 7
    assert cost.linear_gradient((2, 5), (7, 5)).bytes == 4 * (y + x + w + w + 7 + x)
    assert cost.linear_gradient((2, 5), (7, 5), relu=True).bytes == 4 * (2 * y + x + w + w + 7 + x)
    assert cost.linear_gradient((2, 5), (7, 5), first=True, bias=False).bytes == 4 * (y + x + w)
    conv = cost.conv2d_gradient((1, 4, 5, 5), (6, 2, 3, 3), relu=True)
    assert conv == ((1, 4, 5, 5), 2 * 9 * 6 * 18, 4 * 9 * 6 * 18, 4 * (2 * 54 + 2 * 100 + 2 * 108 + 6))
    pool = cost.max_pool2d_gradient((1, 2, 7, 5), (3, 2), (2, 1), itemsize=2)
    assert pool == ((1, 2, 7, 5), 0, 24, 2 * (24 + 70) + 24)
    both = cost.lrn_max_pool2d_gradient((1, 2, 7, 5), 5, (3, 2), (2, 1), itemsize=2)
    assert both == ((1, 2, 7, 5), 0, 70 * 30 + 24, 2 * (24 + 70 + 70) + 24)
    assert cost.local_response_norm_gradient((1, 2, 3, 4), 5) == ((1, 2, 3, 4), 0, 24 * 30, 4 * 72)
    assert cost.bias_relu_gradient((2, 3), (3,)) == ((2, 3), 0, 12, 4 * (18 + 3))
    assert cost.dropout_gradient((2, 3)) == ((2, 3), 0, 12, 4 * 12)
    assert cost.softmax_gradient((2, 3)) == ((2, 3), 0, 24, 4 * 18)
