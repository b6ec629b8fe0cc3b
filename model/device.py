"""Where a command computes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError

# PyTorch takes seconds to import: a command does so once its arguments make sense.
if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """Returns the device that ``--device`` names: auto, cuda or cpu.

    Call it before you import :mod:`kernels.runtime`, which decides once whether kernels are compiled.

    Raises:
        AlexNetError: a GPU is asked for, and PyTorch finds none.
    """
    if name == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise AlexNetError("--device cuda: no GPU here that PyTorch can use")
    from kernels import runtime

    device = runtime.default_device() if name == "auto" else torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AlexNetError("TRITON_INTERPRET=0 asks for compiled kernels, but no GPU is here; unset it to interpret")
    return device


def device_name(device: "torch.device") -> str:
    """Returns the name of the GPU's or the CPU's model."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


@contextlib.contextmanager
def batch_fits(batch: int, device: "torch.device", name: Callable[[str], str] = str) -> Iterator[None]:
    """Inside, a lack of memory raises an AlexNetError about ``--batch``. ``name`` completes its message."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AlexNetError(name(f"--batch {batch} does not fit in the memory of {device_name(device)}")) from error


def synchronize(device: "torch.device") -> None:
    """Waits until a GPU has computed all that was asked of it. A CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
