"""The forward pass as a CUDA graph, for which filters are folded only once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

import kernels
from kernels import runtime
from kernels.ops.space_to_depth import fold_once
from model.alexnet import AlexNet
from model.cuda_graph import GraphedForward

needs_gpu = pytest.mark.skipif(runtime.INTERPRETED, reason="a CUDA graph takes a GPU")


def test_filters_fold_once_inside(device):
    x, w = torch.randn(1, 3, 15, 15, device=device), torch.randn(8, 3, 4, 4, device=device)
    with fold_once() as kept:
        with runtime.record_launches() as first:
            kernels.conv2d(x, w, stride=4)
        with runtime.record_launches() as second:
            kernels.conv2d(x, w, stride=4)
    assert len(first) == len(second) + 1 == 3
    assert len(kept) == 1
    with runtime.record_launches() as after:
        kernels.conv2d(x, w, stride=4)
    assert len(after) == 3


def test_nested_folding_and_other_threads(device):
    x, w = torch.randn(1, 3, 15, 15, device=device), torch.randn(8, 3, 4, 4, device=device)

    def launches():
        with runtime.record_launches() as recorded:
            kernels.conv2d(x, w, stride=4)
        return len(recorded)

    with fold_once() as outer, ThreadPoolExecutor(1) as threads:
        assert [threads.submit(launches).result(), threads.submit(launches).result()] == [3, 3] and not outer
        with fold_once() as inner:
            assert [launches(), launches()] == [3, 2] and len(inner) == 1
        assert not outer
        assert [launches(), launches()] == [3, 2] and len(outer) == 1


def test_folded_once_gives_the_same(device):
    x, w = torch.randn(2, 3, 15, 15, device=device), torch.randn(8, 3, 4, 4, device=device)
    expected = kernels.conv2d(x, w, stride=4)
    with fold_once():
        for _ in range(2):
            assert torch.equal(kernels.conv2d(x, w, stride=4), expected)


def test_other_filters_are_folded_on_their_own(device):
    x = torch.randn(1, 3, 15, 15, device=device)
    with fold_once():
        for _ in range(3):  # if not kept, they are freed, and the next get their address
            w = torch.randn(8, 3, 4, 4, device=device)
            inside = kernels.conv2d(x, w, stride=4)
            reference = torch.nn.functional.conv2d(x, w, stride=4)
            torch.testing.assert_close(inside, reference, rtol=1e-4, atol=1e-4)


def test_views_of_filters_and_other_strides_are_folded_on_their_own(device):
    x, w = torch.randn(1, 2, 16, 16, device=device), torch.randn(8, 2, 4, 4, device=device)
    with fold_once():
        for filters, stride in ((w, 4), (w, 2), (w[:, :, :, :2], 2), (w.transpose(2, 3), 2)):
            inside = kernels.conv2d(x, filters, stride=stride)
            reference = torch.nn.functional.conv2d(x, filters, stride=stride)
            torch.testing.assert_close(inside, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not runtime.INTERPRETED, reason="refused where there is no GPU")
def test_a_cpu_is_refused():
    with torch.device("meta"):
        net = AlexNet(num_classes=2)
    with pytest.raises(kernels.ArgumentError, match="takes a network on a GPU"):
        net.capture(4)


def test_buffers_around_a_graph(monkeypatch):
    """All but the graph itself needs no GPU: stand-ins for the network and the graph are enough."""
    parameter = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cpu"))
    net = MagicMock(training=False, side_effect=lambda x: x.abs().amax((1, 2, 3)))
    net.parameters.side_effect = lambda: iter([parameter])
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    run = GraphedForward(net, (4, 3, 5, 5))
    assert run.input.is_contiguous(memory_format=torch.channels_last) and not run.input.any()
    run.graph.replay = lambda: run.output.copy_(net(run.input))
    x = torch.randn(3, 3, 5, 5)
    first = run(x)
    assert torch.equal(run(torch.zeros_like(x)), torch.zeros(3))
    assert torch.equal(first, net(x)), "a later call's logits stand in an earlier one's"


@needs_gpu
def test_training_mode_is_refused(device):
    with pytest.raises(kernels.ArgumentError, match="evaluation mode"):
        AlexNet(num_classes=2).to(device).capture(4)


@needs_gpu
@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_graph_computes_what_the_network_does(count, device):
    net = AlexNet(num_classes=10).to(device, torch.float16).eval()
    run = net.capture(4)
    for _ in range(2):
        x = torch.randn(count, 3, 227, 227, device=device, dtype=torch.float16)
        with torch.inference_mode():
            torch.testing.assert_close(run(x), net(x), rtol=2e-2, atol=2e-2)  # configs may differ with the batch


@needs_gpu
@pytest.mark.parametrize("shape", [(0, 3, 227, 227), (5, 3, 227, 227), (1, 3, 224, 224), (3, 227, 227)], ids=str)
def test_other_shapes_are_refused(shape, device):
    run = GraphedForward(AlexNet(num_classes=2).to(device).eval(), (4, 3, 227, 227))
    with pytest.raises(kernels.ArgumentError, match="as captured"):
        run(torch.zeros(shape, device=device))
