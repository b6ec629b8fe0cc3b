"""Photos in every mode, whole and broken, and the rules from a photo to the network's input."""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from model.photos.preprocess import BVLC, FOLDER, RESIZE, TORCHVISION, ImageError, Preprocess, open_image

CIFAR = Preprocess((104.0, 117.0, 123.0), "centre square, then 32x32 (Lanczos), then 227x227 (bilinear)")
TRAINED = Preprocess((100.0, 110.0, 120.0), FOLDER)


def reopened(image, path, **options):
    image.save(path, **options)
    return open_image(path)


def pixel(image):
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def grey(array):
    return Image.fromarray(np.asarray(array)[None].repeat(2, 0))


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("RGB", (4, 3), (10, 20, 30)), "png", (10, 20, 30)),
        (Image.new("L", (4, 3), 77), "png", (77, 77, 77)),
        (Image.new("1", (4, 3), 1), "png", (255, 255, 255)),
        (Image.new("LA", (4, 3), (0, 51)), "png", (204, 204, 204)),
        (Image.new("RGBA", (4, 3), (255, 0, 0, 51)), "png", (255, 204, 204)),
        (Image.new("RGBA", (4, 3), (9, 9, 9, 0)), "png", (255, 255, 255)),
        (Image.new("RGB", (4, 3), (200, 0, 0)).convert("P"), "png", (204, 0, 0)),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "tif", (255, 0, 0)),
        (Image.new("LAB", (4, 3), (136, 128, 128)), "tif", (128, 128, 128)),
        (grey(np.array([32896, 65535], np.uint16)), "png", (128, 128, 128)),
        (grey(np.array([32896, 65535], np.uint16)), "tif", (128, 128, 128)),
        (grey(np.array([100, 200], np.int32)), "tif", (100, 100, 100)),
        (grey(np.array([32896, 65535], np.int32)), "tif", (128, 128, 128)),
        (grey(np.array([-1000, 1000000], np.int32)), "tif", (0, 0, 0)),
        (grey(np.array([0.2, 1.0], np.float32)), "tif", (51, 51, 51)),
        (grey(np.array([51.0, 255.0], np.float32)), "tif", (51, 51, 51)),
        (grey(np.array([np.nan, 1.0], np.float32)), "tif", (0, 0, 0)),
        (grey(np.array([5e5, 5e5], np.float32)), "tif", (0, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", None) or str(value),
)
def test_modes(tmp_path, image, suffix, expected):
    found = pixel(reopened(image, tmp_path / f"a.{suffix}"))
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= (2 if image.mode == "LAB" else 0), found


def test_transparent_palette(tmp_path):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert pixel(reopened(image, tmp_path / "a.png", transparency=1)) == (255, 255, 255)
    assert pixel(reopened(image, tmp_path / "a.png", transparency=0)) == (200, 0, 0)
    assert (
        pixel(reopened(Image.new("RGB", (4, 3), (1, 2, 3)), tmp_path / "a.png", transparency=(1, 2, 3))) == (255,) * 3
    )


def test_upright_as_exif_says(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 8, 20))  # at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise, so that the left comes to the top
    turned = reopened(image, tmp_path / "a.png", exif=exif)
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 2)) == (255, 255, 255) and turned.getpixel((10, 37)) == (0, 0, 0)


def test_not_a_photo(tmp_path, monkeypatch):
    def refused(message):
        with pytest.raises(ImageError, match=r"a\.jpg: " + message) as error:
            open_image(path)
        assert "\n" not in str(error.value)

    path = tmp_path / "a.jpg"
    refused("no such file")
    path.write_text("text")
    refused("not an image in a format that Pillow reads")
    path.write_bytes(b"")
    refused("not an image in a format that Pillow reads")
    for format in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"):
        noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format)
        path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
        refused("(cannot be read as an image: .|not an image)")
        path.write_bytes(buffer.getvalue())
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 3,600 are over it, but under twice as many
        refused("cannot be read as an image: Image size .3600 pixels. exceeds limit")
        monkeypatch.undo()
        assert open_image(path).size == (60, 60)
    path.unlink()
    path.mkdir()
    refused("cannot be read as an image: Is a directory")
    path.rmdir()
    os.mkfifo(path)
    refused("cannot be read as an image: a pipe, not a file")


@pytest.mark.parametrize("rule", RESIZE)
def test_long_and_thin(rule):
    """Only the middle is enlarged. The whole photo would take gigabytes."""
    for size in ((60_000, 1), (1, 60_000)):
        photo = Image.new("RGB", size, "black")
        middle = (size[0] // 2 - 1, 0) if size[1] == 1 else (0, size[1] // 2 - 1)
        photo.paste("white", (*middle, middle[0] + (size[0] > 1) + 1, middle[1] + (size[1] > 1) + 1))
        x = Preprocess((0.0, 0.0, 0.0), rule)(photo)
        assert x.shape == (3, 227, 227) and x.max() <= 255.0
        assert x[:, 113, 113].min() > 200.0 or "256x256 (bilinear), then" in rule  # this rule shrinks the whole photo


def test_colours_and_mean():
    for rule in (BVLC, CIFAR, TRAINED):
        x = rule(Image.new("RGB", (300, 200), (10, 20, 30)))
        assert x.shape == (3, 227, 227) and x.dtype == torch.float32 and x.is_contiguous()
        expected = torch.tensor([30.0, 20.0, 10.0]) - torch.tensor(rule.mean)  # blue first
        assert torch.allclose(x, expected.view(3, 1, 1).expand_as(x), atol=1e-4)
    assert torch.equal(BVLC(Image.new("L", (9, 9), 7)), BVLC(Image.new("RGB", (9, 9), (7, 7, 7))))
    assert set(RESIZE) == {BVLC.resize, CIFAR.resize, FOLDER, TORCHVISION.resize}


def bilinear(array, side):
    """Resizes as OpenCV: output pixel i lies at (i + 1/2) * size / side - 1/2, between two pixels or at an edge."""

    def along(array, size):
        place = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        part = (place - low)[:, None, None]
        return array[low] * (1 - part) + array[np.minimum(low + 1, size - 1)] * part

    rows = along(array, len(array))
    return along(rows.swapaxes(0, 1), array.shape[1]).swapaxes(0, 1)


def test_bvlc_resizing():
    photo = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    expected = bilinear(photo.astype(float), 256)[14:241, 14:241, ::-1] - BVLC.mean
    difference = np.abs(BVLC(Image.fromarray(photo)).permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 0.51, "more than rounding to whole colours"


def test_cifar_resizing():
    photo = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    square = Image.fromarray(photo[:, 30:70]).resize((32, 32), Image.Resampling.LANCZOS)
    expected = bilinear(np.asarray(square, float), 227)[..., ::-1] - CIFAR.mean
    assert np.abs(CIFAR(Image.fromarray(photo)).permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_folder_resizing():
    """Shorter side to 256, and central square. Either may come first, since 512 / 256 is an integer."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 700, 3), np.uint8))
    square = photo.resize((350, 256), Image.Resampling.BILINEAR).crop((47, 0, 303, 256))
    expected = np.asarray(square, float)[14:241, 14:241, ::-1] - TRAINED.mean
    assert np.abs(TRAINED(photo).permute(1, 2, 0).numpy() - expected).max() <= 1.01


def test_ten_crops():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    whole = torch.from_numpy(np.asarray(photo)[..., ::-1] - np.array(TRAINED.mean)).permute(2, 0, 1).float()
    for rule in (TRAINED, dataclasses.replace(BVLC, mean=TRAINED.mean)):
        crops = rule.ten_crops(photo)
        assert crops.shape == (10, 3, 227, 227)
        assert torch.equal(crops[0], whole[:, :227, :227]) and torch.equal(crops[3], whole[:, 29:, 29:])
        assert torch.equal(crops[1], whole[:, :227, 29:]) and torch.equal(crops[2], whole[:, 29:, :227])
        assert torch.equal(crops[4], rule(photo)) and torch.equal(crops[5:], crops[:5].flip(3))
    assert CIFAR.ten_crops(photo).shape == (10, 3, 227, 227)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (32, 33)], ids=str)
def test_odd_sizes(size):
    for rule in (BVLC, CIFAR, TRAINED):
        x = rule(Image.new("RGB", size, "white"))
        assert x.shape == (3, 227, 227) and x.isfinite().all()
