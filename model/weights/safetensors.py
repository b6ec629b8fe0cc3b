"""safetensors (https://github.com/huggingface/safetensors), which checkpoints of ``model.train`` are too.

For each layer ``<layer>.weight`` and ``<layer>.bias`` in PyTorch's layout, float32 (float16, bfloat16 and float64 are
read too), under our layers' names or torchvision's. In our own files the entry ``meta`` of the header is JSON: classes,
mean (B, G, R), lrn, resize; and what the optimizer needs stands beside the layers under ``optimizer.`` and is passed
over.

The library maps the file and checks its header before anything is read: offsets that overlap, leave holes or pass the
file's end.
"""

import os

import torch
from safetensors import SafetensorError, safe_open

from model.weights.common import (
    LAYERS,
    Probe,
    Weights,
    WeightsError,
    check_any,
    check_bias,
    check_shape,
    check_tensors,
    described,
    published,
    reason,
    rename,
)

DESCRIPTION = "a .safetensors file, as model.train writes"
FLOATS = ("F64", "F32", "F16", "BF16")
HEADER = 2**24  # bytes of the longest header that is read


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: a header's length, then its JSON."""
    return int.from_bytes(probe.head[:8], "little") <= HEADER and probe.head[8:9] == b"{"


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = (file.metadata() or {}).get("meta")
            keys = file.keys()
            found = {rename(key): key for key in keys}
            layers = {layer: _layer(name, layer, file, found) for layer in LAYERS if f"{layer}.weight" in found}
            check_any(name, keys, layers)
    except SafetensorError as error:
        raise WeightsError(f"{name}: truncated or damaged: {reason(error)}") from error
    if meta is None:
        return published(name, layers)
    return described(name, layers, meta)


def _layer(name: str, layer: str, file: safe_open, found: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    check_bias(name, layer, found)
    tensors = []
    for part in ("weight", "bias"):
        key = found[f"{layer}.{part}"]
        entry = file.get_slice(key)
        if entry.get_dtype() not in FLOATS:
            raise WeightsError(f"{name}: {layer}'s {part} must be of floating point, got {entry.get_dtype()}")
        check_shape(name, layer, part, entry.get_shape())
        # A copy: the file may be replaced while it is mapped, as training goes on.
        tensors.append(file.get_tensor(key).to(torch.float32, copy=True))
    return check_tensors(name, layer, *tensors)
