"""safetensors (https://github.com/huggingface/safetensors), which the checkpoints of ``alexnet train`` are, too.

The length of a header, the header as JSON, then the numbers. Each layer is ``<layer>.weight`` and ``<layer>.bias`` in
PyTorch's layout, under our layers' names or torchvision's. In our own files the header's entry ``meta`` is JSON:
classes, mean (B, G, R), lrn, resize. What is under ``optimizer.`` is ignored here.

The library maps the file and checks its header before it reads: offsets that overlap, leave holes or pass the end.
"""

import os

from safetensors import SafetensorError, safe_open

from model.weights.common import Probe, Weights, WeightsError, described, published, reason, state_dict_layers

DESCRIPTION = "a .safetensors file, as alexnet train writes"
LONGEST_HEADER = 2**24  # bytes


def matches(probe: Probe) -> bool:
    """Whether the file begins with a header's length and then JSON."""
    return int.from_bytes(probe.head[:8], "little") <= LONGEST_HEADER and probe.head[8:9] == b"{"


def read(path: str | os.PathLike) -> Weights:
    """Reads the file. Everything in it except AlexNet's layers is ignored."""
    try:
        with safe_open(path, framework="pt") as file:
            layers = state_dict_layers(file.keys(), file.get_tensor)
            meta = (file.metadata() or {}).get("meta")
    except SafetensorError as error:
        raise WeightsError(f"truncated or damaged: {reason(error)}") from error
    return published(layers) if meta is None else described(layers, meta)
