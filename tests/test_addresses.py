"""Addresses past 2^31 elements.

Interpreted, memory is only virtual until it is touched: a launch runs its last program alone, at the far end of
tensors that are otherwise never written. Compiled on a GPU, the whole launch runs and its far end is compared.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl

import kernels
from kernels import runtime
from kernels.ops.space_to_depth import launch_space_to_depth
from tests import reference
from tests.reference import assert_close

pytestmark = pytest.mark.unguarded

DTYPE = torch.bfloat16


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Collects the constants of launches. If kernels are interpreted, only the last program of each launch runs."""
    recorded = []
    run = runtime.launch

    def launch(kernel, grid, *args, **constants):
        recorded.append(constants)
        if not runtime.INTERPRETED:
            run(kernel, grid, *args, **constants)
            return
        from triton.runtime import interpreter

        last = [size - 1 for size in grid(constants)]
        program_id = lambda axis: interpreter.TensorHandle(np.array([last[axis]], dtype=np.int32), tl.int32)
        with monkeypatch.context() as patch:
            patch.setattr(interpreter.interpreter_builder, "create_get_program_id", program_id)
            run(kernel, lambda META: (1,), *args, **constants)

    monkeypatch.setattr(runtime, "launch", launch)
    return recorded


def zeros(*shape: int, device) -> torch.Tensor:
    """A bfloat16 tensor in untouched pages, channels last if 4-D, with as many bytes again before and after it.

    An address that wraps around at 2^31 lands in these, and not in other memory.
    """
    if len(shape) == 4:
        N, C, H, W = shape
        return _zeros(N, H, W, C, device=device).permute(0, 3, 1, 2)
    return _zeros(*shape, device=device)


def _zeros(*shape: int, device) -> torch.Tensor:
    if not runtime.INTERPRETED:
        return torch.zeros(shape, dtype=DTYPE, device=device)
    elements, margin = int(np.prod(shape)), 2**31
    memory = torch.from_numpy(np.zeros(elements + 2 * margin, dtype=np.int16)).view(DTYPE)  # calloc touches no page
    return memory[margin : margin + elements].view(shape)


@pytest.fixture(autouse=True)
def virtual_outputs(monkeypatch):
    """Outputs get the same margins."""
    empty = torch.empty

    def allocate(shape, *, dtype, device, memory_format=None):
        if dtype is not DTYPE:
            return empty(shape, dtype=dtype, device=device, memory_format=memory_format or torch.contiguous_format)
        return (zeros if memory_format is torch.channels_last else _zeros)(*shape, device=device)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: zeros(*x.shape, device=x.device))


def check(actual, expected, launches):
    assert [constants["INDEX"] for constants in launches] == [tl.int64]
    actual, expected = (t[..., -8:] for t in (actual, expected))  # all in the last tile
    assert expected.abs().max() > 0
    assert_close(actual, expected, DTYPE)


SIDE = 11600  # 16 channels of 11600 x 11600 pixels are more than 2^31 elements


def test_conv2d_output(device, launches):
    x, w = zeros(1, 1, SIDE, SIDE, device=device), torch.randn(16, 1, 1, 1, device=device).to(DTYPE)
    x[:, :, -1] = torch.randn(SIDE).to(DTYPE)
    y = kernels.conv2d(x, w)
    check(y[:, :, -1:], reference.conv2d(x[:, :, -1:], w), launches)


def test_conv2d_input(device, launches):
    x, w = zeros(1, 16, SIDE, SIDE, device=device), torch.randn(3, 16, 3, 3, device=device).to(DTYPE)
    x[:, :, -4:] = torch.randn(16, 4, SIDE).to(DTYPE)
    y = kernels.conv2d(x, w, stride=2)
    check(y[:, :, -1:], reference.conv2d(x[:, :, -4:], w, stride=2), launches)


def test_conv2d_batch(device, launches):
    x, w = zeros(1026, 128, 128, 128, device=device), torch.randn(8, 64, 3, 3, device=device).to(DTYPE)
    x[-1] = torch.randn(128, 128, 128).to(DTYPE)
    y = kernels.conv2d(x, w, padding=1, groups=2)
    check(y[-1:, 4:, -1], reference.conv2d(x[-1:], w, padding=1, groups=2)[:, 4:, -1], launches)


def test_conv2d_weight(device, launches):
    x, w = torch.randn(1, 2**14, 1, 1, device=device).to(DTYPE), zeros(2**17 + 1, 2**14, 1, 1, device=device)
    w[-1] = torch.randn(2**14, 1, 1).to(DTYPE)
    check(kernels.conv2d(x, w)[:, -1:], reference.conv2d(x, w[-1:]), launches)


def test_linear_input(device, launches):
    x, w = zeros(2**17 + 1, 2**14, device=device), torch.randn(3, 2**14, device=device).to(DTYPE)
    x[-1] = torch.randn(2**14).to(DTYPE)
    check(kernels.linear(x, w)[-1:], reference.linear(x[-1:], w), launches)


def test_linear_weight(device, launches):
    x, w = torch.randn(2, 2**14, device=device).to(DTYPE), zeros(2**17 + 1, 2**14, device=device)
    w[-1] = torch.randn(2**14).to(DTYPE)
    check(kernels.linear(x, w)[:, -1:], reference.linear(x, w[-1:]), launches)


def test_linear_output(device, launches):
    x, w = zeros(2**17 + 1, 1, device=device), torch.randn(2**14, 1, device=device).to(DTYPE)
    x[-1] = 1.5
    check(kernels.linear(x, w)[-1:, -512:], reference.linear(x[-1:], w[-512:]), launches)


def test_linear_input_gradient(device, launches):
    """One step covers 33 rows of a weight, of 2^26 elements each."""
    grad, w = torch.randn(2, 33, device=device).to(DTYPE), zeros(33, 2**26, device=device)
    w[:, -8:] = torch.randn(33, 8).to(DTYPE)
    dx = torch.ops.alexnet.linear_input_gradient(grad, w)
    check(dx, reference.exact(grad) @ reference.exact(w[:, -8:]), launches)


def test_bias_relu(device, launches):
    x, bias = zeros(1, 16, SIDE, SIDE, device=device), torch.randn(16, 1, 1, device=device).to(DTYPE)
    x[:, :, -1] = torch.randn(16, SIDE).to(DTYPE)
    check(kernels.bias_relu(x, bias)[:, :, -1], reference.bias_relu(x[:, :, -1:], bias)[:, :, -1], launches)


def test_local_response_norm(device, launches):
    x = zeros(1, 16, SIDE, SIDE, device=device)
    x[:, :, -1] = torch.randn(16, SIDE).to(DTYPE)
    arguments = (5, 0.5, 0.75, 1.0)
    actual = kernels.local_response_norm(x, *arguments)[:, :, -1]
    check(actual, reference.local_response_norm(x[:, :, -1:], *arguments)[:, :, -1], launches)


def test_max_pool2d(device, launches):
    x = zeros(1, 16, SIDE, SIDE, device=device)
    x[:, :, -4:] = torch.randn(16, 4, SIDE).to(DTYPE)
    check(kernels.max_pool2d(x, 3, 2)[:, :, -1:], reference.max_pool2d(x[:, :, -4:], 3, 2), launches)


def test_max_pool2d_output(device, launches):
    """With padding the output is larger than the input: here four times as large, 2^31 elements."""
    x = zeros(1, 2**29, 1, 1, device=device)
    x[:, -8:] = torch.randn(8, 1, 1).to(DTYPE)
    y = kernels.max_pool2d(x, 2, 1, 1)
    check(y[0, -8:, -1, -1], reference.max_pool2d(x[:, -8:], 2, 1, 1)[0, :, -1, -1], launches)


def test_space_to_depth_of_planes(device, launches):
    """In NCHW memory the third plane begins at element 2^31."""
    x = _zeros(1, 3, 2**15, 2**15, device=device)
    x[:, :, -4:] = torch.randn(3, 4, 2**15).to(DTYPE)
    y = launch_space_to_depth(x, 4, 0, 0, 2**13, 2**13)
    expected = F.pixel_unshuffle(reference.exact(x[:, :, -4:]), 4)[0, :, 0].unflatten(0, (3, 16))
    check(y[0, :, -1], expected.transpose(0, 1).flatten(0, 1), launches)  # channels last of the three


def test_lrn_max_pool2d(device, launches):
    x = zeros(1, 16, SIDE, SIDE, device=device)
    x[:, :, -4:] = torch.randn(16, 4, SIDE).to(DTYPE)
    arguments = (5, 0.5, 0.75, 1.0, 3, 2)
    actual = kernels.lrn_max_pool2d(x, *arguments)[:, :, -1:]
    check(actual, reference.lrn_max_pool2d(x[:, :, -4:], *arguments), launches)


@pytest.mark.parametrize(
    "operator, arguments",
    [
        ("local_response_norm", (5, 0.5, 0.75, 1.0)),
        ("max_pool2d", (3, 2)),
        ("lrn_max_pool2d", (5, 0.5, 0.75, 1.0, 3, 2)),
    ],
)
def test_gradients_of_feature_maps(operator, arguments, device, launches):
    x = zeros(1, 16, SIDE, SIDE, device=device)
    x[:, :, -4:] = torch.randn(16, 4, SIDE).to(DTYPE)
    end = reference.exact(x[:, :, -4:]).requires_grad_()
    y = getattr(kernels, operator)(x.requires_grad_(), *arguments)
    z = getattr(reference, operator)(end, *arguments)
    dy, dz = zeros(*y.shape, device=device), torch.randn(z.shape).to(DTYPE)
    dy[:, :, -z.shape[2] :] = dz
    (dx,) = torch.autograd.grad(y, x, dy)
    (expected,) = torch.autograd.grad(z, end, reference.exact(dz))
    check(dx[:, :, -2], expected[:, :, -2], launches[-1:])  # the last row that is in a window


def test_softmax(device, launches):
    x = zeros(2**17 + 1, 2**14, device=device)
    x[-1] = torch.randn(2**14).to(DTYPE)
    check(kernels.softmax(x)[-1:], reference.softmax(x[-1:]), launches)


def test_dropout(device, launches):
    x = zeros(2**31 + 100, device=device)
    x[-100:] = 1.0
    y = kernels.dropout(x, 0.5, seed=3)[-100:]
    assert set(y.tolist()) == {0.0, 2.0}
    assert [constants["INDEX"] for constants in launches] == [tl.int64]
