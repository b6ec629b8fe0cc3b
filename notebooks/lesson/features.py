"""The operands of conv1 for the photo, with the bundled weights."""

import functools
from typing import NamedTuple

import torch

from kernels import runtime
from model import weights
from model.photos.preprocess import open_image
from model.photos.sample import default_photo


class Conv1(NamedTuple):
    """conv1's operands, in channels_last memory, on the kernels' device."""

    x: torch.Tensor  # (1, 3, 227, 227), the photo, preprocessed as in training
    weight: torch.Tensor  # (96, 3, 11, 11)
    bias: torch.Tensor  # (96,)


@functools.cache
def conv1() -> Conv1:
    """Returns the photo and conv1's weight and bias. conv1 has stride 4."""
    loaded = weights.load()
    tensors = loaded.preprocess(open_image(default_photo()))[None], *loaded.layers["conv1"]
    x, weight, bias = (tensor.to(runtime.default_device()) for tensor in tensors)
    last = {"memory_format": torch.channels_last}
    return Conv1(x.contiguous(**last), weight.contiguous(**last), bias)
