"""Augmentation: random crops, mirror images and colours of training photos.

Training follows the paper: the shorter side becomes 256, and of the central 256 x 256 a random 227 x 227 is cut, half
of the time mirrored, its colours shifted along their principal components (section 4.1). Crops travel as bytes from the
processes that decode to the process that trains, which makes numbers of them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from kernels.errors import AlexNetError
from model.photos.folders import Folder
from model.photos.preprocess import LARGE, SIZE, ImageError, Preprocess, central_square, open_image
from model.randomness import generator


class Crops(Dataset):
    """Training photos: what :class:`model.photos.loading.Order` yields -> (crop, shift, class, errors).

    The crop is (227, 227, 3) bytes, RGB. The shift of its colours is in the order B, G, R. A photo that cannot be read
    is replaced by the next one in order; if there is none, the crop is None.

    Args:
        images: path and class of each photo.
        seed: of the run.
        colour: (3, 3), from :func:`colour_statistics`.
        augment: ``"paper"``; ``"scale"``, which is the paper's after :func:`vary`; or ``"none"``, the central crop.
        zoom: if given, each photo is first :func:`zoomed` between these two parts.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, int]],
        seed: int,
        colour: np.ndarray,
        augment: str = "paper",
        zoom: Sequence[float] | None = None,
    ):
        self.images, self.seed, self.colour, self.augment, self.zoom = images, seed, colour, augment, zoom

    def __getitem__(self, place: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray, int, list[str]]:
        photo, target, errors = self._readable(place[1])
        top = left = (LARGE - SIZE) // 2
        mirror, shift = False, np.zeros(3)
        if photo is None:
            return None, shift.astype(np.float32), target, errors
        random = generator("augmentation", self.seed, *place)
        if self.augment != "none":
            top, left = random.integers(0, LARGE - SIZE + 1, 2)
            mirror = random.random() < 0.5
            shift = self.colour @ random.normal(0.0, 0.1, 3)
        if self.zoom:
            photo = zoomed(photo, random, *self.zoom)
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


def zoomed(photo: Image.Image, random: np.random.Generator, low: float, high: float) -> Image.Image:
    """Returns a square window at a random place of the photo, antialiased, as 256 x 256.

    Its side is a random part of the photo's shorter side, from ``low`` to ``high``, evenly on a logarithmic scale. If
    the window reaches beyond the photo, the photo's mirror images fill it.
    """
    side = max(min(photo.size) * math.exp(random.uniform(math.log(low), math.log(high))), 1.0)
    seen = [min(side, length) for length in photo.size]  # (width, height)
    left, top = (random.uniform(0.0, length - part) for length, part in zip(photo.size, seen, strict=True))
    box = left, top, min(left + seen[0], photo.width), min(top + seen[1], photo.height)
    sides = [max(round(LARGE * part / side), 1) for part in seen]
    frame = photo.resize(sides, Image.Resampling.BILINEAR, box)
    return _window(frame, *(-int(random.integers(0, LARGE - each + 1)) for each in sides))


def _window(image: Image.Image, left: int, top: int) -> Image.Image:
    """Returns 256 x 256 pixels from a column and a row on. Beyond the image are its mirror images."""
    columns, rows = (
        np.pad(np.arange(side), LARGE, mode="symmetric")[LARGE + first :][:LARGE]
        for side, first in ((image.width, left), (image.height, top))
    )
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def vary(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """Returns the central square as 256 x 256, as if taken from nearer or farther, by a worse or a better camera.

    Draws four things independently:

    - Detail: the square keeps 24 to 256 pixels across.
    - Size: it becomes 0.6 to 1.4 times the frame, and each side up to a tenth longer or shorter. If it does not fill
      the frame, its mirror images do.
    - Sharpness: half of the time, unsharp masking lifts the edges.
    - Texture: half of the time, patches of grey noise that is equally strong in each octave of frequencies, which is
      the spectrum of photos (Field 1987, https://doi.org/10.1364/JOSAA.4.002379).

    The last two are for small photos: a network that never saw detail mistakes it for something else.
    """
    short = min(photo.size)
    across = min(short, round(24.0 * (LARGE / 24.0) ** random.random()))
    square = central_square(photo, across)

    zoom, stretch = 1.4 ** random.uniform(-1.5, 1.0), 1.1 ** random.uniform(-1.0, 1.0)
    sides = [max(round(LARGE * zoom * ratio), 1) for ratio in (stretch, 1.0 / stretch)]
    frame = square.resize(sides, FILTERS[random.integers(len(FILTERS))])
    left, top = (round(random.uniform(min(side - LARGE, 0), max(side - LARGE, 0))) for side in sides)
    large = _window(frame, left, top)

    if random.random() < 0.5:
        large = large.filter(ImageFilter.UnsharpMask(2.0 ** random.uniform(0.0, 3.0), int(random.integers(50, 201)), 0))
    if random.random() < 0.5:
        strength = random.uniform(0.0, 24.0)
        noise = sum(_noise(side, random) for side in (32, 64, 128, 256))  # 16 to 128 waves across the frame
        patches = np.clip(0.5 + 0.5 * _noise(4, random), 0.0, 1.0)
        pixels = np.asarray(large) + (strength / 2.0 * noise * patches)[:, :, None]
        large = Image.fromarray(pixels.clip(0.0, 255.0).astype(np.uint8))
    return large


FILTERS = tuple(Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS"))
"""What :func:`vary` enlarges with, from nearest, which leaves squares, to Lanczos."""


def _noise(side: int, random: np.random.Generator) -> np.ndarray:
    """Returns one octave of noise: (256, 256), independent every 256 / side pixels, standard deviation about 1."""
    drawn = Image.fromarray(random.standard_normal((side, side), np.float32))
    return np.asarray(drawn.resize((LARGE, LARGE), Image.Resampling.BICUBIC))


def to_input(
    pixels: torch.Tensor | np.ndarray,  # (N, 227, 227, 3), RGB bytes
    shifts: torch.Tensor | np.ndarray,  # (N, 3), blue first
    preprocess: Preprocess,
    device: torch.device,
) -> torch.Tensor:
    """Returns crops as the network's input, (N, 3, 227, 227) float32 in channels_last memory."""
    bgr, shifts = preprocess.order == "BGR", torch.as_tensor(shifts)
    x = torch.as_tensor(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    offset = (shifts if bgr else shifts.flip(1)) - torch.tensor(preprocess.mean)
    offset, std = offset[:, :, None, None], torch.tensor(preprocess.std)[:, None, None]
    x = (x.flip(1) if bgr else x).float().add_(offset.to(device, non_blocking=True))
    return x.div_(std.to(device, non_blocking=True))


def colour_statistics(folder: Folder, most: int = 1000) -> tuple[tuple[float, float, float], np.ndarray]:
    """Measures the mean colour and the directions in which colours vary, on up to ``most`` photos of a fixed draw.

    Returns:
        The means of blue, green and red, from 0 to 255; and M, (3, 3), such that M a, with a ~ N(0, 0.1), is the
        paper's shift: the sum over i of p_i a_i l_i, where p_i and l_i are the eigenvectors and eigenvalues of the
        pixels' covariance. Eigenvalues are of pixels from 0 to 1, and the shift is then scaled to 255.
    """
    chosen = generator("sample").permutation(len(folder.images))[:most]
    count, total, products, problem = 0, np.zeros(3), np.zeros((3, 3)), ""
    for index in sorted(chosen):
        try:
            square = central_square(open_image(folder.images[index][0]))
        except ImageError as error:
            problem = problem or str(error)
            continue  # training names it when its turn comes
        pixels = np.asarray(square).reshape(-1, 3)[:, ::-1] / 255.0
        count += len(pixels)
        total += pixels.sum(0)
        products += pixels.T @ pixels
    if not count:
        raise AlexNetError(f"{folder.name}: none of the {len(chosen)} images tried can be read; {problem}")
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    blue, green, red = (mean * 255.0).tolist()
    return (blue, green, red), vectors * values * 255.0
