"""AlexNet: Krizhevsky, Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks".

The layers, their order and their groups are those of BVLC's Caffe model
(https://github.com/BVLC/caffe/tree/master/models/bvlc_alexnet): normalise, then pool. ``groups=2`` is what is left
of the paper's two GPUs: each held half of the filters of conv2, conv4 and conv5.
"""

import os
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from kernels import ArgumentError
from kernels.tools.workloads import BVLC_LRN, LRNArguments
from model import weights
from model.cuda_graph import GraphedForward
from model.layers import Conv2d, Dropout, Layer, Linear, LRNMaxPool2d, MaxPool2d

LRN: dict[str, LRNArguments] = {
    "bvlc": BVLC_LRN,
    "tensorflow": {**BVLC_LRN, "alpha": 5e-4},
    "paper": {**BVLC_LRN, "alpha": 5e-4, "k": 2.0},
}
"""Formulas of local response normalisation, as :class:`AlexNet` explains them."""


class LayerSummary(NamedTuple):
    """One row of :meth:`AlexNet.layers`."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    flops: int
    bytes: int


class AlexNet(nn.Module):
    """AlexNet for images of 227 x 227 pixels.

    Args:
        num_classes: outputs of fc8.
        keep_prob: the probability that dropout keeps an output of fc6 or fc7 in training.
        lrn: the formula of local response normalisation. ``"bvlc"`` is for BVLC's weights in any format. It divides
            alpha by the window's size, as Caffe does. ``"tensorflow"`` is what ``lrn(x, 2, 1e-04, 0.75)`` in a
            TensorFlow tutorial computes. It multiplies the plain sum by alpha, which is five times too much for
            BVLC's weights. ``"paper"`` does so too, with k = 2, as in 2012.

    Raises:
        ArgumentError: ``num_classes`` under 1, ``keep_prob`` outside [0, 1], another ``lrn``.

    Example:
        >>> from model import weights
        >>> net = AlexNet.from_weights(weights.load("cifar10"))
        >>> print(*(f"{layer.name} {layer.output}" for layer in net.layers() if "pool" in layer.name), sep=", ")
        pool1 (1, 96, 27, 27), pool2 (1, 256, 13, 13), pool5 (1, 256, 6, 6)
    """

    formulas: tuple[str | None, ...] = tuple(LRN)
    size = 227  # of the input
    pool1: LRNMaxPool2d | MaxPool2d  # without normalisation in torchvision's network
    pool2: LRNMaxPool2d | MaxPool2d

    def __init__(self, num_classes: int = 1000, keep_prob: float = 0.5, lrn: str | None = "bvlc"):
        super().__init__()
        if num_classes < 1:
            raise ArgumentError(f"AlexNet: num_classes must be at least 1, got {num_classes}")
        if not 0.0 <= keep_prob <= 1.0:
            raise ArgumentError(f"AlexNet: keep_prob must be from 0 to 1, got {keep_prob}")
        if lrn not in self.formulas:
            accepted = ", ".join(map(repr, self.formulas))
            raise ArgumentError(f"{type(self).__name__}: lrn must be one of {accepted}, got {lrn!r}")
        self.lrn = lrn
        self.make_convolutions()
        self.fc6 = Linear(256 * 6 * 6, 4096, relu=True)
        self.drop6 = Dropout(1.0 - keep_prob)
        self.fc7 = Linear(4096, 4096, relu=True)
        self.drop7 = Dropout(1.0 - keep_prob)
        self.fc8 = Linear(4096, num_classes, relu=False)
        self.initialise()
        self.to(memory_format=torch.channels_last)  # filters as the kernels read them, so that no call copies

    def make_convolutions(self) -> None:
        """conv1 to pool5."""
        self.conv1 = Conv2d(3, 96, kernel_size=11, stride=4)
        formula = LRN[str(self.lrn)]
        self.pool1 = LRNMaxPool2d(**formula)
        self.conv2 = Conv2d(96, 256, kernel_size=5, padding=2, groups=2)
        self.pool2 = LRNMaxPool2d(**formula)
        self.conv3 = Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = Conv2d(384, 384, kernel_size=3, padding=1, groups=2)
        self.conv5 = Conv2d(384, 256, kernel_size=3, padding=1, groups=2)
        self.pool5 = MaxPool2d(kernel_size=3, stride=2)

    @torch.no_grad()
    def initialise(self, scheme: str = "paper") -> None:
        """Draws new weights.

        ``"paper"``, from its section 5, draws weights from N(0, 0.01) and sets biases to 1 in conv2, conv4, conv5, fc6
        and fc7, and to 0 elsewhere. ``"bvlc"``, from its train_val.prototxt, draws fc6 and fc7 from N(0, 0.005) and
        sets those biases to 0.1, which is better for few classes and images.
        """
        if scheme not in ("paper", "bvlc"):
            raise ArgumentError(f"AlexNet: initialisation must be 'paper' or 'bvlc', got {scheme!r}")
        for name, layer in self.named_children():
            if not hasattr(layer, "weight") or layer.weight.is_meta:  # on meta there is nothing to draw
                continue
            std, bias = 0.01, float(name in ("conv2", "conv4", "conv5", "fc6", "fc7"))
            if scheme == "bvlc":
                std, bias = 0.005 if name in ("fc6", "fc7") else std, 0.1 * bias
            nn.init.normal_(layer.get_parameter("weight"), std=std)
            nn.init.constant_(layer.get_parameter("bias"), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (N, num_classes) for images (N, 3, 227, 227), preprocessed as the weights require."""
        if x.dim() != 4 or x.shape[1:] != (3, self.size, self.size):
            raise ArgumentError(f"AlexNet: input must be (N, 3, {self.size}, {self.size}), got shape {tuple(x.shape)}")
        #                      N x   3 x 227 x 227
        x = self.conv1(x)  #   N x  96 x  55 x  55    11 x 11, stride 4, ReLU
        x = self.pool1(x)  #   N x  96 x  27 x  27    LRN over 5 channels, max of 3 x 3 at stride 2
        x = self.conv2(x)  #   N x 256 x  27 x  27    5 x 5 in 2 groups, ReLU
        x = self.pool2(x)  #   N x 256 x  13 x  13    LRN and pooling again
        x = self.conv3(x)  #   N x 384 x  13 x  13    3 x 3 across both groups, ReLU
        x = self.conv4(x)  #   N x 384 x  13 x  13    3 x 3 in 2 groups, ReLU
        x = self.conv5(x)  #   N x 256 x  13 x  13    3 x 3 in 2 groups, ReLU
        x = self.pool5(x)  #   N x 256 x   6 x   6
        x = x.flatten(1)  #    N x 9216               in the order C, H, W
        x = self.drop6(self.fc6(x))  # N x 4096       ReLU
        x = self.drop7(self.fc7(x))  # N x 4096       ReLU
        return self.fc8(x)  #  N x num_classes

    def use(self, operators: ModuleType) -> "AlexNet":
        """Makes the layers call another module's operators, such as :mod:`kernels.tools.torch_ops`'s."""
        for layer in self.children():
            if isinstance(layer, Layer):
                layer.operators = operators
        return self

    def capture(self, batch: int) -> GraphedForward:
        """Returns the forward pass for up to ``batch`` images as a CUDA graph: ``logits = net.capture(256)(x)``."""
        return GraphedForward(self, (batch, 3, self.size, self.size))

    def layers(self, batch: int = 1) -> list[LayerSummary]:
        """Returns each layer's output shape, parameters and cost: 227 -> 55 -> 27 -> 13 -> 6 -> num_classes."""
        rows: list[LayerSummary] = []
        shape: tuple[int, ...] = (batch, 3, self.size, self.size)
        for name, layer in self.named_children():
            if not isinstance(layer, (Conv2d, Linear, LRNMaxPool2d, MaxPool2d)):
                continue  # dropout does nothing in evaluation
            cost = layer.cost(shape, next(self.parameters()).element_size())
            parameters = sum(p.numel() for p in layer.parameters())
            rows.append(LayerSummary(name, cost.output, parameters, cost.macs, cost.flops, cost.bytes))
            shape = cost.output
        return rows

    @torch.no_grad()
    def load_initial_weights(self, weights_path: str | os.PathLike, skip_layer: Iterable[str] = ()) -> None:
        """Loads ``bvlc_alexnet.npy``, or another file that :func:`model.weights.load` reads.

        ``skip_layer`` names layers to leave as they are, such as ``("fc8",)`` to train it for other classes.

        Raises:
            model.weights.WeightsError: the file cannot be read, lacks a layer, or has one of another shape. The
                network is then as it was.
        """
        names = [name for name, layer in self.named_children() if hasattr(layer, "weight")]
        skipped = [skip_layer] if isinstance(skip_layer, str) else list(skip_layer)
        for name in skipped:
            if name not in names:
                raise ArgumentError(f"skip_layer must name layers among {', '.join(names)}, got {name!r}")
        weights.assign(self, weights.load(weights_path), skipped)

    @staticmethod
    def from_weights(loaded: weights.Weights, keep_prob: float = 0.5) -> "AlexNet":
        """Returns the network that the weights belong to, in evaluation mode: :class:`TorchvisionAlexNet` or this."""
        kind: type[AlexNet] = TorchvisionAlexNet if loaded.lrn is None else AlexNet
        if loaded.lrn not in kind.formulas:
            raise weights.WeightsError(f"{loaded.name}: lrn must be one of {', '.join(LRN)}, got {loaded.lrn!r}")
        if loaded.preprocess.size != kind.size:
            raise weights.WeightsError(
                f"{loaded.name}: the network with lrn {loaded.lrn} takes photos of {kind.size} x {kind.size}, "
                f"got a size of {loaded.preprocess.size}"
            )
        with torch.device("meta"):
            net = kind(max(len(loaded.classes), 1), keep_prob, loaded.lrn)
        weights.assign(net, loaded)
        return net.eval()


class TorchvisionAlexNet(AlexNet):
    """torchvision's ``alexnet``, another network of that name: for 224 x 224 pixels, without groups or normalisation.

    Its convolutions are those of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"
    (https://arxiv.org/abs/1404.5997). Arguments as :class:`AlexNet`, except that ``lrn`` can only be None.
    """

    formulas = (None,)
    size = 224

    def __init__(self, num_classes: int = 1000, keep_prob: float = 0.5, lrn: str | None = None):
        super().__init__(num_classes, keep_prob, lrn)

    def make_convolutions(self) -> None:
        """conv1 to pool5."""
        self.conv1 = Conv2d(3, 64, kernel_size=11, stride=4, padding=2)
        self.pool1 = MaxPool2d(kernel_size=3, stride=2)
        self.conv2 = Conv2d(64, 192, kernel_size=5, padding=2)
        self.pool2 = MaxPool2d(kernel_size=3, stride=2)
        self.conv3 = Conv2d(192, 384, kernel_size=3, padding=1)
        self.conv4 = Conv2d(384, 256, kernel_size=3, padding=1)
        self.conv5 = Conv2d(256, 256, kernel_size=3, padding=1)
        self.pool5 = MaxPool2d(kernel_size=3, stride=2)
