"""The photo that all notebooks use: scikit-image's ``chelsea``, a cat (CC0, Stefan van der Walt)."""

import functools

import numpy as np
import torch
from PIL import Image

from kernels import runtime
from model.photos.preprocess import central_square, open_image
from model.photos.sample import default_photo


@functools.cache
def whole() -> np.ndarray:
    """The photo as it was taken: (300, 451, 3), RGB in bytes."""
    return np.asarray(open_image(default_photo()))


@functools.cache
def square() -> np.ndarray:
    """The middle of the photo, as the network sees it: (227, 227, 3), RGB in bytes."""
    return np.asarray(central_square(Image.fromarray(whole()), 227))


def tensor() -> torch.Tensor:
    """The middle as a batch of one: (1, 3, 227, 227), from 0 to 1, channels_last, on the kernels' device."""
    image = torch.from_numpy(square().copy()).permute(2, 0, 1)[None].float() / 255
    return image.to(runtime.default_device()).contiguous(memory_format=torch.channels_last)
