"""What a training run starts from: the photos, and the network and position of a new run or of a checkpoint."""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import kernels
from kernels.errors import AlexNetError
from kernels.tools import torch_ops
from model import weights
from model.alexnet import LRN, AlexNet
from model.photos import data
from model.photos.preprocess import FOLDER, SIZE, Preprocess
from model.training import checkpoint
from model.training.config import TrainingConfig
from model.weights import LAYERS, Weights
from model.weights.common import check_meta

OPERATORS = {"triton": kernels, "torch": torch_ops}


@dataclass
class Position:
    """Where a run is, and what its continuation must have in common with it. A checkpoint holds it as ``training``."""

    config: dict[str, Any]  # TrainingConfig.fixed()
    images: str  # Folder.digest()
    colour: list[list[float]]  # (3, 3), from data.statistics
    step: int = 0  # how many are done
    best: float = -1.0  # validation accuracy; -1 before the first validation, since even 0 is then the best
    scaler: dict[str, Any] | None = None  # GradScaler.state_dict()


class Start(NamedTuple):
    """Where a run goes on. ``optimizer`` are its tensors, from a checkpoint."""

    net: AlexNet
    preprocess: Preprocess
    position: Position
    optimizer: dict[str, torch.Tensor]


def find_photos(config: TrainingConfig, ranks: int) -> tuple[data.Folder, data.Folder | None]:
    """The photos to train and to validate with.

    Raises:
        AlexNetError: the folder is not as it must be, or has less than a batch.
    """
    if config.batch % ranks:
        raise AlexNetError(f"batch {config.batch} does not divide evenly among {ranks} processes")
    photos, validation = data.read(Path(config.data))
    if config.batch > len(photos.images):
        raise AlexNetError(f"batch {config.batch} is more than the {len(photos.images)} images of {photos.path}")
    return photos, validation


def find_start(config: TrainingConfig, photos: data.Folder, initial: Weights | None, first: bool) -> Start:
    """The run in ``config.out`` if it is to go on, or a new one.

    Args:
        initial: as of :class:`~model.training.trainer.Trainer`.
        first: whether this process prints.

    Raises:
        AlexNetError: photos, weights, checkpoint and ``config`` do not fit together.
    """
    for option, names in (("skip_layer", config.skip_layer), ("freeze", config.freeze)):
        for name in names:
            if name not in LAYERS:
                raise AlexNetError(f"{option} must name layers among {', '.join(LAYERS)}, got {name!r}")
    last = Path(config.out) / "last.safetensors"
    if last.exists() and not config.resume:
        raise AlexNetError(f"{config.out} holds a run: resume it, or choose another out")
    if config.resume and not last.exists() and first:
        print(f"{last}: no such file; starting a new run", file=sys.stderr)
    start = _resume(config, photos, last) if last.exists() else _begin(config, photos, initial)
    for name in config.freeze:
        start.net.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in start.net.parameters()):
        raise AlexNetError("freeze leaves no layer to train")
    return start


def _begin(config: TrainingConfig, photos: data.Folder, initial: Weights | None) -> Start:
    """A new run, from weights or from random numbers."""
    if initial is None and config.weights is not None:
        initial = weights.load(config.weights)
    if initial is not None:
        _check_fit(initial, config, photos)
    mean, colour = data.statistics(photos)
    torch.manual_seed(config.seed)
    net = _network(config, photos, initial.lrn if initial else config.init)
    net.initialise(config.init)
    preprocess = Preprocess(mean, FOLDER)
    if initial is not None:
        weights.assign(net, initial, config.skip_layer)
        # conv1 knows their mean and std. Their photos may have been shrunk; these are taken as they are.
        preprocess = replace(initial.preprocess, resize=FOLDER, size=SIZE)
    return Start(net, preprocess, Position(config.fixed(), photos.digest(), colour.tolist()), {})


def _resume(config: TrainingConfig, photos: data.Folder, last: Path) -> Start:
    """The run of the checkpoint ``last``."""
    tensors, meta = checkpoint.read(last)
    saved, fixed = meta["training"], config.fixed()
    if set(saved) != {field.name for field in fields(Position)} or saved["config"].keys() != fixed.keys():
        raise AlexNetError(f"{last}: another version wrote this run, so it cannot go on; a new run can start from it")
    position = Position(**saved)
    for name, value in fixed.items():
        if value != position.config[name]:
            raise AlexNetError(f"cannot resume: {name} was {position.config[name]} in {last}, and is {value} now")
    if position.images != photos.digest():
        raise AlexNetError(f"cannot resume: the images in {photos.path} are not those that {last} began with")
    _, lrn, preprocess = check_meta(str(last), meta)
    net = _network(config, photos, lrn)
    optimizer = {name: tensors.pop(name) for name in list(tensors) if name.startswith("optimizer.")}
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise AlexNetError(f"{last}: not of this network: {' '.join(str(error).split())[:200]}") from error
    return Start(net, preprocess, position, optimizer)


def _network(config: TrainingConfig, photos: data.Folder, lrn: str | None) -> AlexNet:
    return AlexNet(len(photos.classes), config.keep_prob, lrn).use(OPERATORS[config.operators])


def _check_fit(initial: Weights, config: TrainingConfig, photos: data.Folder) -> None:
    if initial.lrn not in LRN:
        raise AlexNetError(f"{initial.name}: weights of another network, whose lrn is not among {', '.join(LRN)}")
    if "fc8" not in config.skip_layer and len(initial.classes) not in (0, len(photos.classes)):
        raise AlexNetError(
            f"{initial.name} has {len(initial.classes)} classes, and {photos.path} {len(photos.classes)}: "
            "skip_layer fc8 starts that layer anew"
        )
