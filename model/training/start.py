"""What a training run starts from: photos, network and position, either new or from a checkpoint."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

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
from model.training.distributed import Ranks
from model.weights.common import check_meta

OPERATORS: dict[str, ModuleType] = {"triton": kernels, "torch": torch_ops}


@dataclass
class Position:
    """Where a run is, and what it must have in common with its continuation. A checkpoint holds it as ``training``."""

    config: dict[str, Any]  # TrainingConfig.fixed()
    images: str  # Folder.digest()
    colour: list[list[float]]  # (3, 3), from data.statistics
    step: int = 0  # how many are done
    best: float = -1.0  # validation accuracy; below 0 before the first validation, since even 0.0 is then the best
    scaler: dict[str, Any] | None = None  # GradScaler.state_dict()


@dataclass
class Run:
    """What :class:`~model.training.trainer.Trainer` works on."""

    photos: data.Folder
    validation: data.Folder | None
    net: AlexNet
    preprocess: Preprocess
    position: Position
    optimizer: dict[str, torch.Tensor]  # its tensors, from a checkpoint


def prepare(config: TrainingConfig, ranks: Ranks, initial: weights.Weights | None = None) -> Run:
    """The run of the checkpoint in ``config.out``, or a new one, which starts from ``initial`` if there are any.

    Raises:
        AlexNetError: photos, weights, checkpoint and ``config`` do not fit together.
    """
    for option, names in (("skip_layer", config.skip_layer), ("freeze", config.freeze)):
        for name in names:
            if name not in weights.LAYERS:
                raise AlexNetError(f"{option} must name layers among {', '.join(weights.LAYERS)}, got {name!r}")
    if config.batch % ranks.size:
        raise AlexNetError(f"batch {config.batch} does not divide evenly among {ranks.size} processes")
    photos, validation = data.read(Path(config.data))
    if config.batch > len(photos.images):
        raise AlexNetError(f"batch {config.batch} is more than the {len(photos.images)} images of {photos.path}")
    last = Path(config.out) / "last.safetensors"
    if last.exists() and not config.resume:
        raise AlexNetError(f"{config.out} holds a run: resume it, or choose another out")
    if last.exists():
        run = _resume(config, photos, validation, last)
    else:
        if config.resume and ranks.first:
            print(f"{last}: no such file; starting a new run", file=sys.stderr)
        run = _begin(config, photos, validation, initial)
    _freeze(run.net, config.freeze)
    return run


def _begin(
    config: TrainingConfig, photos: data.Folder, validation: data.Folder | None, initial: weights.Weights | None
) -> Run:
    """A new run."""
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
    position = Position(config.fixed(), photos.digest(), colour.tolist())
    return Run(photos, validation, net, preprocess, position, {})


def _check_fit(initial: weights.Weights, config: TrainingConfig, photos: data.Folder) -> None:
    """Checks that the run can start from these weights."""
    if initial.lrn not in LRN:
        raise AlexNetError(f"{initial.name}: weights of another network, whose lrn is not among {', '.join(LRN)}")
    if "fc8" not in config.skip_layer and len(initial.classes) not in (0, len(photos.classes)):
        raise AlexNetError(
            f"{initial.name} has {len(initial.classes)} classes, and {photos.path} {len(photos.classes)}: "
            "skip_layer fc8 starts that layer anew"
        )


def _resume(config: TrainingConfig, photos: data.Folder, validation: data.Folder | None, last: Path) -> Run:
    """The run of a checkpoint."""
    tensors, meta = checkpoint.read(last)
    position = _position(meta["training"], config, last)
    for name, value in config.fixed().items():
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
    return Run(photos, validation, net, preprocess, position, optimizer)


def _position(saved: Any, config: TrainingConfig, last: Path) -> Position:
    """The position in a checkpoint of this version."""
    if isinstance(saved, dict) and saved.keys() == {field.name for field in fields(Position)}:
        position = Position(**saved)
        if position.config.keys() == config.fixed().keys():
            return position
    raise AlexNetError(f"{last}: another version wrote this run, so it cannot be resumed; a new run can start from it")


def _network(config: TrainingConfig, photos: data.Folder, lrn: str | None) -> AlexNet:
    return AlexNet(len(photos.classes), config.keep_prob, lrn).use(OPERATORS[config.operators])


def _freeze(net: AlexNet, names: Sequence[str]) -> None:
    """Keeps the parameters of these layers as they are."""
    for name in names:
        net.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise AlexNetError("freeze leaves no layer to train")
