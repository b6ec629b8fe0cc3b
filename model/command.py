"""What the commands of this package share: where they compute, how they end, and what they draw."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError

if TYPE_CHECKING:
    import torch


def leave(status: int) -> None:
    """Ends the process; one of many at once, since what PyTorch does at its end may wait for ranks that are gone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start_worker(_: int) -> None:
    """In a process that decodes for another: Ctrl-C reaches all, and the other one ends these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _unless_hung_up  # for multiprocessing's thread that hands tensors to the other process


def _unless_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """As usual, but no word of a connection that the other process's end has cut."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def choose_device(name: str) -> "torch.device":
    """Where to compute. Must come before :mod:`kernels.runtime`, which decides once, is imported."""
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
    """The GPU's or the CPU's own name."""
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
    """Memory that is too small for ``batch`` images, inside, as a usage error; ``name`` says whose."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AlexNetError(name(f"--batch {batch} does not fit in the memory of {device_name(device)}")) from error


@contextlib.contextmanager
def partial_for(plot: str) -> Iterator[Path]:
    """A file beside ``plot``, to be renamed to it once whole; tried now, so as to fail before anything is computed."""
    partial = Path(plot).with_name(f".{Path(plot).stem}.{os.getpid()}.png")
    try:
        if Path(plot).is_dir():
            raise IsADirectoryError(None, "is a folder")
        partial.open("xb").close()
        partial.unlink()
    except OSError as error:
        raise AlexNetError(f"--plot {plot}: cannot be written: {error.strerror}") from error
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def put(draw: Callable[[Path], None], partial: Path, plot: str) -> None:
    """Draws in ``partial``, which becomes ``plot`` once it is whole.

    Raises:
        AlexNetError: it cannot be written.
    """
    try:
        draw(partial)
        os.replace(partial, plot)
    except OSError as error:
        raise AlexNetError(f"--plot {plot}: cannot be written: {error.strerror or error}") from error
    print(f"drawn in {plot}", file=sys.stderr)
