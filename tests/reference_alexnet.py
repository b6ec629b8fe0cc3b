"""AlexNet in plain PyTorch and float64, with which the network on the kernels is compared."""

import torch
from torch.nn import functional as F

LRN = {  # PyTorch divides alpha by the window's 5 channels
    "bvlc": {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0},
    "tensorflow": {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 1.0},
    "paper": {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0},
}


def reference_alexnet(layers: dict, x: torch.Tensor, lrn: str = "bvlc") -> torch.Tensor:
    """Returns logits (N, classes) in float64 for images (N, 3, 227, 227)."""
    w = {name: (weight.double().contiguous(), bias.double()) for name, (weight, bias) in layers.items()}
    x = F.relu(F.conv2d(x.double(), *w["conv1"], stride=4))
    x = F.max_pool2d(F.local_response_norm(x, **LRN[lrn]), 3, 2)
    x = F.relu(F.conv2d(x, *w["conv2"], padding=2, groups=2))
    x = F.max_pool2d(F.local_response_norm(x, **LRN[lrn]), 3, 2)
    x = F.relu(F.conv2d(x, *w["conv3"], padding=1))
    x = F.relu(F.conv2d(x, *w["conv4"], padding=1, groups=2))
    x = F.relu(F.conv2d(x, *w["conv5"], padding=1, groups=2))
    x = F.max_pool2d(x, 3, 2).flatten(1)
    x = F.relu(F.linear(x, *w["fc6"]))
    x = F.relu(F.linear(x, *w["fc7"]))
    return F.linear(x, *w["fc8"])


def reference_gradients(
    layers: dict, x: torch.Tensor, target: torch.Tensor, lrn: str = "bvlc"
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Returns logits, cross-entropy and its gradients by the names of the network's parameters, in float64."""
    leaves = {name: tuple(t.detach().double().requires_grad_() for t in layer) for name, layer in layers.items()}
    names = [f"{name}.{part}" for name in leaves for part in ("weight", "bias")]
    logits = reference_alexnet(leaves, x, lrn)
    loss = F.cross_entropy(logits, target)
    gradients = torch.autograd.grad(loss, [t for layer in leaves.values() for t in layer])
    return logits.detach(), loss.detach(), dict(zip(names, gradients, strict=True))


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns max|out - ref| / max|ref|, or NaN if either holds one."""
    return ((output.double() - reference).abs().max() / reference.abs().max()).item()
