"""``alexnet evaluate DATA_DIR``: how often the network is right about a folder of images by class.

Prints top-1 and top-5 accuracy and each class's share. ``--ten-crop`` tests as the paper did: it averages softmax over
four corners, the centre, and their mirror images. ``torchrun --nproc-per-node N -m model.evaluate ...`` shares the
images among N processes.
"""

import argparse
import functools
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.columns import align
from kernels.tools.command import Parser, count, exit_process, interrupts_exit, one_line, png
from kernels.tools.files import check_writable, write_figure
from model.device import add_options, batch_fits, choose_device, device_name

# PyTorch takes seconds to import, so functions import it, after the arguments have been checked.
if TYPE_CHECKING:
    from model.alexnet import AlexNet
    from model.photos.folders import Folder
    from model.training.accuracy import Accuracy
    from model.weights import Weights


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="alexnet evaluate", description="Top-1 and top-5 accuracy on a folder of images.")
    add = parser.add_argument
    add("data", metavar="DATA_DIR", type=Path, help="a folder with a sub-folder per class, or with such a folder val/")
    add_options(add)
    add("--ten-crop", action="store_true", help="averages over four corners, the centre, and their mirror images")
    add("--batch", type=count, default=32, metavar="N", help="images in one forward pass (32)")
    add("--operators", choices=("triton", "torch"), default="triton", help="our kernels, or plain PyTorch (triton)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode images (2)")
    add("--plot", metavar="OUT.png", type=png, help="draws the confusion matrix")
    add("--json", action="store_true", help="prints one JSON object, and nothing else on stdout")
    args = parser.parse_args(argv)
    if args.workers < 0:
        raise AlexNetError(f"--workers must be at least 0, got {args.workers}")
    return args


def run(argv: list[str] | None) -> int:
    """The command; returns the exit status."""
    args = parse(argv)
    with interrupts_exit():
        device = choose_device(args.device)
        from kernels.tools.workloads import torch_dtype
        from model.layers import OPERATORS
        from model.photos.loading import Photos
        from model.training import accuracy
        from model.training.distributed import Ranks

    ranks = Ranks(device)
    folder, loaded, net, targets = ranks.agree(lambda: prepare(args, ranks.first))
    net.use(OPERATORS[args.operators]).to(device, torch_dtype(args.dtype))
    images = [(path, targets[index]) for path, index in folder.images]
    preprocess = loaded.preprocess
    photos = Photos(images, preprocess.ten_crops, 10) if args.ten_crop else Photos(images, preprocess)
    with batch_fits(args.batch, device):
        found = accuracy.measure_accuracy(
            net, photos, batch=args.batch, workers=args.workers, ranks=ranks, show=ranks.first
        )
    ranks.leave()
    if not ranks.first:
        return 0
    for problem in found.unreadable:
        command.complain("alexnet evaluate", problem)
    if not found.photos:
        raise AlexNetError(f"{folder.path}: no image can be read")
    if not math.isfinite(found.loss):
        raise AlexNetError(f"{folder.path}: {loaded.name} overflows in {args.dtype}: its probabilities are not numbers")
    title = one_line(f"{loaded.name}, {found.photos} images of {folder.path}: top-1 {found.top1:.2%}")
    with command.output():
        if args.json:
            print(json.dumps(record(args, device_name(device), folder, loaded, targets, found)))
        else:
            print(*class_table(found, targets, loaded.classes), "", sep="\n")
            top5 = "" if found.top5 is None else f", top-5 {found.top5:.2%}"
            crops = ", ten crops" if args.ten_crop else ""
            skipped = f", {len(found.unreadable)} skipped that cannot be read" if found.unreadable else ""
            where = f"({device_name(device)}, {args.operators}, {args.dtype})"
            print(f"{title}{top5}, loss {found.loss:.4f}{crops}{skipped} {where}")
    if args.plot:
        draw(args.plot, found, [row for row in targets if found.confusion[row].any()], loaded.classes, title)
        print(f"drawn in {args.plot}", file=sys.stderr)
    return 2 if found.unreadable else 0


def prepare(args: argparse.Namespace, first: bool) -> "tuple[Folder, Weights, AlexNet, list[int]]":
    """Returns the photos, the weights, their network, and which of the weights' classes each folder is."""
    from model import weights
    from model.alexnet import AlexNet
    from model.photos.folders import read_folder
    from model.photos.wordnet import match

    if args.plot and first:
        check_writable(args.plot)
    folder = read_folder(args.data / "val" if os.path.isdir(args.data / "val") else args.data)
    loaded = weights.load(weights.DEFAULT if args.weights is None else args.weights)
    net = AlexNet.from_weights(loaded)
    return folder, loaded, net, match(folder.classes, loaded.classes, loaded.name)


def record(
    args: argparse.Namespace, device: str, folder: "Folder", loaded: "Weights", targets: list[int], found: "Accuracy"
) -> dict:
    """Returns what ``--json`` prints."""
    shares = found.per_class()
    asked = {name: getattr(args, name) for name in ("operators", "dtype", "ten_crop")}
    photos = {"images": found.photos, "skipped": len(found.unreadable)}
    measured = {name: getattr(found, name) for name in ("loss", "top1", "top5")}
    classes = {loaded.classes[row]: shares[row] for row in targets}
    where = {"weights": loaded.name, "data": str(folder.path), "device": device}
    return {**where, **asked, **photos, **measured, "classes": classes, "confusion": found.confusion.tolist()}


def class_table(found: "Accuracy", targets: list[int], classes: tuple[str, ...]) -> list[str]:
    """Returns a line per class: its name, its share of right predictions, and how many photos it has."""
    shares, counts = found.per_class(), found.confusion.sum(1).tolist()
    percent = lambda share: "-" if share is None else f"{share:.1%}"
    rows = [(one_line(classes[row]), percent(shares[row]), f"of {counts[row]}") for row in targets]
    return align(rows, left=(0, 2), widths=(0, 7, 0))


def draw(out: Path, found: "Accuracy", rows: list[int], classes: tuple[str, ...], title: str) -> None:
    """Draws the confusion matrix as a PNG: one row per class that has photos, one column per class."""
    import numpy as np
    from matplotlib.figure import Figure

    numbers = found.confusion[rows].numpy()
    shares = numbers / numbers.sum(1, keepdims=True)
    side = min(max(5.0, 0.55 * len(classes) + 2.0), 16.0)
    figure = Figure(figsize=(side + 1.0, side * len(rows) / len(classes) + 1.5), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, label="share of the row's images")
    axis.set(xlabel="predicted class", ylabel="class")
    axis.set_title(title, fontsize=10, parse_math=False)
    if len(classes) <= 40:
        axis.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axis.set_yticks(range(len(rows)), [classes[row] for row in rows], parse_math=False)
    if len(classes) <= 20:
        for row, column in np.argwhere(numbers):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, numbers[row, column], ha="center", va="center", color=ink, fontsize=8)
    write_figure(out, figure)


main = functools.partial(command.run, "alexnet evaluate", run)

if __name__ == "__main__":
    exit_process(main())
