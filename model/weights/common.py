"""What weights are once they are read, and what all formats share, in the order in which a file meets it.

Messages here do not name the file: :func:`model.weights.load` puts its name before them.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.errors import AlexNetError
from model.calibration import UNCALIBRATED, Calibration
from model.photos.preprocess import BVLC, RESIZE, SIZE, TORCHVISION, Preprocess

LAYER_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
PARTS = ("weight", "bias")

LARGEST_FILE = 2**30  # bytes; AlexNet in float64 takes half as many
MOST_CLASSES = 2**15
LARGEST_TENSOR = {"fc6": 4096 * 9216, "fc7": 4096 * 4096, "fc8": 4096 * MOST_CLASSES}  # a convolution has 2^20 at most
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
    """A library's error message, shortened, without PyTorch's advice to run the file nevertheless."""
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
        calibration: how logits become probabilities.
    """

    layers: dict[str, LayerTensors]
    classes: tuple[str, ...]
    lrn: str | None
    preprocess: Preprocess
    name: str = ""
    calibration: Calibration = UNCALIBRATED


class Probe(NamedTuple):
    """What tells a file's format: its first 512 bytes, its last 64, and its size in bytes."""

    head: bytes
    tail: bytes
    size: int


def check_order(steps: Sequence[str], normalise: str, pool: str) -> None:
    """Refuses a graph that pools before it normalises: CaffeNet's weights have AlexNet's shapes."""
    if normalise in steps and pool in steps[: steps.index(normalise)]:
        raise WeightsError("pools before it normalises, as CaffeNet does, which is another network")


def find_layers(
    found: Iterable[object],
    pair: Callable[[str], Sequence[object]],
    layout: Callable[[str, np.ndarray], np.ndarray] = lambda layer, weight: weight,
) -> dict[str, LayerTensors]:
    """AlexNet's layers in a file, checked.

    Args:
        found: the names in the file. Those that are not AlexNet's are ignored.
        pair: a function from a layer's name to its weight and bias, as arrays or tensors.
        layout: a function from a layer's name and its weight to the weight in PyTorch's layout.
    """
    layers = {}
    for layer in LAYER_NAMES:
        if layer not in found:
            continue
        parts = pair(layer)
        if len(parts) != 2:
            raise WeightsError(f"{layer} must have a weight and a bias, got {len(parts)} of them")
        weight, bias = map(_check_part, (layer, layer), PARTS, parts)
        tensors = _to_float32(layout(layer, weight)), _to_float32(bias)
        outputs, biases = map(len, tensors)
        if outputs != biases:
            raise WeightsError(f"{layer} must have one bias per output, got {biases} for {outputs}")
        for part, tensor in zip(PARTS, tensors, strict=True):
            if not tensor.numel():
                raise WeightsError(f"{layer}'s {part} is empty, of shape {tuple(tensor.shape)}")
            if not torch.stack(torch.aminmax(tensor)).isfinite().all():
                raise WeightsError(f"{layer}'s {part} holds NaN or infinity")
        layers[layer] = tensors
    if not layers:  # assign() asks for those that a network needs
        names = list(map(repr, map(str, found)))
        shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
        raise WeightsError(f"must hold {', '.join(LAYER_NAMES)}, got {shown or 'nothing'}")
    return layers


def _check_part(layer: str, part: str, value: Any) -> Any:
    """A weight or a bias, if it is of floating point, and has its dimensions and no more numbers than AlexNet's.

    This comes before memory of that shape is allocated: a few bytes can claim any shape.
    """
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
        floating = value.is_floating_point()
    elif isinstance(value, np.ndarray):
        floating = value.dtype.kind == "f"
    else:
        raise WeightsError(f"{layer}'s {part} must be a dense array, got {type(value).__name__}")
    if not floating:
        raise WeightsError(f"{layer}'s {part} must be of floating point, got {value.dtype}")
    dims, shape = 1 if part == "bias" else 4 if layer.startswith("conv") else 2, tuple(value.shape)
    if len(shape) != dims:
        raise WeightsError(f"{layer}'s {part} must have {dims} dimension{'s' * (dims > 1)}, got shape {shape}")
    if math.prod(shape) > LARGEST_TENSOR.get(layer, 2**20):
        raise WeightsError(f"{layer}'s {part} of shape {shape} is more than AlexNet's can be")
    return value


def _to_float32(value: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A contiguous tensor. It copies what may change or cannot be written, such as a mapped file."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinity, which is then refused
        return torch.from_numpy(np.require(value, np.float32, ["C", "W"]))


def state_dict_layers(keys: Iterable[str], tensor: Callable[[str], object]) -> dict[str, LayerTensors]:
    """The layers of a state dict with our names or torchvision's. ``tensor`` is a function from a key to its tensor."""
    ours, found = dict(zip(_TORCHVISION_NAMES, LAYER_NAMES, strict=True)), defaultdict[str, dict[str, str]](dict)
    for key in keys:
        # DataParallel and torch.compile may have put their prefixes before the names.
        prefix, _, part = re.sub(r"^((module|_orig_mod)\.)+", "", key).rpartition(".")
        found[ours.get(prefix, prefix) or key][part] = key
    return find_layers(found, lambda layer: [tensor(found[layer][part]) for part in PARTS if part in found[layer]])


def published(layers: dict[str, LayerTensors]) -> Weights:
    """Weights whose file does not describe them: BVLC's, or torchvision's if conv1 has 64 filters."""
    count = len(layers["fc8"][1]) if "fc8" in layers else 0
    classes = tuple(f"class {index}" for index in range(count))
    if count == 1000:  # ImageNet's
        from torchvision.models import AlexNet_Weights  # slow to import

        classes = tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    if "conv1" in layers and len(layers["conv1"][1]) == 64:
        return Weights(layers, classes, None, TORCHVISION)
    return Weights(layers, classes, "bvlc", BVLC)


def describe(
    classes: Sequence[str], lrn: str | None, preprocess: Preprocess, calibration: Calibration = UNCALIBRATED
) -> dict:
    """How our own files describe their weights, for JSON: classes, lrn, mean, resize, and what else is unusual."""
    usual = asdict(Preprocess(preprocess.mean, preprocess.resize)) | asdict(UNCALIBRATED)
    values = asdict(preprocess) | asdict(calibration)
    given = {name: value for name, value in values.items() if value != usual[name]}
    return {"classes": list(classes), "lrn": lrn, "mean": preprocess.mean, "resize": preprocess.resize, **given}


def described(layers: dict[str, LayerTensors], text: str) -> Weights:
    """Weights from a file of ours, with the JSON of :func:`describe`."""
    classes, lrn, preprocess, calibration = parse_meta(text)
    outputs = len(layers["fc8"][1]) if "fc8" in layers else len(classes)
    if outputs != len(classes):
        raise WeightsError(f"fc8 must have an output for each of its {len(classes)} classes, got {outputs}")
    return Weights(layers, classes if "fc8" in layers else (), lrn, preprocess, calibration=calibration)


def parse_meta(text: str | bytes) -> tuple[tuple[str, ...], str | None, Preprocess, Calibration]:
    """Classes, LRN variant, preprocessing and calibration from the JSON of :func:`describe`."""
    try:
        meta = json.loads(text)
        classes, mean, lrn, resize = (meta[key] for key in ("classes", "mean", "lrn", "resize"))
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WeightsError(f"meta must be JSON with classes, mean, lrn and resize: {error}") from error
    std, order, size = meta.get("std", [1.0] * 3), meta.get("order", "BGR"), meta.get("size", SIZE)
    temperature, none_below = meta.get("temperature", 1.0), meta.get("none_below")

    def check(right: object, entry: str, accepted: str, got: object) -> None:
        if not right:
            raise WeightsError(f"meta's {entry} must be {accepted}, got {got!r:.200}")

    strings = isinstance(classes, list) and all(isinstance(label, str) for label in classes)
    check(strings and classes, "classes", "a list of strings", classes)
    check(len(classes) <= MOST_CLASSES, "classes", f"at most {MOST_CLASSES}", len(classes))
    known = isinstance(resize, str) and resize in RESIZE
    check(known, "resize", f"one of {', '.join(map(repr, RESIZE))}", resize)
    check(order in ("BGR", "RGB"), "order", "BGR or RGB", order)
    check(type(size) is int and size in (224, 227), "size", "224 or 227", size)
    for entry, values, least in (("mean", mean, -1e6), ("std", std, 0.0)):
        three = isinstance(values, list) and len(values) == 3
        numbers = three and all(type(n) in (int, float) and least < n < 1e6 for n in values)
        check(numbers, entry, "three numbers, one per colour", values)
    positive = type(temperature) in (int, float) and 0.0 < temperature < 1e6
    check(positive, "temperature", "a positive number", temperature)
    share = none_below is None or (type(none_below) in (int, float) and 0.0 <= none_below <= 1.0)
    check(share, "none_below", "a number from 0 to 1", none_below)
    preprocess = Preprocess(tuple(map(float, mean)), resize, tuple(map(float, std)), order, size)
    calibration = Calibration(float(temperature), None if none_below is None else float(none_below))
    return tuple(classes), None if lrn is None else str(lrn), preprocess, calibration


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
        for part, tensor in zip(PARTS, loaded.layers[name], strict=True):
            takes = tuple(getattr(layer, part).shape)
            if tuple(tensor.shape) != takes:
                hint = '; skip_layer=("fc8",) leaves it as it is' if name == "fc8" else ""
                raise WeightsError(f"{loaded.name}: {name}'s {part} must be {takes}, got {tuple(tensor.shape)}{hint}")
            if meta:  # The network has no memory yet: its parameter is a copy, since others may take these weights too.
                filters = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                tensor = tensor.clone(memory_format=filters)
            state[f"{name}.{part}"] = tensor
    net.load_state_dict(state, strict=False, assign=meta)
