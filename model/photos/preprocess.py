"""From a photo to the tensor that a network's weights were trained on.

Resizing is part of a model: weights that never saw sharp texture need blurred photos. So a file of weights names its
rule by a sentence that describes it.
"""

import contextlib
import os
import stat
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

from kernels.errors import AlexNetError

SIZE = 227  # pixels of a side of the network's input
LARGE = 256  # of the square from which training and ten-crop evaluation cut it


class ImageError(AlexNetError, ValueError):
    """A file that is not a photo, or is cut short. The message names it."""


def open_image(path: str | os.PathLike) -> Image.Image:
    """Reads a photo in any mode that Pillow opens, as RGB, turned upright as its EXIF says.

    Raises:
        ImageError: no image, an image cut short, or more pixels than Pillow's limit against decompression bombs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if stat.S_ISFIFO(os.stat(path).st_mode):
                raise ImageError("a pipe, not a file")  # to open it would wait for a writer
            with Image.open(path) as image:
                image.load()
                with contextlib.suppress(Exception):  # ignores EXIF that cannot be read
                    image = ImageOps.exif_transpose(image)
                return to_rgb(image)
        except FileNotFoundError:
            raise ImageError(f"{os.fspath(path)}: no such file") from None
        except Image.UnidentifiedImageError:
            raise ImageError(f"{os.fspath(path)}: not an image in a format that Pillow reads") from None
        except Exception as error:  # Pillow's decoders raise many kinds of errors
            what = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{os.fspath(path)}: cannot be read as an image: {what}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any of Pillow's modes to RGB: puts transparency on white and scales 16 and 32 bits down to 8."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Converts grey values of 16 or 32 bits to 8.

    The range of 32 bits follows from the values: to 1 (floats), 255, 65535, or else from the smallest to the largest.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values / 257.0).round().astype(np.uint8)
    floats = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    for top in (1, 255, 65535):
        if low >= 0 and high <= top and (floats or top > 1):
            low, high = 0, top
            break
    return ((values - low) * (255.0 / max(high - low, 1e-300))).round().astype(np.uint8)


def central_square(image: Image.Image, side: int = LARGE) -> Image.Image:
    """Returns the middle of a photo as a square of ``side`` pixels, antialiased (the paper's section 2)."""
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))


def _folder(image: Image.Image, side: int) -> torch.Tensor:
    return _centre(_to_tensor(central_square(image)), side)


def _bvlc(image: Image.Image, side: int) -> torch.Tensor:
    # Caffe calls cv::resize, whose filter takes the four nearest pixels however far it shrinks, as PyTorch's does.
    return _centre(_bilinear(_to_tensor(image), LARGE).round(), side)


def _cifar(image: Image.Image, side: int) -> torch.Tensor:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    small = square.resize((32, 32), Image.Resampling.LANCZOS)
    return _bilinear(_to_tensor(small), side)


def _centre(image: torch.Tensor, side: int) -> torch.Tensor:
    start = (LARGE - side) // 2
    return image[:, start : start + side, start : start + side]


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """Converts RGB to float32 from 0 to 255, (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def _bilinear(image: torch.Tensor, side: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(image[None], (side, side), mode="bilinear", antialias=False)[0]


def _torchvision(image: Image.Image, side: int) -> torch.Tensor:
    from torchvision.transforms import functional  # slow to import

    longest = 16 * min(image.size)  # 60,000 x 1 pixels would become 15,360,000 x 256, but the middle is enough
    if max(image.size) > longest:
        image = functional.center_crop(image, [min(image.height, longest), min(image.width, longest)])
    short = functional.resize(image, LARGE, functional.InterpolationMode.BILINEAR, antialias=True)
    return _to_tensor(functional.center_crop(short, side))


RESIZE = {
    "256x256 (bilinear), then the central 227x227": _bvlc,
    "centre square, then 32x32 (Lanczos), then 227x227 (bilinear)": _cifar,
    "centre square, then 256x256 (bilinear, antialiased), then the central 227x227": _folder,
    "shorter side to 256 (bilinear, antialiased), then the central 224x224": _torchvision,
}
"""Rules by their description: from an RGB image and a side to (3, side, side), RGB, from 0 to 255.

The side is that of the network's input, or 256 for the square from which ten crops are cut.
"""
_BVLC, _CIFAR, FOLDER, _TORCHVISION = RESIZE


@dataclass(frozen=True)
class Preprocess:
    """How some weights take a photo: numbers from 0 to 255, minus a mean, over a standard deviation.

    Args:
        mean: of each colour, in ``order``.
        resize: a rule among :data:`RESIZE`.
        std: the divisor of each colour.
        order: of the colours: ``"BGR"``, blue first, as in Caffe, or ``"RGB"``.
        size: pixels of a side.

    Example:
        >>> BVLC(Image.new("RGB", (640, 480), "black"))[:, 0, 0]
        tensor([-104.0070, -116.6688, -122.6789])
    """

    mean: tuple[float, ...]
    resize: str
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    order: str = "BGR"
    size: int = SIZE

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Converts a photo in any mode to (3, size, size) float32."""
        return self._normalise(RESIZE[self.resize](to_rgb(image), self.size))

    def ten_crops(self, image: Image.Image) -> torch.Tensor:
        """Returns (10, 3, size, size): four corners and the centre at 256 x 256, and their mirror images."""
        from torchvision.transforms import functional  # slow to import

        large = self._normalise(RESIZE[self.resize](to_rgb(image), LARGE))
        crops = torch.stack(functional.five_crop(large, [self.size, self.size]))
        return torch.cat([crops, crops.flip(3)])

    def _normalise(self, rgb: torch.Tensor) -> torch.Tensor:
        x = rgb.flip(0) if self.order == "BGR" else rgb
        mean, std = (torch.tensor(numbers, device=rgb.device).view(3, 1, 1) for numbers in (self.mean, self.std))
        return ((x - mean) / std).contiguous()


BVLC = Preprocess((104.0069879317889, 116.66876761696767, 122.6789143406786), _BVLC)
"""For BVLC's weights in any format: the channel means of Caffe's imagenet_mean.binaryproto."""

TORCHVISION = Preprocess(
    (0.485 * 255, 0.456 * 255, 0.406 * 255), _TORCHVISION, (0.229 * 255, 0.224 * 255, 0.225 * 255), "RGB", 224
)
"""For torchvision's weights (AlexNet_Weights.IMAGENET1K_V1.transforms), which count colours from 0 to 1."""
