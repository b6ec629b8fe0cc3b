"""``alexnet train DATA_DIR``: trains the network on a folder of images, from scratch or from weights.

``torchrun --nproc-per-node N -m model.train ...`` shares each batch among N processes, on one machine or many.

In the run's folder: ``last.safetensors``, the newest checkpoint; ``best.safetensors``, the weights of the best
validation; ``log.csv`` and ``curves.png``. Both files are what ``model.infer`` and ``model.evaluate`` take as
``--weights``.

A run goes on exactly where its checkpoint was written: the position is a number of steps, and everything random is a
function of the seed and of the step (:mod:`model.randomness`), so that the same images come next, in the same crops,
with the same dropout. Killed at any moment and resumed, it ends with the same weights, as far as the device computes
the same twice. Ctrl-C and SIGTERM finish the step in hand, write a checkpoint, and exit with status 130.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from model.command import batch_fits, choose_device, leave

if TYPE_CHECKING:  # PyTorch takes seconds to import
    import torch


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="alexnet train", description="Trains AlexNet on a folder of images.")
    add = parser.add_argument
    add(
        "data",
        metavar="DATA_DIR",
        type=Path,
        help="a folder with a sub-folder of images per class, or with two such folders, train/ and val/",
    )
    add("--out", type=Path, default=Path("training"), help="the run's folder (training)")
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--weights", metavar="NAME|PATH", help="start from these: cifar10, bvlc ... or a file: bvlc_alexnet.npy")
    add("--skip-layer", nargs="+", default=[], metavar="LAYER", help="layers that start anew, such as fc8")
    add("--freeze", nargs="+", default=[], metavar="LAYER", help="layers that do not train, such as conv1")
    add(
        "--init",
        choices=("bvlc", "paper"),
        default="bvlc",
        help="how layers that start anew are drawn; from scratch, also whose local response normalisation (bvlc)",
    )
    add("--epochs", type=int, default=90, metavar="N", help="how often each image is seen (90)")
    add("--batch", type=int, default=128, metavar="N", help="images in a step, over all processes (128)")
    add("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd: momentum 0.9, weight decay 5e-4 (sgd)")
    add("--lr", type=float, metavar="RATE", help="learning rate at the start (0.01 for sgd, 1e-4 for adamw)")
    add("--schedule", choices=("step", "cosine"), default="step", help="step: by 10 after each quarter of it (step)")
    add("--keep-prob", type=float, default=0.5, metavar="P", help="of dropout after fc6 and fc7 (0.5)")
    add(
        "--augment",
        choices=("paper", "scale", "none"),
        default="paper",
        help="paper: crops, mirror images, colours; scale: also size, blur, sharpness; none: central crops (paper)",
    )
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of products, by torch.autocast (fp32)")
    add(
        "--operators",
        choices=("triton", "torch"),
        default="triton",
        help="our kernels, or plain PyTorch to compare (triton)",
    )
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one")
    add("--seed", type=int, default=0, metavar="N", help="of all that is random (0)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode images, for each that trains (2)")
    add("--save-every", type=int, default=1000, metavar="STEPS", help="a checkpoint between the epochs' ends (1000)")
    add("--strict", action="store_true", help="stop at an image that cannot be read, instead of taking the next")
    args = parser.parse_args(argv)
    for name, least in (("epochs", 1), ("batch", 1), ("seed", 0), ("workers", 0), ("save_every", 1)):
        if getattr(args, name) < least:
            raise AlexNetError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    if not 0.0 <= args.keep_prob <= 1.0:
        raise AlexNetError(f"--keep-prob must be from 0 to 1, got {args.keep_prob}")
    if args.lr is not None and not 0.0 < args.lr < float("inf"):
        raise AlexNetError(f"--lr must be positive, got {args.lr}")
    if args.skip_layer and not args.weights:
        raise AlexNetError("--skip-layer leaves out layers of --weights, which is not given")
    return args


@contextlib.contextmanager
def problems_named(
    args: argparse.Namespace, device: "torch.device", name: Callable[[str], str] = str
) -> Iterator[None]:
    """Memory that is too small and files that the system refuses, inside, as usage errors; ``name`` says whose."""
    try:
        with batch_fits(args.batch, device, name):
            yield
    except OSError as error:
        raise AlexNetError(name(f"{error.filename or args.out}: {error.strerror or error}")) from error


def run(args: argparse.Namespace) -> int:
    """Trains to the end or until told to stop; the exit status."""
    with interrupts_exit():
        device = choose_device(args.device)
        from model.training.distributed import Ranks
        from model.training.trainer import Training

    ranks = Ranks(device)
    try:
        with problems_named(args, device, ranks.name):
            status = Training(args, device, ranks).run()
    except RuntimeError as error:
        if ranks.lost(error):
            raise AlexNetError(ranks.name("another rank has ended, and this one with it")) from error
        if ranks.size > 1:  # the traceback does not tell which of many processes it is from
            command.complain("alexnet train", ranks.name(error))
        raise
    ranks.leave()
    return status


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return command.run("alexnet train", lambda argv: run(parse(argv)), argv)


if __name__ == "__main__":
    leave(main())
