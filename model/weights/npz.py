"""The bundled weights: an ``.npz`` of int8 weights, a scale for each output, and float32 biases.

For each layer ``<layer>.weight``, ``<layer>.scale`` and ``<layer>.bias``, with weight = int8 * scale, in PyTorch's
layout; a float weight needs no scale. ``meta`` is JSON: classes, mean (B, G, R), lrn, resize.
"""

import os

import numpy as np
import torch

from model.weights.common import (
    LAYERS,
    Probe,
    Weights,
    WeightsError,
    check_any,
    check_arrays,
    check_tensors,
    parse_meta,
)

DESCRIPTION = "an .npz file with a meta entry, as the bundled ones"


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: a zip archive, but for PyTorch's."""
    return probe.head.startswith(b"PK\x03\x04") and b"/data.pkl" not in probe.head


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "meta" not in archive.files:
                raise WeightsError(f"{name}: a zip archive without the entry meta that describes weights")
            classes, lrn, preprocess = parse_meta(name, str(archive["meta"][()]))
            layers = {layer: _layer(name, layer, archive) for layer in LAYERS if f"{layer}.weight" in archive.files}
            check_any(name, archive.files, layers)
    except WeightsError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever damaged bytes run into
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{name}: truncated or damaged: {what}") from error
    outputs = len(layers["fc8"][1]) if "fc8" in layers else len(classes)
    if outputs != len(classes):
        raise WeightsError(f"{name}: fc8 must have an output for each of its {len(classes)} classes, got {outputs}")
    return Weights(name, layers, classes if "fc8" in layers else (), lrn, preprocess)


def _layer(name: str, layer: str, archive: np.lib.npyio.NpzFile) -> tuple[torch.Tensor, torch.Tensor]:
    if f"{layer}.bias" not in archive.files:
        raise WeightsError(f"{name}: {layer} has a weight but no bias")
    weight, bias = archive[f"{layer}.weight"], archive[f"{layer}.bias"]
    scale = archive[f"{layer}.scale"] if f"{layer}.scale" in archive.files else None
    if scale is not None:
        if weight.dtype != np.int8:
            raise WeightsError(f"{name}: {layer}'s weight must be int8 beside a scale, got {weight.dtype}")
        if scale.dtype.kind != "f" or scale.shape != weight.shape[:1]:
            raise WeightsError(
                f"{name}: {layer}'s scale must be one float an output, {weight.shape[:1]}, "
                f"got {scale.dtype} {scale.shape}"
            )
        scale = torch.from_numpy(scale).float().view(-1, *(1,) * (weight.ndim - 1))
        weight = (torch.from_numpy(weight) * scale).numpy()
    check_arrays(name, layer, weight, bias)
    return check_tensors(name, layer, torch.from_numpy(weight).float(), torch.from_numpy(bias).float())
