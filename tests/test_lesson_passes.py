"""lesson.passes, and conv1's operands in lesson.features."""

from lesson import features, passes

import pytest
import torch
from matplotlib import pyplot as plt

from model import weights


@pytest.fixture(autouse=True)
def figures():
    """No window opens, and no figure stays."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


class TestOfPyTorch:
    x = torch.ones(4, 8)  # 128 bytes

    def moved(self, call) -> list[tuple]:
        return [(one.kernel, *one.reads.values(), *one.writes.values()) for one in passes.of_pytorch(call)]

    def test_operators_in_order(self):
        assert self.moved(lambda: torch.relu(self.x + self.x[0])) == [("add", 160, 128), ("relu", 128, 128)]

    def test_a_tensor_is_read_once(self):
        assert self.moved(lambda: self.x * self.x) == [("mul", 128, 128)]

    def test_views_move_nothing(self):
        assert self.moved(lambda: self.x.t()[2:].reshape(2, 3, 4).permute(2, 0, 1)) == []

    def test_in_place(self):
        assert self.moved(lambda: torch.zeros(2).add_(1.0))[-1] == ("add_", 8, 8)

    def test_several_outputs(self):
        assert self.moved(lambda: self.x.max(1)) == [("max", 128, 4 * 4 + 4 * 8)]


def test_draw():
    one = passes.Pass("both", {"x": 3_000_000}, {"y": 1_000_000})
    passes.draw({"plan": [one, one], "other": [one]}, title="title")
    first, second = plt.gcf().axes
    assert first.get_title() == "plan: 8 MB" and second.get_title() == "other: 4 MB"
    assert [text.get_text() for text in second.texts] == ["memory", "both", "x\n3 MB", "y\n1 MB"]


def test_features():
    loaded = weights.load("cifar10")
    weight, bias = loaded.layers["conv1"]
    x, *found = features.conv1()
    assert torch.equal(found[0].cpu(), weight) and torch.equal(found[1].cpu(), bias)
    assert x.shape == (1, 3, 227, 227)
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, found[0]))
