"""Finds photos: in any folders, and in a data set with one folder per class.

Photos end as a format that Pillow decodes. Hidden files and folders are skipped, and links are followed.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
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
    """A data set: photos by class, in one folder or in several that :func:`join` made one of."""

    parts: tuple[tuple[Path, int], ...]  # each folder, and how many of the images are in it, in their order
    classes: tuple[str, ...]
    images: list[tuple[str, int]]  # path, and index into classes

    @property
    def name(self) -> str:
        """The folders' paths, for messages."""
        return ", ".join(str(path) for path, _ in self.parts)

    def digest(self) -> str:
        """Changes if an image is added, removed, renamed, or moved to another class."""
        images = iter(self.images)
        below = [
            "".join(f"{Path(path).relative_to(folder)}\n" for path, _ in itertools.islice(images, count))
            for folder, count in self.parts
        ]
        return hashlib.sha256("/\n".join(below).encode(errors="surrogateescape")).hexdigest()[:16]


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
    images = [(str(photo), index) for index, photos in enumerate(found) for photo in photos]
    return Folder(((path, len(images)),), tuple(classes), images)


def join(folders: Sequence[Folder]) -> Folder:
    """One data set of several, which must have the same classes, or AlexNetError."""
    first = folders[0]
    for folder in folders[1:]:
        odd = sorted(set(first.classes) ^ set(folder.classes))
        if odd:
            raise AlexNetError(
                f"{first.name} and {folder.name} must have the same classes; only one of them has {odd[0]!r}"
            )
    parts = tuple(part for folder in folders for part in folder.parts)
    return Folder(parts, first.classes, [image for folder in folders for image in folder.images])


def read_splits(paths: Sequence[Path]) -> tuple[Folder, Folder | None]:
    """Returns the photos to train and to validate with, of one folder or of several together.

    Of each folder these are ``path/train`` and ``path/val``, or ``path`` and none.
    """
    splits = list(map(_read_split, paths))
    validation = [folder for _, folder in splits if folder]
    return join([folder for folder, _ in splits]), join(validation) if validation else None


def _read_split(path: Path) -> tuple[Folder, Folder | None]:
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
