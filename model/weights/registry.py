"""The formats, and :func:`load`, which tells them apart by the file's content, never by its name.

Each format is a module with ``matches(probe)``, ``read(path)`` and a ``DESCRIPTION``.
"""

import errno
import io
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from model.weights import caffemodel, deep_compression, npy, onnx, pth, safetensors
from model.weights.common import LARGEST_FILE, Probe, Weights, WeightsError, reason
from model.weights.named import NAMED, fetch

# Deep Compression's is first: its counts could look like the beginning of another format, but its size hardly could.
FORMATS = (deep_compression, npy, pth, safetensors, onnx, caffemodel)
DEFAULT = "cifar10"


def load(name_or_path: str | os.PathLike = DEFAULT) -> Weights:
    """Reads weights by a name in :data:`NAMED`, or from a file.

    A name's file is downloaded if it is neither bundled nor in the cache.

    Raises:
        WeightsError: there is no such name or file, a download failed, the format is unknown, or the file is damaged.
    """
    name = os.fspath(name_or_path)
    path = path_of(name)
    format = format_of(path, name)
    try:
        size = os.stat(path).st_size
        if size > LARGEST_FILE and format is not safetensors:  # which reads nothing but the layers
            raise WeightsError(f"{size:,} bytes are more than AlexNet's weights can take, {LARGEST_FILE:,}")
        return replace(format.read(path), name=name)
    except ImportError:
        raise
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    except Exception as error:  # libraries raise whatever damaged bytes lead to
        raise WeightsError(f"{name}: truncated or damaged: {reason(error)}") from error


def path_of(name: str) -> Path:
    """The file of a name in :data:`NAMED`, which is downloaded if it is not there, or of a path."""
    return fetch(name) if name in NAMED else Path(name)


def format_of(path: str | os.PathLike, name: str) -> ModuleType:
    """The module in :data:`FORMATS` that reads a file, or WeightsError. Messages call the file ``name``."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # opening it would wait
            raise OSError(errno.EINVAL, "a pipe, not a file")
        with open(path, "rb") as file:
            head = file.read(512)
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - 64, 0))
            probe = Probe(head, file.read(64), size)
    except FileNotFoundError:
        raise WeightsError(f"{name}: no such file, and no weights of that name ({', '.join(NAMED)})") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for format in FORMATS:
        if format.matches(probe):
            return format
    accepted = ", or ".join(format.DESCRIPTION for format in FORMATS)
    found = f"begins with {head[:8]!r}" if head else "is empty"
    raise WeightsError(f"{name}: not weights in a known format: the file {found}; accepted: {accepted}")
