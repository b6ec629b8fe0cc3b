"""A training run in one file: weights, what the optimizer needs, and where the run is. Whole, or not there at all.

Written beside its place, brought to the disk, then renamed: whatever happens meanwhile, the name stands for the old
file or for the new one. Weights are stored as :mod:`model.weights.safetensors` reads them, so that a checkpoint is also
a file for ``model.infer --weights``; the run's position is among what the header's ``meta`` says, under ``training``.
(One entry, for safetensors writes several in any order, and equal runs are to give equal files.)
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kernels.errors import AlexNetError
from kernels.tools.files import write_bytes


def write(path: Path, tensors: dict[str, torch.Tensor], meta: dict) -> None:
    """Replaces ``path``; ``meta`` is JSON in the header.

    Raises:
        AlexNetError: the disk is full, or whatever else the system says.
    """
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(packed, {"meta": json.dumps(meta)}))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and ``meta``.

    Raises:
        AlexNetError: not a checkpoint of a run that can go on.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            if "training" not in meta:
                raise AlexNetError(f"{path}: holds no training run to resume; --weights starts a new one from it")
            names = list(file.keys())
            return {name: file.get_tensor(name).clone() for name in names}, meta
    except (OSError, SafetensorError, ValueError) as error:
        raise AlexNetError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error
