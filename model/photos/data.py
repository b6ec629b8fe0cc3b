"""A folder of images, a sub-folder per class, as batches for training and for evaluation.

Training follows the paper: the shorter side to 256, the central 256 x 256, a random 227 x 227 of it, mirrored half of
the time, and a shift of its colours along their principal components (section 4.1). Where photos to come may show
their objects larger, smaller, blurred or sharper than those to train with, :func:`vary` makes the 256 x 256.

Crops travel from the processes that decode to the one that trains as bytes; they become numbers there, on its device.
"""

import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from kernels.errors import AlexNetError
from model.command import start_worker
from model.photos.preprocess import LARGE, SIZE, ImageError, Preprocess, central_square, open_image
from model.randomness import generator

AUGMENTATIONS = ("paper", "scale", "none")
"""What is done to a photo before the network sees it: the paper's, the paper's after :func:`vary`, or nothing."""


@dataclass(frozen=True)
class Folder:
    """Images by class, as torchvision's ImageFolder finds them: in the order of their names."""

    path: Path
    classes: tuple[str, ...]
    images: list[tuple[str, int]]  # path, and index into classes

    def digest(self) -> str:
        """Changes when an image is added, removed, renamed, or moved to another class."""
        names = (f"{Path(path).relative_to(self.path)}\n" for path, _ in self.images)
        return hashlib.sha256("".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def read_folder(path: Path) -> Folder:
    """Finds the images.

    Raises:
        AlexNetError: no such folder, one that cannot be read, no sub-folders, or one without images.
    """
    try:
        if not path.is_dir():
            raise AlexNetError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not classes:
            raise AlexNetError(f"{path}: must hold a sub-folder of images for each class, and holds no folder")
        for _ in os.walk(path, onerror=_refuse, followlinks=True):
            pass  # make_dataset would pass over folders that cannot be read
        places = {name: index for index, name in enumerate(classes)}
        images = make_dataset(path, places, IMG_EXTENSIONS, allow_empty=True)
    except OSError as error:
        raise AlexNetError(f"{error.filename}: cannot be read: {error.strerror}") from error
    empty = sorted(set(classes) - {classes[index] for _, index in images})
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + ", ..." * (len(empty) > 5)
        kinds = ", ".join(IMG_EXTENSIONS)
        raise AlexNetError(f"{path}: no images of the class{'es' * (len(empty) > 1)} {shown} (accepted: {kinds})")
    return Folder(path, tuple(classes), images)


def _refuse(error: OSError) -> None:
    raise error


def read(path: Path) -> tuple[Folder, Folder | None]:
    """The training images, and those to validate with: ``path/train`` and ``path/val``, or ``path`` and none."""
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


class Order:
    """A batch sampler: this rank's share of every global batch, from step ``first`` to step ``last``.

    An epoch is a permutation of the images, cut into batches; what is left over, less than a batch, is dropped, other
    images every time. Ranks take consecutive shares, so that a global batch is the same however many they are.
    Yields lists of (epoch, image), which is all that an image's augmentation depends on.
    """

    def __init__(self, images: int, batch: int, seed: int, first: int, last: int, rank: int = 0, ranks: int = 1):
        self.images, self.batch, self.seed, self.first, self.last = images, batch, seed, first, last
        self.share, self.start = batch // ranks, batch // ranks * rank

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, ordered = np.arange(0), -1  # of no epoch yet
        for step in range(self.first, self.last):
            epoch, place = divmod(step, self.images // self.batch)
            if epoch != ordered:
                order, ordered = generator("order", self.seed, epoch).permutation(self.images), epoch
            start = place * self.batch + self.start
            yield [(epoch, int(image)) for image in order[start : start + self.share]]


class Crops(Dataset):
    """Training images: (epoch, image) -> crop (227, 227, 3), RGB bytes; shift of its colours (B, G, R); class; errors.

    An image that cannot be read is replaced by the next that can, in the order of their names; None where none can.

    Args:
        images: a folder's.
        seed: of the run.
        colour: (3, 3), from :func:`statistics`.
        augment: one of :data:`AUGMENTATIONS`; none is the central crop, as it is.
    """

    def __init__(self, images: Sequence[tuple[str, int]], seed: int, colour: np.ndarray, augment: str = "paper"):
        self.images, self.seed, self.colour, self.augment = images, seed, colour, augment

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray, int, list[str]]:
        epoch, image = place
        photo, target, errors = self._readable(image)
        if photo is None:
            return None, np.zeros(3, np.float32), target, errors
        top = left = (LARGE - SIZE) // 2
        mirror, shift = False, np.zeros(3)
        random = generator("augmentation", self.seed, epoch, image)
        if self.augment != "none":
            top, left = random.integers(0, LARGE - SIZE + 1, 2)
            mirror = random.random() < 0.5
            shift = self.colour @ random.normal(0.0, 0.1, 3)
        large = vary(photo, random) if self.augment == "scale" else central_square(photo)
        crop = large.crop((left, top, left + SIZE, top + SIZE))
        if mirror:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(crop), shift.astype(np.float32), target, errors

    def _readable(self, image: int) -> tuple[Image.Image | None, int, list[str]]:
        errors: list[str] = []
        for path, target in (*self.images[image:], *self.images[:image]):
            try:
                return open_image(path), target, errors
            except ImageError as error:
                errors.append(str(error))
        return None, 0, [f"not one of {len(self.images)} images can be read; {errors[0]}"]


def vary(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """The central square as 256 x 256, as if taken from nearer or farther, by a worse or a better camera.

    Four independent draws. Detail: how many pixels across are left of a large photo, 24 to 256. Size: what the square
    becomes, 0.6 to 1.4 times the frame, either side up to a tenth longer or shorter; where it does not fill the frame,
    its mirror images do. Sharpness: half of the time, edges are lifted (unsharp masking). Texture: half of the time,
    grey noise with as much in each octave of frequencies, which is the spectrum of photos (Field 1987,
    https://doi.org/10.1364/JOSAA.4.002379), in patches. The last two are for small photos, which have no detail to
    enlarge: a network that never saw any takes it for what it is not.
    """
    short = min(photo.size)
    across = min(short, round(24.0 * (LARGE / 24.0) ** random.random()))
    square = central_square(photo, across)

    zoom, stretch = 1.4 ** random.uniform(-1.5, 1.0), 1.1 ** random.uniform(-1.0, 1.0)
    sides = [max(round(LARGE * zoom * ratio), 1) for ratio in (stretch, 1.0 / stretch)]
    frame = np.asarray(square.resize(sides, FILTERS[random.integers(len(FILTERS))]))
    left, top = (round(random.uniform(min(side - LARGE, 0), max(side - LARGE, 0))) for side in sides)
    rows, columns = (
        np.pad(np.arange(side), LARGE, mode="symmetric")[LARGE + first :][:LARGE]
        for side, first in ((sides[1], top), (sides[0], left))
    )
    large = Image.fromarray(frame[rows[:, None], columns])

    if random.random() < 0.5:
        large = large.filter(ImageFilter.UnsharpMask(2.0 ** random.uniform(0.0, 3.0), int(random.integers(50, 201)), 0))
    if random.random() < 0.5:
        strength = random.uniform(0.0, 24.0)
        noise = sum(_noise(side, random) for side in (32, 64, 128, 256))  # of 16 to 128 waves across the frame
        patches = np.clip(0.5 + 0.5 * _noise(4, random), 0.0, 1.0)
        pixels = np.asarray(large) + (strength / 2.0 * noise * patches)[:, :, None]
        large = Image.fromarray(pixels.clip(0.0, 255.0).astype(np.uint8))
    return large


FILTERS = tuple(Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS"))
"""What :func:`vary` enlarges with: from nearest, which leaves squares as the box does, to Lanczos."""


def _noise(side: int, random: np.random.Generator) -> np.ndarray:
    """Noise of one octave: (256, 256), independent every 256 / side pixels, of a standard deviation of about 1."""
    drawn = Image.fromarray(random.standard_normal((side, side), np.float32))
    return np.asarray(drawn.resize((LARGE, LARGE), Image.Resampling.BICUBIC))


class Photos(Dataset):
    """Images to evaluate: index -> what ``transform`` makes of the photo, class, None; or None, class, the error.

    ``transform`` gives float32 of one input (3, 227, 227), or of so many crops.
    """

    def __init__(self, images: Sequence[tuple[str, int]], transform, crops: int = 1):
        self.images, self.transform = images, transform
        self.bytes = crops * 3 * SIZE * SIZE * 4  # of one photo's input

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, int, str | None]:
        path, target = self.images[index]
        try:
            return self.transform(open_image(path)).numpy(), target, None
        except ImageError as error:
            return None, target, str(error)


def _collate(arrays: bool, samples: list[tuple]) -> list:
    """Columns of a batch; samples without an image contribute only their error, to the last, which stays a tuple."""
    *columns, errors = zip(*samples, strict=True)
    whole = [image is not None for image in columns[0]]
    stacked = [np.array(list(itertools.compress(column, whole))) for column in columns]
    return [*(stacked if arrays else map(torch.from_numpy, stacked)), errors]


def loader(dataset: Dataset, batches, workers: int, device: torch.device, bytes_a_batch: int) -> DataLoader:
    """Batches, decoded by ``workers`` other processes.

    ``bytes_a_batch`` tells whether those on their way fit in /dev/shm, of which containers have little; where they
    do not, they are sent as arrays, which is slower.
    """
    room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=functools.partial(_collate, room < 2 * (2 * workers + 1) * bytes_a_batch),
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
    )


def to_input(
    pixels: torch.Tensor | np.ndarray,  # (N, 227, 227, 3), RGB bytes
    shifts: torch.Tensor | np.ndarray,  # (N, 3), blue first
    preprocess: Preprocess,
    device: torch.device,
) -> torch.Tensor:
    """Crops as the network's input: (N, 3, 227, 227) float32 in channels_last memory, less the mean, over the std."""
    shifts, mean, std = torch.as_tensor(shifts), torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    x = torch.as_tensor(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    if preprocess.order == "BGR":
        x = x.flip(1)
    else:
        shifts = shifts.flip(1)
    offset, std = ((shifts - mean)[:, :, None, None], std[:, None, None])
    return x.float().add_(offset.to(device, non_blocking=True)).div_(std.to(device, non_blocking=True))


def statistics(folder: Folder, most: int = 1000) -> tuple[tuple[float, float, float], np.ndarray]:
    """Mean colour, and the directions in which colours vary, of up to ``most`` images chosen once and for all.

    Returns:
        The means of blue, green and red, 0..255; and M, (3, 3), such that M a, with a ~ N(0, 0.1), is the paper's
        shift: the sum over i of p_i a_i l_i, with p_i and l_i the eigenvectors and eigenvalues of the pixels'
        covariance. Eigenvalues are of pixels counted from 0 to 1, and the shift is brought to 0..255 afterwards: of
        pixels from 0 to 255, they would shift any image beyond black or white.

    Raises:
        AlexNetError: none of these images can be read.
    """
    chosen = generator("sample").permutation(len(folder.images))[:most]
    count, total, products, problem = 0, np.zeros(3), np.zeros((3, 3)), ""
    for index in sorted(chosen):
        try:
            square = central_square(open_image(folder.images[index][0]))
        except ImageError as error:
            problem = problem or str(error)
            continue  # named when its turn comes
        pixels = np.asarray(square).reshape(-1, 3)[:, ::-1] / 255.0
        count += len(pixels)
        total += pixels.sum(0)
        products += pixels.T @ pixels
    if not count:
        raise AlexNetError(f"{folder.path}: none of the {len(chosen)} images tried can be read; {problem}")
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    blue, green, red = (mean * 255.0).tolist()
    return (blue, green, red), vectors * values * 255.0
