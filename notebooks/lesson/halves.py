"""AlexNet in two halves, as on the paper's two GPUs, here in two threads of one process: see :mod:`model.halves`."""

import queue
from concurrent.futures import ThreadPoolExecutor

import torch

from kernels.tools import torch_ops
from model.halves import Half, Row
from model.weights import Weights


def run(loaded: Weights, x: torch.Tensor) -> tuple[list[torch.Tensor], list[list[Row]]]:
    """Runs both halves on PyTorch's operators. They exchange data through two queues.

    Args:
        loaded: the weights of the whole network.
        x: (N, 3, 227, 227), of the dtype to compute in.

    Returns:
        The logits of each half, and its table: its part of each layer, and the bytes that it received for the layer.
    """
    boxes = [queue.Queue(), queue.Queue()]

    def half(rank: int) -> tuple[torch.Tensor, list[Row]]:
        net = Half.from_weights(loaded, rank).to(x.dtype)
        for layer in net.children():
            layer.operators = torch_ops

        def swap(mine: torch.Tensor) -> torch.Tensor:
            boxes[1 - rank].put(mine)
            theirs = boxes[rank].get(timeout=60)
            net.other.bytes += theirs.nbytes
            return theirs

        net.other.swap = swap
        with torch.no_grad():
            return net(x), net.rows

    with ThreadPoolExecutor(2) as threads:
        logits, rows = zip(*threads.map(half, (0, 1)), strict=True)
    return list(logits), list(rows)
