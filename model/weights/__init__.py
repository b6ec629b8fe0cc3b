"""Trained weights, by name (bundled or downloaded) or from a file in one of six formats.

Public names are imported when they are first used, so that ``alexnet weights --help`` does not import PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.weights.common import LAYER_NAMES, Weights, WeightsError, assign
    from model.weights.named import NAMED, cached, fetch
    from model.weights.registry import DEFAULT, FORMATS, format_of, load

__all__ = [
    "DEFAULT",
    "FORMATS",
    "LAYER_NAMES",
    "NAMED",
    "Weights",
    "WeightsError",
    "assign",
    "cached",
    "fetch",
    "format_of",
    "load",
]

_MODULES = {
    "common": ("LAYER_NAMES", "Weights", "WeightsError", "assign"),
    "named": ("NAMED", "cached", "fetch"),
    "registry": ("DEFAULT", "FORMATS", "format_of", "load"),
}


def __getattr__(name: str):
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
