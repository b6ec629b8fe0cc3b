"""``alexnet compress CHECKPOINT OUT``: weights in a thirtieth of their bytes, by Deep Compression.

:func:`model.training.compression.compress` does the work. With ``--data`` it retrains what is left after pruning; if
that folder has ``val/``, it prints the accuracy on it after each step.
"""

import argparse
import contextlib
import functools
from typing import Any

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, exit_process, interrupts_exit
from model.device import choose_device
from model.train import add_options
from model.training.config import RETRAINING, TrainingConfig


def parse(argv: list[str] | None) -> dict[str, Any]:
    """The arguments of :func:`model.training.compression.compress`."""
    parser = Parser(
        prog="alexnet compress",
        description="Prunes, retrains and quantises weights by Deep Compression: 8 MB for ten classes.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="weights to compress: a name, or a file such as best.safetensors")
    add("out", metavar="OUT", help="the file to write, such as small.net")
    shares = "shares of weights to keep other than the paper's"
    add("--density", nargs="+", default=[], metavar="LAYER=SHARE", help=shares)
    add("--data", metavar="DIR", help="photos as alexnet train takes them, to retrain and to measure with")
    add("--epochs", type=int, metavar="N", help="how often the retraining sees each photo; 0: only measure (1)")
    options = parser.add_argument_group("options of the retraining, which needs --data")
    add_options(options.add_argument, ("out", "weights", "skip_layer", "freeze", "init", "epochs"), RETRAINING)
    given = vars(parser.parse_args(argv))

    arguments = {name: given.pop(name) for name in ("checkpoint", "out")}
    arguments["density"] = dict(map(_share, given.pop("density")))
    epochs = given.pop("epochs", RETRAINING["epochs"])
    if epochs < 0:
        raise AlexNetError(f"epochs must be at least 0, got {epochs}")
    if "data" in given:
        arguments["training"] = TrainingConfig(**RETRAINING | given | {"epochs": max(epochs, 1)})
        arguments["measure_only"] = epochs == 0
    elif given.keys() - {"resume"}:
        raise AlexNetError(f"--{next(iter(given)).replace('_', '-')} is for retraining, which takes --data DIR")
    return arguments


def _share(text: str) -> tuple[str, float]:
    layer, _, share = text.partition("=")
    with contextlib.suppress(ValueError):
        return layer, float(share)
    raise AlexNetError(f"--density takes LAYER=SHARE, such as fc6=0.09, got {text!r}")


def compress(argv: list[str] | None) -> int:
    """Reads the command line and compresses; returns the exit status: 130 if a signal stopped the retraining."""
    arguments = parse(argv)
    with interrupts_exit():
        if "training" in arguments:
            choose_device(arguments["training"].device)
        from model.training import compression
    return 0 if compression.compress(**arguments) else 130


main = functools.partial(command.run, "alexnet compress", compress)

if __name__ == "__main__":
    exit_process(main())
