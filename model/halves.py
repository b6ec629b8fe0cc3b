"""AlexNet in two halves, one per process, as over the two GPUs of 2012.

Each of two GPUs with 3 GB had half of the filters of every layer (Krizhevsky et al., section 3.5 and figure 2). conv2,
conv4 and conv5 read the maps of their own GPU only, hence their ``groups=2``. conv3 and the fully connected layers read
the maps of both GPUs. The GPUs exchanged data only there.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import distributed, nn

from kernels.errors import AlexNetError
from kernels.tools.columns import align
from kernels.tools.workloads import LRNArguments
from model import weights
from model.alexnet import LRN
from model.layers import Conv2d, Linear, LRNMaxPool2d, MaxPool2d
from model.weights.common import reason


class Row(NamedTuple):
    """A line of the table: what one process holds of a layer, and the bytes that it received for it."""

    layer: str
    shape: tuple[int, ...]
    parameters: int
    received: int


class Other:
    """The other process, and the bytes received from it since the last layer."""

    def __init__(self, rank: int):
        self.rank, self.bytes = rank, 0

    def swap(self, mine: torch.Tensor) -> torch.Tensor:
        """Sends a tensor, and returns the one of the same shape that the other process sends."""
        # NCCL sends from GPU to GPU, gloo from memory to memory.
        sent = (mine if distributed.get_backend() == "nccl" else mine.cpu()).contiguous()
        both = [torch.empty_like(sent), torch.empty_like(sent)]
        try:
            distributed.all_gather(both, sent)
        except RuntimeError as error:
            raise AlexNetError(f"process {self.rank} lost the other one: {reason(error)}") from error
        theirs = both[1 - self.rank]
        self.bytes += theirs.nbytes
        return theirs.to(mine.device)

    def join(self, mine: torch.Tensor, part: torch.Tensor | None = None) -> torch.Tensor:
        """The channels of both processes, process 0's first. If ``part`` is given, they exchange only that."""
        theirs = self.swap(mine if part is None else part)
        return torch.cat([mine, theirs] if self.rank == 0 else [theirs, mine], 1)


class BorderedLRNMaxPool2d(LRNMaxPool2d):
    """Normalisation whose windows reach 2 channels into the other process's half, then pooling.

    The paper's GPUs normalised only their own maps. BVLC's weights were trained with windows across the border.
    """

    def __init__(self, other: Other, formula: LRNArguments):
        super().__init__(**formula)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps, reach = x.shape[1], self.size // 2
        if self.other.rank == 0:  # the border is after the last map of process 0 and before the first of process 1
            return super().forward(self.other.join(x, x[:, -reach:]))[:, :maps]
        return super().forward(self.other.join(x, x[:, :reach]))[:, reach:]


class Half(nn.Module):
    """One process's half of the network: compare it with :class:`model.alexnet.AlexNet`, line by line."""

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
        """Adds a row for the table. All bytes received since the last row were for this layer."""
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
    """Half of the outputs of every layer. In a grouped layer that is one group, whose filters read only its inputs."""
    layers = {name: (weight.chunk(2)[rank], bias.chunk(2)[rank]) for name, (weight, bias) in loaded.layers.items()}
    return dataclasses.replace(loaded, layers=layers)


def table(rows: list[Row]) -> str:
    """The rows as text, with a line of totals."""
    total = Row("total", (), sum(row.parameters for row in rows), sum(row.received for row in rows))
    cells = lambda row: (row.layer, " x ".join(map(str, row.shape)), f"{row.parameters:,}", f"{row.received:,}")
    header, *lines = align([("layer", "holds", "parameters", "bytes received"), *map(cells, [*rows, total])])
    return "\n".join([header, "-" * len(header), *lines])
