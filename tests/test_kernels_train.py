"""Training on our kernels beside training on PyTorch's operators: the same losses, the same gradients."""

from pathlib import Path

import pytest
import skimage
import torch

import kernels
from kernels.runtime import default_device
from kernels.tools import torch_ops
from model import weights
from model.alexnet import AlexNet
from model.photos.preprocess import open_image
from model.training.step import TrainStep, make_optimizer

DATA = Path(skimage.__file__).parent / "data"


@pytest.mark.full
@pytest.mark.unguarded  # the operators' own tests guard them; here 57 million parameters would be guarded too
def test_steps_as_pytorch():
    """Two photos, two steps, the whole network without dropout: only the order of the sums differs.

    In a photo with large flat areas (the rocket), rounding moves a maximum of pool1 to another pixel, and conv1's
    gradient jumps: by 1e-4 for PyTorch itself, against float64.
    """
    preprocess = weights.load().preprocess
    x = torch.stack([preprocess(open_image(DATA / name)) for name in ("chelsea.png", "coffee.png")])
    x = x.to(default_device()).contiguous(memory_format=torch.channels_last)
    target = torch.tensor([3, 0], device=default_device())
    losses, gradients = [], []
    for operators in (torch_ops, kernels):
        net = AlexNet.from_weights(weights.load(), keep_prob=1.0).use(operators).to(default_device())
        train_step = TrainStep(net, make_optimizer(net, "sgd", 1e-5))
        losses.append([train_step(0, x, target, 1.0)[0].item()])
        gradients.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
        with torch.no_grad():
            losses[-1].append(operators.cross_entropy(net(x), target).item())
    assert losses[0][1] < losses[0][0], "the step does not learn"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"{name}: {error}"
