"""``python -m model.infer [IMAGE ...]``: what the network sees in photos.

Photos are decoded by other processes while the network computes, and results are printed batch by batch, so that a
folder of any size fits. Results go to stdout, everything else to stderr; the exit status is 2 where something was
asked that could not be done.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.columns import align
from kernels.tools.command import Parser, interrupts_exit, one_line
from model import checkout
from model.command import batch_fits, choose_device, device_name, partial_for, put, start_worker

# PyTorch takes seconds to import: only once the arguments make sense, inside functions.
if TYPE_CHECKING:
    import torch

    from kernels.tools.measurements import Roofs
    from model.alexnet import AlexNet, LayerSummary
    from model.weights import Weights


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="alexnet infer", description="Classifies photos with AlexNet on the Triton kernels.")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="photos, or folders of them; none: a cat from scikit-image")
    add(
        "--weights",
        metavar="NAME|PATH",
        help="cifar10 (bundled, the default), bvlc, deep-compression, torchvision (downloaded), or a file of weights",
    )
    add("--top", type=int, metavar="K", help="how many classes to list for a photo (5)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of weights and activations (fp32)")
    add("--batch", type=int, default=8, metavar="N", help="photos in one forward pass (8)")
    add("--json", action="store_true", help="one JSON object a line a photo, and nothing else on stdout")
    add("--layers", action="store_true", help="each layer's output shape, parameters, time and GFLOP/s")
    add("--plot", metavar="OUT.png", help="draws the photo, its top classes and conv1's feature maps")
    args = parser.parse_args(argv)
    if args.top is not None and args.top < 1:
        raise AlexNetError(f"--top must be at least 1, got {args.top}")
    if args.batch < 1:
        raise AlexNetError(f"--batch must be at least 1, got {args.batch}")
    if args.plot is not None and Path(args.plot).suffix.lower() != ".png":
        raise AlexNetError(f"--plot must name a .png file, got {args.plot!r}")
    return args


def default_photo() -> Path:
    """The cat that comes with scikit-image, found without importing it."""
    package = importlib.util.find_spec("skimage")
    folders = package.submodule_search_locations if package else None
    photo = Path(folders[0], "data", "chelsea.png") if folders else None
    if photo is None or not photo.is_file():
        raise AlexNetError("no photo given, and scikit-image, whose cat stands in for one, is not installed")
    return photo


def complain(message: object) -> None:
    """One line on stderr."""
    command.complain("alexnet infer", message)


def find_photos(arguments: list[str]) -> tuple[list[Path], bool]:
    """The photos named, and those in and below the folders named, sorted; and whether all arguments gave some."""
    from PIL import Image

    known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    # Pillow recognises these but decodes none of them.
    known -= {suffix for suffix, name in Image.EXTENSION.items() if name in ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")}
    photos, complete = [], True

    def refused(error: OSError) -> None:
        nonlocal complete
        complete = False
        complain(f"{error.filename}: cannot be read: {error.strerror}")

    for argument in arguments:
        found = [Path(argument)]
        try:
            folder = stat.S_ISDIR(os.stat(argument).st_mode)
        except FileNotFoundError:
            complain(f"{argument or repr('')}: no such file")
            complete = False
            continue
        except OSError as error:
            refused(error)
            continue
        if folder:
            files = (Path(folder, name) for folder, _, names in os.walk(argument, onerror=refused) for name in names)
            found = sorted(f for f in files if f.suffix.lower() in known and not f.name.startswith("."))
        if not found:
            complain(f"{argument}: no photos in this folder")
            complete = False
        photos += found
    return photos, complete


class Photos:
    """A data set for a DataLoader: (path, input), or (path, what is wrong with the file)."""

    def __init__(self, paths: list[Path], preprocess):
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        from model.photos.preprocess import ImageError, open_image

        try:
            # As an array: tensors would travel through /dev/shm, of which containers have little.
            return self.paths[index], self.preprocess(open_image(self.paths[index])).numpy()
        except ImageError as error:
            return self.paths[index], str(error)


def batches(photos: Photos, size: int) -> Iterator[list]:
    """The data set in lists of ``size``; decoded by two more processes unless one list holds it all."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    several = len(photos) > size
    loader: DataLoader = DataLoader(
        photos,  # type: ignore[arg-type]  # PyTorch takes whatever has a length and items, and asks for its Dataset
        batch_size=size,
        num_workers=2 if several else 0,
        collate_fn=list,
        worker_init_fn=start_worker,
    )
    return tqdm(loader, unit="batch", leave=False, disable=None) if several else iter(loader)


class Stopwatch:
    """Forward hooks that time each layer, waiting for the GPU before and after."""

    def __init__(self, net: "AlexNet", device: "torch.device"):
        self.device, self.started = device, 0.0
        self.ms: dict[str, float] = {}
        for name, layer in net.named_children():
            layer.register_forward_pre_hook(lambda *_: self.start())
            layer.register_forward_hook(lambda *_, name=name: self.stop(name))

    def start(self) -> None:
        synchronise(self.device)
        self.started = time.perf_counter()

    def stop(self, name: str) -> None:
        synchronise(self.device)
        self.ms[name] = (time.perf_counter() - self.started) * 1e3


def synchronise(device: "torch.device") -> None:
    """Waits for the GPU; the CPU has nothing outstanding."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def layer_record(row: "LayerSummary", ms: float, limits: "Roofs | None") -> dict:
    """A layer for ``--json``. ``roofline`` is null where the device's roofs have not been measured."""
    share = limits.floor_ms(row.flops, row.bytes) / ms if limits else None
    return {**row._asdict(), "output": list(row.output), "ms": ms, "gflops": row.flops / (ms * 1e6), "roofline": share}


def layer_table(layers: list[dict], batch: int) -> str:
    """The layers for people, with a line of totals."""
    total = {key: sum(layer[key] for layer in layers) for key in ("parameters", "macs", "flops", "ms")}
    floors = [layer["ms"] * layer["roofline"] for layer in layers if layer["roofline"] is not None]
    share = sum(floors) / total["ms"] if floors else None
    total |= {"name": "total", "output": [], "gflops": total["flops"] / (total["ms"] * 1e6), "roofline": share}
    rows = [
        (
            layer["name"],
            " x ".join(map(str, layer["output"])),
            f"{layer['parameters']:,}",
            f"{layer['macs'] / 1e6:,.1f}",
            f"{layer['ms']:,.2f}",
            f"{layer['gflops']:,.1f}",
            "-" if layer["roofline"] is None else f"{layer['roofline']:.0%}",
        )
        for layer in [*layers, total]
    ]
    title = f"layers, {batch} photo{'s' * (batch > 1)} in one pass:"
    header, *lines = align([("layer", "output", "parameters", "MMACs", "ms", "GFLOP/s", "of roof"), *rows], left=(0, 1))
    rule = "-" * len(header)
    return "\n".join([title, "", header, rule, *lines[:-1], rule, lines[-1]])


def photo_table(path: Path, predictions: list[dict]) -> str:
    """A photo's likeliest classes for people, with bars."""
    labels = [one_line(p["label"]) for p in predictions]
    width = max(map(len, labels))
    block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    lines = [
        f"{rank:4}  {label:<{width}}  {p['probability']:6.1%}  {block * round(40 * p['probability'])}".rstrip()
        for rank, (label, p) in enumerate(zip(labels, predictions, strict=True), 1)
    ]
    return "\n".join([one_line(path), *lines, ""])


def draw(out: Path, path: Path, predictions: list[dict], maps, caption: str) -> None:
    """The photo, its likeliest classes, and conv1's feature maps (96, 55, 55), as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    from model.photos.preprocess import open_image

    figure = plt.figure(figsize=(15, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2), height_ratios=(1.3, 1))
    photo, bars, features = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))

    image = open_image(path)
    image.thumbnail((900, 900))
    photo.imshow(image)
    photo.set_title(one_line(path.name), parse_math=False)
    photo.axis("off")

    labels, probabilities = zip(*((p["label"], p["probability"]) for p in predictions), strict=True)
    drawn = bars.barh(range(len(labels)), probabilities, color="tab:blue")
    bars.bar_label(drawn, [f"{p:.1%}" for p in probabilities], padding=4)
    bars.set_yticks(range(len(labels)), labels, parse_math=False)
    bars.invert_yaxis()
    bars.set(xlim=(0, 1.15), xlabel="probability", title=f"Top {len(labels)} of softmax(fc8)")
    bars.set_xticks(np.linspace(0, 1, 6))
    bars.spines[["top", "right"]].set_visible(False)

    rows, columns = 8, math.ceil(len(maps) / 8)
    height, width = maps.shape[1:]
    mosaic = np.full((rows * (height + 4) - 4, columns * (width + 4) - 4), np.nan)
    for index, plane in enumerate(maps):
        top, left = index // columns * (height + 4), index % columns * (width + 4)
        mosaic[top : top + height, left : left + width] = plane / max(plane.max(), 1e-12)
    features.imshow(mosaic, cmap="magma", interpolation="nearest")
    features.set_title(
        f"conv1 + ReLU: {len(maps)} feature maps of {height} x {width}, each from 0 (black) to its own maximum"
    )
    features.set_xticks([(width + 4) * c + width / 2 for c in range(columns)], [str(c) for c in range(columns)])
    firsts = [str(r * columns) for r in range(rows)]
    features.set_yticks([(height + 4) * r + height / 2 for r in range(rows)], firsts)
    features.set(xlabel="map = number at the left + number below")
    features.tick_params(length=0)
    features.spines[:].set_visible(False)
    figure.suptitle(caption, fontsize=10, color="dimgray", parse_math=False)
    figure.savefig(out, format="png", dpi=110)


def imagenet_hint(classes: int) -> str:
    """A line for who sees few classes: an ImageNet model that is in the cache, or one to download."""
    from model import weights

    here = [name for name in weights.NAMED if weights.cached(name)]
    way = f"--weights {here[0]}, which is in the cache" if here else "--weights bvlc, which downloads 244 MB"
    return f"{classes} classes only; for ImageNet's 1000: {way}"


def run(args: argparse.Namespace, photos: list[Path], partial: Path | None) -> bool:
    """Classifies the photos; whether all of them could be read. ``partial`` is where to draw."""
    with interrupts_exit():
        device = choose_device(args.device)
        import numpy as np
        import torch
        from tqdm import tqdm

        import kernels
        from kernels import runtime
        from kernels.tools.measurements import roofs_for
        from kernels.tools.workloads import torch_dtype
        from model import weights
        from model.alexnet import AlexNet

    try:
        loaded: Weights = weights.load(weights.DEFAULT if args.weights is None else args.weights)
        net = AlexNet.from_weights(loaded)
    except weights.WeightsError as error:
        raise AlexNetError(error) from error
    top = min(5, len(loaded.classes)) if args.top is None else args.top
    if top > len(loaded.classes):
        raise AlexNetError(f"--top must be at most the {len(loaded.classes)} classes of {loaded.name}, got {top}")
    dtype = torch_dtype(args.dtype)
    net.to(device, dtype)
    stopwatch = Stopwatch(net, device) if args.layers else None
    if not args.images:
        print(f"no photo given: taking scikit-image's chelsea, a cat ({photos[0]})", file=sys.stderr)
    # Hooks run once, when a graph is captured: not where layers are timed or drawn.
    graph = runtime.mode() == "compiled" and len(photos) > args.batch and not (args.layers or args.plot)
    with batch_fits(args.batch, device):
        forward = net.capture(args.batch) if graph else net
    features: dict[str, np.ndarray] = {}
    if args.plot:
        net.conv1.register_forward_hook(lambda _, __, output: features.update(conv1=output[0].float().cpu().numpy()))

    done, seconds, table = 0, 0.0, ""
    where = {"weights": loaded.name, "device": device_name(device), "mode": runtime.mode()}
    limits = None
    if args.layers and runtime.mode() == "compiled" and checkout.MEASUREMENTS:
        limits = roofs_for(where["device"], args.dtype, checkout.MEASUREMENTS)
    for batch in batches(Photos(photos, loaded.preprocess), args.batch):
        for _, problem in batch:
            if isinstance(problem, str):
                with tqdm.external_write_mode(sys.stderr):
                    complain(problem)
        batch = [(path, item) for path, item in batch if not isinstance(item, str)]
        if not batch:
            continue
        x = torch.from_numpy(np.stack([item for _, item in batch]))
        x = x.to(device, dtype).contiguous(memory_format=torch.channels_last)
        with batch_fits(args.batch, device), torch.inference_mode():
            if stopwatch and not table and not runtime.INTERPRETED:
                net(x)  # compiles the kernels, which is not a layer's time
            synchronise(device)
            started = time.perf_counter()
            probabilities = kernels.softmax(forward(x).float())
            synchronise(device)
            seconds += time.perf_counter() - started
        finite = probabilities.isfinite().all(1).tolist()
        if not all(finite):
            path, _ = batch[finite.index(False)]
            raise AlexNetError(f"{path}: {loaded.name} overflows in {args.dtype}; its probabilities are no numbers")
        done += len(batch)
        layers = {}
        if stopwatch:
            rows = [layer_record(row, stopwatch.ms[row.name], limits) for row in net.layers(len(batch))]
            layers = {"layers": rows}
            table = table or layer_table(rows, len(batch))
        values, indices = (t.cpu().tolist() for t in probabilities.topk(top))
        records = []
        for (path, _), ps, classes in zip(batch, values, indices, strict=True):
            predictions = [
                {"index": index, "label": loaded.classes[index], "probability": p}
                for index, p in zip(classes, ps, strict=True)
            ]
            record = {"image": str(path), **where, "predictions": predictions, **layers}
            records.append(json.dumps(record) if args.json else photo_table(path, predictions))
        with command.output():
            tqdm.write("\n".join(records))

    if done < len(photos) > 1:
        complain(f"{len(photos) - done:,} of {len(photos):,} photos cannot be read")
    if not done:
        return False
    each = f"{seconds / done:.2f} s a photo" if seconds / done >= 0.1 else f"{seconds / done * 1e3:.2f} ms a photo"
    summary = (
        f"{one_line(where['weights'])} on {where['device']}, kernels {where['mode']}, {args.dtype}: "
        f"{done} photo{'s' * (done > 1)} in {seconds:.2f} s, {each}"
    )
    if not args.json:
        if table:
            print(f"{table}\n")
        print(summary)
        if loaded.name == weights.DEFAULT:
            print(imagenet_hint(len(loaded.classes)))
    if partial:
        put(lambda out: draw(out, photos[0], predictions, features["conv1"], summary), partial, args.plot)
    return done == len(photos)


def classify(argv: list[str] | None) -> int:
    """Parses the arguments and runs; whatever goes wrong, no half-drawn file stays."""
    args = parse(argv)
    photos, complete = find_photos(args.images) if args.images else ([default_photo()], True)
    if args.plot and (len(args.images) > 1 or len(photos) > 1):
        raise AlexNetError(f"--plot takes one photo, got {max(len(args.images), len(photos))}")
    if not photos:
        return 2
    with partial_for(args.plot) if args.plot else contextlib.nullcontext() as partial:
        return 0 if run(args, photos, partial) and complete else 2


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return command.run("alexnet infer", classify, argv)


if __name__ == "__main__":
    sys.exit(main())
