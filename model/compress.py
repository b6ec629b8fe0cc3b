"""``alexnet compress CHECKPOINT OUT``: weights in a thirtieth of their bytes, by Deep Compression.

Han, Mao and Dally 2016 (https://arxiv.org/abs/1510.00149) showed on AlexNet that few of its weights matter, and that
those need few different values:

1. Prune: of each layer only the weights of largest magnitude stay, by default as many as in the paper's table 4.
2. Retrain (with ``--data``): what is left learns to do without the rest, which is held at zero.
3. Quantise: a layer's weights share 255 values if it is a convolution, 15 if not, found by k-means.
4. Write, in the format that :mod:`model.weights.deep_compression` reads: a byte or half of one for a weight's value,
   half a byte for its place. (The paper's third stage, Huffman coding, is not part of that format.)

Where the folder of ``--data`` has ``val/``, the accuracy on it is printed after each step: what it costs.
"""

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.files import check_writable, write_bytes
from model import train
from model.command import choose_device, leave

# PyTorch takes seconds to import: only once the arguments make sense, inside functions.
if TYPE_CHECKING:
    import numpy as np
    import torch

    from model.photos.data import Folder
    from model.weights import Weights

DENSITY = {
    "conv1": 0.84,
    "conv2": 0.38,
    "conv3": 0.35,
    "conv4": 0.37,
    "conv5": 0.37,
    "fc6": 0.09,
    "fc7": 0.09,
    "fc8": 0.25,
}
"""Share of each layer's weights that stays (Han et al. 2016, table 4)."""

# Dropout weakens as the square root of the density (Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3.2):
# from 0.5 to 0.15 at fc6's and fc7's 9 %.
RETRAINING = ["--lr", "0.001", "--schedule", "cosine", "--keep-prob", "0.85"]
"""How to retrain where no option of model.train says otherwise."""


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """This command's arguments, and those of the retraining."""
    parser = Parser(
        prog="alexnet compress",
        description="Prunes, retrains and quantises weights by Deep Compression: 8 MB for ten classes.",
        epilog="Any other option is the retraining's, as model.train has it: --lr, --batch, --augment, --operators ...",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="weights to compress: a name, or a file such as best.safetensors")
    add("out", metavar="OUT", type=Path, help="the file to write, such as small.net")
    add("--data", metavar="DIR", type=Path, help="images as model.train takes them, to retrain and to measure with")
    add("--epochs", type=int, default=1, metavar="N", help="how often the retraining sees each image; 0 for none (1)")
    add("--density", nargs="+", default=[], metavar="LAYER=SHARE", help="of weights to keep, where not the paper's")
    add("--resume", action="store_true", help="go on with the retraining in OUT.training, if there is one")
    args, rest = parser.parse_known_args(argv)
    if args.epochs < 0:
        raise AlexNetError(f"--epochs must be at least 0, got {args.epochs}")
    args.density = DENSITY | dict(map(_share, args.density))
    run = Path(f"{args.out}.training")
    given = [str(args.data), "--out", str(run), "--epochs", str(max(args.epochs, 1)), *RETRAINING, *rest]
    training = train.parse([*given, *["--resume"] * args.resume])
    if rest and args.data is None:
        raise AlexNetError(f"{rest[0]} is for retraining, which takes --data DIR")
    for option in ("weights", "skip_layer", "freeze"):
        if getattr(training, option):
            raise AlexNetError(f"--{option.replace('_', '-')} is for alexnet train: CHECKPOINT is retrained, and whole")
    if training.out != run:
        raise AlexNetError("--out is for alexnet train: the retraining is kept in OUT.training until OUT is written")
    training.weights, training.density = args.checkpoint, args.density
    return args, training


def _share(text: str) -> tuple[str, float]:
    layer, _, share = text.partition("=")
    with contextlib.suppress(ValueError):
        if layer in DENSITY and 0.0 < float(share) <= 1.0:
            return layer, float(share)
    raise AlexNetError(f"--density takes layers among {', '.join(DENSITY)} and shares up to 1: fc6=0.09, got {text!r}")


def prune(weight: "torch.Tensor", density: float) -> "torch.Tensor":
    """Which weights stay: True for so large a share of them, those of largest magnitude, none of them 0."""
    import numpy as np

    flat = weight.abs().flatten()
    count = max(round(density * flat.numel()), 1)
    least = float(np.partition(flat.numpy(), -count)[-count])  # of those that stay; as many of its equals as it takes
    mask = flat > least
    mask[(flat == least).nonzero()[: count - int(mask.sum())]] = True
    return mask.logical_and_(flat > 0.0).view(weight.shape)


def cluster(values: "np.ndarray", count: int) -> "np.ndarray":
    """k-means in one dimension: (count,) float32 in ascending order, around which the values lie closest.

    They start evenly from the least value to the greatest, which the paper's section 3.2 found best: few weights are
    large, and these matter most. As each cluster is an interval of the sorted values, a mean is a difference of their
    running sums, and a round over millions of values takes a few lookups.
    """
    import numpy as np

    values = np.sort(values.astype(np.float64))
    sums = np.append(0.0, np.cumsum(values))
    centres = np.linspace(values[0], values[-1], count) if len(values) else np.zeros(count)
    for _ in range(1000):
        ends = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(values)]])
        sizes = np.diff(ends)
        means = np.where(sizes, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)  # one without values stays
        if np.array_equal(means, centres):
            break
        centres = means
    return np.sort(centres.astype(np.float32))


def quantise(weight: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """A layer of few values, and its codebook: 0, then those values in ascending order."""
    import numpy as np

    stay = weight != 0.0
    codebook = np.append(np.float32(0.0), cluster(weight[stay], (256 if weight.ndim == 4 else 16) - 1))
    middles = (codebook[2:] + codebook[1:-1]) / 2
    few = np.zeros_like(weight)
    few[stay] = codebook[1:][np.searchsorted(middles, weight[stay])]
    return few, codebook


def retrain(args: argparse.Namespace, device: "torch.device", pruned: "Weights", masks: dict) -> "Weights | None":
    """Trains what the masks leave; None where a signal stopped it."""
    from dataclasses import replace

    import torch

    from model.training.distributed import Ranks
    from model.training.trainer import Training

    class Retraining(Training):
        """A training that begins with the pruned weights and leaves at zero what is zero."""

        def load_weights(self) -> "Weights":
            return pruned

        def finish(self) -> int:
            """Nothing is said of a checkpoint that goes when OUT is there."""
            if self.stopping:
                return super().finish()
            self.log.close()
            return 0

        def draw(self) -> None:
            """No curves, for the same reason."""

    training = Retraining(args, device, Ranks(device))
    held = [(training.net.get_parameter(f"{layer}.weight"), mask.to(device)) for layer, mask in masks.items()]

    @torch.no_grad()
    def hold(*_) -> None:
        for weight, mask in held:
            weight.mul_(mask)

    training.learner.optimizer.register_step_post_hook(hold)
    if training.run():
        return None
    left = {name: tensor.detach().cpu().contiguous() for name, tensor in training.net.named_parameters()}
    layers = {layer: (left[f"{layer}.weight"], left[f"{layer}.bias"]) for layer in pruned.layers}
    return replace(pruned, layers=layers, preprocess=training.preprocess)


def accuracy(loaded: "Weights", validation: "Folder", args: argparse.Namespace, device: "torch.device") -> str:
    """Top-1 and loss on the validation images, as a line's end."""
    import kernels
    from kernels.tools import torch_ops
    from model.alexnet import AlexNet
    from model.photos import data
    from model.training.accuracy import measure_accuracy
    from model.training.distributed import Ranks

    operators = torch_ops if args.operators == "torch" else kernels
    counts = measure_accuracy(
        AlexNet.from_weights(loaded).use(operators).to(device),
        data.Photos(validation.images, loaded.preprocess),
        len(loaded.classes),
        batch=args.batch,
        workers=args.workers,
        device=device,
        ranks=Ranks(device),
        operators=operators,
        show=True,
    )
    if not counts.photos:
        raise AlexNetError(f"{validation.path}: no image can be read")
    return f"; accuracy {counts.top1:.2%}, loss {counts.loss:.4f}, of {counts.photos} images"


def check(loaded: "Weights", args: argparse.Namespace) -> "Folder | None":
    """Checks that weights, images and OUT are such as to come to an end; the images to validate with."""
    from model.photos import data
    from model.weights.deep_compression import shapes

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise AlexNetError("runs in one process, not in torchrun's many")
    check_writable(args.out)
    if loaded.lrn is None:
        raise AlexNetError(
            f"{loaded.name}: Deep Compression's format does not have the layers of torchvision's network"
        )
    if not loaded.classes:
        raise AlexNetError(f"{loaded.name}: has no fc8, and so no classes")
    for layer, shape in shapes(len(loaded.classes)).items():
        if layer not in loaded.layers or tuple(loaded.layers[layer][0].shape) != shape:
            raise AlexNetError(f"{loaded.name}: must have {layer} with a weight of {shape}")
    if args.data is None:
        return None
    images, validation = data.read(args.data)
    if images.classes != loaded.classes:
        odd = sorted(set(images.classes) ^ set(loaded.classes))
        what = f"only one of them has {odd[0]!r}" if odd else "theirs are not in the order of their names"
        raise AlexNetError(f"{args.data} must have the classes of {loaded.name}: {what}")
    return validation


def run(args: argparse.Namespace, training: argparse.Namespace) -> int:
    """All steps; the exit status, 130 where a signal came in the retraining."""
    with interrupts_exit():
        device = choose_device(training.device)
        from dataclasses import replace

        from model import weights
        from model.weights import deep_compression
        from model.weights.common import describe

    try:
        loaded = weights.load(args.checkpoint)
    except weights.WeightsError as error:
        raise AlexNetError(error) from error
    validation = check(loaded, args)

    def say(what: str, now: weights.Weights) -> None:
        total = sum(weight.numel() for weight, _ in now.layers.values())
        kept = sum(int(weight.count_nonzero()) for weight, _ in now.layers.values())
        measured = accuracy(now, validation, training, device) if validation else ""
        print(f"{what}: {kept:,} weights other than 0, {kept / total:.1%}{measured}", flush=True)

    say(loaded.name, loaded)
    masks = {layer: prune(weight, args.density[layer]) for layer, (weight, _) in loaded.layers.items()}
    now = replace(loaded, layers={layer: (w * masks[layer], b) for layer, (w, b) in loaded.layers.items()})
    say("pruned", now)
    retrained = args.data is not None and args.epochs > 0
    if retrained:
        with train.problems_named(training, device):
            trained = retrain(training, device, now, masks)
        if trained is None:
            return 130
        now = trained
        say("retrained", now)
    parts = []
    for layer in weights.LAYERS:
        few, codebook = quantise(now.layers[layer][0].numpy())
        parts.append(deep_compression.encode(few, now.layers[layer][1].numpy(), codebook))
    meta = describe(now.classes, now.lrn, now.preprocess)
    write_bytes(args.out, deep_compression.join(parts, meta))
    say("quantised", weights.load(args.out))
    for layer, (entries, data) in zip(weights.LAYERS, parts, strict=True):
        kept, total = int(masks[layer].sum()), masks[layer].numel()
        print(f"  {layer}: {kept:,} of {total:,} weights, {entries:,} entries, {len(data):,} bytes")
    before = sum(4 * tensor.numel() for pair in loaded.layers.values() for tensor in pair)
    size = args.out.stat().st_size
    print(f"{args.out}: {size:,} bytes, a {before / size:.0f}th of the {before:,} in float32")
    if retrained:
        for name in ("last.safetensors", "best.safetensors", "log.csv"):
            (training.out / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the user's own files stay, and so does then the folder
            training.out.rmdir()
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return command.run("alexnet compress", lambda argv: run(*parse(argv)), argv)


if __name__ == "__main__":
    leave(main())
