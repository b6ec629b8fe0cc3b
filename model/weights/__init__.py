"""Trained weights, by name (bundled or downloaded) or from a file in one of six formats."""

from model.weights.common import LAYER_NAMES, Weights, WeightsError, assign
from model.weights.named import NAMED, cached, fetch
from model.weights.registry import DEFAULT, FORMATS, format_of, load, path_of

__all__ = ["DEFAULT", "FORMATS", "LAYER_NAMES", "NAMED", "Weights", "WeightsError"]
__all__ += ["assign", "cached", "fetch", "format_of", "load", "path_of"]
