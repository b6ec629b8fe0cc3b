"""Folders named by WordNet IDs, and the classes that they are matched with."""

import sys
import types

import pytest

from kernels.errors import AlexNetError
from model.photos.wordnet import match

IDS = [f"n{number:08}" for number in range(1_440_764, 1_440_764 + 7_000, 7)]
CLASSES = tuple(f"class {index}" for index in range(1000))


def test_all_folders_tell_their_order():
    assert match(IDS, CLASSES, "a") == list(range(1000))
    assert match(tuple(IDS[::-1]), CLASSES, "a") == list(range(1000))[::-1]


def test_other_names():
    for folders in (("tench", "n01440764"), ("n1",), ("n014407641",)):
        with pytest.raises(AlexNetError, match="a has no class"):
            match(folders, CLASSES, "a")
    assert match(("class 7", "class 3"), CLASSES, "a") == [7, 3]
    with pytest.raises(AlexNetError, match="a has no class 'n01440764': a folder must have a class's name"):
        match(("n01440764",), ("tench",), "a")  # classes that are not ImageNet's


def test_classes_that_are_ids_themselves(monkeypatch):
    """A network that was trained on 1000 such folders has IDs for classes. No list is needed."""
    data = types.ModuleType("timm.data")
    data.ImageNetInfo = lambda subset: types.SimpleNamespace(label_names=lambda: IDS)
    own = (*(f"n{number:08}" for number in range(500)), *IDS[:500])
    for module in (data, None):
        monkeypatch.setitem(sys.modules, "timm", module and types.ModuleType("timm"))
        monkeypatch.setitem(sys.modules, "timm.data", module)
        assert match((own[2], own[1]), own, "a") == [2, 1]
        assert match((own[503],), own, "a") == [503]


def test_some_folders(monkeypatch):
    """timm knows the others. Here a stand-in for timm is installed, then none."""
    data = types.ModuleType("timm.data")
    data.ImageNetInfo = lambda subset: types.SimpleNamespace(label_names=lambda: IDS)
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.data", data)
    assert match((IDS[500], IDS[3]), CLASSES, "a") == [500, 3]
    with pytest.raises(AlexNetError, match="n00000001 is not among ImageNet's 1000 classes"):
        match((IDS[500], "n00000001"), CLASSES, "a")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "timm.data")
    with pytest.raises(AlexNetError, match=r"^2 of ImageNet's 1000 folders: .* takes timm, pip install timm; or give"):
        match((IDS[500], IDS[3]), CLASSES, "a")
