"""Accuracy on photos whose classes are known: what training validates with and ``alexnet evaluate`` prints."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from model.alexnet import AlexNet
from model.calibration import calibration_gaps
from model.photos.loading import Photos, load
from model.training.distributed import Ranks


@dataclass
class Accuracy:
    """What a network predicted for some photos."""

    confusion: torch.Tensor  # (classes, classes) int64: element (i, j) counts photos of class i predicted as class j
    loss: float  # the mean of -log of the probability of a photo's class
    top5: float | None  # share of photos whose class is among the five likeliest; None for five classes or fewer
    unreadable: list[str]  # one message per photo that was skipped
    calibration_error: float  # model.calibration.expected_calibration_error

    @property
    def photos(self) -> int:
        """How many photos were read."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of photos whose class is the likeliest."""
        return self.confusion.diag().sum().item() / self.photos

    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for a class without photos."""
        totals, hits = self.confusion.sum(1).tolist(), self.confusion.diag().tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


def measure_accuracy(
    net: AlexNet,
    photos: Photos,
    *,
    batch: int,
    workers: int,
    ranks: Ranks,
    show: bool = False,
    temperature: float = 1.0,
    record: Callable[[torch.Tensor, torch.Tensor], object] = lambda logits, target: None,
) -> Accuracy:
    """Runs the network over this rank's share of the photos, every ``ranks.size``-th, and adds up over the ranks.

    Args:
        net: computes where its parameters are, in their dtype or that of :class:`torch.autocast`.
        photos: inputs and classes: (3, size, size) per photo, or (crops, 3, size, size), whose softmax is averaged.
        batch: photos in one forward pass.
        workers: processes that decode photos.
        show: whether to draw a progress bar on stderr.
        temperature: divides the logits before softmax.
        record: is called with each batch's logits, (N * crops, classes) before the division, and classes, (N,).
    """
    device, dtype, classes = net.fc8.weight.device, net.fc8.weight.dtype, net.fc8.out_features
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    sums, errors = torch.zeros(2, dtype=torch.float64), []  # sums of -log p, and of hits among the first five
    gaps = torch.zeros(15, dtype=torch.float64)
    with torch.inference_mode():
        batches = load(photos, batch, workers, device, ranks.rank, ranks.size)
        for x, target, problems in tqdm(batches, unit="batch", leave=False, disable=None if show else True):
            errors += [problem for problem in problems if problem is not None]
            if not len(target):
                continue
            x = torch.as_tensor(x).to(device, dtype, non_blocking=True)
            target = torch.as_tensor(target).to(device)
            logits = net(x.flatten(0, -4).contiguous(memory_format=torch.channels_last)).float()
            record(logits, target)
            probabilities = net.fc8.operators.softmax(logits / temperature, -1)
            probabilities = probabilities.unflatten(0, (len(target), -1)).mean(1)
            likeliest = probabilities.topk(min(5, classes)).indices
            cells = target * classes + likeliest[:, 0]
            confusion += torch.bincount(cells, minlength=classes * classes).cpu()
            right = probabilities.gather(1, target[:, None]).clamp_min(torch.finfo(torch.float32).tiny)
            sums += torch.stack([-right.double().log().sum(), (likeliest == target[:, None]).sum().double()]).cpu()
            gaps += calibration_gaps(probabilities, target).cpu()
    confusion, sums = ranks.sum(confusion.to(device)).cpu(), ranks.sum(sums.to(device)).cpu()
    gaps = ranks.sum(gaps.to(device)).cpu()
    errors = sorted(error for errors in ranks.gather(errors) for error in errors)
    loss, top5, off = (torch.cat([sums, gaps.abs().sum()[None]]) / confusion.sum().clamp_min(1)).tolist()
    return Accuracy(confusion.view(classes, classes), loss, top5 if classes > 5 else None, errors, off)
