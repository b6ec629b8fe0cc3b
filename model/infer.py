"""``python -m model.infer [IMAGE ...]`` or ``alexnet infer``: what the network sees in photos.

Results go to stdout and are printed batch by batch, everything else goes to stderr. The exit status is 2 if something
cannot be done, such as one of many photos that cannot be read.
"""

import argparse
import functools
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.columns import align
from kernels.tools.command import Parser, count, interrupts_exit, one_line, png
from kernels.tools.files import check_writable, write_figure
from model.device import add_options, batch_fits, choose_device, device_name

complain = functools.partial(command.complain, "alexnet infer")

# PyTorch takes seconds to import, so functions import it, after the arguments have been checked.
if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

    from model.classify import Prediction
    from model.weights import Weights


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="alexnet infer", description="Classifies photos with AlexNet on the Triton kernels.")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="photos or folders of them; without any, a cat from scikit-image")
    add_options(add)
    add("--top", type=count, metavar="K", help="how many classes to list for a photo (5)")
    add("--batch", type=count, default=8, metavar="N", help="photos in one forward pass (8)")
    add("--json", action="store_true", help="prints one JSON object per photo and line, and nothing else on stdout")
    add("--layers", action="store_true", help="each layer's output shape, parameters, time and GFLOP/s")
    add("--plot", metavar="OUT.png", type=png, help="draws the photo, its top classes and conv1's feature maps")
    return parser.parse_args(argv)


def run(argv: list[str] | None) -> int:
    """The command; returns the exit status."""
    args = parse(argv)
    from model.photos.folders import find_photos
    from model.photos.sample import default_photo

    photos, problems = find_photos(args.images) if args.images else ([default_photo()], [])
    for problem in problems:
        complain(problem)
    if args.plot and (len(args.images) > 1 or len(photos) > 1):
        raise AlexNetError(f"--plot takes one photo, got {max(len(args.images), len(photos))}")
    if not photos:
        return 2
    if args.plot:
        check_writable(args.plot)
    read = infer(args, photos)
    if read < len(photos) > 1:
        complain(f"{len(photos) - read:,} of {len(photos):,} photos cannot be read")
    return 2 if read < len(photos) or problems else 0


def infer(args: argparse.Namespace, photos: list[Path]) -> int:
    """Classifies the photos and prints; returns how many could be read."""
    with interrupts_exit():
        device = choose_device(args.device)
        from tqdm import tqdm

        from kernels import runtime
        from kernels.tools.workloads import torch_dtype
        from model import weights
        from model.alexnet import AlexNet
        from model.classify import classify
        from model.layer_times import LayerTimes, layer_table

    loaded = weights.load(weights.DEFAULT if args.weights is None else args.weights)
    classes = len(loaded.classes)
    top = min(5, classes) if args.top is None else args.top
    if top > classes:
        raise AlexNetError(f"--top must be at most the {classes} classes of {loaded.name}, got {top}")
    net = AlexNet.from_weights(loaded).to(device, torch_dtype(args.dtype))
    if not args.images:
        print(f"no photo given: taking scikit-image's chelsea, a cat ({photos[0]})", file=sys.stderr)
    where = {"weights": loaded.name, "device": device_name(device), "mode": runtime.mode()}
    several = len(photos) > args.batch
    graph = several and runtime.mode() == "compiled" and not (args.layers or args.plot)  # which use hooks
    read, seconds, table = 0, 0.0, ""
    with batch_fits(args.batch, device):
        times = LayerTimes(net, args.dtype, min(len(photos), args.batch)) if args.layers else None
        maps: list[torch.Tensor] = []
        if args.plot:
            net.conv1.register_forward_hook(lambda _, __, output: maps.append(output))
        for batch in classify(photos, net, loaded, batch=args.batch, top=top, graph=graph, show=several):
            with tqdm.external_write_mode(sys.stderr):
                for problem in batch.unreadable:
                    complain(problem)
            if not batch.photos:
                continue
            read, seconds = read + len(batch.photos), seconds + batch.seconds
            layers = {"layers": times.records(len(batch.photos))} if times else {}
            table = table or (layer_table(layers["layers"], len(batch.photos)) + "\n\n" if times else "")
            show = functools.partial(json_line, where, layers) if args.json else functools.partial(photo_table, classes)
            with command.output():
                tqdm.write("\n".join(map(show, batch.photos, batch.predictions, batch.none)))
    if not read:
        return 0
    summary = summarise(where, args.dtype, read, seconds)
    if not args.json:
        print(f"{table}{summary}{imagenet_hint(loaded)}")
    if args.plot:
        draw(args.plot, photos[0], batch.predictions[0], maps[-1][0].float().cpu(), summary)
        print(f"drawn in {args.plot}", file=sys.stderr)
    return read


def json_line(where: dict, layers: dict, path: Path, predictions: "list[Prediction]", none: bool | None) -> str:
    """Returns a photo's likeliest classes as JSON."""
    found = {"predictions": [asdict(p) for p in predictions], "none_of_the_classes": none}
    return json.dumps({"image": str(path), **where, **found, **layers})


NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def photo_table(classes: int, path: Path, predictions: "list[Prediction]", none: bool | None = None) -> str:
    """Returns a photo's likeliest classes, of ``classes`` in all, for the terminal, with bars.

    If ``none`` is true, a line below them says that it is probably none of them.
    """
    block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    rows = [
        (f"{rank:4}", one_line(p.label), f"{p.probability:6.1%}", block * round(40 * p.probability))
        for rank, p in enumerate(predictions, 1)
    ]
    number = NUMBERS[classes - 2] if 2 <= classes <= 12 else f"{classes:,}"
    below = [f"      probably none of the {number} classes"] if none else []
    return "\n".join([one_line(path), *align(rows, left=(1, 3)), *below, ""])


def summarise(where: dict, dtype: str, read: int, seconds: float) -> str:
    """Returns the last line: with which weights, where, how many photos, in what time."""
    each = seconds / read
    per_photo = f"{each:.2f} s a photo" if each >= 0.1 else f"{each * 1e3:.2f} ms a photo"
    network = f"{one_line(where['weights'])} on {where['device']}, kernels {where['mode']}, {dtype}"
    return f"{network}: {read} photo{'s' * (read > 1)} in {seconds:.2f} s, {per_photo}"


def imagenet_hint(loaded: "Weights") -> str:
    """Returns a line about ImageNet's weights, if these are the default ones, which know few classes."""
    from model import weights

    if loaded.name != weights.DEFAULT:
        return ""
    here = [name for name in weights.NAMED if weights.cached(name)]
    way = f"--weights {here[0]}, which is in the cache" if here else "--weights bvlc, which downloads 244 MB"
    return f"\n{len(loaded.classes)} classes only; for ImageNet's 1000: {way}"


def draw(out: Path, path: Path, predictions: "list[Prediction]", maps: "torch.Tensor", caption: str) -> None:
    """Draws the photo, its likeliest classes, and conv1's feature maps (96, 55, 55), as one PNG."""
    from matplotlib.figure import Figure

    from model.photos.preprocess import open_image

    figure = Figure(figsize=(15, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2), height_ratios=(1.3, 1))
    photo, bars, mosaic = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))

    image = open_image(path)
    image.thumbnail((900, 900))
    photo.imshow(image)
    photo.set_title(one_line(path.name), parse_math=False)
    photo.axis("off")

    drawn = bars.barh(range(len(predictions)), [p.probability for p in predictions], color="tab:blue")
    bars.bar_label(drawn, [f"{p.probability:.1%}" for p in predictions], padding=4)
    bars.set_yticks(range(len(predictions)), [p.label for p in predictions], parse_math=False)
    bars.invert_yaxis()
    bars.set(xlim=(0, 1.15), xlabel="probability", title=f"Top {len(predictions)} of softmax(fc8)")
    bars.set_xticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    bars.spines[["top", "right"]].set_visible(False)

    draw_maps(mosaic, maps)
    figure.suptitle(caption, fontsize=10, color="dimgray", parse_math=False)
    write_figure(out, figure)


def draw_maps(axes: "Axes", maps: "torch.Tensor") -> None:
    """Draws feature maps (count, height, width) side by side, each from 0 to its own maximum."""
    from torchvision.utils import make_grid

    rows, gap = 8, 4
    columns = math.ceil(len(maps) / rows)
    height, width = maps.shape[1:]
    shares = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    grid = make_grid(shares[:, None], columns, gap, pad_value=math.nan)[0].numpy()  # one of three equal colours
    axes.imshow(grid, cmap="magma", interpolation="nearest")
    axes.set_title(f"conv1 + ReLU: {len(maps)} feature maps of {height} x {width}, each from 0 (black) to its maximum")
    axes.set_xticks([gap + (width + gap) * c + width / 2 for c in range(columns)], [str(c) for c in range(columns)])
    firsts = [str(row * columns) for row in range(rows)]
    axes.set_yticks([gap + (height + gap) * r + height / 2 for r in range(rows)], firsts)
    axes.set(xlabel="map = number at the left + number below")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


main = functools.partial(command.run, "alexnet infer", run)

if __name__ == "__main__":
    sys.exit(main())
