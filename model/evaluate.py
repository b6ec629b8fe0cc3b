"""``alexnet evaluate DATA_DIR``: how often the network is right about a folder of images by class.

Prints top-1 and top-5 accuracy and each class's share. ``--ten-crop`` tests as the paper did: it averages softmax over
four corners, the centre, and their mirror images. ``--calibrate`` writes the same weights with a temperature and a
threshold (:mod:`model.calibration`) fitted on every other image, and says what they change on the rest. ``torchrun
--nproc-per-node N -m model.evaluate ...`` shares the images among N processes.
"""

import argparse
import functools
import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.columns import align
from kernels.tools.command import Parser, count, exit_process, interrupts_exit, one_line, png
from kernels.tools.files import check_writable, write_bytes, write_figure
from model.device import add_options, batch_fits, choose_device, device_name

# PyTorch takes seconds to import, so functions import it, after the arguments have been checked.
if TYPE_CHECKING:
    import torch

    from model.alexnet import AlexNet
    from model.calibration import Calibration
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
    add("--calibrate", metavar="OUT", type=Path, help="writes the weights with a temperature and a threshold fitted")
    add("--json", action="store_true", help="prints one JSON object, and nothing else on stdout")
    args = parser.parse_args(argv)
    if args.workers < 0:
        raise AlexNetError(f"--workers must be at least 0, got {args.workers}")
    if args.calibrate and args.ten_crop:
        raise AlexNetError("--calibrate takes central crops, as alexnet infer does, without --ten-crop")
    if args.calibrate and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise AlexNetError("--calibrate runs in one process, not under torchrun")
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
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(logits: "torch.Tensor", target: "torch.Tensor") -> None:
        if args.calibrate:
            kept.append((logits.cpu(), target.cpu()))

    how = {"batch": args.batch, "workers": args.workers, "ranks": ranks, "show": ranks.first}
    with batch_fits(args.batch, device):
        found = accuracy.measure_accuracy(net, photos, **how, temperature=loaded.calibration.temperature, record=keep)
    ranks.leave()
    if not ranks.first:
        return 0
    for problem in found.unreadable:
        command.complain("alexnet evaluate", problem)
    if not found.photos:
        raise AlexNetError(f"{folder.name}: no image can be read")
    if not math.isfinite(found.loss):
        raise AlexNetError(f"{folder.name}: {loaded.name} overflows in {args.dtype}: its probabilities are not numbers")
    calibrated = calibrate(loaded, kept, args.calibrate) if args.calibrate else None
    title = one_line(f"{loaded.name}, {found.photos} images of {folder.name}: top-1 {found.top1:.2%}")
    with command.output():
        if args.json:
            more = {"calibration": calibrated} if calibrated else {}
            print(json.dumps(record(args, device_name(device), folder, loaded, targets, found) | more))
        else:
            print(*class_table(found, targets, loaded.classes), "", sep="\n")
            top5 = "" if found.top5 is None else f", top-5 {found.top5:.2%}"
            crops = ", ten crops" if args.ten_crop else ""
            skipped = f", {len(found.unreadable)} skipped that cannot be read" if found.unreadable else ""
            where = f"({device_name(device)}, {args.operators}, {args.dtype})"
            measured = f"loss {found.loss:.4f}, calibration error {found.calibration_error:.4f}"
            print(f"{title}{top5}, {measured}{crops}{skipped} {where}")
            if calibrated:
                print(calibration_lines(calibrated, args.calibrate))
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

    if first:
        for out in filter(None, (args.plot, args.calibrate)):
            check_writable(out)
    folder = read_folder(args.data / "val" if os.path.isdir(args.data / "val") else args.data)
    loaded = weights.load(weights.DEFAULT if args.weights is None else args.weights)
    if args.calibrate:
        check_format(args.calibrate, loaded)
    net = AlexNet.from_weights(loaded)
    return folder, loaded, net, match(folder.classes, loaded.classes, loaded.name)


def check_format(out: Path, loaded: "Weights") -> None:
    """Refuses a name whose format cannot hold these weights as they are."""
    from model import weights
    from model.weights import deep_compression

    if out.suffix == ".safetensors":
        return
    if out.suffix != ".net":
        raise AlexNetError(f"--calibrate must name a .safetensors or .net file, got {str(out)!r}")
    if weights.format_of(weights.path_of(loaded.name), loaded.name) is not deep_compression:
        raise AlexNetError(f"{loaded.name}: not a .net file, so --calibrate writes a .safetensors, got {str(out)!r}")


def calibrate(loaded: "Weights", kept: "list[tuple[torch.Tensor, torch.Tensor]]", out: Path) -> dict:
    """Fits temperature and threshold on every other photo and writes the weights with them.

    Args:
        kept: the photos' logits, (photos, classes), and classes, batch by batch.

    Returns what ``--json`` prints: both numbers, and what they change on the other photos.
    """
    import torch

    from model import calibration, weights
    from model.training import checkpoint
    from model.weights import deep_compression
    from model.weights.common import describe

    logits, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if len(labels) < 2:
        raise AlexNetError(f"--calibrate takes at least 2 images that can be read, got {len(labels)}")
    fitted = calibration.calibrate(logits[::2], labels[::2])
    now = replace(loaded, calibration=fitted)

    def measure(each: "Calibration") -> dict:
        probabilities = (logits[1::2].double() / each.temperature).softmax(1)
        right = probabilities.gather(1, labels[1::2, None]).clamp_min(1e-300)
        error = calibration.expected_calibration_error(probabilities, labels[1::2])
        above = (probabilities.amax(1) >= (each.none_below or 0.0)).double().mean().item()
        return {"calibration_error": error, "loss": -right.log().mean().item(), "not_below": above}

    if out.suffix == ".net":
        meta = describe(now.classes, now.lrn, now.preprocess, fitted)
        write_bytes(out, deep_compression.described_anew(weights.path_of(loaded.name).read_bytes(), meta))
    else:
        checkpoint.write_weights(out, now)
    images = {"fitted_on": len(labels[::2]), "measured_on": len(labels[1::2])}
    return {**asdict(fitted), **images, "before": measure(loaded.calibration), "after": measure(fitted)}


def calibration_lines(calibrated: dict, out: Path) -> str:
    """Returns what was fitted and what it changes, for the terminal."""
    before, after = calibrated["before"], calibrated["after"]
    changes = "; ".join(
        f"{name} {before[key]:.4f} before, {after[key]:.4f} after"
        for name, key in (("calibration error", "calibration_error"), ("loss", "loss"))
    )
    return (
        f"fitted on {calibrated['fitted_on']} images: temperature {calibrated['temperature']:.4f}, "
        f"none of the classes below {calibrated['none_below']:.1%}\n"
        f"on the other {calibrated['measured_on']}: {changes}; {after['not_below']:.1%} are not below\n"
        f"written to {one_line(out)}"
    )


def record(
    args: argparse.Namespace, device: str, folder: "Folder", loaded: "Weights", targets: list[int], found: "Accuracy"
) -> dict:
    """Returns what ``--json`` prints."""
    shares = found.per_class()
    asked = {name: getattr(args, name) for name in ("operators", "dtype", "ten_crop")}
    photos = {"images": found.photos, "skipped": len(found.unreadable)}
    measured = {name: getattr(found, name) for name in ("loss", "calibration_error", "top1", "top5")}
    classes = {loaded.classes[row]: shares[row] for row in targets}
    where = {"weights": loaded.name, "data": folder.name, "device": device}
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
