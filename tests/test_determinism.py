"""The same bits from run to run, forward and backward: partial sums are added in a fixed order."""

import pytest
import torch

import kernels

SUMS = {  # of several programs' partial sums
    "conv2d": (lambda *a: kernels.conv2d(*a, padding=1, groups=2, relu=True), [(3, 32, 9, 9), (16, 16, 3, 3), (16,)]),
    "conv1": (lambda *a: kernels.conv2d(*a, stride=4, relu=True), [(2, 3, 19, 19), (16, 3, 11, 11), (16,)]),
    "linear": (lambda *a: kernels.linear(*a, relu=True), [(37, 150), (70, 150), (70,)]),
    "linear, one row": (kernels.linear, [(1, 150), (70, 150), (70,)]),
    "bias_relu": (kernels.bias_relu, [(67, 33), (33,)]),
}
OTHERS = {
    "local_response_norm": (lambda x: kernels.local_response_norm(x, 5, alpha=0.5), [(2, 20, 5, 5)]),
    "max_pool2d": (lambda x: kernels.max_pool2d(x, 3, 2), [(2, 20, 9, 9)]),
    "lrn_max_pool2d": (lambda x: kernels.lrn_max_pool2d(x, 5, 0.5, 0.75, 1.0, 3, 2), [(2, 20, 9, 9)]),
    "dropout": (lambda x: kernels.dropout(x, seed=3), [(300,)]),
    "softmax": (kernels.softmax, [(9, 70)]),
    "cross_entropy": (lambda x: kernels.cross_entropy(x, torch.arange(9, device=x.device)), [(9, 70)]),
}


def check(call, shapes, dtype, device):
    tensors = [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]
    weights, before = None, None
    for _ in range(3):
        output = call(*tensors)
        weights = torch.randn_like(output) if weights is None else weights
        found = [output, *torch.autograd.grad(output, tensors, weights)]
        assert before is None or all(torch.equal(one, other) for one, other in zip(found, before, strict=True))
        before = found


FULL = pytest.mark.full
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=FULL)], ids=str)


def cases(calls):
    """Convolutions take seconds in the interpreter."""
    return [pytest.param(*case, id=name, marks=[FULL] * ("conv" in name)) for name, case in calls.items()]


@DTYPES
@pytest.mark.parametrize(("call", "shapes"), cases(SUMS))
def test_sums_that_are_shared_out(call, shapes, dtype, device, small_tiles):
    check(call, shapes, dtype, device)


@DTYPES
@pytest.mark.parametrize(("call", "shapes"), cases(OTHERS))
def test_other_operators(call, shapes, dtype, device):
    check(call, shapes, dtype, device)
