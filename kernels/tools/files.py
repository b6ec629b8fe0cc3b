"""Files that are replaced as a whole, or not at all."""

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.errors import AlexNetError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")  # always the same name, so that a killed run leaves only one


def check_writable(path: Path) -> None:
    """Tries now whether :func:`write_bytes` can write ``path``, before a long computation. Writes nothing.

    Raises:
        AlexNetError: it cannot, and why.
    """
    try:
        if path.exists() and not path.is_file():  # /dev/null, for example, would be replaced by a file
            raise AlexNetError(f"{path}: cannot be written: is {'a folder' if path.is_dir() else 'not a file'}")
        _partial(path).open("wb").close()
        _partial(path).unlink()
    except OSError as error:
        raise AlexNetError(f"{path}: cannot be written: {error.strerror}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces ``path`` as a whole: writes a file beside it, brings that to the disk, then renames it.

    Raises:
        AlexNetError: the system refuses, for example because the disk is full. ``path`` is then as it was.
    """
    partial = _partial(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # brings the new name to the disk
        os.close(folder)
    except OSError as error:
        raise AlexNetError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # if it was not renamed


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as a PNG, like :func:`write_bytes`. The same figure gives the same bytes."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})  # without matplotlib's version
    write_bytes(path, png.getvalue())
