"""Where a command computes, and the options that say so. Imports PyTorch only in functions, for ``--help``."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError

if TYPE_CHECKING:
    import torch


def add_options(add: Callable) -> None:
    """Adds the options of commands that run a network; ``add`` is a parser's ``add_argument``."""
    known = "cifar10 (bundled, the default), bvlc, deep-compression, torchvision (downloaded), or a file of weights"
    add("--weights", metavar="NAME|PATH", help=known)
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of weights and activations (fp32)")


def choose_device(name: str) -> "torch.device":
    """Returns the device for a name: auto, cuda or cpu. Raises AlexNetError if it needs a GPU and there is none.

    Call it before you import :mod:`kernels.runtime`, which decides once whether kernels are compiled.
    """
    if name == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise AlexNetError("device cuda: no GPU here that PyTorch can use")
    if name != "auto":
        return torch.device(name)
    from kernels import runtime

    runtime.check_gpu()
    return runtime.default_device()


def device_name(device: "torch.device") -> str:
    """Returns the name of the GPU's or the CPU's model."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


@contextlib.contextmanager
def batch_fits(batch: int, device: "torch.device", name: Callable[[str], str] = str) -> Iterator[None]:
    """Inside, a lack of memory raises an AlexNetError about the batch. ``name`` completes its message."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AlexNetError(name(f"batch {batch} does not fit in the memory of {device_name(device)}")) from error


def synchronize(device: "torch.device") -> None:
    """Waits until a GPU has computed all that was asked of it. A CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
