"""Probabilities that mean something: a temperature, a threshold, and how far confidence is from accuracy.

Of the photos that a calibrated network is 80 % sure of, it gets 80 % right. Guo et al. 2017
(https://arxiv.org/abs/1706.04599) divide the logits by one temperature, fitted on photos that trained nothing.
"""

import math
from dataclasses import dataclass

import torch

from kernels.errors import AlexNetError

LIMITS = 0.01, 100.0
"""The temperatures that :func:`fit_temperature` tries. If all photos are right, the best one would be 0."""


@dataclass(frozen=True)
class Calibration:
    """What is stored with weights.

    Args:
        temperature: the logits are divided by it before softmax.
        none_below: a photo whose likeliest class has a smaller probability probably shows none of the classes; None if
            that is not known.
    """

    temperature: float = 1.0
    none_below: float | None = None

    def is_none(self, probability: float) -> bool | None:
        """Whether a photo probably shows none of the classes, from its likeliest class's probability; None: unknown."""
        return None if self.none_below is None else probability < self.none_below


UNCALIBRATED = Calibration()


def calibrate(logits: torch.Tensor, labels: torch.Tensor, keep: float = 0.95) -> Calibration:
    """Fits both numbers: see :func:`fit_temperature` and :func:`threshold`."""
    temperature = fit_temperature(logits, labels)
    least = threshold((logits.double() / temperature).softmax(1), keep)
    return Calibration(temperature, math.floor(1e4 * least) / 1e4)  # so that no rounding drops a photo


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature within :data:`LIMITS` whose probabilities have the smallest cross entropy.

    The mean of -log p is convex in b = 1 / temperature. Its slope is the mean of (the logits' mean, weighted with the
    probabilities) - (the right class's logit), which bisection brings to 0.

    Args:
        logits: (photos, classes), finite.
        labels: (photos,) int64.
    """
    _check(logits, labels)
    z = logits.double()
    right = z.gather(1, labels[:, None]).mean()
    low, high = (math.log(1.0 / limit) for limit in reversed(LIMITS))  # of b
    for _ in range(48):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * z).softmax(1) * z).sum(1).mean() - right
        low, high = (middle, high) if slope < 0.0 else (low, middle)
    return math.exp(-(low + high) / 2)


def threshold(probabilities: torch.Tensor, keep: float = 0.95) -> float:
    """The largest number that the likeliest class's probability reaches in at least a share ``keep`` of the photos.

    ``probabilities`` is (photos, classes).
    """
    if not len(probabilities) or not 0.0 < keep <= 1.0:
        raise AlexNetError(f"threshold takes photos and a share up to 1 of them, got {len(probabilities)} and {keep}")
    likeliest = probabilities.amax(1).sort(descending=True).values
    return likeliest[math.ceil(keep * len(likeliest) - 1e-9) - 1].item()


def expected_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy: the mean over bins of equal width, weighted with their photos.

    ``probabilities`` is (photos, classes), ``labels`` (photos,) int64. A bin's confidence is the mean probability of
    the likeliest class, its accuracy the share of photos whose class that is.
    """
    _check(probabilities, labels)
    return calibration_gaps(probabilities, labels, bins).abs().sum().item() / len(labels)


def calibration_gaps(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> torch.Tensor:
    """For each bin, the sum of confidences minus the number of right answers: (bins,) float64. Batches add up."""
    confidence, likeliest = probabilities.double().max(1)
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin is open below and closed above
    return confidence.new_zeros(bins).index_add_(0, places, confidence - (likeliest == labels).double())


def _check(values: torch.Tensor, labels: torch.Tensor) -> None:
    if values.dim() != 2 or not len(values) or labels.shape != values.shape[:1]:
        shapes = f"{tuple(values.shape)} and {tuple(labels.shape)}"
        raise AlexNetError(f"takes (photos, classes) and a label for each photo, got shapes {shapes}")
    if not values.isfinite().all():
        raise AlexNetError("takes finite numbers, got NaN or infinity")
