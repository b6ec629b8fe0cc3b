"""Classifies photos: what ``alexnet infer`` prints, for Python."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import kernels
from kernels.errors import AlexNetError
from model.alexnet import AlexNet
from model.device import synchronize
from model.photos.loading import Photos, load
from model.weights import Weights


@dataclass(frozen=True)
class Prediction:
    """One class of a photo."""

    index: int
    label: str
    probability: float


class Batch(NamedTuple):
    """What :func:`classify` found in some photos."""

    photos: list[Path]  # those that could be read
    predictions: list[list[Prediction]]  # per photo, the likeliest class first
    unreadable: list[str]  # one message per photo that could not be read
    seconds: float  # for the forward pass and softmax
    none: list[bool | None]  # per photo, whether it probably shows none of the classes; None: the weights do not say


def classify(
    photos: Sequence[Path],
    net: AlexNet,
    loaded: Weights,
    *,
    batch: int = 8,
    top: int = 5,
    graph: bool = False,
    show: bool = False,
) -> Iterator[Batch]:
    """Classifies photos batch by batch. Two other processes decode them.

    Args:
        net: has the weights ``loaded``, and computes where its parameters are, in their dtype.
        batch: photos in one forward pass.
        top: how many classes to list for a photo.
        graph: whether to launch the network as a CUDA graph, which runs no hooks.
        show: whether to draw a progress bar on stderr.

    Raises:
        AlexNetError: a photo's probabilities are not numbers.

    Example::

        loaded = weights.load("cifar10")
        for batch in classify([Path("cat.jpg")], AlexNet.from_weights(loaded), loaded):
            print(batch.predictions)
    """
    device, dtype = net.fc8.weight.device, net.fc8.weight.dtype
    forward = net.capture(batch) if graph else net
    images = [(photo, index) for index, photo in enumerate(photos)]
    batches = load(Photos(images, loaded.preprocess), batch, 2, device)
    for x, indices, errors in tqdm(batches, unit="batch", leave=False, disable=None if show else True):
        paths = [photos[index] for index in indices]
        unreadable = [error for error in errors if error is not None]
        if not paths:
            yield Batch([], [], unreadable, 0.0, [])
            continue
        x = torch.as_tensor(x).to(device, dtype).contiguous(memory_format=torch.channels_last)
        synchronize(device)
        started = time.perf_counter()
        with torch.inference_mode():
            probabilities = kernels.softmax(forward(x).float() / loaded.calibration.temperature)
            synchronize(device)
        seconds = time.perf_counter() - started
        for path, finite in zip(paths, probabilities.isfinite().all(1).tolist(), strict=True):
            if not finite:
                name = str(dtype).removeprefix("torch.")
                raise AlexNetError(f"{path}: {loaded.name} overflows in {name}: its probabilities are not numbers")
        values, classes = (tensor.tolist() for tensor in probabilities.topk(top))
        predictions = [
            [Prediction(index, loaded.classes[index], value) for index, value in zip(*photo, strict=True)]
            for photo in zip(classes, values, strict=True)
        ]
        none = [loaded.calibration.is_none(photo[0].probability) for photo in predictions]
        yield Batch(paths, predictions, unreadable, seconds, none)
