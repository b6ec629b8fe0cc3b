"""The drawings of lesson.product, lesson.chain and lesson.rivals, and the README's picture."""

from lesson import chain, product, rivals

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import picture
from kernels.tools.measurements import Comparison, Row


@pytest.fixture(autouse=True)
def axes():
    """No window opens, and no figure or setting stays."""
    with plt.rc_context():
        plt.switch_backend("Agg")
        _, axes = plt.subplots()
        yield axes
        plt.close("all")


def test_product(axes):
    product.picture(("M", "N", "K"), tile=(0.25, 0.5, 0.5, 1.0), step=(0.0, 0.5), axes=axes)
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    whole, tile = boxes[2], boxes[-1]  # the rectangles of C
    assert tile.get_x() == whole.get_x() + whole.get_width() / 2
    assert tile.get_y() == whole.get_y() + whole.get_height() / 2  # rows are counted from the top
    assert tile.get_width() == whole.get_width() / 2
    assert tile.get_height() == whole.get_height() / 4
    band, step = boxes[3], boxes[5]  # the rectangles of A
    assert (band.get_y(), band.get_height()) == (tile.get_y(), tile.get_height())
    assert step.get_width() == band.get_width() / 2


def test_maps(axes):
    values = np.arange(5 * 3 * 4, dtype=float).reshape(5, 3, 4)
    values[4] = 0.0
    chain.maps(values, columns=2, axes=axes)
    image = axes.images[0].get_array()
    gap = chain.GAP
    assert image.shape == (3 * (3 + gap) + gap, 2 * (4 + gap) + gap)
    inside = image[gap:-gap, gap:-gap]
    assert np.allclose(inside[:3, :4], values[0] / values[0].max())
    assert np.allclose(inside[:3, 4 + gap :], values[1] / values[1].max())
    assert not inside[2 * (3 + gap) :, :4].any()  # a map without a value above zero
    assert np.ma.getmaskarray(inside)[3].all() and np.ma.getmaskarray(inside)[-1, 4:].all()


def test_filters(axes):
    weight = np.random.default_rng(0).normal(size=(3, 3, 2, 2))
    chain.filters(weight, columns=3, axes=axes)
    image = axes.images[0].get_array()
    gap = chain.GAP
    assert image.shape == (2 + 2 * gap, 3 * (2 + gap) + gap, 3)
    first, low, high = weight[0], weight[0].min(), weight[0].max()
    assert np.allclose(image[gap:-gap, gap : gap + 2], ((first - low) / (high - low)).transpose(1, 2, 0))


def test_fields(axes):
    chain.fields(np.zeros((227, 227, 3)), [("conv1", 11), ("pool5", 195)], axes=axes)
    for patch, side in zip(axes.patches, (11, 195), strict=True):
        assert (patch.get_width(), patch.get_height()) == (side, side)
        assert patch.get_x() + side / 2 == patch.get_y() + side / 2 == 113  # the middle pixel


def row(provider: str, p20: float, p50: float, p80: float) -> Row:
    what = "conv2d", "conv1", "forward", "fp16", 128, provider
    return Row("2031-05-17T00:00:00Z", "0", "Some GPU", "3", "4", *what, p20, p50, p80, 1, 1, 0.0)


def test_ratios(axes):
    ours, best, slow = row("triton", 0.9, 1.0, 1.25), row("compile", 1.8, 2.0, 2.25), row("torch", 0.4, 0.5, 0.6)
    compared = {"won": Comparison(ours, best), "lost": Comparison(ours, slow), "alone": Comparison(ours, None)}
    rivals.ratios(compared, axes=axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["won", "lost"]
    bars = axes.patches
    assert [bar.get_x() + bar.get_width() for bar in bars] == [2.0, 0.5]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    (low, high), (lost, _) = ([point[0] for point in line] for line in axes.collections[0].get_segments())
    assert (low, high, lost) == pytest.approx((1.8 / 1.25, 2.25 / 0.9, 0.4 / 1.25))
    assert {text.get_text() for text in axes.texts} == {"2.00  (torch.compile)", "0.50  (PyTorch)"}


def test_published_is_marked_as_others(axes):
    rivals.published(axes=axes)
    assert "PUBLISHED BY OTHERS" in axes.get_title(loc="left")
    texts = [text.get_text() for text in axes.texts]
    assert all(source in text for text, (*_, source) in zip(texts, rivals.PUBLISHED, strict=True))


@pytest.mark.full
def test_readme_picture(monkeypatch, tmp_path):
    """It draws the walk, the prediction and the roofline."""
    monkeypatch.setattr(picture, "PICTURE", tmp_path / "alexnet.png")
    assert picture.main() == 0
    drawn = plt.imread(tmp_path / "alexnet.png")
    assert drawn.shape[:2] == (660, 1200)
    assert len(np.unique((drawn * 255).astype(int) @ [65536, 256, 1, 0])) > 1000, "an empty picture"
