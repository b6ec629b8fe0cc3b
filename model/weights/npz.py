"""An ``.npz`` of int8 weights, a scale for each output, and float32 biases: what was bundled at first.

For each layer ``<layer>.weight``, ``<layer>.scale`` and ``<layer>.bias``, with weight = int8 * scale, in PyTorch's
layout; a float weight needs no scale. ``meta`` is JSON: classes, mean (B, G, R), lrn, resize.

The archive is read entry by entry, for ``numpy.load`` allocates what an entry's header claims.
"""

import io
import os

import numpy as np
import torch

from model.weights.common import (
    LARGEST,
    LAYERS,
    Probe,
    Weights,
    WeightsError,
    check_any,
    check_arrays,
    check_bias,
    check_shape,
    described,
    to_tensors,
)
from model.weights.zips import open_zip, unpack

DESCRIPTION = "an .npz file with a meta entry"


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: a zip archive, but for PyTorch's."""
    return probe.entry is not None and not probe.entry.endswith("/data.pkl")


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    with open_zip(path, name) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if "meta" not in entries:
            raise WeightsError(f"{name}: a zip archive without the entry meta that describes weights")
        wanted = [key for key in entries if key == "meta" or key.split(".")[0] in LAYERS]
        arrays, left = {}, LARGEST
        for key in wanted:
            data = unpack(archive, entries[key], name, left)
            arrays[key], left = _array(data, f"{name}: {key}"), left - len(data)
    layers = {layer: _layer(name, layer, arrays) for layer in LAYERS if f"{layer}.weight" in arrays}
    check_any(name, list(entries), layers)
    return described(name, layers, str(arrays["meta"][()]))


def _array(data: bytes, what: str) -> np.ndarray:
    """An ``.npy`` file's array, which is these bytes themselves."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise WeightsError(f"{what} must be an array of numbers, got objects, which could run anything")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _layer(name: str, layer: str, arrays: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    check_bias(name, layer, arrays)
    weight, bias = arrays[f"{layer}.weight"], arrays[f"{layer}.bias"]
    scale = arrays.get(f"{layer}.scale")
    if scale is not None:
        if weight.dtype != np.int8:
            raise WeightsError(f"{name}: {layer}'s weight must be int8 beside a scale, got {weight.dtype}")
        if scale.dtype.kind != "f" or scale.shape != weight.shape[:1]:
            raise WeightsError(
                f"{name}: {layer}'s scale must be one float an output, {weight.shape[:1]}, "
                f"got {scale.dtype} {scale.shape}"
            )
        check_shape(name, layer, "weight", weight.shape)
        factor = torch.from_numpy(scale.astype(np.float32)).view(-1, *(1,) * (weight.ndim - 1))
        weight = (torch.tensor(weight) * factor).numpy()
    check_arrays(name, layer, weight, bias)
    return to_tensors(name, layer, weight, bias)
