"""``AlexNet_compressed.net``: Deep Compression's own format, and what :mod:`model.compress` writes.

Han, Mao and Dally 2016 (https://arxiv.org/abs/1510.00149) prune a network, share its remaining weights' values among a
few, and store where each is as the gap from the one before. Their file
(https://github.com/songhan/Deep-Compression-AlexNet), little-endian:

    8 x uint32                   how many entries each layer stores: conv1 ... conv5, fc6 ... fc8
    then for each layer
    float32 codebook[256 or 16]  the values there are: 256 in a convolution, 16 in a fully connected layer
    float32 bias[out]
    uint8 codes[n or ceil(n/2)]  which value: a byte each, in fully connected layers half a byte, the lower half first
    uint8 gaps[ceil(n/2)]        zeros before the entry, half a byte each, the lower half first

A weight that no entry names is codebook[0], which is 0; where more than 15 zeros lie between two weights, entries with
code 0 bridge them. Weights are counted in Caffe's layout, which is PyTorch's.

The format has no place for what a network other than BVLC's needs, so our files go on after its end: JSON with classes,
mean, lrn and resize, its length as uint32, and a magic word. A reader of the original format stops before that.
"""

import math
import os
import struct
from collections.abc import Sequence

import numpy as np
import torch

from model.preprocess import BVLC
from model.weights.common import Probe, Weights, WeightsError, check_tensors, imagenet_classes, parse_meta, read_bounded

DESCRIPTION = "a .net file of Deep Compression's"
MAGIC = b"AlexNet\n"
SHAPES = {  # of weights, but for fc8's, whose outputs are the classes
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
}


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: by our magic word, or by its exact size."""
    if probe.tail.endswith(MAGIC):
        return True
    if len(probe.head) < 32:
        return False
    shapes = _shapes(1000)
    return probe.size == 32 + sum(map(_bytes, shapes, shapes.values(), struct.unpack("<8I", probe.head[:32])))


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads a file of the original format, or one with our ending."""
    data = read_bounded(path, name)
    classes, lrn, preprocess = None, "bvlc", BVLC
    if data.endswith(MAGIC):
        data, text = _split(name, data)
        classes, lrn, preprocess = parse_meta(name, text)
    arrays = decode(name, data, _shapes(1000 if classes is None else len(classes)))
    layers = {layer: check_tensors(name, layer, *map(torch.from_numpy, pair)) for layer, pair in arrays.items()}
    return Weights(name, layers, imagenet_classes(layers) if classes is None else classes, lrn, preprocess)


def decode(name: str, data: bytes, shapes: dict[str, Sequence[int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each layer in ``shapes``, whose fully connected ones have two dimensions.

    Raises:
        WeightsError: the data ends early or late, or an entry lies past its layer's end.
    """
    view, layers = memoryview(data), {}

    def take(layer: str, dtype: str, count: int) -> np.ndarray:
        nonlocal view
        length = count * np.dtype(dtype).itemsize
        if length > len(view):
            raise WeightsError(f"{name}: truncated or damaged: ends within {layer}")
        taken, view = np.frombuffer(view[:length], dtype), view[length:]
        return taken

    for (layer, shape), entries in zip(shapes.items(), take("its header", "<u4", len(shapes)).tolist(), strict=True):
        fully = len(shape) == 2
        codebook = take(layer, "<f4", 16 if fully else 256)
        bias = take(layer, "<f4", shape[0]).copy()
        codes = _halves(take(layer, "u1", _half(entries)), entries) if fully else take(layer, "u1", entries)
        places = np.cumsum(_halves(take(layer, "u1", _half(entries)), entries).astype(np.int64) + 1) - 1
        size = math.prod(shape)
        if entries and places[-1] >= size:
            raise WeightsError(f"{name}: truncated or damaged: {layer} has an entry past its {size} weights")
        weight = np.full(size, codebook[0], np.float32)
        weight[places] = codebook[codes]
        layers[layer] = weight.reshape(shape), bias
    if len(view):
        raise WeightsError(f"{name}: truncated or damaged: {len(view)} bytes follow the last layer")
    return layers


def _half(count: int) -> int:
    """Bytes of ``count`` half bytes."""
    return (count + 1) // 2


def _halves(packed: np.ndarray, count: int) -> np.ndarray:
    """Half bytes, the lower first."""
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]


def _shapes(classes: int) -> dict[str, tuple[int, ...]]:
    return {**SHAPES, "fc8": (classes, 4096)}


def _bytes(layer: str, shape: Sequence[int], entries: int) -> int:
    """What a layer takes in the file."""
    fully = len(shape) == 2
    return 4 * ((16 if fully else 256) + shape[0]) + (_half(entries) if fully else entries) + _half(entries)


def _split(name: str, data: bytes) -> tuple[bytes, str]:
    """The original format's part, and the JSON behind it."""
    end = len(data) - len(MAGIC) - 4
    length = struct.unpack("<I", data[end : end + 4])[0] if end >= 0 else 0
    if not 0 < length <= end:
        raise WeightsError(f"{name}: truncated or damaged: its ending of {length} bytes does not fit in the file")
    try:
        return data[: end - length], data[end - length : end].decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{name}: truncated or damaged: its ending is not text") from error
