"""Trained weights: those that come with the package by name, and files in the formats that are read here.

One module a format, each with ``matches(probe)``, ``read(path, name)`` and a ``DESCRIPTION``. A file's bytes tell its
format; its name tells nothing.
"""

import io
import os
from pathlib import Path

from model.weights import caffemodel, deep_compression, npy, npz, onnx, pth, safetensors
from model.weights.common import LAYERS, Probe, Weights, WeightsError, assign

__all__ = ["BUNDLED", "DEFAULT", "FORMATS", "LAYERS", "Weights", "WeightsError", "assign", "load"]

FORMATS = (npy, caffemodel, onnx, deep_compression, pth, npz, safetensors)
BUNDLED = {"cifar10": Path(__file__).with_name("cifar10.npz")}
DEFAULT = "cifar10"


def load(name_or_path: str | os.PathLike = DEFAULT) -> Weights:
    """Reads weights by their registered name, or from a file.

    Args:
        name_or_path: a name among :data:`BUNDLED`; anything else is a path.

    Raises:
        WeightsError: no such name or file, a format that is not known here, or a file that does not hold what its
            format promises.
    """
    name = os.fspath(name_or_path)
    path = BUNDLED.get(name, Path(name))
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - 64, 0))
            probe = Probe(head, file.read(64), size)
    except FileNotFoundError:
        raise WeightsError(f"{name}: no such file, and no weights of that name ({', '.join(BUNDLED)})") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for format in FORMATS:
        if format.matches(probe):
            return format.read(path, name)
    accepted = ", or ".join(format.DESCRIPTION for format in FORMATS)
    found = f"begins with {head[:8]!r}" if head else "is empty"
    raise WeightsError(f"{name}: not weights in a known format: the file {found}; accepted: {accepted}")
