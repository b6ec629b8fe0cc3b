"""``.pth`` and ``.pt``: a state dict saved by PyTorch, with our layers' names or with torchvision's.

``torch.load(weights_only=True)`` builds tensors and plain containers, and refuses to run anything. A training
script's checkpoint may hold the state dict as ``state_dict`` or ``model``, and ``DataParallel`` puts ``module.`` before
every name.
"""

import os
from collections.abc import Mapping

import torch

from model.weights.common import (
    LARGEST,
    LAYERS,
    Probe,
    Weights,
    WeightsError,
    check_any,
    check_arrays,
    check_tensors,
    published,
)

DESCRIPTION = "a .pth file with a state dict"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the magic number that files of before PyTorch 1.6 begin with


TORCHVISION = {  # its names -> ours
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: a zip archive with PyTorch's first entry."""
    return probe.head.startswith(LEGACY) or (probe.head.startswith(b"PK\x03\x04") and b"/data.pkl" in probe.head)


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    if os.stat(path).st_size > LARGEST:
        raise WeightsError(f"{name}: more bytes than AlexNet's weights can take, {LARGEST:,}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensors raise whatever damaged bytes run into
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{name}: cannot be read as a state dict: {what}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name}: must hold a state dict, got {type(state).__name__}")
    state = {_rename(str(key).removeprefix("module.")): value for key, value in state.items()}
    layers = {layer: _layer(name, layer, state) for layer in LAYERS if f"{layer}.weight" in state}
    check_any(name, list(state), layers)
    return published(name, layers)


def _rename(key: str) -> str:
    layer, _, part = key.rpartition(".")
    return f"{TORCHVISION.get(layer, layer)}.{part}"


def _layer(name: str, layer: str, state: Mapping) -> tuple[torch.Tensor, torch.Tensor]:
    if f"{layer}.bias" not in state:
        raise WeightsError(f"{name}: {layer} has a weight but no bias")
    weight, bias = (_array(name, layer, state[f"{layer}.{part}"]) for part in ("weight", "bias"))
    check_arrays(name, layer, weight, bias)
    return check_tensors(name, layer, torch.from_numpy(weight), torch.from_numpy(bias))


def _array(name: str, layer: str, value: object) -> object:
    """A tensor of floats as a float32 array; anything else as it is, for check_arrays to name."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        return value
    if value.numel() * 4 > LARGEST:  # strides of 0 make any shape of a few numbers
        raise WeightsError(f"{name}: {layer} has a tensor of shape {tuple(value.shape)}, more than AlexNet's can be")
    return value.detach().float().contiguous().numpy()
