"""Gradients of the whole network against plain PyTorch in float64, on the bundled weights and a photo."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import skimage
import torch
from torch import nn

import kernels
from kernels import pytorch, runtime
from model import weights
from model.alexnet import AlexNet
from model.preprocess import open_image
from tests.reference_alexnet import reference_gradients, relative_error

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
OPERATORS = pytest.mark.parametrize("operators", [pytorch, kernels], ids=["pytorch", "kernels"])


class Case(NamedTuple):
    """A batch, and what its logits, loss and gradients are."""

    images: torch.Tensor
    target: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def loaded():
    return weights.load()


@pytest.fixture(scope="module")
def cases(loaded) -> dict[str, Case]:
    photo = loaded.preprocess(open_image(CHELSEA))[None]
    noise = torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(0)) * 60
    batches = {"photo": (photo, [3]), "photo and noise": (torch.cat([photo, noise]), [3, 7])}
    return {
        name: Case(images, torch.tensor(target), *reference_gradients(loaded.layers, images, torch.tensor(target)))
        for name, (images, target) in batches.items()
    }


def network(loaded, operators: ModuleType, keep_prob: float = 1.0) -> AlexNet:
    return AlexNet.from_weights(loaded, keep_prob).use(operators).to(runtime.default_device()).train()


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
@pytest.mark.parametrize("batch", ["photo", "photo and noise"])
def test_float32(loaded, cases, batch, operators):
    case, net = cases[batch], network(loaded, operators)
    logits, loss = step(net, operators, case.images, case.target)
    assert relative_error(logits, case.logits) < 1e-5
    assert loss.item() == pytest.approx(case.loss.item(), rel=1e-6)
    worst = errors(net, case, relative_error)
    assert max(worst.values()) < 1e-5, worst


# Rounded activations take a few of ReLU's inputs and of pooling's maxima across the edge where gradients jump, so that
# single elements are wrong by as much as the largest is large (0.5 in fc6 for PyTorch's own operators in bfloat16)
# whatever the kernels do. Their norms tell: PyTorch's own have 0.07 in bfloat16, 0.01 in float16.
@OPERATORS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
def test_autocast(loaded, cases, dtype, bound, operators):
    case, net = cases["photo"], network(loaded, operators)
    # Keeps small gradients out of float16's subnormals; by 1024, as conv1's largest is 28 and float16 ends at 65504.
    scaler = torch.amp.GradScaler(runtime.default_device().type, 1024.0, enabled=dtype is torch.float16)
    logits, loss = step(net, operators, case.images, case.target, dtype, scaler.scale)
    assert (logits.dtype, loss.dtype) == (dtype, torch.float32)
    scaler.unscale_(torch.optim.SGD(net.parameters(), lr=0.0))
    norms = errors(net, case, lambda gradient, true: ((gradient - true).norm() / true.norm()).item())
    assert max(norms.values()) < bound, norms


class Maps(nn.Module):
    """In the place of the convolutions, which take long when interpreted: some 256 x 6 x 6 maps of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, :192, :192].relu().reshape(-1, 256, 12, 12)[..., ::2, ::2]


def test_dropout_follows_the_seed(loaded, cases):
    case = cases["photo and noise"]

    def gradients(seed: int) -> list[torch.Tensor]:
        net = network(loaded, kernels, keep_prob=0.5)
        net.conv1 = Maps()
        net.pool1 = net.conv2 = net.pool2 = net.conv3 = net.conv4 = net.conv5 = net.pool5 = nn.Identity()
        kept = []
        net.drop7.register_forward_hook(lambda _, __, output: kept.append((output != 0).any(0)))
        torch.manual_seed(seed)
        step(net, kernels, case.images, case.target)
        assert not (net.fc7.bias.grad[~kept[0]] != 0).any(), "a gradient for what dropout had dropped"
        return [parameter.grad for parameter in net.parameters()]

    first, again, other = gradients(1), gradients(1), gradients(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# Nothing is computed without a GPU, so that it takes seconds: launches are noted, and outputs are what memory held.
@pytest.mark.unguarded
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_compiles_without_graph_breaks(loaded, cases, dtype):
    case = cases["photo and noise"]
    net = network(loaded, kernels, keep_prob=0.5)

    def names(step) -> list[str]:
        net.zero_grad()
        with runtime.recording() as launches:
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
def test_compiled_float32(loaded, cases):
    case, net = cases["photo and noise"], network(loaded, kernels)
    step(torch.compile(net, fullgraph=True), kernels, case.images, case.target)
    worst = errors(net, case, relative_error)
    assert max(worst.values()) < 1e-5, worst
