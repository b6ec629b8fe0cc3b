"""Finds photos: in any folders, and in a data set with one folder per class.

Photos end as a format that Pillow decodes. Hidden files and folders are skipped, and links are followed.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kernels.errors import AlexNetError


@functools.cache
def photo_suffixes() -> frozenset[str]:
    """The endings of photos' names, in lower case."""
    formats = {suffix: name for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    recognised_only = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow does not decode these
    return frozenset(suffix for suffix, name in formats.items() if name not in recognised_only)


def photos_below(folder: str | Path, refuse: Callable[[OSError], object]) -> list[Path]:
    """Returns the photos in and below a folder, sorted. ``refuse`` gets the error of a folder that cannot be read."""
    found = []
    for path, folders, files in os.walk(str(folder), onerror=refuse, followlinks=True):
        here = Path(os.path.realpath(path))
        around = {here, *here.parents}  # a link to one of these would lead round in a circle
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in shown if Path(os.path.realpath(Path(path, name))) not in around]
        found += [Path(path, name) for name in files if not name.startswith(".")]
    return sorted(photo for photo in found if photo.suffix.lower() in photo_suffixes())


def find_photos(names: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Returns the photos named and those below the folders named, and a message for each name that gives none."""
    photos: list[Path] = []
    problems: list[str] = []

    def refuse(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read: {error.strerror}")

    for name in names:
        try:
            os.stat(name)
        except FileNotFoundError:
            problems.append(f"{name or repr(name)}: no such file")
        except OSError as error:
            refuse(error)
        else:
            found = photos_below(name, refuse) if os.path.isdir(name) else [Path(name)]
            if not found:
                problems.append(f"{name}: no photos in this folder")
            photos += found
    return photos, problems


@dataclass(frozen=True)
class Folder:
    """A data set: photos by class."""

    path: Path
    classes: tuple[str, ...]
    images: list[tuple[str, int]]  # path, and index into classes

    def digest(self) -> str:
        """Changes if an image is added, removed, renamed, or moved to another class."""
        names = (f"{Path(path).relative_to(self.path)}\n" for path, _ in self.images)
        return hashlib.sha256("".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def read_folder(path: Path) -> Folder:
    """Finds the photos of a folder with a sub-folder per class, in the order of their names, or raises AlexNetError."""

    def refuse(error: OSError) -> None:
        raise error

    try:
        if not path.is_dir():
            raise AlexNetError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        found = [photos_below(path / name, refuse) for name in classes]
    except OSError as error:
        raise AlexNetError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not classes:
        raise AlexNetError(f"{path}: must hold a sub-folder of images for each class, and holds no folder")
    empty = [name for name, photos in zip(classes, found, strict=True) if not photos]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + ", ..." * (len(empty) > 5)
        plural = "es" * (len(empty) > 1)
        raise AlexNetError(f"{path}: no images of the class{plural} {shown} (names must end as in .jpg, .png or .gif)")
    return Folder(path, tuple(classes), [(str(photo), index) for index, photos in enumerate(found) for photo in photos])


def read_splits(path: Path) -> tuple[Folder, Folder | None]:
    """Returns the photos to train and to validate with: ``path/train`` and ``path/val``, or ``path`` and None."""
    if not os.path.isdir(path / "train"):
        return read_folder(path), None
    training = read_folder(path / "train")
    if not os.path.isdir(path / "val"):
        return training, None
    validation = read_folder(path / "val")
    if validation.classes != training.classes:
        odd = sorted(set(validation.classes) ^ set(training.classes))
        raise AlexNetError(f"{path}: train and val must have the same classes; only one of them has {odd[0]!r}")
    return training, validation
