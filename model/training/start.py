"""What a training run starts from: the photos, and the network and position of a new run or of a checkpoint."""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.errors import AlexNetError
from model import weights
from model.alexnet import LRN, AlexNet
from model.layers import OPERATORS
from model.photos.augmentation import colour_statistics
from model.photos.folders import Folder, read_splits
from model.photos.preprocess import FOLDER, SIZE, Preprocess
from model.training import checkpoint
from model.training.config import TrainingConfig
from model.training.distributed import Ranks
from model.weights import LAYER_NAMES, Weights


@dataclass
class Position:
    """Where a run is, and what its continuation must have in common with it. A checkpoint holds it as ``training``."""

    config: dict[str, Any]  # TrainingConfig.fixed()
    images: str  # Folder.digest()
    colour: list[list[float]]  # (3, 3), from colour_statistics
    step: int = 0  # how many are done
    best: float = -1.0  # validation accuracy; -1 before the first validation, since even 0 is then the best
    scaler: dict[str, Any] | None = None  # GradScaler.state_dict()


class Start(NamedTuple):
    """What a run goes on with."""

    photos: Folder
    validation: Folder | None
    net: AlexNet
    preprocess: Preprocess
    position: Position
    optimizer: dict[str, torch.Tensor]  # its tensors, from a checkpoint


def find_start(config: TrainingConfig, ranks: Ranks, initial: Weights | None = None) -> Start:
    """The run in ``config.out`` if it is to go on, or a new one, from ``initial`` or what ``config`` says.

    Raises AlexNetError if photos, weights, checkpoint and ``config`` do not fit together.
    """
    for option, names in (("skip_layer", config.skip_layer), ("freeze", config.freeze)):
        for name in names:
            if name not in LAYER_NAMES:
                raise AlexNetError(f"{option} must name layers among {', '.join(LAYER_NAMES)}, got {name!r}")
    photos, validation = read_splits(config.folders)
    if config.batch % ranks.size:
        raise AlexNetError(f"batch {config.batch} does not divide evenly among {ranks.size} processes")
    if config.batch > len(photos.images):
        raise AlexNetError(f"batch {config.batch} is more than the {len(photos.images)} images of {photos.name}")
    last = Path(config.out) / "last.safetensors"
    if last.exists() and not config.resume:
        raise AlexNetError(f"{config.out} holds a run: resume it, or choose another out")
    if config.resume and not last.exists() and ranks.first:
        print(f"{last}: no such file; starting a new run", file=sys.stderr)
    splits = photos, validation
    start = _resume(config, splits, last) if last.exists() else _begin(config, splits, initial)
    for name in config.freeze:
        start.net.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in start.net.parameters()):
        raise AlexNetError("freeze leaves no layer to train")
    return start


def _begin(config: TrainingConfig, splits: tuple[Folder, Folder | None], initial: Weights | None) -> Start:
    """A new run, from weights or from random numbers."""
    photos = splits[0]
    if initial is None and config.weights is not None:
        initial = weights.load(config.weights)
    if initial is not None and initial.lrn not in LRN:
        raise AlexNetError(f"{initial.name}: weights of another network, whose lrn is not among {', '.join(LRN)}")
    mean, colour = colour_statistics(photos)
    torch.manual_seed(config.seed)
    net = _network(config, photos, initial.lrn if initial else config.init)
    net.initialise(config.init)
    preprocess = Preprocess(mean, FOLDER)
    if initial is not None:
        weights.assign(net, initial, config.skip_layer)
        # conv1 knows their mean and std. Their photos may have been shrunk; these are taken as they are.
        preprocess = replace(initial.preprocess, resize=FOLDER, size=SIZE)
    return Start(*splits, net, preprocess, Position(config.fixed(), photos.digest(), colour.tolist()), {})


def _resume(config: TrainingConfig, splits: tuple[Folder, Folder | None], last: Path) -> Start:
    """The run of the checkpoint ``last``."""
    photos = splits[0]
    tensors, meta = checkpoint.read(last)
    saved, fixed = meta["training"], config.fixed()
    if set(saved) != {field.name for field in fields(Position)} or saved["config"].keys() != fixed.keys():
        raise AlexNetError(f"{last}: another version wrote this run, so it cannot go on; a new run can start from it")
    position = Position(**saved)
    for name, value in fixed.items():
        if value != position.config[name]:
            raise AlexNetError(f"cannot resume: {name} was {position.config[name]} in {last}, and is {value} now")
    if position.images != photos.digest():
        raise AlexNetError(f"cannot resume: the images in {photos.name} are not those that {last} began with")
    loaded = weights.load(last)
    net = _network(config, photos, loaded.lrn)
    weights.assign(net, loaded)
    return Start(*splits, net, loaded.preprocess, position, tensors)


def _network(config: TrainingConfig, photos: Folder, lrn: str | None) -> AlexNet:
    return AlexNet(len(photos.classes), config.keep_prob, lrn).use(OPERATORS[config.operators])
