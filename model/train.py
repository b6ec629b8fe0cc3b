"""``alexnet train DATA_DIR ...``: :class:`model.training.trainer.Trainer` with its config from the command line.

``torchrun --nproc-per-node N -m model.train ...`` shares each batch among N processes, on one machine or many. Ctrl-C
and SIGTERM finish the step in hand, write a checkpoint, and exit with status 130.
"""

import argparse
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from kernels.tools import command
from kernels.tools.command import Parser, exit_process, interrupts_exit
from model.device import choose_device
from model.training.config import TrainingConfig

NUMBERS: dict[Any, type] = {int: int, float: float, float | None: float}


def add_options(add: Callable, leave_out: Collection[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
    """Adds an option for each field of :class:`TrainingConfig` except ``data`` and those to leave out.

    Args:
        add: ``add_argument`` of a parser with ``argument_default=argparse.SUPPRESS``, which returns only what is given.
        defaults: what the help shows in place of the fields' own defaults.
    """
    for choice in fields(TrainingConfig):
        if choice.name in ("data", *leave_out):
            continue
        more: dict[str, Any] = {}
        if choice.type is bool:
            more = {"action": "store_true"}
        elif get_origin(choice.type) is Literal:
            more = {"choices": get_args(choice.type)}
        elif choice.type == Sequence[str]:
            more = {"nargs": "+", "metavar": "LAYER"}
        elif choice.type == Sequence[float] | None:
            more = {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH")}
        elif choice.type in NUMBERS:
            more = {"type": NUMBERS[choice.type], "metavar": "N"}
        default = (defaults or {}).get(choice.name, choice.default)
        shown = "" if isinstance(default, bool) or default in (None, ()) else f" ({default})"
        add(f"--{choice.name.replace('_', '-')}", help=choice.metadata["help"] + shown, **more)


def parse(argv: list[str] | None) -> TrainingConfig:
    """The config that the command line asks for."""
    description = "Trains AlexNet on a folder of photos."
    parser = Parser(prog="alexnet train", description=description, argument_default=argparse.SUPPRESS)
    folders = "folders with a sub-folder of photos per class, or with two such folders, train/ and val/"
    parser.add_argument("data", metavar="DATA_DIR", nargs="+", help=folders)
    add_options(parser.add_argument)
    return TrainingConfig(**vars(parser.parse_args(argv)))


def train(argv: list[str] | None) -> int:
    """Reads the command line and trains to the end or until a signal; returns the exit status."""
    config = parse(argv)
    with interrupts_exit():
        choose_device(config.device)
        from model.training.trainer import Trainer

    trainer = Trainer(config)
    done = trainer.fit()
    trainer.progress.say(trainer.summary())
    trainer.ranks.leave()
    return 0 if done else 130


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return command.run("alexnet train", train, argv)
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command.run)("alexnet train", train, argv) or 0  # torchrun prints the traceback that this records


if __name__ == "__main__":
    exit_process(main())
