"""The formats that are read, and :func:`load`, which tells them apart.

One module a format, each with ``matches(probe)``, ``read(path, name)`` and a ``DESCRIPTION``. A file's bytes tell its
format; its name tells nothing.
"""

import io
import os
import stat
from pathlib import Path
from types import ModuleType

from model.weights import caffemodel, deep_compression, npy, npz, onnx, pth, safetensors
from model.weights.common import Probe, Weights, WeightsError, reason
from model.weights.named import NAMED, fetch

# Deep Compression's comes first: its counts could look like another format's beginning, but hardly its size.
FORMATS = (deep_compression, npy, npz, pth, safetensors, onnx, caffemodel)
DEFAULT = "cifar10"


def load(name_or_path: str | os.PathLike = DEFAULT) -> Weights:
    """Reads weights by their registered name, or from a file.

    Args:
        name_or_path: a name among :data:`NAMED`, whose file is downloaded if it neither came with the package nor is
            in the cache; anything else is a path.

    Raises:
        WeightsError: no such name or file, a download that failed, a format that is not known here, or a file that
            does not hold what its format promises.
    """
    name = os.fspath(name_or_path)
    path = fetch(name) if name in NAMED else Path(name)
    format = format_of(path, name)
    try:
        return format.read(path, name)
    except (WeightsError, ImportError):
        raise
    except Exception as error:  # libraries raise whatever damaged bytes run into
        raise WeightsError(f"{name}: truncated or damaged: {reason(error)}") from error


def format_of(path: str | os.PathLike, name: str) -> ModuleType:
    """The module among :data:`FORMATS` that reads a file, told by its content."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise WeightsError(f"{name}: cannot be read: a pipe, not a file")  # whose opening would wait
        with open(path, "rb") as file:
            head = file.read(512)
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - 64, 0))
            probe = Probe(head, file.read(64), size)
    except WeightsError:
        raise
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
