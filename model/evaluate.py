"""``alexnet evaluate DATA_DIR``: how often the network is right about a folder of images by class.

Top-1 and top-5, each class's share, and which classes are taken for which. With ``--ten-crop`` as the paper tested:
softmax averaged over four corners, the centre, and their mirror images. ``torchrun --nproc-per-node N -m
model.evaluate ...`` shares the images among N processes.
"""

import argparse
import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from model.command import batch_fits, choose_device, device_name, leave, partial_for, put
from model.photos import wordnet

# PyTorch takes seconds to import: only once the arguments make sense, inside functions.
if TYPE_CHECKING:
    from model.training.accuracy import Accuracy


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="alexnet evaluate", description="Top-1 and top-5 accuracy on a folder of images.")
    add = parser.add_argument
    add("data", metavar="DATA_DIR", type=Path, help="a folder with a sub-folder per class, or with such a folder val/")
    add("--weights", metavar="NAME|PATH", help="cifar10 (bundled, the default), bvlc ... or a file: best.safetensors")
    add("--ten-crop", action="store_true", help="average over four corners, the centre, and their mirror images")
    add("--batch", type=int, default=32, metavar="N", help="images in one forward pass (32)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of weights and activations (fp32)")
    add("--operators", choices=("triton", "torch"), default="triton", help="our kernels, or plain PyTorch (triton)")
    add("--workers", type=int, default=2, metavar="N", help="processes that decode images (2)")
    add("--plot", metavar="OUT.png", help="draws the confusion matrix")
    add("--json", action="store_true", help="one JSON object, and nothing else on stdout")
    args = parser.parse_args(argv)
    for name, least in (("batch", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise AlexNetError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.plot is not None and Path(args.plot).suffix.lower() != ".png":
        raise AlexNetError(f"--plot must name a .png file, got {args.plot!r}")
    return args


def match(folders: tuple[str, ...], classes: tuple[str, ...], name: str) -> list[int]:
    """The weights' class of each folder, told by its name; of ImageNet's 1000, also by a WordNet ID as n01440764.

    Raises:
        AlexNetError: a folder whose name is no class of the weights.
    """
    unknown = [folder for folder in folders if folder not in classes]
    places = wordnet.indices(folders) if unknown and len(classes) == 1000 else None
    if places is not None:
        return places
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + ", ..." * (len(unknown) > 3)
        known = ", ".join(map(repr, classes[:5])) + ", ..." * (len(classes) > 5)
        raise AlexNetError(f"{name} has no class {shown}: a folder must have a class's name, such as {known}")
    return [classes.index(folder) for folder in folders]


def draw(found: "Accuracy", rows: list[int], classes: tuple[str, ...], title: str, out: Path) -> None:
    """The confusion matrix as a PNG: a row for each class that has images, a column for each class."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    numbers = found.confusion[rows].numpy()
    shares = numbers / numbers.sum(1, keepdims=True)
    side = min(max(5.0, 0.55 * len(classes) + 2.0), 16.0)
    figure, axis = plt.subplots(figsize=(side + 1.0, side * len(rows) / len(classes) + 1.5), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, label="share of the row's images")
    axis.set(xlabel="taken for", ylabel="is")
    axis.set_title(title, fontsize=10, parse_math=False)
    if len(classes) <= 40:
        axis.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axis.set_yticks(range(len(rows)), [classes[row] for row in rows], parse_math=False)
    if len(classes) <= 20:
        for row, column in np.argwhere(numbers):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, numbers[row, column], ha="center", va="center", color=ink, fontsize=8)
    figure.savefig(out, format="png", dpi=110)
    plt.close(figure)


def run(args: argparse.Namespace, partial: Path | None) -> int:
    """Evaluates and prints. ``partial`` is where to draw."""
    with interrupts_exit():
        device = choose_device(args.device)

        import kernels
        from kernels.tools import torch_ops
        from kernels.tools.workloads import torch_dtype
        from model import weights
        from model.alexnet import AlexNet
        from model.photos import data
        from model.training import accuracy
        from model.training.distributed import Ranks

    ranks = Ranks(device)
    operators = torch_ops if args.operators == "torch" else kernels

    def prepare():
        folder = data.read_folder(args.data / "val" if os.path.isdir(args.data / "val") else args.data)
        try:
            loaded = weights.load(weights.DEFAULT if args.weights is None else args.weights)
            net = AlexNet.from_weights(loaded).use(operators)
        except weights.WeightsError as error:
            raise AlexNetError(error) from error
        return folder, loaded, net, match(folder.classes, loaded.classes, loaded.name)

    folder, loaded, net, rows = ranks.agree(prepare)
    images = [(path, rows[index]) for path, index in folder.images]
    dtype = torch_dtype(args.dtype)
    net.to(device, dtype)
    crops = loaded.preprocess.ten_crops if args.ten_crop else loaded.preprocess
    with batch_fits(args.batch, device):
        found = accuracy.measure_accuracy(
            lambda x: net(x.to(dtype)),
            data.Photos(images, crops, 10 if args.ten_crop else 1),
            len(loaded.classes),
            batch=args.batch,
            workers=args.workers,
            device=device,
            ranks=ranks,
            operators=operators,
            show=ranks.first,
        )
    ranks.leave()
    if not ranks.first:
        return 0
    for problem in found.unreadable:
        command.complain("alexnet evaluate", problem)
    if not found.photos:
        raise AlexNetError(f"{folder.path}: no image can be read")
    if not math.isfinite(found.loss):
        raise AlexNetError(f"{folder.path}: {loaded.name} overflows in {args.dtype}; its probabilities are no numbers")
    shares = found.per_class()
    title = command.one_line(f"{loaded.name}, {found.photos} images of {folder.path}: top-1 {found.top1:.2%}")
    if args.json:
        record = {
            "weights": loaded.name,
            "data": str(folder.path),
            "device": device_name(device),
            "operators": args.operators,
            "dtype": args.dtype,
            "ten_crop": args.ten_crop,
            "images": found.photos,
            "skipped": len(found.unreadable),
            "loss": found.loss,
            "top1": found.top1,
            "top5": found.top5,
            "classes": {loaded.classes[row]: shares[row] for row in rows},
            "confusion": found.confusion.tolist(),
        }
        lines = [json.dumps(record)]
    else:
        names = [command.one_line(loaded.classes[row]) for row in rows]
        width, lines = max(map(len, names)), []
        for row, name in zip(rows, names, strict=True):
            share = "      -" if shares[row] is None else f"{shares[row]:7.1%}"
            lines.append(f"{name:<{width}}  {share}  of {int(found.confusion[row].sum())}")
        top5 = "" if found.top5 is None else f", top-5 {found.top5:.2%}"
        skipped = f", {len(found.unreadable)} skipped that cannot be read" if found.unreadable else ""
        how = ", ten crops" if args.ten_crop else ""
        where = f"{device_name(device)}, {args.operators}, {args.dtype}"
        lines.append(f"\n{title}{top5}, loss {found.loss:.4f}{how}{skipped} ({where})")
    with command.output():
        print(*lines, sep="\n")
    if partial:
        drawn = [row for row in rows if shares[row] is not None]
        put(lambda out: draw(found, drawn, loaded.classes, title, out), partial, args.plot)
    return 2 if found.unreadable else 0


def evaluate(argv: list[str] | None) -> int:
    """Parses the arguments and runs; whatever goes wrong, no half-drawn file stays."""
    args = parse(argv)
    with partial_for(args.plot) if args.plot else contextlib.nullcontext() as partial:
        return run(args, partial)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return command.run("alexnet evaluate", evaluate, argv)


if __name__ == "__main__":
    leave(main())
