"""What weights are once read, and the checks that every format shares."""

import json
import math
import os
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kernels.errors import AlexNetError
from model.photos.preprocess import BVLC, RESIZE, SIZE, TORCHVISION, Preprocess

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")

LARGEST = 2**30
"""Bytes of the largest file that is read whole: AlexNet's in float64 are half as many."""

MOST = {"fc6": 4096 * 9216, "fc7": 4096 * 4096, "fc8": 4096 * 2**15}
"""Numbers in the largest tensor that is read of a layer; in a convolution's they are 2^20 at most."""

MOST_CLASSES = MOST["fc8"] // 4096

TORCHVISION_NAMES = {  # torchvision's -> ours
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


class WeightsError(AlexNetError, ValueError):
    """Weights that cannot be read, or do not fit; one line that names the file and the layer."""

    def __init__(self, message: str):
        # Files and libraries bring line ends, control codes and kilobytes of names.
        line = re.sub(r"\s*[\r\n]\s*", " ", message)
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        super().__init__(line if len(line) <= 600 else f"{line[:400]} ... {line[-150:]}")


def reason(error: Exception) -> str:
    """What a library's error says, in short."""
    # What comes before this in PyTorch's errors is advice to run the file all the same.
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    return " ".join(text.split())[:200] or type(error).__name__


class Probe(NamedTuple):
    """What a file's format is told by: its first and last bytes, and how many there are."""

    head: bytes
    tail: bytes
    size: int

    @property
    def entry(self) -> str | None:
        """The first entry's name of a zip archive; None for any other file."""
        if not self.head.startswith(b"PK\x03\x04"):
            return None
        return self.head[30 : 30 + int.from_bytes(self.head[26:28], "little")].decode("latin1")


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


def check_shape(name: str, layer: str, part: str, shape: Sequence[int]) -> None:
    """Checks that a layer's weight or bias has a weight's or a bias's dimensions, and no more numbers than AlexNet's.

    Comes before anything of that shape is allocated: a few bytes can claim any.
    """
    dims = 1 if part == "bias" else 4 if layer.startswith("conv") else 2
    if len(shape) != dims:
        raise WeightsError(
            f"{name}: {layer}'s {part} must have {dims} dimension{'s' * (dims > 1)}, got shape {tuple(shape)}"
        )
    if math.prod(shape) > MOST.get(layer, 2**20):
        raise WeightsError(f"{name}: {layer}'s {part} of shape {tuple(shape)} is more than AlexNet's can be")


def check_arrays(name: str, layer: str, weight: object, bias: object) -> tuple[np.ndarray, np.ndarray]:
    """A layer's two arrays, if they are arrays of floats and have a weight's and a bias's dimensions."""
    return _check_array(name, layer, "weight", weight), _check_array(name, layer, "bias", bias)


def _check_array(name: str, layer: str, part: str, array: object) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{name}: {layer}'s {part} must be an array, got {type(array).__name__}")
    if array.dtype.kind != "f":
        raise WeightsError(f"{name}: {layer}'s {part} must be of floating point, got {array.dtype}")
    check_shape(name, layer, part, array.shape)
    return array


def check_tensors(name: str, layer: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks a layer in PyTorch's layout: one bias an output, every number finite."""
    if weight.shape[0] != bias.shape[0]:
        raise WeightsError(f"{name}: {layer} must have one bias an output, got {bias.shape[0]} for {weight.shape[0]}")
    for part, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.numel():
            raise WeightsError(f"{name}: {layer}'s {part} is empty, of shape {tuple(tensor.shape)}")
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise WeightsError(f"{name}: {layer}'s {part} holds NaN or infinity")
    return weight, bias


def to_tensors(name: str, layer: str, weight: np.ndarray, bias: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's checked arrays, in PyTorch's layout, as float32 tensors."""
    tensors = []
    for array in (weight, bias):
        copy = None if array.flags.writeable else True  # None: only where dtype or order differ
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes the infinity that check_tensors reports
            tensors.append(torch.from_numpy(np.array(array, np.float32, order="C", copy=copy)))
    return check_tensors(name, layer, *tensors)


def check_any(name: str, found: list[str], layers: dict) -> None:
    """Checks that at least one of AlexNet's layers was found; :meth:`AlexNet.assign` asks for those it needs."""
    if not layers:
        shown = ", ".join(map(repr, found[:8])) + ", ..." * (len(found) > 8)
        raise WeightsError(f"{name}: must hold {', '.join(LAYERS)}, got {shown or 'nothing'}")


def check_bias(name: str, layer: str, found: Container[str]) -> None:
    """Checks that a layer whose weight was found has a bias too."""
    if f"{layer}.bias" not in found:
        raise WeightsError(f"{name}: {layer} has a weight but no bias")


def check_order(name: str, steps: Sequence[str], normalise: str, pool: str) -> None:
    """Checks that a graph normalises before it pools: CaffeNet, whose weights have AlexNet's shapes, pools first."""
    if normalise in steps and pool in steps[: steps.index(normalise)]:
        raise WeightsError(f"{name}: pools before it normalises, as CaffeNet does, which is another network")


def check_size(path: str | os.PathLike, name: str) -> None:
    """Checks that a file is not larger than weights can be."""
    size = os.stat(path).st_size
    if size > LARGEST:
        raise WeightsError(f"{name}: {size:,} bytes are more than AlexNet's weights can take, {LARGEST:,}")


def read_bounded(path: str | os.PathLike, name: str) -> bytes:
    """The whole file, if it is not larger than weights can be."""
    check_size(path, name)
    return Path(path).read_bytes()


def rename(key: str) -> str:
    """A state dict's key as ours: without what ``DataParallel`` and ``torch.compile`` put before it."""
    layer, _, part = re.sub(r"^((module|_orig_mod)\.)+", "", key).rpartition(".")
    return f"{TORCHVISION_NAMES.get(layer, layer)}.{part}"


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


def described(name: str, layers: dict[str, tuple[torch.Tensor, torch.Tensor]], text: str) -> Weights:
    """Weights from a file of ours, with the JSON of what :func:`describe` gave.

    Raises:
        WeightsError: what is described cannot be, or does not fit fc8.
    """
    classes, lrn, preprocess = parse_meta(name, text)
    outputs = len(layers["fc8"][1]) if "fc8" in layers else len(classes)
    if outputs != len(classes):
        raise WeightsError(f"{name}: fc8 must have an output for each of its {len(classes)} classes, got {outputs}")
    return Weights(name, layers, classes if "fc8" in layers else (), lrn, preprocess)


def parse_meta(name: str, text: str) -> tuple[tuple[str, ...], str | None, Preprocess]:
    """:func:`check_meta` of JSON."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{name}: meta must be JSON with classes, mean, lrn and resize: {error}") from error
    return check_meta(name, meta)


def check_meta(name: str, meta: object) -> tuple[tuple[str, ...], str | None, Preprocess]:
    """Classes, LRN variant and preprocessing from what :func:`describe` gave."""
    if not isinstance(meta, dict):
        raise WeightsError(f"{name}: meta must be JSON with classes, mean, lrn and resize, got {meta!r:.200}")
    try:
        classes, mean, lrn, resize = (meta[key] for key in ("classes", "mean", "lrn", "resize"))
    except KeyError as error:
        raise WeightsError(f"{name}: meta must be JSON with classes, mean, lrn and resize: {error}") from error
    std, order, size = meta.get("std", [1.0] * 3), meta.get("order", "BGR"), meta.get("size", SIZE)
    if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
        raise WeightsError(f"{name}: meta's classes must be a list of strings, got {classes!r:.200}")
    if len(classes) > MOST_CLASSES:
        raise WeightsError(f"{name}: meta's classes must be at most {MOST_CLASSES}, got {len(classes)}")
    for what, colours, least in (("mean", mean, -1e6), ("std", std, 0.0)):
        numbers = isinstance(colours, list) and all(type(c) in (int, float) for c in colours)
        if not numbers or len(colours) != 3 or not all(least < c < 1e6 for c in colours):
            raise WeightsError(f"{name}: meta's {what} must be three numbers, one a colour, got {colours!r:.200}")
    if not isinstance(resize, str) or resize not in RESIZE:
        raise WeightsError(f"{name}: meta's resize must be one of {', '.join(map(repr, RESIZE))}, got {resize!r:.100}")
    if order not in ("BGR", "RGB") or type(size) is not int or size not in (224, 227):
        raise WeightsError(
            f"{name}: meta's order must be BGR or RGB and its size 224 or 227, got {order!r:.100}, {size!r:.100}"
        )
    preprocess = Preprocess(_three(mean), resize, _three(std), order, size)
    return tuple(classes), None if lrn is None else str(lrn), preprocess


def _three(colours: list) -> tuple[float, float, float]:
    first, second, third = map(float, colours)
    return first, second, third


@torch.no_grad()
def assign(net: torch.nn.Module, loaded: Weights, skip_layer: Iterable[str] = ()) -> None:
    """Copies weights into every layer of ``net`` that has some and is not in ``skip_layer``.

    Raises:
        WeightsError: a layer is missing or of another shape; nothing has been copied then.
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
            if meta:  # nothing to copy into: a copy becomes the parameter, as other networks may take these weights too
                filters = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                tensor = tensor.clone(memory_format=filters)
            state[f"{name}.{part}"] = tensor
    net.load_state_dict(state, strict=False, assign=meta)
