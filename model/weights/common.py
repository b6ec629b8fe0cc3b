"""What weights are once they are read, and the checks that all formats share.

In the order in which a file meets them: the file itself, its layers, its classes and how it takes photos, the network.
Messages here do not name the file: :func:`model.weights.load` puts its name before them.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.errors import AlexNetError
from model.photos.preprocess import BVLC, RESIZE, SIZE, TORCHVISION, Preprocess

LAYER_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")

LARGEST_FILE = 2**30
"""Bytes of the largest file that is read: AlexNet in float64 takes half as many."""

LARGEST_TENSOR = {"fc6": 4096 * 9216, "fc7": 4096 * 4096, "fc8": 4096 * 2**15}
"""Numbers in a layer's largest tensor. A convolution has 2^20 at most."""

MOST_CLASSES = LARGEST_TENSOR["fc8"] // 4096

_TORCHVISION_NAMES = (  # in LAYER_NAMES' order
    *("features.0", "features.3", "features.6", "features.8", "features.10"),
    *("classifier.1", "classifier.4", "classifier.6"),
)

LayerTensors = tuple[torch.Tensor, torch.Tensor]  # weight and bias


class WeightsError(AlexNetError, ValueError):
    """Weights that cannot be read, or that do not fit the network. The message is one line."""

    def __init__(self, message: str):
        # Files and libraries bring line ends, control codes and very long names.
        line = re.sub(r"\s*[\r\n]\s*", " ", message)
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        super().__init__(line if len(line) <= 600 else f"{line[:400]} ... {line[-150:]}")


def reason(error: Exception) -> str:
    """A library's error message, shortened."""
    # Before this, PyTorch's errors advise to run the file nevertheless.
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    return " ".join(text.split())[:200] or type(error).__name__


@dataclass(frozen=True)
class Weights:
    """Trained weights, and what is needed to use them.

    Args:
        layers: weight and bias of each layer found, float32, laid out as in Caffe and PyTorch: convolutions
            (out, in / groups, kh, kw), fully connected (out, in), fc6's columns in the order C, H, W.
        classes: the label of each output of fc8; empty if the file has no fc8.
        lrn: the formula of local response normalisation that they were trained with, as :class:`model.alexnet.AlexNet`
            names it; None for torchvision's network, which has none.
        preprocess: how a photo becomes the network's input.
        name: the registered name or the file's path, for messages. :func:`model.weights.load` sets it.
    """

    layers: dict[str, LayerTensors]
    classes: tuple[str, ...]
    lrn: str | None
    preprocess: Preprocess
    name: str = ""


# The file


class Probe(NamedTuple):
    """What tells a file's format: its first 512 bytes, its last 64, and its size in bytes."""

    head: bytes
    tail: bytes
    size: int


def check_size(path: str | os.PathLike) -> None:
    """Raises WeightsError if a file is larger than weights can be."""
    size = os.stat(path).st_size
    if size > LARGEST_FILE:
        raise WeightsError(f"{size:,} bytes are more than AlexNet's weights can take, {LARGEST_FILE:,}")


def read_bounded(path: str | os.PathLike) -> bytes:
    """The whole file, if it is not larger than weights can be."""
    check_size(path)
    return Path(path).read_bytes()


# The layers


def check_order(steps: Sequence[str], normalise: str, pool: str) -> None:
    """Raises WeightsError if a graph pools before it normalises: CaffeNet does, and its weights have AlexNet's shapes.

    Args:
        steps: names of the graph's steps, in their order.
        normalise, pool: the names of the first normalisation and of the first pooling.
    """
    if normalise in steps and pool in steps[: steps.index(normalise)]:
        raise WeightsError("pools before it normalises, as CaffeNet does, which is another network")


def array_layers(
    found: Iterable[object],
    arrays: Callable[[str], Iterable[object]],
    layout: Callable[[str, np.ndarray], np.ndarray] = lambda layer, weight: weight,
) -> dict[str, LayerTensors]:
    """The layers of a file that holds arrays.

    Args:
        found: the names in the file. Those that are not AlexNet's are ignored.
        arrays: a function from a layer's name to what the file holds as its weight and bias.
        layout: a function from a layer's name and its weight to the weight in PyTorch's layout.
    """
    layers = {}
    for layer in LAYER_NAMES:
        if layer in found:
            weight, bias = map(_check_array, (layer, layer), ("weight", "bias"), arrays(layer))
            layers[layer] = to_tensors(layer, layout(layer, weight), bias)
    return _check_any(found, layers)


def _check_array(layer: str, part: str, array: object) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{layer}'s {part} must be an array, got {type(array).__name__}")
    if array.dtype.kind != "f":
        raise WeightsError(f"{layer}'s {part} must be of floating point, got {array.dtype}")
    check_shape(layer, part, array.shape)
    return array


def to_tensors(layer: str, weight: np.ndarray, bias: np.ndarray) -> LayerTensors:
    """A layer's arrays, in PyTorch's layout, as float32 tensors."""
    tensors = []
    for array in (weight, bias):
        copy = None if array.flags.writeable else True  # None: only if dtype or order differ
        with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinity, which is then refused
            tensors.append(torch.from_numpy(np.array(array, np.float32, order="C", copy=copy)))
    return _check_tensors(layer, *tensors)


def state_dict_layers(keys: Iterable[str], tensor: Callable[[str, str, str], torch.Tensor]) -> dict[str, LayerTensors]:
    """The layers of a state dict: keys such as ``conv1.weight``, or torchvision's.

    Args:
        keys: the state dict's keys. ``DataParallel`` and ``torch.compile`` may have put their prefixes before them.
        tensor: a function from (key, layer, "weight" or "bias") to the tensor, float32. It calls :func:`check_shape`.
    """
    ours, found = dict(zip(_TORCHVISION_NAMES, LAYER_NAMES, strict=True)), {}
    for key in keys:
        prefix, _, part = re.sub(r"^((module|_orig_mod)\.)+", "", key).rpartition(".")
        found[ours.get(prefix, prefix), part] = key
    layers = {}
    for layer in LAYER_NAMES:
        if (layer, "weight") in found:
            if (layer, "bias") not in found:
                raise WeightsError(f"{layer} has a weight but no bias")
            weight, bias = (tensor(found[layer, part], layer, part) for part in ("weight", "bias"))
            layers[layer] = _check_tensors(layer, weight, bias)
    return _check_any(found.values(), layers)


def check_shape(layer: str, part: str, shape: Sequence[int]) -> None:
    """Raises WeightsError if a tensor has other dimensions than a weight or a bias, or more numbers than AlexNet's.

    It comes before a tensor of that shape is allocated: a few bytes can claim any shape.
    """
    dims = 1 if part == "bias" else 4 if layer.startswith("conv") else 2
    if len(shape) != dims:
        raise WeightsError(f"{layer}'s {part} must have {dims} dimension{'s' * (dims > 1)}, got shape {tuple(shape)}")
    if math.prod(shape) > LARGEST_TENSOR.get(layer, 2**20):
        raise WeightsError(f"{layer}'s {part} of shape {tuple(shape)} is more than AlexNet's can be")


def _check_tensors(layer: str, weight: torch.Tensor, bias: torch.Tensor) -> LayerTensors:
    """Weight and bias in PyTorch's layout, if there is one bias per output and all numbers are finite."""
    if weight.shape[0] != bias.shape[0]:
        raise WeightsError(f"{layer} must have one bias per output, got {bias.shape[0]} for {weight.shape[0]}")
    for part, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.numel():
            raise WeightsError(f"{layer}'s {part} is empty, of shape {tuple(tensor.shape)}")
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise WeightsError(f"{layer}'s {part} holds NaN or infinity")
    return weight, bias


def _check_any(found: Iterable[object], layers: dict[str, LayerTensors]) -> dict[str, LayerTensors]:
    """The layers, if there are any. :func:`assign` asks for those that a network needs."""
    if not layers:
        names = list(map(str, found))
        shown = ", ".join(map(repr, names[:8])) + ", ..." * (len(names) > 8)
        raise WeightsError(f"must hold {', '.join(LAYER_NAMES)}, got {shown or 'nothing'}")
    return layers


# Classes and photos


def published(layers: dict[str, LayerTensors]) -> Weights:
    """Weights whose file does not describe them: BVLC's, or torchvision's if conv1 has 64 filters.

    The labels are ImageNet's if fc8 has 1000 outputs, and numbers otherwise.
    """
    classes: tuple[str, ...] = ()
    count = len(layers["fc8"][1]) if "fc8" in layers else 0
    if count == 1000:
        from torchvision.models import AlexNet_Weights  # slow to import

        classes = tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    elif count:
        classes = tuple(f"class {index}" for index in range(count))
    if "conv1" in layers and len(layers["conv1"][1]) == 64:
        return Weights(layers, classes, None, TORCHVISION)
    return Weights(layers, classes, "bvlc", BVLC)


def describe(classes: Sequence[str], lrn: str | None, preprocess: Preprocess) -> dict:
    """How our own files describe their weights, for JSON: classes, lrn, mean, resize, and what else is unusual."""
    usual = Preprocess(preprocess.mean, preprocess.resize)
    given = {name: value for name, value in asdict(preprocess).items() if value != getattr(usual, name)}
    return {"classes": list(classes), "lrn": lrn, "mean": preprocess.mean, "resize": preprocess.resize, **given}


def described(layers: dict[str, LayerTensors], text: str) -> Weights:
    """Weights from a file of ours, with the JSON of :func:`describe`.

    Raises:
        WeightsError: the description is wrong, or does not fit fc8.
    """
    classes, lrn, preprocess = parse_meta(text)
    outputs = len(layers["fc8"][1]) if "fc8" in layers else len(classes)
    if outputs != len(classes):
        raise WeightsError(f"fc8 must have an output for each of its {len(classes)} classes, got {outputs}")
    return Weights(layers, classes if "fc8" in layers else (), lrn, preprocess)


def parse_meta(text: str) -> tuple[tuple[str, ...], str | None, Preprocess]:
    """:func:`check_meta` of JSON."""
    try:
        return check_meta(json.loads(text))
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"meta must be JSON with classes, mean, lrn and resize: {error}") from error


def check_meta(meta: object) -> tuple[tuple[str, ...], str | None, Preprocess]:
    """Classes, LRN variant and preprocessing from what :func:`describe` returned.

    Raises:
        WeightsError: an entry is missing or wrong.
    """
    expected = "meta must be JSON with classes, mean, lrn and resize"
    if not isinstance(meta, dict):
        raise WeightsError(f"{expected}, got {meta!r:.200}")
    try:
        classes, mean, lrn, resize = (meta[key] for key in ("classes", "mean", "lrn", "resize"))
    except KeyError as error:
        raise WeightsError(f"{expected}: {error}") from error
    std, order, size = meta.get("std", [1.0] * 3), meta.get("order", "BGR"), meta.get("size", SIZE)
    if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
        raise WeightsError(f"meta's classes must be a list of strings, got {classes!r:.200}")
    if len(classes) > MOST_CLASSES:
        raise WeightsError(f"meta's classes must be at most {MOST_CLASSES}, got {len(classes)}")
    if not isinstance(resize, str) or resize not in RESIZE:
        raise WeightsError(f"meta's resize must be one of {', '.join(map(repr, RESIZE))}, got {resize!r:.100}")
    if order not in ("BGR", "RGB") or type(size) is not int or size not in (224, 227):
        raise WeightsError(
            f"meta's order must be BGR or RGB and its size 224 or 227, got {order!r:.100}, {size!r:.100}"
        )
    preprocess = Preprocess(_colours("mean", mean, -1e6), resize, _colours("std", std, 0.0), order, size)
    return tuple(classes), None if lrn is None else str(lrn), preprocess


def _colours(what: str, numbers: Any, least: float) -> tuple[float, float, float]:
    """Three numbers between ``least`` and a million, one per colour."""
    floats = isinstance(numbers, list) and len(numbers) == 3 and all(type(n) in (int, float) for n in numbers)
    if not floats or not all(least < n < 1e6 for n in numbers):
        raise WeightsError(f"meta's {what} must be three numbers, one per colour, got {numbers!r:.200}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


# Into a network


@torch.no_grad()
def assign(net: torch.nn.Module, loaded: Weights, skip_layer: Iterable[str] = ()) -> None:
    """Copies weights into every layer of ``net`` that has some and is not in ``skip_layer``.

    Raises:
        WeightsError: a layer is missing or has another shape. Nothing has been copied then.
    """
    state, meta = {}, next(net.parameters()).is_meta
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
            if meta:  # The network has no memory yet: its parameter is a copy, since others may take these weights too.
                filters = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                tensor = tensor.clone(memory_format=filters)
            state[f"{name}.{part}"] = tensor
    net.load_state_dict(state, strict=False, assign=meta)
