"""``torchrun --nproc-per-node 2 -m model.two_gpus [IMAGE]``: AlexNet split over two processes as over the paper's GPUs.

The network of 2012 was larger than the 3 GB of a GTX 580, so each of two GPUs had half of the filters of every layer
(Krizhevsky et al., section 3.5 and figure 2). conv2, conv4 and conv5 read the maps of their own GPU only, and
``groups=2`` is what is left of that. conv3 and the fully connected layers read the maps of both: only there did the
GPUs exchange anything. Here two processes do the same, with NCCL on two GPUs and gloo anywhere else, count the bytes
that they exchange, and compare their logits with those of one process that has the whole network.
"""

import argparse
import dataclasses
import os
import sys
import time
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed, nn

import kernels
from kernels import runtime
from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.columns import align
from model import infer, weights
from model.alexnet import LRN, AlexNet, Formula
from model.layers import Conv2d, Linear, LRNMaxPool2d, MaxPool2d
from model.photos.preprocess import ImageError, open_image

COMMAND = "torchrun --nproc-per-node 2 -m model.two_gpus"
BOUND = 2e-5  # of the largest logit: float32 sums in another order, through eight layers
PATIENCE = timedelta(seconds=60)  # for the other process
FLOOR = 5.0  # seconds that the others leave to rank 0 to say what is wrong


class Row(NamedTuple):
    """A line of the table: what one process holds of a layer, and the bytes that the other one sent it for it."""

    layer: str
    shape: tuple[int, ...]
    parameters: int
    received: int


class Other:
    """The other process, and the bytes that came from it since the last layer."""

    def __init__(self, rank: int):
        self.rank, self.bytes = rank, 0

    def swap(self, mine: torch.Tensor) -> torch.Tensor:
        """The other's tensor for mine."""
        # NCCL sends from GPU to GPU, gloo from memory to memory.
        sent = (mine if distributed.get_backend() == "nccl" else mine.cpu()).contiguous()
        both = [torch.empty_like(sent), torch.empty_like(sent)]
        try:
            distributed.all_gather(both, sent)
        except RuntimeError as error:
            raise AlexNetError(f"process {self.rank} lost the other one: {first_line(error)}") from error
        theirs = both[1 - self.rank]
        self.bytes += theirs.nbytes
        return theirs.to(mine.device)

    def join(self, mine: torch.Tensor, part: torch.Tensor | None = None) -> torch.Tensor:
        """My channels and the other's, or its counterpart of ``part``; process 0's come first, as in one process."""
        theirs = self.swap(mine if part is None else part)
        return torch.cat([mine, theirs] if self.rank == 0 else [theirs, mine], 1)


class BorderedLRNMaxPool2d(LRNMaxPool2d):
    """Normalisation whose windows reach 2 channels into the other process's half, then pooling.

    The paper's GPUs normalised their own maps and exchanged nothing for it. BVLC's weights were trained in one process,
    with windows across the border between the halves, and their logits need what lies on its other side.
    """

    def __init__(self, other: Other, formula: Formula):
        super().__init__(**formula)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps, reach = x.shape[1], self.size // 2
        if self.other.rank == 0:  # the border lies behind its last map, and before the first one of process 1
            return super().forward(self.other.join(x, x[:, -reach:]))[:, :maps]
        return super().forward(self.other.join(x, x[:, :reach]))[:, reach:]


class Half(nn.Module):
    """What one process has of the network: compare with :class:`model.alexnet.AlexNet`, line by line."""

    def __init__(self, rank: int, num_classes: int, lrn: str):
        super().__init__()
        self.other = Other(rank)
        self.conv1 = Conv2d(3, 48, kernel_size=11, stride=4)
        self.pool1 = BorderedLRNMaxPool2d(self.other, LRN[lrn])
        self.conv2 = Conv2d(48, 128, kernel_size=5, padding=2)
        self.pool2 = BorderedLRNMaxPool2d(self.other, LRN[lrn])
        self.conv3 = Conv2d(256, 192, kernel_size=3, padding=1)  # the filters of one process, the maps of both
        self.conv4 = Conv2d(192, 192, kernel_size=3, padding=1)
        self.conv5 = Conv2d(192, 128, kernel_size=3, padding=1)
        self.pool5 = MaxPool2d(kernel_size=3, stride=2)
        self.fc6 = Linear(256 * 6 * 6, 2048, relu=True)
        self.fc7 = Linear(4096, 2048, relu=True)
        self.fc8 = Linear(4096, num_classes // 2, relu=False)
        self.rows: list[Row] = []
        for name, layer in self.named_children():
            layer.register_forward_hook(lambda layer, _, output, name=name: self.note(name, layer, output))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (N, num_classes), the same in both processes, for images (N, 3, 227, 227)."""
        join = self.other.join
        #                                 N x   3 x 227 x 227    both have the image
        x = self.conv1(x)  #              N x  48 x  55 x  55
        x = self.pool1(x)  #              N x  48 x  27 x  27    + 2 maps beyond the border, to normalise
        x = self.conv2(x)  #              N x 128 x  27 x  27    of 48 own maps
        x = self.pool2(x)  #              N x 128 x  13 x  13    + 2 maps
        x = self.conv3(join(x))  #        N x 192 x  13 x  13    of all 256 maps
        x = self.conv4(x)  #              N x 192 x  13 x  13    of 192 own maps
        x = self.conv5(x)  #              N x 128 x  13 x  13    of 192 own maps
        x = self.pool5(x)  #              N x 128 x   6 x   6
        x = join(x).flatten(1)  #         N x 9216               C, H, W with the C of both
        x = self.fc6(x)  #                N x 2048
        x = self.fc7(join(x))  #          N x 2048               of all 4096
        x = self.fc8(join(x))  #          N x num_classes / 2
        return self.note("logits", None, join(x))

    def note(self, name: str, layer: nn.Module | None, output: torch.Tensor) -> torch.Tensor:
        """A row for the table: whatever was received since the last one was for this layer."""
        parameters = sum(p.numel() for p in layer.parameters()) if layer else 0
        self.rows.append(Row(name, tuple(output.shape[1:]), parameters, self.other.bytes))
        self.other.bytes = 0
        return output

    @classmethod
    def from_weights(cls, loaded: weights.Weights, rank: int) -> "Half":
        """The half of process ``rank``, from the weights of the whole network."""
        if loaded.lrn not in LRN:
            raise weights.WeightsError(f"{loaded.name}: lrn must be one of {', '.join(LRN)}, got {loaded.lrn!r}")
        with torch.device("meta"):
            net = cls(rank, len(loaded.classes), loaded.lrn)
        weights.assign(net, halve(loaded, rank))
        return net.eval()


def halve(loaded: weights.Weights, rank: int) -> weights.Weights:
    """Half of the outputs of every layer. In a grouped layer that is a group: its filters have only its own inputs."""
    layers = {name: (weight.chunk(2)[rank], bias.chunk(2)[rank]) for name, (weight, bias) in loaded.layers.items()}
    return dataclasses.replace(loaded, layers=layers)


def table(rows: list[Row]) -> str:
    """The rows for people, with a line of totals."""
    total = Row("total", (), sum(row.parameters for row in rows), sum(row.received for row in rows))
    cells = lambda row: (row.layer, " x ".join(map(str, row.shape)), f"{row.parameters:,}", f"{row.received:,}")
    header, *lines = align([("layer", "holds", "parameters", "bytes received"), *map(cells, [*rows, total])])
    return "\n".join([header, "-" * len(header), *lines])


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def compute(rank: int, image: str | None) -> int:
    """Both processes' part of the work, and rank 0's report; the exit status."""
    try:
        photo = image or infer.default_photo()
        loaded = weights.load()
        x = loaded.preprocess(open_image(photo))[None]
    except (ImageError, weights.WeightsError) as error:
        raise AlexNetError(error) from error
    device = runtime.default_device()
    backend = "gloo"
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % gpus)
        torch.cuda.set_device(device)
        backend = "nccl" if gpus > 1 else "gloo"  # NCCL does not take two processes on one GPU
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise AlexNetError(f"process {rank} did not find the other one: {first_line(error)}") from error

    half = Half.from_weights(loaded, rank).to(device)
    x = x.to(device)
    with torch.inference_mode():
        logits = half(x)
        distributed.destroy_process_group()
        if rank:
            return 0
        expected = AlexNet.from_weights(loaded).to(device)(x)
        largest = (logits - expected).abs().max().item()
        relative = largest / expected.abs().max().item()
        probability, best = kernels.softmax(logits)[0].max(0)

    print(f"{photo}\n2 processes, {backend}, kernels {runtime.mode()}, fp32; each holds half of every layer:\n")
    print(table(half.rows))
    print(f"\nlargest difference from one process's logits: {largest:.1e}, {relative:.1e} of the largest logit")
    print(f"prediction: {loaded.classes[int(best)]}, {probability.item():.1%}")
    if not relative < BOUND:  # NaN too
        print(f"alexnet two-gpus: error: the logits differ by more than {BOUND:.0e}", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str] | None) -> int:
    parser = command.Parser(prog=COMMAND, description="AlexNet split over two processes, as over the paper's two GPUs.")
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="a photo; none: a cat from scikit-image")
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    try:
        args: argparse.Namespace = parser.parse_args(argv)
        if processes != 2:
            raise AlexNetError(f"takes 2 processes, got {processes}: {COMMAND} {args.image or '[IMAGE]'}")
        return compute(rank, args.image)
    except AlexNetError:
        if rank:  # torchrun ends all processes when one fails, and rank 0 mostly has the same to say
            time.sleep(FLOOR)
        raise


if __name__ == "__main__":
    sys.exit(command.run("alexnet two-gpus", main, None))
