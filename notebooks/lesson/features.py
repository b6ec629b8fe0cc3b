"""Feature maps to look at: what conv1 makes of the photo, with the bundled weights, of which only conv1's are read."""

import functools
from typing import NamedTuple

import numpy as np
import torch

from kernels import runtime
from model.infer import default_photo
from model.preprocess import open_image
from model.weights import fetch
from model.weights.common import parse_meta


class Conv1(NamedTuple):
    """conv1's operands, in channels_last memory where the kernels run."""

    x: torch.Tensor  # (1, 3, 227, 227), the photo as the weights were trained to see it
    weight: torch.Tensor  # (96, 3, 11, 11)
    bias: torch.Tensor  # (96,)


@functools.cache
def conv1() -> Conv1:
    """The photo, and the filters to convolve it with, at stride 4."""
    with np.load(fetch("cifar10")) as archive:
        weight = archive["conv1.weight"] * archive["conv1.scale"].astype(np.float32)[:, None, None, None]
        bias = archive["conv1.bias"]
        _, _, preprocess = parse_meta("cifar10", str(archive["meta"]))
    tensors = preprocess(open_image(default_photo()))[None], torch.from_numpy(weight), torch.from_numpy(bias)
    x, weight, bias = (tensor.float().to(runtime.default_device()) for tensor in tensors)
    last = {"memory_format": torch.channels_last}
    return Conv1(x.contiguous(**last), weight.contiguous(**last), bias)
