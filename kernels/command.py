"""The manners that the commands share: one clear line for an error, and an exit status that says which kind."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path


class UsageError(Exception):
    """Something asked for that cannot be done: one line on stderr, and exit status 2."""


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error instead of two."""

    def error(self, message: str):
        raise UsageError(message)


def run(name: str, command: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    """The exit status of ``command(argv)``: 2 for a :class:`UsageError`, 130 for Ctrl-C, 141 for a closed pipe."""
    try:
        if sys.stderr is None:  # closed: print would write to stdout
            sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if sys.stdout is None:
            raise UsageError("standard output is closed")
        status = command(argv)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard()
        return 141
    except OSError as error:
        if error.filename is not None:  # what was printed has none
            raise
        print(f"{name}: error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        _discard()
        return 2


def _discard() -> None:
    """Sends nowhere what Python flushes on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces ``path``, whole or not at all: written beside it, brought to the disk, then renamed.

    Raises:
        UsageError: the disk is full, or whatever else the system says.
    """
    partial = path.with_name(f"{path.name}.partial")  # always the same, so that a killed run leaves no second one
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the rename itself
        os.close(folder)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # where it was not renamed
