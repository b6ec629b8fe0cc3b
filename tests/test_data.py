"""Folders of photos as batches: which photos, in which order, with which crops and colours, in any processes."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from model.photos import loading
from model.photos.augmentation import Crops, colour_statistics, to_input, vary, zoomed
from model.photos.folders import find_photos, join, read_folder, read_splits
from model.photos.loading import Order, Photos, loader
from model.photos.preprocess import FOLDER, Preprocess, central_square, open_image
from tests.narrow import COLOURS, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(make_folder(tmp_path_factory.mktemp("images") / "all", 4))


def test_folder(folder, tmp_path):
    assert folder.classes == tuple(COLOURS)
    assert [target for _, target in folder.images] == [0] * 4 + [1] * 4 + [2] * 4
    assert folder.images == sorted(folder.images)
    path = folder.parts[0][0]
    (path / ".hidden").mkdir()  # such as .ipynb_checkpoints
    (path / "red" / "notes.txt").write_text("no image")
    assert read_folder(path) == folder
    other = read_folder(make_folder(tmp_path / "other", 4))
    assert other.digest() == folder.digest()
    (tmp_path / "other/red/3.png").rename(tmp_path / "other/green/4.png")
    assert read_folder(tmp_path / "other").digest() != folder.digest()


def test_several_folders(folder, tmp_path):
    """Their photos count together, and their order, names and places below their folders make the digest."""
    two = make_folder(tmp_path / "two" / "train", 1)
    make_folder(tmp_path / "two" / "val", 2)
    both, validation = read_splits([folder.parts[0][0], tmp_path / "two"])
    assert both.images == folder.images + [(str(two / name / "0.png"), index) for index, name in enumerate(COLOURS)]
    assert both.name == f"{folder.name}, {two}" and both.classes == folder.classes
    assert validation == read_folder(tmp_path / "two" / "val")
    below = [f"{name}/{index}.png\n" for name in COLOURS for index in range(4)]
    names = lambda *parts: hashlib.sha256("/\n".join(parts).encode()).hexdigest()[:16]
    more = "".join(f"{name}/0.png\n" for name in COLOURS)
    assert folder.digest() == names("".join(below)) and both.digest() == names("".join(below), more)
    two.rename(tmp_path / "elsewhere")
    assert join([folder, read_folder(tmp_path / "elsewhere")]).digest() == both.digest()
    assert join([read_folder(tmp_path / "elsewhere"), folder]).digest() != both.digest()
    assert join([folder]) == folder and read_splits([folder.parts[0][0]]) == (folder, None)


def test_all_commands_see_the_same_photos(tmp_path):
    """By the endings that Pillow decodes, through links, without what is hidden, and not round in circles."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ("b.gif", "a.JPG", "below/c.avif", ".hidden.png", ".hidden/d.png", "e.txt", "f.wmf", "g", "h.png/i.webp")
    for name in names:
        path = tmp_path / "data" / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (elsewhere / "j.png").touch()
    (tmp_path / "data/cat/linked").symlink_to(elsewhere)
    (tmp_path / "data/cat/below/round").symlink_to(tmp_path / "data")
    expected = [
        tmp_path / "data/cat" / name for name in ("a.JPG", "b.gif", "below/c.avif", "h.png/i.webp", "linked/j.png")
    ]
    assert find_photos([str(tmp_path / "data")]) == (expected, [])
    assert read_folder(tmp_path / "data").images == [(str(path), 0) for path in expected]


def test_order_is_the_same_for_any_ranks_and_start():
    """Each epoch is another permutation, cut into batches. Ranks share each batch. A later start gives the rest."""
    whole = list(Order(10, 4, 7, 0, 6))
    assert [len(batch) for batch in whole] == [4] * 6
    for epoch in range(3):
        images = [image for batch in whole[2 * epoch : 2 * epoch + 2] for _, image in batch]
        assert len(set(images)) == 8 and set(images) <= set(range(10))
        assert {e for batch in whole[2 * epoch : 2 * epoch + 2] for e, _ in batch} == {epoch}
    assert whole[:2] != whole[2:4]
    assert list(Order(10, 4, 7, 3, 6)) == whole[3:]
    assert list(Order(10, 4, 8, 0, 6)) != whole
    shares = [list(Order(10, 4, 7, 0, 6, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_each_class_equally_often():
    """Of 20 photos of four classes, 5 of each class in an epoch: repeated if they are fewer, a part if more."""
    classes = [3] * 12 + [0] * 5 + [1] * 2 + [2]
    members = [[i for i, c in enumerate(classes) if c == label] for label in range(4)]
    order = lambda *where, seed=7: list(Order(20, 4, seed, *where, classes=classes))
    whole = order(0, 10)
    for batch in whole:  # four classes, so a batch is a round
        assert sorted(classes[image] for _, image, _ in batch) == [0, 1, 2, 3]
    epochs = [[place for batch in whole[start : start + 5] for place in batch] for start in (0, 5)]
    for number, places in enumerate(epochs):
        assert len(set(places)) == 20 and {epoch for epoch, _, _ in places} == {number}
        for label, few in enumerate(members):
            of_class = [(image, again) for _, image, again in places if classes[image] == label]
            assert [again for _, again in of_class] == [n // len(few) for n in range(5)]
            counts = [sum(image == i for image, _ in of_class) for i in few]
            assert sum(counts) == 5 and max(counts) - min(counts) <= 1
    images = [[image for _, image, _ in places] for places in epochs]
    assert images[0] != images[1] and set(images[0]) & set(members[3]) != set(images[1]) & set(members[3])
    assert order(3, 10) == whole[3:] and order(0, 10, seed=8) != whole
    shares = [order(0, 10, rank, 2) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole
    odd = [image for batch in Order(10, 5, 0, 0, 2, classes=[0, 1, 2, *[2] * 7]) for _, image, _ in batch]
    assert sorted([odd.count(0), odd.count(1), 10 - odd.count(0) - odd.count(1)]) == [3, 3, 4]


def test_a_repeated_photo_has_another_crop(folder):
    crops = Crops(folder.images, 0, np.eye(3) * 50.0)
    first, again, same = (crops[place] for place in ((0, 5, 0), (0, 5, 1), (0, 5, 1)))
    assert not np.array_equal(first[1], again[1]) and np.array_equal(again[1], same[1])
    assert np.array_equal(again[0], same[0]) and first[2] == again[2] == 1


def steps(width, height):
    """A photo whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], 2).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(250, 200), (200, 250)])
@pytest.mark.parametrize("part", [0.3, 0.8, 1.0, 1.2, 2.0, 7.0])
def test_zoom(part, width, height):
    """Each pixel shows the place of a photo without end that it must: beyond an edge the photo goes back."""
    photo, firsts = steps(width, height), []
    for draw in range(8):
        frame = np.asarray(zoomed(photo, np.random.default_rng(draw), part, part)).astype(float)
        assert frame.shape == (256, 256, 3)
        for lines, length in ((frame[..., 0], width), (frame[..., 1].T, height)):
            assert np.ptp(lines, axis=0).max() <= 1.0
            # The photo's place at the frame's edge, in fine steps; a smaller photo has whole pixels of the frame.
            scale, starts = 200 * part / 256, np.arange(0.0, length - 200 * part + 0.01, 0.05)
            if 200 * part > length:
                whole = round(length / scale)
                scale, starts = length / whole, -length / whole * np.arange(257 - whole)
            places = starts[:, None] + scale * (np.arange(256) + 0.5)
            mirrored = length - np.abs(length - places % (2 * length))
            off = np.abs(mirrored - 0.5 - lines[0]).max(1)
            assert off.min() < 0.6 + 0.75 * scale, "the filter and the edges blur by less"
            firsts.append(starts[off.argmin()])
    assert len(set(firsts)) > 3


def test_zoom_is_even_on_a_logarithmic_scale(folder):
    sides = []
    for draw in range(200):
        red = np.asarray(zoomed(steps(250, 250), np.random.default_rng(draw), 0.25, 1.0))[0, :, 0].astype(float)
        sides.append((red[255] - red[0]) / 250)
    assert 0.23 < min(sides) < 0.28 and 0.9 < max(sides) <= 1.0
    assert 0.4 < np.mean(np.array(sides) < 0.5) < 0.6


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
@pytest.mark.parametrize("part", [0.01, 1.0, 16.0])
def test_zoom_of_any_photo(size, part):
    square = zoomed(Image.new("RGB", size, "teal"), np.random.default_rng(0), part, part)
    assert square.size == (256, 256) and square.getcolors() == [(65536, (0, 128, 128))]


@pytest.mark.parametrize("augment", ["paper", "scale"])
def test_zoomed_crops(folder, augment):
    """Without zoom nothing changes; with it, the same mirror image and colours of another square."""
    places = [(epoch, image) for epoch in range(2) for image in range(3)]
    of = lambda zoom: [Crops(folder.images, 3, np.eye(3) * 50.0, augment, zoom)[place] for place in places]
    for plain, near, again in zip(of(None), of((0.2, 0.5)), of([0.2, 0.5]), strict=True):
        assert np.array_equal(near[0], again[0]) and not np.array_equal(near[0], plain[0])
        assert np.array_equal(near[1], plain[1]) and near[0].shape == plain[0].shape


@pytest.mark.parametrize("augment", ["paper", "scale"])
@pytest.mark.parametrize("room", [10**12, 0], ids=["shared memory", "arrays"])
def test_batches_are_the_same_from_any_processes(folder, monkeypatch, room, augment):
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: type("", (), {"free": room}))
    crops = Crops(folder.images, 3, np.eye(3) * 50.0, augment)
    batches = [list(loader(crops, Order(12, 5, 3, 0, 4), workers, torch.device("cpu"), 10**6)) for workers in (0, 2)]
    for alone, shared in zip(*batches, strict=True):
        for a, b in zip(alone[:-1], shared[:-1], strict=True):
            assert isinstance(a, torch.Tensor if room else np.ndarray)
            assert np.array_equal(np.asarray(a), np.asarray(b))
    pixels, shifts, target, errors = batches[0][0]
    assert pixels.shape == (5, 227, 227, 3) and shifts.shape == (5, 3) and len(target) == 5 and not any(errors)


def test_crops(folder):
    """A 227 x 227 window of the 256 x 256 square, mirrored or not, and another one in each epoch."""
    crops = Crops(folder.images, 0, np.zeros((3, 3)))
    square = np.asarray(Image.open(folder.images[5][0]).resize((256, 256), Image.Resampling.BILINEAR, (4, 0, 44, 40)))
    windows = np.lib.stride_tricks.sliding_window_view(square, (227, 227), (0, 1))  # (30, 30, 3, 227, 227)
    places, mirrored = set(), 0
    for epoch in range(12):
        crop, shift, target, errors = crops[epoch, 5]
        assert target == 1 and not errors and not shift.any()
        plain, mirror = (np.argwhere((windows[..., 0, 0] == c[0, 0]).all(2)).tolist() for c in (crop, crop[:, ::-1]))
        at = [p for p in plain if np.array_equal(windows[tuple(p)].transpose(1, 2, 0), crop)]
        turned = [p for p in mirror if np.array_equal(windows[tuple(p)].transpose(1, 2, 0), crop[:, ::-1])]
        assert len(at) + len(turned) == 1
        places.add(tuple((at or turned)[0]))
        mirrored += len(turned)
    assert len(places) > 9 and 1 < mirrored < 11


def varied(photo, draws):
    return [np.asarray(vary(photo, np.random.default_rng(draw))).astype(float) for draw in range(draws)]


def test_vary_size():
    """Red rises to the right and green downwards, so how much they rise per pixel tells the size."""
    rise = np.linspace(0, 255, 300)[:, None].repeat(300, 1)
    photo = Image.fromarray(np.stack([rise.T, rise, np.full_like(rise, 128)], 2).round().astype(np.uint8))
    sizes = []
    for large in varied(photo, 80):
        assert large.shape == (256, 256, 3)
        if large[..., 2].std() == 0.0:  # no texture
            strips = (
                large[..., :2].reshape(8, 32, 8, 32, 2).mean((1, 3))
            )  # averages away unsharp masking, which overshoots
            across = np.median(np.abs(np.diff(strips[..., 0].mean(0)))) / 32  # falling in mirror images
            down = np.median(np.abs(np.diff(strips[..., 1].mean(1)))) / 32
            sizes.append([1 / across, 1 / down])
    across, down = np.array(sizes).T
    assert 25 < len(sizes) < 55
    size, stretch = np.sqrt(across * down), np.sqrt(across / down)
    assert 0.55 < size.min() < 0.75 and 1.2 < size.max() < 1.5
    assert 0.88 < stretch.min() < 0.95 and 1.05 < stretch.max() < 1.14


def fine(image):
    """Returns the standard deviation of what varies with more than 32 waves across the image."""
    waves = np.fft.fftfreq(256, 1 / 256)
    spectrum = np.fft.fft2(image.mean(2)) * (np.hypot(waves[:, None], waves) > 32.0)
    return np.fft.ifft2(spectrum).real.std()


def test_vary_detail():
    """A large photo sometimes becomes blurred, a small one sometimes sharper."""
    random = np.random.default_rng(0)
    large, small = (Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)) for side in (500, 32))
    before = [fine(np.asarray(central_square(photo)).astype(float)) for photo in (large, small)]
    less, more = (
        np.array([fine(x) for x in varied(photo, 40)]) / b for photo, b in zip((large, small), before, strict=True)
    )
    assert (less < 0.5).sum() > 5
    assert (more > 2.0).sum() > 10 and (more < 1.5).sum() > 2


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 31)], ids=str)
def test_vary_any_photo(size):
    photo = Image.new("RGB", size, (10, 20, 30))
    for large in varied(photo, 12):
        assert large.shape == (256, 256, 3)
        plain = np.allclose(large, [10, 20, 30])
        assert plain or abs(large.mean() - 20.0) < 3.0


@pytest.mark.parametrize(("std", "order"), [((1.0, 1.0, 1.0), "BGR"), ((50.0, 60.0, 70.0), "RGB")], ids=str)
def test_central_crop_is_what_evaluation_sees(folder, std, order):
    crops = Crops(folder.images, 0, np.eye(3) * 50.0, augment="none")
    pixels, shift, _, _ = crops[3, 5]
    preprocess = Preprocess((100.0, 90.0, 80.0), FOLDER, std, order)
    x = to_input(pixels[None], shift[None], preprocess, torch.device("cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
    assert torch.equal(x[0], preprocess(open_image(folder.images[5][0])))
    shifted = to_input(pixels[None], shift[None] + np.array([[1.0, 2.0, 4.0]]), preprocess, torch.device("cpu"))
    by = torch.tensor([1.0, 2.0, 4.0]) if order == "BGR" else torch.tensor([4.0, 2.0, 1.0])
    torch.testing.assert_close((shifted - x)[0, :, 7, 9], by / torch.tensor(std), rtol=0, atol=1e-4)


def test_colour_shift(folder):
    """The same shift for every pixel of a channel, with the covariance of the paper's formula."""
    mean, colour = colour_statistics(folder)
    pixels = np.concatenate(
        [
            np.asarray(open_image(path).resize((256, 256), Image.Resampling.BILINEAR, (4, 0, 44, 40))).reshape(-1, 3)
            for path, _ in folder.images
        ]
    )[:, ::-1]
    assert mean == pytest.approx(pixels.mean(0).tolist())
    covariance = np.cov((pixels / 255.0).T, bias=True)
    # sum p_i a_i l_i with independent a_i of variance 0.01: 0.01 sum l_i^2 p_i p_i^T, which is 0.01 covariance^2.
    assert np.allclose(colour @ colour.T / 255.0**2, covariance @ covariance)
    crops = Crops(folder.images, 0, colour)
    shifts = np.stack([crops[epoch, 0][1] for epoch in range(400)])
    assert np.abs(shifts.mean(0)).max() < 0.2 * shifts.std(0).max()
    assert np.allclose(np.cov(shifts.T), 0.01 * colour @ colour.T, atol=0.3 * shifts.var(0).max())
    x = to_input(
        np.full((1, 227, 227, 3), 7, np.uint8), shifts[:1], Preprocess(tuple(mean), FOLDER), torch.device("cpu")
    )
    assert torch.allclose(x[0, :, 3, 4], torch.from_numpy(7 + shifts[0] - np.array(mean, "f")), atol=1e-4)


def test_unreadable_images_are_replaced_by_the_next(folder, tmp_path):
    images = [*folder.images[:3], (str(tmp_path / "no.png"), 2), (str(tmp_path / "nor.png"), 2)]
    crops = Crops(images, 0, np.zeros((3, 3)), augment="none")
    pixels, _, target, errors = crops[0, 3]
    assert np.array_equal(pixels, crops[0, 0][0]) and target == 0
    assert errors == [f"{tmp_path}/no.png: no such file", f"{tmp_path}/nor.png: no such file"]
    photos = Photos(images, Preprocess((0, 0, 0), FOLDER))
    x, target, errors = next(iter(loader(photos, [[2, 3, 4]], 0, torch.device("cpu"), 1)))
    assert len(x) == len(target) == 1 and errors[0] is None and "no.png: no such file" in errors[1]
    x, target, errors = next(iter(loader(photos, [[3]], 0, torch.device("cpu"), 1)))
    assert len(target) == 0 and len(errors) == 1
