"""Trained weights: by name, bundled or downloaded, and files in the formats that are read here.

What is public is imported where it is first used: ``alexnet weights --help`` imports this package too, and
needs no PyTorch, which takes seconds.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.weights.common import LAYERS, Weights, WeightsError, assign
    from model.weights.named import NAMED, cached, fetch
    from model.weights.registry import DEFAULT, FORMATS, format_of, load

__all__ = [
    "DEFAULT",
    "FORMATS",
    "LAYERS",
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
    "common": ("LAYERS", "Weights", "WeightsError", "assign"),
    "named": ("NAMED", "cached", "fetch"),
    "registry": ("DEFAULT", "FORMATS", "format_of", "load"),
}


def __getattr__(name: str):
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
