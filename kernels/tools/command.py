"""The manners that all commands share: one clear line for an error, and an exit status that says which kind.

Imports no PyTorch, which takes seconds: a command does, in a function, once its arguments make sense.
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
from typing import TextIO

from kernels.errors import AlexNetError


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error instead of two."""

    def error(self, message: str):
        raise AlexNetError(message)


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
    """The exit status of ``command(argv)``: 2 for a :class:`AlexNetError`, 130 for Ctrl-C, 141 for a closed pipe."""
    try:
        if sys.stderr is None:  # closed: print would write to stdout
            sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if sys.stdout is None:
            raise AlexNetError("standard output is closed")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # not where a notebook, say, has put its own in their place
                stream.reconfigure(errors="backslashreplace")  # file names that are not in the terminal's encoding
        status = command(argv)
        with output():
            return status  # once all that was printed is out
    except AlexNetError as error:
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
    usual = _interrupts_raise()
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


def _interrupts_raise() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt here, which can be changed: Python handles signals in the main thread."""
    here = threading.current_thread() is threading.main_thread()
    return here and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _discard(stream: TextIO) -> None:
    """Sends nowhere what is still to be written, which Python tries on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def interrupts_exit() -> Iterator[None]:
    """Ctrl-C ends the process at once: PyTorch's C++ aborts, in many words, if importing raises KeyboardInterrupt."""
    usual = _interrupts_raise()
    if usual:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
