"""One step of training against the paper's formulas, and the learning rate over a run."""

import pytest
import torch
from torch import nn

from kernels.tools import torch_ops
from model.training.step import TrainStep, make_optimizer, rate
from tests.narrow import Narrow


def narrow(seed=0):
    torch.manual_seed(seed)
    net = Narrow(3, keep_prob=1.0).use(torch_ops)
    net.initialise()
    return net


def batch():
    return 50.0 * torch.randn(4, 3, 227, 227), torch.tensor([0, 1, 2, 1])


def test_sgd_is_the_papers_rule():
    """v <- 0.9 v - 5e-4 lr w - lr g, w <- w + v; biases at twice the rate, without decay."""
    net, lr = narrow(), 1e-3
    train_step = TrainStep(net, make_optimizer(net, "sgd", lr))
    w, v = ({name: make(p.detach()) for name, p in net.named_parameters()} for make in (torch.clone, torch.zeros_like))
    for step in range(4):
        train_step(step, *batch(), 1.0)
        for name, parameter in net.named_parameters():
            bias = name.endswith("bias")
            decay = 0.0 if bias else 5e-4
            v[name] = 0.9 * v[name] - (2 * lr if bias else lr) * (decay * w[name] + parameter.grad)
            w[name] = w[name] + v[name]
            assert torch.allclose(parameter, w[name], rtol=1e-5, atol=1e-7), (step, name)
    # The decay of a bias would be too small to see in its value.
    groups = train_step.optimizer.param_groups
    assert [(group["weight_decay"], group["base"]) for group in groups] == [(5e-4, lr), (0.0, 2 * lr)]


def test_adamw_decays_only_weights():
    net = narrow()
    groups = make_optimizer(net, "adamw", 1e-3).param_groups
    assert [(group["weight_decay"], group["base"], len(group["params"])) for group in groups] == [
        (0.01, 1e-3, 8),
        (0.0, 1e-3, 8),
    ]


def test_rates():
    assert [round(rate("step", step, 8), 6) for step in range(8)] == [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    cosine = [rate("cosine", step, 10) for step in range(10)]
    assert cosine[0] == 1.0 and cosine[5] == pytest.approx(0.5) and cosine == sorted(cosine, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.full)], ids=str)
def test_half_precision_follows_single(dtype):
    """Parameters stay float32, the loss is near that of float32, and only float16 scales it."""
    losses = []
    for computed in (torch.float32, dtype):
        net = narrow()
        train_step = TrainStep(net, make_optimizer(net, "sgd", 1e-4), computed)
        torch.manual_seed(1)
        losses.append([train_step(step, *batch(), 1.0)[0].item() for step in range(3)])
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
        assert train_step.scaler.is_enabled() == (computed is torch.float16)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_step_that_overflows_is_left_out():
    """If the scale makes float16's gradients infinite, the weights stay and the scale falls."""
    net = narrow()
    train_step = TrainStep(net, make_optimizer(net, "sgd", 1e-3), torch.float16)
    train_step.scaler.load_state_dict({**train_step.scaler.state_dict(), "scale": 2.0**120})
    before = [parameter.clone() for parameter in net.parameters()]
    train_step(0, *batch(), 1.0)
    assert all(map(torch.equal, before, net.parameters()))
    assert train_step.scaler.get_scale() == 2.0**119


def test_dropout_is_a_function_of_seed_step_and_rank():
    x, target = batch()

    def losses(**place):
        net = narrow()
        net.drop6.p = net.drop7.p = 0.5
        net.requires_grad_(False)
        net.fc8.weight.requires_grad_()
        seed, rank = place.get("seed", 0), place.get("rank", 0)
        train_step = TrainStep(net, make_optimizer(net, "sgd", 1e-12), seed=seed, rank=rank)
        nn.init.normal_(net.fc8.weight)
        torch.randn(place.get("drawn", 1))
        return train_step(place.get("step", 0), x, target, 1.0)[0].item()

    assert losses() == losses(drawn=9)
    assert len({losses(), losses(step=1), losses(seed=1), losses(rank=1)}) == 4
