"""Training: ``Trainer(TrainingConfig("photos/", epochs=3)).fit()`` does what ``alexnet train photos/ --epochs 3`` does.

``Trainer`` is imported when it is first used, since it needs PyTorch, which takes seconds.
"""

from typing import TYPE_CHECKING

from model.training.config import TrainingConfig

if TYPE_CHECKING:
    from model.training.trainer import Trainer

__all__ = ["Trainer", "TrainingConfig"]


def __getattr__(name: str):
    if name == "Trainer":
        from model.training.trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
