"""Gradients of the whole network against plain PyTorch in float64, on the bundled weights and a photo."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import skimage
import torch
from torch import nn

import kernels
from kernels import runtime
from kernels.tools import torch_ops
from model import weights
from model.alexnet import AlexNet
from model.layers import Conv2d, Linear, LRNMaxPool2d, MaxPool2d
from model.photos.preprocess import open_image
from tests.reference_alexnet import reference_gradients, relative_error

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
OPERATORS = pytest.mark.parametrize("operators", [torch_ops, kernels], ids=["pytorch", "kernels"])


class Case(NamedTuple):
    """A network's weights and a batch, with their logits, loss and gradients."""

    weights: weights.Weights
    images: torch.Tensor
    target: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """A batch of two for the whole network. For the photo alone, 512 units of fc6 and fc7 take an eighth of it."""
    whole = weights.load()
    (w6, b6), (w7, b7), (w8, b8) = (whole.layers[name] for name in ("fc6", "fc7", "fc8"))
    few = {"fc6": (w6[:512], b6[:512]), "fc7": (w7[:512, :512].contiguous(), b7[:512])}
    few["fc8"] = (w8[:, :512].contiguous(), b8)
    narrow = dataclasses.replace(whole, layers=whole.layers | few)
    photo = whole.preprocess(open_image(CHELSEA))[None]
    noise = torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(0)) * 60
    given = {
        "photo": (narrow, photo, torch.tensor([7])),  # a horse: of the cat it is sure, so 1 - p is a rounded rest
        "photo and noise": (whole, torch.cat([photo, noise]), torch.tensor([3, 7])),
    }
    return {
        name: Case(loaded, images, target, *reference_gradients(loaded.layers, images, target))
        for name, (loaded, images, target) in given.items()
    }


def network(loaded: weights.Weights, operators: ModuleType, keep_prob: float = 1.0) -> AlexNet:
    """As :meth:`AlexNet.from_weights`, with fully connected layers as wide as the weights'; in training mode."""
    with torch.device("meta"):
        net = AlexNet(len(loaded.classes), keep_prob, loaded.lrn)
        for name in ("fc6", "fc7", "fc8"):
            outputs, inputs = loaded.layers[name][0].shape
            setattr(net, name, Linear(inputs, outputs, relu=name != "fc8"))
    weights.assign(net, loaded)
    return net.use(operators).to(runtime.default_device()).train()


def step(net, operators, images, target, dtype=None, scale=lambda loss: loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward; logits and loss."""
    device = runtime.default_device()
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        logits = net(images.to(device))
        loss = operators.cross_entropy(logits, target.to(device))
    scale(loss).backward()
    return logits.detach().cpu(), loss.detach().cpu()


def errors(net: AlexNet, case: Case, distance) -> dict[str, float]:
    for name, parameter in net.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.shape == parameter.shape, name
    return {name: distance(p.grad.cpu(), case.gradients[name]) for name, p in net.named_parameters()}


# Float32 in another order than float64, eight layers there and back: 1.4e-6 for PyTorch, in conv1's weight, which sums
# over 3025 pixels what has come through all the others. The bound is that of a single operator.
@OPERATORS
@pytest.mark.parametrize("batch", ["photo", pytest.param("photo and noise", marks=pytest.mark.full)])
def test_float32(cases, batch, operators):
    case = cases[batch]
    net = network(case.weights, operators)
    logits, loss = step(net, operators, case.images, case.target)
    assert relative_error(logits, case.logits) < 1e-5
    assert loss.item() == pytest.approx(case.loss.item(), rel=1e-6)
    worst = errors(net, case, relative_error)
    assert max(worst.values()) < 1e-5, worst


# Rounded activations take a few of ReLU's inputs and of pooling's maxima across the edge where gradients jump, so that
# single elements are wrong by as much as the largest is large (0.5 in fc6 in bfloat16) whatever the kernels do. Their
# norms tell: the worst parameter's are 0.060 in bfloat16 and 0.012 in float16, for PyTorch's own operators as for ours.
@pytest.mark.full
@OPERATORS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)], ids=str)
def test_autocast(cases, dtype, bound, operators):
    case = cases["photo"]
    net = network(case.weights, operators)
    # Keeps small gradients out of float16's subnormals; by 1024, as conv1's largest is 28 and float16 ends at 65504.
    scaler = torch.amp.GradScaler(runtime.default_device().type, 1024.0, enabled=dtype is torch.float16)
    logits, loss = step(net, operators, case.images, case.target, dtype, scaler.scale)
    assert (logits.dtype, loss.dtype) == (dtype, torch.float32)
    scaler.unscale_(torch.optim.SGD(net.parameters(), lr=0.0))
    norms = errors(net, case, lambda gradient, true: ((gradient - true).norm() / true.norm()).item())
    assert max(norms.values()) < bound, norms


def small_classifier() -> AlexNet:
    """The network's end, dropout included, without the convolutions and with layers that take no time."""
    with torch.device("meta"):
        net = AlexNet(num_classes=10)
    for name, layer in net.named_children():
        if isinstance(layer, (Conv2d, MaxPool2d, LRNMaxPool2d)):
            setattr(net, name, nn.Identity())
    net.pool5 = nn.AdaptiveAvgPool2d(5)
    net.fc6, net.fc7, net.fc8 = Linear(75, 64, relu=True), Linear(64, 64, relu=True), Linear(64, 10, relu=False)
    return net.to(runtime.default_device()).train()


def test_dropout_follows_the_seed():
    images, target = torch.rand(7, 3, 227, 227), torch.arange(7)
    net, seen = small_classifier(), {}

    def look(_, given, output):
        given[0].retain_grad()
        seen.update(input=given[0], output=output)

    net.drop7.register_forward_hook(look)

    def gradients(seed: int) -> list[torch.Tensor]:
        net.zero_grad()
        torch.manual_seed(seed)
        step(net, kernels, images, target)
        positive = seen["input"] > 0  # a zero does not tell whether it was dropped
        kept, passed = seen["output"] != 0, seen["input"].grad != 0
        assert torch.equal(kept[positive], passed[positive]), "dropped forward and not backward, or the other way round"
        return [parameter.grad for parameter in net.parameters()]

    first, again, other = gradients(1), gradients(1), gradients(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# Without a GPU, launches are recorded and not run. The test then takes seconds, and outputs hold arbitrary numbers.
@pytest.mark.full
@pytest.mark.unguarded
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_compiles_without_graph_breaks(cases, dtype):
    case = cases["photo and noise"]
    net = network(case.weights, kernels, keep_prob=0.5)

    def names(step) -> list[str]:
        net.zero_grad()
        with runtime.record_launches() as launches:
            step(net, kernels, case.images, case.target, dtype)
        assert all(parameter.grad is not None for parameter in net.parameters())
        return sorted(launch.kernel.__name__ for launch in launches)

    torch._dynamo.reset()
    expected = names(step)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert names(lambda _, *arguments: step(compiled, *arguments)) == expected
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled network runs where the kernels are compiled")
@pytest.mark.unguarded
def test_compiled_float32(cases):
    case = cases["photo and noise"]
    net = network(case.weights, kernels)
    step(torch.compile(net, fullgraph=True), kernels, case.images, case.target)
    worst = errors(net, case, relative_error)
    assert max(worst.values()) < 1e-5, worst
