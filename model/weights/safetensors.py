"""Checkpoints of ``model.train``: safetensors, https://github.com/huggingface/safetensors.

For each layer ``<layer>.weight`` and ``<layer>.bias`` in PyTorch's layout, float32 (float16, bfloat16 and float64 are
read too); what the optimizer needs stands beside them under ``optimizer.`` and is passed over. The entry ``meta`` of
the header is JSON: classes, mean (B, G, R), lrn, resize.

The library maps the file and checks its header before anything is read: offsets that overlap, leave holes or pass the
file's end, and a header of more than 100 MB.
"""

import os

import torch
from safetensors import SafetensorError, safe_open

from model.weights.common import LAYERS, Probe, Weights, WeightsError, check_any, check_tensors, parse_meta

DESCRIPTION = "a .safetensors file with a meta entry, as model.train writes"
FLOATS = ("F64", "F32", "F16", "BF16")


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: a header's length, then its JSON."""
    return int.from_bytes(probe.head[:8], "little") <= 100_000_000 and probe.head[8:9] == b"{"


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "meta" not in metadata:
                raise WeightsError(f"{name}: a safetensors file without the entry meta that describes weights")
            classes, lrn, preprocess = parse_meta(name, metadata["meta"])
            found = list(file.keys())
            layers = {layer: _layer(name, layer, file, found) for layer in LAYERS if f"{layer}.weight" in found}
            check_any(name, found, layers)
    except SafetensorError as error:
        raise WeightsError(f"{name}: truncated or damaged: {' '.join(str(error).split())[:200]}") from error
    if "fc8" in layers and len(layers["fc8"][1]) != len(classes):
        outputs = len(layers["fc8"][1])
        raise WeightsError(f"{name}: fc8 must have an output for each of its {len(classes)} classes, got {outputs}")
    return Weights(name, layers, classes if "fc8" in layers else (), lrn, preprocess)


def _layer(name: str, layer: str, file: safe_open, found: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    if f"{layer}.bias" not in found:
        raise WeightsError(f"{name}: {layer} has a weight but no bias")
    tensors = []
    for part, dims in (("weight", 4 if layer.startswith("conv") else 2), ("bias", 1)):
        entry = file.get_slice(f"{layer}.{part}")
        dtype, shape = entry.get_dtype(), entry.get_shape()
        if dtype not in FLOATS:
            raise WeightsError(f"{name}: {layer}'s {part} must be of floating point, got {dtype}")
        if len(shape) != dims:
            raise WeightsError(
                f"{name}: {layer}'s {part} must have {dims} dimension{'s' * (dims > 1)}, got shape {tuple(shape)}"
            )
        # A copy: the file may be replaced while it is mapped, as training goes on.
        tensors.append(file.get_tensor(f"{layer}.{part}").to(torch.float32, copy=True))
    return check_tensors(name, layer, *tensors)
