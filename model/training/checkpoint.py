"""A training run in one file. A run that is killed at any moment leaves the old file or the new one, whole.

A checkpoint is also a file of weights, for :mod:`model.weights.safetensors`. The run's position stands in the header's
``meta`` under ``training``. The header has no other entry: safetensors writes several in any order, and equal runs must
give equal files.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kernels.errors import AlexNetError
from kernels.tools.files import write_bytes
from model.weights import Weights
from model.weights.common import describe, reason


def write(path: Path, tensors: dict[str, torch.Tensor], meta: dict) -> None:
    """Replaces ``path``, or raises AlexNetError; ``meta`` is JSON in the header."""
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(packed, {"meta": json.dumps(meta)}))


def write_weights(path: Path, loaded: Weights) -> None:
    """Writes weights that are no run's, like :func:`write`."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, (weight, bias) in loaded.layers.items():
        tensors |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
    write(path, tensors, describe(loaded.classes, loaded.lrn, loaded.preprocess, loaded.calibration))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns (tensors by name, ``meta``), or raises AlexNetError if the file holds no run."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            if "training" not in meta:
                raise AlexNetError(f"{path}: holds weights but no run to resume; a new run can start from them")
            return {name: file.get_tensor(name).clone() for name in list(file.keys())}, meta
    except (OSError, SafetensorError, ValueError) as error:
        raise AlexNetError(f"{path}: cannot be read: {reason(error)}") from error
