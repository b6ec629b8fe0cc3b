"""Deep Compression: weights in a thirtieth of their bytes (Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149).

1. Prune: of each layer only the largest weights stay, by default as many as in the paper's table 4.
2. Retrain: the weights that stay learn to do without the others, which remain 0.
3. Quantise: the weights of a convolution share 255 values, those of a fully connected layer 15. k-means finds them.
4. Write the format of :mod:`model.weights.deep_compression`, which leaves out the paper's last stage, Huffman coding.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kernels.errors import AlexNetError
from kernels.tools.files import check_writable, write_bytes
from model import alexnet, weights
from model.device import choose_device
from model.layers import OPERATORS
from model.photos.folders import Folder, read_splits
from model.photos.loading import Photos
from model.training.accuracy import measure_accuracy
from model.training.config import TrainingConfig
from model.training.distributed import Ranks
from model.training.trainer import Trainer
from model.weights import Weights, deep_compression
from model.weights.common import describe

DENSITY = dict(zip(weights.LAYER_NAMES, (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25), strict=True))
"""The share of each layer's weights that stays (Han et al. 2016, table 4)."""


def prune(weight: torch.Tensor, density: float) -> torch.Tensor:
    """A mask of the weights that stay: the largest ones, a share ``density`` of all, but none that is 0."""
    flat = weight.abs().flatten()
    count = max(round(density * flat.numel()), 1)
    least = float(np.partition(flat.numpy(), -count)[-count])  # the smallest weight that stays
    mask = flat > least
    mask[(flat == least).nonzero()[: count - int(mask.sum())]] = True  # of equal weights, as many as are missing
    return mask.logical_and_(flat > 0.0).view(weight.shape)


def cluster(values: np.ndarray, count: int) -> np.ndarray:
    """k-means in one dimension: the ``count`` centres, float32, in ascending order.

    They start at equal distances from the smallest value to the largest, which the paper's section 3.2 found best. Each
    cluster is an interval of the sorted values, so a round takes a few lookups in their running sums.
    """
    values = np.sort(values.astype(np.float64))
    sums = np.append(0.0, np.cumsum(values))
    centres = np.linspace(values[0], values[-1], count) if len(values) else np.zeros(count)
    for _ in range(1000):
        ends = np.r_[0, np.searchsorted(values, (centres[1:] + centres[:-1]) / 2), len(values)]
        sizes = np.diff(ends)
        means = np.where(sizes, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)  # an empty cluster's stays
        if np.array_equal(means, centres):
            break
        centres = means
    return np.sort(centres.astype(np.float32))


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (a layer's weights, rounded to few values; the codebook: 0, then those values in ascending order)."""
    stay = weight != 0.0
    codebook = np.append(np.float32(0.0), cluster(weight[stay], (256 if weight.ndim == 4 else 16) - 1))
    middles = (codebook[2:] + codebook[1:-1]) / 2
    few = np.zeros_like(weight)
    few[stay] = codebook[1:][np.searchsorted(middles, weight[stay])]
    return few, codebook


def compress(
    checkpoint: str,
    out: str | os.PathLike[str],
    density: Mapping[str, float] = DENSITY,
    training: TrainingConfig | None = None,
    measure_only: bool = False,
) -> bool:
    """Compresses weights. After each step it prints how many are left, and the accuracy on the validation images.

    Args:
        checkpoint: the weights' name or file.
        out: the file to write. Until then, the retraining is in ``out`` with ``.training`` behind its name. It has no
            temperature, since other weights need another one.
        density: the share of weights that stays in a layer, if it is not to be the paper's.
        training: usually ``TrainingConfig("photos/", **RETRAINING)``. Without it, neither retrain nor measure.
        measure_only: do not retrain.

    Returns:
        Whether ``out`` is written. If not, a signal stopped the retraining, and ``training`` with ``resume`` goes on.
    """
    out, loaded = Path(out), weights.load(checkpoint)
    _check(loaded, out, density)
    density = {**DENSITY, **density}
    validation = _validation(loaded, training) if training else None

    def say(what: str, now: Weights) -> None:
        total = sum(weight.numel() for weight, _ in now.layers.values())
        kept = sum(int(weight.count_nonzero()) for weight, _ in now.layers.values())
        measured = _accuracy(now, validation, training) if training and validation else ""
        print(f"{what}: {kept:,} weights other than 0, {kept / total:.1%}{measured}", flush=True)

    say(loaded.name, loaded)
    masks = {layer: prune(weight, density[layer]) for layer, (weight, _) in loaded.layers.items()}
    layers = {layer: (weight * masks[layer], bias) for layer, (weight, bias) in loaded.layers.items()}
    changed = ", ".join(f"{layer}={share}" for layer, share in density.items() if share != DENSITY[layer])
    now = replace(loaded, layers=layers, name=f"{loaded.name}, density {changed or 'as in the paper'}")
    say("pruned", now)
    folder = Path(f"{out}.training")
    if training and not measure_only:
        retrained = retrain(now, masks, replace(training, out=folder))
        if retrained is None:
            return False
        now = retrained
        say("retrained", now)
    parts = write(now, out)
    say("quantised", weights.load(out))
    for layer, (entries, encoded) in parts.items():
        kept, total = int(masks[layer].sum()), masks[layer].numel()
        print(f"  {layer}: {kept:,} of {total:,} weights, {entries:,} entries, {len(encoded):,} bytes")
    before, size = sum(4 * t.numel() for pair in loaded.layers.values() for t in pair), out.stat().st_size
    print(f"{out}: {size:,} bytes, a {before / size:.0f}th of the {before:,} in float32")
    if training and not measure_only:
        for name in ("last.safetensors", "best.safetensors", "log.csv", "curves.png"):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder with the user's own files stays
            folder.rmdir()
    return True


def retrain(pruned: Weights, masks: Mapping[str, torch.Tensor], config: TrainingConfig) -> Weights | None:
    """Trains the weights that the masks keep; the others stay 0. Returns None if a signal stopped it."""
    trainer = Trainer(config, pruned)
    held = [(trainer.net.get_parameter(f"{layer}.weight"), mask.to(trainer.device)) for layer, mask in masks.items()]

    @torch.no_grad()
    def hold(*_: object) -> None:
        for weight, mask in held:
            weight.mul_(mask)

    trainer.train_step.optimizer.register_step_post_hook(hold)
    if not trainer.fit():
        print(trainer.summary())
        return None
    left = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.net.named_parameters()}
    layers = {layer: (left[f"{layer}.weight"], left[f"{layer}.bias"]) for layer in pruned.layers}
    return replace(pruned, layers=layers, preprocess=trainer.preprocess)


def write(loaded: Weights, out: Path) -> dict[str, tuple[int, bytes]]:
    """Quantises the weights and writes them. Returns (number of entries, part of the file) for each layer."""
    parts = {}
    for layer in weights.LAYER_NAMES:
        weight, bias = (tensor.numpy() for tensor in loaded.layers[layer])
        few, codebook = quantise(weight)
        parts[layer] = deep_compression.encode(few, bias, codebook)
    meta = describe(loaded.classes, loaded.lrn, loaded.preprocess)
    write_bytes(out, deep_compression.join(list(parts.values()), meta))
    return parts


def _check(loaded: Weights, out: Path, density: Mapping[str, float]) -> None:
    """Checks, before any work, the density, that the weights have the format's layers, and that ``out`` is a file."""
    for layer, share in density.items():
        if layer not in DENSITY or not 0.0 < share <= 1.0:
            accepted = ", ".join(DENSITY)
            raise AlexNetError(f"density takes shares up to 1 for layers among {accepted}, got {layer}={share}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise AlexNetError("runs in one process, not under torchrun")
    check_writable(out)
    if loaded.lrn is None:
        raise AlexNetError(f"{loaded.name}: Deep Compression's format has no place for torchvision's layers")
    if not loaded.classes:
        raise AlexNetError(f"{loaded.name}: has no fc8, and so no classes")
    for layer, shape in deep_compression.shapes(len(loaded.classes)).items():
        if layer not in loaded.layers or tuple(loaded.layers[layer][0].shape) != shape:
            raise AlexNetError(f"{loaded.name}: must have {layer} with a weight of {shape}")


def _validation(loaded: Weights, training: TrainingConfig) -> Folder | None:
    """The images to validate with, if there are any; both folders must have the weights' classes."""
    images, validation = read_splits(training.folders)
    if images.classes != loaded.classes:
        odd = sorted(set(images.classes) ^ set(loaded.classes))
        what = f"only one of them has {odd[0]!r}" if odd else "theirs are not in the order of their names"
        raise AlexNetError(f"{', '.join(map(str, training.folders))} must have the classes of {loaded.name}: {what}")
    return validation


def _accuracy(loaded: Weights, validation: Folder, training: TrainingConfig) -> str:
    """Accuracy and loss on the validation images, as the end of a line."""
    device = choose_device(training.device)
    net = alexnet.AlexNet.from_weights(loaded).use(OPERATORS[training.operators]).to(device)
    photos, ranks = Photos(validation.images, loaded.preprocess), Ranks(device)
    counts = measure_accuracy(net, photos, batch=training.batch, workers=training.workers, ranks=ranks, show=True)
    if not counts.photos:
        raise AlexNetError(f"{validation.name}: no image can be read")
    return f"; accuracy {counts.top1:.2%}, loss {counts.loss:.4f}, of {counts.photos} images"
