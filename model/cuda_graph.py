"""The forward pass as a CUDA graph, because at small batches launching kernels takes longer than running them."""

import torch
from torch import nn

from kernels import ArgumentError
from kernels.ops.space_to_depth import fold_once


class GraphedForward:
    """A network's forward pass for up to ``batch`` images, launched as one graph.

    The weights are those at the time of capture. Capture again after you change them.

    Args:
        net: a network on a GPU, in evaluation mode.
        shape: of the input, batch included.

    Raises:
        ArgumentError: a network on the CPU, or in training mode, in which dropout would be the same at every call.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...]):
        parameter = next(net.parameters())
        if not parameter.is_cuda:
            raise ArgumentError(f"a CUDA graph takes a network on a GPU, got one on {parameter.device}")
        if net.training:
            raise ArgumentError("a CUDA graph takes a network in evaluation mode; call .eval() first")
        with torch.cuda.device(parameter.device), torch.inference_mode(), fold_once() as self.folded:
            zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
            self.input = zeros.contiguous(memory_format=torch.channels_last)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                net(self.input)  # compiles the kernels and folds conv1's filters, which a graph cannot capture
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = net(self.input)

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits for 1 to ``batch`` images, which may be on any device and of any dtype."""
        if x.dim() != 4 or x.shape[1:] != self.input.shape[1:] or not 1 <= len(x) <= len(self.input):
            accepted = ", ".join(map(str, self.input.shape[1:]))
            raise ArgumentError(
                f"input must be (1 to {len(self.input)}, {accepted}) as captured, got shape {tuple(x.shape)}"
            )
        with torch.cuda.device(self.input.device):
            self.input[: len(x)].copy_(x)
            self.graph.replay()
            return self.output[: len(x)].clone()
