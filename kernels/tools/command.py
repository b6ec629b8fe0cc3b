"""What all commands share: one clear line for an error, and an exit status that says which kind.

Imports no PyTorch, which takes seconds. A command imports it in a function, after it has read its arguments.
"""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn, TextIO

from kernels.errors import AlexNetError


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error instead of two."""

    def error(self, message: str) -> NoReturn:
        raise AlexNetError(message)


def count(text: str) -> int:
    """A whole number from 1 on, as an argument's ``type``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def png(text: str) -> Path:
    """The name of a .png file, as an argument's ``type``."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must name a .png file, got {text!r}")
    return Path(text)


def one_line(text: object) -> str:
    """Text for people. What would break the line, or command the terminal, becomes an escape: a newline is \\n."""
    return re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], str(text))


def complain(name: str, message: object) -> None:
    """Prints one line on stderr. If stderr is closed or full, only the exit status tells of the error."""
    try:
        print(f"{name}: error: {one_line(message)}", file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


def run(name: str, command: Callable[..., int], argv: list[str] | None = None, **defaults: Path | None) -> int:
    """Runs ``command(argv, **defaults)`` and returns the exit status.

    2 for a :class:`AlexNetError` and for a file that the system refuses, 130 for Ctrl-C, 141 for a closed pipe.
    """
    try:
        if sys.stderr is None:  # closed: print would write to stdout
            sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if sys.stdout is None:
            raise AlexNetError("standard output is closed")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a notebook, for example, puts others in their place
                stream.reconfigure(errors="backslashreplace")  # for file names that the terminal cannot show
        status = command(argv, **defaults)
        with output():
            return status  # after all that was printed is out
    except AlexNetError as error:
        complain(name, error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is None:
            _discard(sys.stdout)
            complain(name, f"standard output cannot be written: {error.strerror}")
        else:
            complain(name, f"{error.filename}: {error.strerror}")
        return 2


@contextlib.contextmanager
def output() -> Iterator[None]:
    """For what is printed inside: when the block ends, all of it is out, in whole lines. Ctrl-C waits for that."""
    interrupted = []
    with _on_interrupt(lambda *_: interrupted.append(True)) as usual:
        # Blocked, because with PYTHONUNBUFFERED a signal cuts a write to a pipe short, and Python drops the rest
        # (python/cpython#85393).
        blocked = {signal.SIGINT} if usual else set()
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            yield
            sys.stdout.flush()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    if interrupted:
        raise KeyboardInterrupt


def exit_process(status: int) -> None:
    """Ends the process. One of torchrun's many ends at once, since PyTorch may wait for ranks that have ended."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def interrupts_exit() -> AbstractContextManager[object]:
    """Inside, Ctrl-C ends the process at once. For imports: if one is interrupted, PyTorch's C++ aborts noisily."""
    return _on_interrupt(lambda *_: os._exit(130))


@contextlib.contextmanager
def _on_interrupt(handler: Callable[..., None]) -> Iterator[bool]:
    """Inside, Ctrl-C calls ``handler`` if it raises KeyboardInterrupt outside, and if this is the main thread, which
    alone may change that. Gives whether it does."""
    main = threading.current_thread() is threading.main_thread()
    usual = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, handler)
    try:
        yield usual
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _discard(stream: TextIO) -> None:
    """Drops what is still to be written, because Python tries to write it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
