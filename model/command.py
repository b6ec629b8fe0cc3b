"""What the commands share: their manners, and where they compute. Imports no PyTorch, which takes seconds.

(``kernels.command`` cannot serve here: whatever is in ``kernels`` imports PyTorch first.)
"""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import torch


class UsageError(Exception):
    """Something asked for that cannot be done: one line on stderr, and exit status 2."""


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error instead of two."""

    def error(self, message: str):
        raise UsageError(message)


def one_line(text: object) -> str:
    """Text for people with what would break its line, or command the terminal, as escapes: a newline as \\n."""
    return re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], str(text))


def complain(name: str, message: object) -> None:
    """One line on stderr; where that is closed or full, the exit status has to do."""
    try:
        print(f"{name}: error: {one_line(message)}", file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


def run(name: str, command: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    """The exit status of ``command(argv)``: 2 for a :class:`UsageError`, 130 for Ctrl-C, 141 for a closed pipe."""
    try:
        if sys.stderr is None:  # closed: print would write to stdout
            sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if sys.stdout is None:
            raise UsageError("standard output is closed")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # not where a notebook, say, has put its own in their place
                stream.reconfigure(errors="backslashreplace")  # file names that are not in the terminal's encoding
        status = command(argv)
        with output():
            return status  # once all that was printed is out
    except UsageError as error:
        complain(name, error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is not None:  # what was printed has none
            raise
        _discard(sys.stdout)
        complain(name, f"standard output cannot be written: {error.strerror}")
        return 2


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Around what goes to stdout: when the block ends it is all out, in whole lines, since Ctrl-C waits for that."""
    interrupted = []
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
        # Nor may it cut a write to a pipe short: with PYTHONUNBUFFERED, Python drops the rest (python/cpython#85393).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
        sys.stdout.flush()
    finally:
        if usual:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt


def _discard(stream: TextIO) -> None:
    """Sends nowhere what is still to be written, which Python tries on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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


@contextlib.contextmanager
def interrupts_exit() -> Iterator[None]:
    """Ctrl-C ends the process at once: PyTorch's C++ aborts, in many words, if importing raises KeyboardInterrupt."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def choose_device(name: str) -> "torch.device":
    """Where to compute. Must come before anything else imports ``kernels``, which decides its mode once."""
    if name == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no GPU here that PyTorch can use")
    from kernels import runtime

    device = runtime.default_device() if name == "auto" else torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("TRITON_INTERPRET=0 asks for compiled kernels, but no GPU is here; unset it to interpret them")
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
def partial_for(plot: str) -> Iterator[Path]:
    """A file beside ``plot``, to be renamed to it once whole; tried now, so as to fail before anything is computed."""
    partial = Path(plot).with_name(f".{Path(plot).stem}.{os.getpid()}.png")
    try:
        if Path(plot).is_dir():
            raise IsADirectoryError(None, "is a folder")
        partial.open("xb").close()
        partial.unlink()
    except OSError as error:
        raise UsageError(f"--plot {plot}: cannot be written: {error.strerror}") from error
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def put(draw: Callable[[Path], None], partial: Path, plot: str) -> None:
    """Draws in ``partial``, which becomes ``plot`` once it is whole.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        draw(partial)
        os.replace(partial, plot)
    except OSError as error:
        raise UsageError(f"--plot {plot}: cannot be written: {error.strerror or error}") from error
    print(f"drawn in {plot}", file=sys.stderr)
