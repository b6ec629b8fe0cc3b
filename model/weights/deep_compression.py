"""``AlexNet_compressed.net``: Deep Compression's own format, which :mod:`model.compress` writes.

Han, Mao and Dally 2016 (https://arxiv.org/abs/1510.00149) prune a network, let its remaining weights share a few
values, and store each weight's place as the gap from the one before. Their file
(https://github.com/songhan/Deep-Compression-AlexNet), little-endian:

    8 x uint32                   how many entries each layer stores: conv1 ... conv5, fc6 ... fc8
    then for each layer
    float32 codebook[256 or 16]  the shared values: 256 in a convolution, 16 in a fully connected layer
    float32 bias[out]
    uint8 codes[n or ceil(n/2)]  each entry's value: a byte, or in fully connected layers half a byte, lower half first
    uint8 gaps[ceil(n/2)]        zeros before each entry, half a byte, lower half first

A weight without an entry is codebook[0], which is 0. If more than 15 zeros lie between two weights, entries with code 0
bridge them. Weights are counted in Caffe's layout, which is PyTorch's.

Our files continue after the original's end with what other networks than BVLC's need: JSON with classes, mean, lrn and
resize, its length as uint32, and a magic word. A reader of the original stops before that.
"""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model.weights.common import Probe, Weights, WeightsError, find_layers, parse_meta, published

DESCRIPTION = "a .net file of Deep Compression's"
MAGIC = b"AlexNet\n"
SHAPES = {  # of the weights except fc8's, whose outputs are the classes
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
}


def matches(probe: Probe) -> bool:
    """Whether the file ends with our magic word, or has exactly the size that its counts make."""
    if probe.tail.endswith(MAGIC):
        return True
    if len(probe.head) < 32:
        return False
    entries = struct.unpack("<8I", probe.head[:32])
    return probe.size == 32 + sum(map(_bytes, shapes(1000).values(), entries))


def read(path: str | os.PathLike) -> Weights:
    """Reads a file of the original format, or one with our ending."""
    data = Path(path).read_bytes()
    if not data.endswith(MAGIC):
        layers = decode(data, shapes(1000))
        return published(find_layers(layers, layers.__getitem__))
    end = len(data) - len(MAGIC) - 4
    length = struct.unpack("<I", data[end : end + 4])[0] if end >= 0 else 0
    if not 0 < length <= end:
        raise WeightsError(f"truncated or damaged: its ending of {length} bytes does not fit into the file")
    classes, lrn, preprocess, calibration = parse_meta(data[end - length : end])
    layers = decode(data[: end - length], shapes(len(classes)))
    return Weights(find_layers(layers, layers.__getitem__), classes, lrn, preprocess, calibration=calibration)


def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of every layer's weight, in the file's order."""
    return {**SHAPES, "fc8": (classes, 4096)}


def decode(data: bytes, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each layer in ``shapes``. Fully connected layers have two dimensions."""
    view, layers = memoryview(data), {}

    def take(layer: str, dtype: str, count: int) -> np.ndarray:
        nonlocal view
        length = count * np.dtype(dtype).itemsize
        if length > len(view):
            raise WeightsError(f"truncated or damaged: ends within {layer}")
        taken, view = np.frombuffer(view[:length], dtype), view[length:]
        return taken

    for (layer, shape), entries in zip(shapes.items(), take("its header", "<u4", len(shapes)).tolist(), strict=True):
        fully, size, half = len(shape) == 2, math.prod(shape), (entries + 1) // 2
        if entries > size:
            raise WeightsError(f"truncated or damaged: {layer} has {entries} entries for {size} weights")
        codebook = take(layer, "<f4", 16 if fully else 256)
        bias = take(layer, "<f4", shape[0])
        codes = _halves(take(layer, "u1", half), entries) if fully else take(layer, "u1", entries)
        places = _halves(take(layer, "u1", half), entries).astype(np.int64)
        places[1:] += 1
        np.cumsum(places, out=places)
        if entries and places[-1] >= size:
            raise WeightsError(f"truncated or damaged: {layer} has an entry beyond its {size} weights")
        weight = np.full(size, codebook[0], np.float32)
        weight[places] = codebook[codes]
        layers[layer] = weight.reshape(shape), bias
    if len(view):
        raise WeightsError(f"truncated or damaged: {len(view)} bytes follow the last layer")
    return layers


def encode(weight: np.ndarray, bias: np.ndarray, codebook: np.ndarray) -> tuple[int, bytes]:
    """A layer's number of entries, and its part of the file.

    Args:
        weight: every value is one of the codebook's. Zeros are not stored.
        bias: float32, one per output.
        codebook: 256 values, or 16 for a fully connected layer. The first is 0, the rest are in ascending order.

    Raises:
        ValueError: a value that is not in the codebook.
    """
    flat = weight.reshape(-1)
    places = np.flatnonzero(flat)
    codes = 1 + np.searchsorted(codebook[1:], flat[places]).clip(max=len(codebook) - 2)
    if not np.array_equal(codebook[codes], flat[places]):
        raise ValueError("every weight must be one of the codebook's values")
    gaps = np.diff(places, prepend=-1) - 1
    # A bridge is an entry of code 0: itself and the 15 zeros before it.
    bridges = gaps // 16
    ends = np.cumsum(bridges + 1) - 1
    all_codes = np.zeros(ends[-1] + 1 if len(ends) else 0, np.uint8)
    all_gaps = np.full(len(all_codes), 15, np.uint8)
    all_codes[ends], all_gaps[ends] = codes, gaps % 16
    packed = all_codes if weight.ndim == 4 else _pack(all_codes)
    parts = codebook.astype("<f4"), bias.astype("<f4"), packed, _pack(all_gaps)
    return len(all_codes), b"".join(part.tobytes() for part in parts)


def join(parts: Sequence[tuple[int, bytes]], meta: dict) -> bytes:
    """The file: what :func:`encode` returned for each layer, and our ending with what ``describe`` returned."""
    header = struct.pack(f"<{len(parts)}I", *(entries for entries, _ in parts))
    return header + b"".join(data for _, data in parts) + _ending(meta)


def described_anew(data: bytes, meta: dict) -> bytes:
    """A file that :func:`read` accepts, with another ending, or with one if it is the original's."""
    if data.endswith(MAGIC):
        end = len(data) - len(MAGIC) - 4
        data = data[: end - struct.unpack("<I", data[end : end + 4])[0]]
    return data + _ending(meta)


def _ending(meta: dict) -> bytes:
    text = json.dumps(meta).encode()
    return text + struct.pack("<I", len(text)) + MAGIC


def _pack(values: np.ndarray) -> np.ndarray:
    """Half bytes into bytes, the lower first."""
    even = np.concatenate([values, np.zeros(len(values) % 2, np.uint8)])
    return even[::2] | even[1::2] << 4


def _halves(packed: np.ndarray, count: int) -> np.ndarray:
    """Half bytes, the lower first."""
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]


def _bytes(shape: Sequence[int], entries: int) -> int:
    """Bytes of a layer in the file."""
    fully, half = len(shape) == 2, (entries + 1) // 2
    return 4 * ((16 if fully else 256) + shape[0]) + (half if fully else entries) + half
