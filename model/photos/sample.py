"""The photo that stands in if none is given."""

import importlib.util
from pathlib import Path

from kernels.errors import AlexNetError


def default_photo() -> Path:
    """Returns the cat that comes with scikit-image, without importing the package."""
    package = importlib.util.find_spec("skimage")
    folders = package.submodule_search_locations if package else None
    photo = Path(folders[0], "data", "chelsea.png") if folders else None
    if photo is None or not photo.is_file():
        raise AlexNetError("no photo given, and scikit-image, which brings a cat, is not installed")
    return photo
