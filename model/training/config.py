"""What a training run does: each choice with its type, its default and its help. Imports no PyTorch, for ``--help``."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from kernels.errors import AlexNetError

MAY_CHANGE = {"data", "out", "resume", "device", "workers", "save_every", "strict"}
"""Fields that may differ when a run is resumed. All others decide what it computes."""


def setting(default: Any, help: str, least: int | None = None) -> Any:
    """A field of :class:`TrainingConfig`, whose smallest value is ``least``."""
    return field(default=default, metadata={"help": help, "least": least})


@dataclass(frozen=True)
class TrainingConfig:
    """All choices of a training run, for :class:`~model.training.trainer.Trainer`.

    ``data`` is a folder with a sub-folder of photos per class, or with two such folders, ``train/`` and ``val/``; or it
    is several such folders with the same classes, whose photos count together. Each other field is an option of
    ``alexnet train`` too, and a checkpoint holds all that are not in :data:`MAY_CHANGE`.

    Raises:
        AlexNetError: a value out of its range.
    """

    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    out: str | os.PathLike[str] = setting("training", "the run's folder")
    resume: bool = setting(False, "go on with the run in its folder, if there is one")
    weights: str | os.PathLike[str] | None = setting(None, "start from these: a name or a file")
    skip_layer: Sequence[str] = setting((), "layers that do not take their weights, such as fc8")
    freeze: Sequence[str] = setting((), "layers that do not train, such as conv1")
    init: Literal["bvlc", "paper"] = setting(
        "bvlc", "how new layers are drawn; without --weights also the formula of local response normalisation"
    )
    epochs: int = setting(90, "how often the run sees each photo", least=1)
    batch: int = setting(128, "photos in a step, over all processes", least=1)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "sgd: momentum 0.9, weight decay 5e-4")
    lr: float | None = setting(None, "learning rate at the start; usually 0.01 for sgd, 1e-4 for adamw")
    schedule: Literal["step", "cosine"] = setting("step", "step: divide the rate by 10 after each quarter of the run")
    keep_prob: float = setting(0.5, "the probability that dropout keeps an output of fc6 or fc7")
    augment: Literal["paper", "scale", "none"] = setting(
        "paper", "paper: crops, mirror images, colours; scale: also size, blur, sharpness; none: central crops"
    )
    even_classes: bool = setting(False, "show each class equally often, however many photos it has")
    zoom: Sequence[float] | None = setting(
        None, "cut a random square first, its side LOW to HIGH of a photo's shorter side; over 1: with mirror images"
    )
    dtype: Literal["fp32", "fp16", "bf16"] = setting("fp32", "of products, by torch.autocast")
    operators: Literal["triton", "torch"] = setting("triton", "our kernels, or plain PyTorch to compare")
    device: Literal["auto", "cuda", "cpu"] = setting("auto", "auto: the GPU if there is one")
    seed: int = setting(0, "of all random numbers", least=0)
    workers: int = setting(2, "processes that decode photos, for each process that trains", least=0)
    save_every: int = setting(1000, "steps between checkpoints; each epoch ends with one too", least=1)
    strict: bool = setting(False, "stop at a photo that cannot be read, instead of taking the next one")

    def __post_init__(self) -> None:
        for choice in fields(self):
            value, least = getattr(self, choice.name), choice.metadata.get("least")
            if get_origin(choice.type) is Literal and value not in get_args(choice.type):
                raise AlexNetError(f"{choice.name} must be one of {', '.join(get_args(choice.type))}, got {value!r}")
            if least is not None and value < least:
                raise AlexNetError(f"{choice.name} must be at least {least}, got {value}")
        if not 0.0 <= self.keep_prob <= 1.0:
            raise AlexNetError(f"keep_prob must be from 0 to 1, got {self.keep_prob}")
        if self.lr is not None and not 0.0 < self.lr < float("inf"):
            raise AlexNetError(f"lr must be positive, got {self.lr}")
        if self.skip_layer and not self.weights:
            raise AlexNetError("skip_layer leaves out layers of weights, but no weights are given")
        if not self.folders:
            raise AlexNetError("data must name a folder, got none")
        if self.zoom is not None:
            if len(self.zoom) != 2 or not 0.0 < self.zoom[0] <= self.zoom[1] <= 16.0:
                raise AlexNetError(f"zoom must be two parts in ascending order, over 0 to 16, got {list(self.zoom)}")
            if self.augment == "none":
                raise AlexNetError("zoom is random, which augment none is not")

    @property
    def folders(self) -> list[Path]:
        """The folders of ``data``."""
        return [Path(self.data)] if isinstance(self.data, str | os.PathLike) else list(map(Path, self.data))

    def fixed(self) -> dict[str, Any]:
        """The fields that a resumed run must have in common with the run before, as JSON returns them."""
        values = {choice.name: getattr(self, choice.name) for choice in fields(self) if choice.name not in MAY_CHANGE}
        return json.loads(json.dumps(values, default=os.fspath))


RETRAINING: dict[str, Any] = {"epochs": 1, "lr": 0.001, "schedule": "cosine", "keep_prob": 0.85}
"""How pruned weights train again: ``TrainingConfig("photos/", **RETRAINING)``.

Dropout is to weaken with the square root of the density (Han et al. 2015, https://arxiv.org/abs/1506.02626, section
3.2): from 0.5 to 0.15 if 9 % of fc6's and fc7's weights are left.
"""
