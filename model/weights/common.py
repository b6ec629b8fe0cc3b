"""What weights are once read, and the checks that every format shares."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from model.preprocess import BVLC, RESIZE, SIZE, TORCHVISION, Preprocess

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


LARGEST = 2**30
"""Bytes of the largest file that is read: AlexNet's in float64 are half as many."""


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit; one line that names the file and the layer."""


class Probe(NamedTuple):
    """What a file's format is told by: its first and last bytes, and how many there are."""

    head: bytes
    tail: bytes
    size: int


@dataclass(frozen=True)
class Weights:
    """Trained weights, and what it takes to use them.

    Args:
        name: the registered name, or the file's path, for messages.
        layers: weight and bias of each layer found, float32, laid out as in Caffe and PyTorch: convolutions
            (out, in / groups, kh, kw), fully connected (out, in), fc6's columns in the order C, H, W.
        classes: the label of each output of fc8; empty where the file has no fc8.
        lrn: the formula of local response normalisation that they were trained with, as :class:`model.alexnet.AlexNet`
            names it; None for torchvision's network, which has none.
        preprocess: from a photo to the network's input.
    """

    name: str
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    classes: tuple[str, ...]
    lrn: str | None
    preprocess: Preprocess


def check_arrays(name: str, layer: str, weight: object, bias: object) -> None:
    """Checks that a layer's two arrays are of floats and have a weight's and a bias's dimensions."""
    dims = 4 if layer.startswith("conv") else 2
    for what, array, accepted in (("weight", weight, dims), ("bias", bias, 1)):
        if not isinstance(array, np.ndarray):
            raise WeightsError(f"{name}: {layer}'s {what} must be an array, got {type(array).__name__}")
        if array.dtype.kind != "f":
            raise WeightsError(f"{name}: {layer}'s {what} must be of floating point, got {array.dtype}")
        if array.ndim != accepted:
            raise WeightsError(
                f"{name}: {layer}'s {what} must have {accepted} dimension{'s' * (accepted > 1)}, "
                f"got shape {array.shape}"
            )


def check_tensors(name: str, layer: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks a layer in PyTorch's layout: one bias an output, every number finite."""
    if weight.shape[0] != bias.shape[0]:
        raise WeightsError(f"{name}: {layer} must have one bias an output, got {bias.shape[0]} for {weight.shape[0]}")
    for what, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.numel():
            raise WeightsError(f"{name}: {layer}'s {what} is empty, of shape {tuple(tensor.shape)}")
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise WeightsError(f"{name}: {layer}'s {what} holds NaN or infinity")
    return weight, bias


def check_any(name: str, found: list[str], layers: dict) -> None:
    """Checks that at least one of AlexNet's layers was found; :meth:`AlexNet.assign` asks for those it needs."""
    if not layers:
        shown = ", ".join(map(repr, found[:8])) + ", ..." * (len(found) > 8)
        raise WeightsError(f"{name}: must hold {', '.join(LAYERS)}, got {shown or 'nothing'}")


def read_bounded(path: str | os.PathLike, name: str) -> bytes:
    """The whole file, if it is not larger than weights can be."""
    size = os.stat(path).st_size
    if size > LARGEST:
        raise WeightsError(f"{name}: {size:,} bytes are more than AlexNet's weights can take, {LARGEST:,}")
    return Path(path).read_bytes()


def published(name: str, layers: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Weights:
    """Weights that bring no description of their own: BVLC's, or torchvision's, whose conv1 has 64 filters.

    Labels are ImageNet's where fc8 has 1000 outputs, numbers else.
    """
    classes: tuple[str, ...] = ()
    count = len(layers["fc8"][1]) if "fc8" in layers else 0
    if count == 1000:
        from torchvision.models._meta import _IMAGENET_CATEGORIES  # in the order of ILSVRC's indices; slow to import

        classes = tuple(_IMAGENET_CATEGORIES)
    elif count:
        classes = tuple(f"class {index}" for index in range(count))
    if "conv1" in layers and len(layers["conv1"][1]) == 64:
        return Weights(name, layers, classes, None, TORCHVISION)
    return Weights(name, layers, classes, "bvlc", BVLC)


def describe(classes: Sequence[str], lrn: str | None, preprocess: Preprocess) -> dict:
    """What our own files say of themselves, for JSON: classes, lrn, mean and resize, and what else is not usual."""
    usual = Preprocess(preprocess.mean, preprocess.resize)
    given = {name: value for name, value in asdict(preprocess).items() if value != getattr(usual, name)}
    return {"classes": list(classes), "lrn": lrn, "mean": preprocess.mean, "resize": preprocess.resize, **given}


def parse_meta(name: str, text: str) -> tuple[tuple[str, ...], str | None, Preprocess]:
    """Classes, LRN variant and preprocessing from what :func:`describe` gave."""
    try:
        meta = json.loads(text)
        classes, mean, lrn, resize = (meta[key] for key in ("classes", "mean", "lrn", "resize"))
        std, order, size = meta.get("std", [1.0] * 3), meta.get("order", "BGR"), meta.get("size", SIZE)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{name}: meta must be JSON with classes, mean, lrn and resize: {error}") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
        raise WeightsError(f"{name}: meta's classes must be a list of strings, got {str(classes)[:200]}")
    for what, colours, least in (("mean", mean, -math.inf), ("std", std, 0.0)):
        numbers = isinstance(colours, list) and all(type(c) in (int, float) for c in colours)
        if not numbers or len(colours) != 3 or not all(math.isfinite(c) and c > least for c in colours):
            raise WeightsError(f"{name}: meta's {what} must be three numbers, one a colour, got {str(colours)[:200]}")
    if resize not in RESIZE:
        raise WeightsError(f"{name}: meta's resize must be one of {', '.join(map(repr, RESIZE))}, got {resize!r}")
    if order not in ("BGR", "RGB") or size not in (224, 227):
        raise WeightsError(f"{name}: meta's order must be BGR or RGB and its size 224 or 227, got {order!r}, {size!r}")
    mean, std = (tuple(map(float, colours)) for colours in (mean, std))
    return tuple(classes), None if lrn is None else str(lrn), Preprocess(mean, resize, std, order, size)


@torch.no_grad()
def assign(net: torch.nn.Module, loaded: Weights, skip_layer: Iterable[str] = ()) -> None:
    """Copies weights into every layer of ``net`` that has some and is not in ``skip_layer``.

    Raises:
        WeightsError: a layer is missing or of another shape; nothing has been copied then.
    """
    state = {}
    for name, layer in net.named_children():
        if not hasattr(layer, "weight") or name in skip_layer:
            continue
        if name not in loaded.layers:
            raise WeightsError(f"{loaded.name}: lacks {name}")
        for part, tensor in zip(("weight", "bias"), loaded.layers[name], strict=True):
            takes = tuple(getattr(layer, part).shape)
            if tuple(tensor.shape) != takes:
                hint = '; skip_layer=("fc8",) leaves it as it is' if name == "fc8" else ""
                raise WeightsError(f"{loaded.name}: {name}'s {part} must be {takes}, got {tuple(tensor.shape)}{hint}")
            filters = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
            state[f"{name}.{part}"] = tensor.contiguous(memory_format=filters)
    # On the meta device there is nothing to copy into: the tensors themselves become the parameters.
    net.load_state_dict(state, strict=False, assign=next(net.parameters()).is_meta)
