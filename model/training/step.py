"""One step of training: forward, loss, backward, and the optimizer's rule."""

import math

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.alexnet import AlexNet
from model.randomness import generator

RATES = {"sgd": 0.01, "adamw": 1e-4}
"""The learning rate of each optimizer if none is given."""


def rate(schedule: str, step: int, steps: int) -> float:
    """The factor of the learning rate at a step, counted from 0, of a run of ``steps``.

    ``step``: the paper divides the rate by 10 three times; here after each quarter of the run. ``cosine``: half a
    period, from 1 to 0.
    """
    if schedule == "step":
        return 0.1 ** (4 * step // steps)
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def make_optimizer(net: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    """The optimizer for the parameters that train.

    ``sgd``: momentum 0.9 and weight decay 5e-4; biases at twice the rate and without decay, as in BVLC's network. The
    paper writes v <- 0.9 v - 5e-4 lr w - lr g, w <- w + v. PyTorch's v lacks the factor lr, so after lr falls, older
    gradients count at the new rate too. ``adamw``: decay 0.01, biases without decay.
    """
    trained = [(key, parameter) for key, parameter in net.named_parameters() if parameter.requires_grad]
    weights, biases = ([p for key, p in trained if key.endswith(part)] for part in ("weight", "bias"))
    decay, of_biases = {"sgd": (5e-4, 2.0), "adamw": (0.01, 1.0)}[name]
    groups = [
        {"params": weights, "weight_decay": decay, "base": lr},
        {"params": biases, "weight_decay": 0.0, "base": of_biases * lr},
    ]
    return torch.optim.SGD(groups, lr, momentum=0.9) if name == "sgd" else torch.optim.AdamW(groups, lr)


class TrainStep:
    """A network, its optimizer and the scaler of its gradients. A call does one step.

    Args:
        net: on its device; its parameters are float32, whatever ``dtype`` is.
        dtype: of products, by torch.autocast. float16 scales the loss, so that small gradients do not become 0.
        seed: of the run; each step draws its dropout from it.
        rank, ranks: this process among those that train the same network. They average their gradients.
    """

    def __init__(
        self,
        net: AlexNet,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.net, self.optimizer, self.dtype, self.seed, self.rank = net, optimizer, dtype, seed, rank
        self.device = next(net.parameters()).device
        self.operators = net.fc8.operators
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.forward = DistributedDataParallel(net) if ranks > 1 else net

    def autocast(self) -> torch.autocast:
        """The context in which the network computes in ``dtype``."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def __call__(self, number: int, x: torch.Tensor, target: torch.Tensor, factor: float) -> torch.Tensor:
        """Does step ``number`` at ``factor`` times the learning rate.

        ``x`` is (N, 3, 227, 227), ``target`` (N,) int64. Returns (loss, number of right answers) in float64.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["base"]
        self.net.train()
        torch.manual_seed(int(generator("dropout", self.seed, number, self.rank).integers(2**63)))
        with self.autocast():
            logits = self.forward(x)
            loss = self.operators.cross_entropy(logits, target)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)  # if float16 overflowed, it skips the step, and update() lowers the scale
        self.scaler.update()
        return torch.stack([loss.detach().double(), (logits.argmax(1) == target).sum().double()])

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """The optimizer's tensors by name (``optimizer.fc8.weight.momentum_buffer``), and the scaler's numbers."""
        tensors = {
            f"optimizer.{name}.{key}": value
            for name, parameter in self.net.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }
        return tensors, self.scaler.state_dict()

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor], scaler: dict) -> None:
        """Takes back what :meth:`state` returned."""
        for name, parameter in self.net.named_parameters():
            prefix = f"optimizer.{name}."
            for key, value in tensors.items():
                if key.startswith(prefix):
                    # On the parameter's device, in its memory format. AdamW's count of steps stays on the CPU.
                    mine = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
                    self.optimizer.state[parameter][key.removeprefix(prefix)] = mine.copy_(value)
        self.scaler.load_state_dict(scaler)
