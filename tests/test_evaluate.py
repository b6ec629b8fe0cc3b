"""``alexnet evaluate``: its numbers against numbers counted by hand, and its refusals."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image

from kernels.tools import torch_ops
from model import evaluate, weights
from model.alexnet import AlexNet
from model.layers import Linear
from model.photos.loading import Photos
from model.photos.preprocess import open_image
from model.training import accuracy
from model.training.distributed import Ranks
from tests.narrow import PROCESSES, start

DATA = Path(skimage.__file__).parent / "data"
PHOTOS = {
    "cat": ["chelsea.png", "coffee.png"],
    "frog": ["rocket.jpg", "astronaut.png", "chelsea.png"],
    "ship": ["camera.png"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of scikit-image, in classes of the bundled weights. Most are in a wrong class."""
    path = tmp_path_factory.mktemp("photos")
    for name, files in PHOTOS.items():
        (path / name).mkdir()
        for index, file in enumerate(files):
            shutil.copy(DATA / file, path / name / f"{index}{Path(file).suffix}")
    return path


@pytest.fixture(scope="module")
def probabilities(folder):
    """A function that returns each photo's class and softmax, of the central crop or averaged over ten."""
    loaded = weights.load()
    net = AlexNet.from_weights(loaded).use(torch_ops)
    photos = [
        (target, path) for target, name in enumerate(loaded.classes) for path in sorted((folder / name).glob("*"))
    ]

    def truth(crops):
        inputs = lambda photo: loaded.preprocess.ten_crops(photo) if crops == "ten" else loaded.preprocess(photo)[None]
        with torch.inference_mode():
            return [(target, net(inputs(open_image(path))).softmax(1).mean(0)) for target, path in photos]

    return truth


@pytest.fixture
def here(capsys):
    """A function that runs the command in this process and returns (exit status, stdout, stderr)."""

    def run(*arguments):
        status = evaluate.main([str(a) for a in (*arguments, "--operators", "torch", "--device", "cpu")])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("crops", ["centre", pytest.param("ten", marks=pytest.mark.full)])
def test_numbers(here, folder, probabilities, tmp_path, crops):
    plot = tmp_path / "confusion.png"
    options = ["--ten-crop"] if crops == "ten" else []
    status, out, err = here(folder, "--json", "--batch", 4, "--workers", 1, "--plot", plot, *options)
    assert status == 0, err
    record = json.loads(out)
    truth = probabilities(crops)
    ranked = [(target, p.argsort(descending=True).tolist()) for target, p in truth]
    assert record["images"] == 6 and record["skipped"] == 0
    assert record["top1"] == pytest.approx(sum(target == best[0] for target, best in ranked) / 6)
    assert record["top5"] == pytest.approx(sum(target in best[:5] for target, best in ranked) / 6)
    assert record["loss"] == pytest.approx(-sum(p[target].log().item() for target, p in truth) / 6, rel=1e-4)
    confusion = [[0] * 10 for _ in range(10)]
    for target, best in ranked:
        confusion[target][best[0]] += 1
    assert record["confusion"] == confusion
    assert set(record["classes"]) == set(PHOTOS) and record["ten_crop"] == (crops == "ten")
    assert record["classes"]["frog"] == pytest.approx(confusion[6][6] / 3)
    with Image.open(plot) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert os.listdir(tmp_path) == ["confusion.png"]


def test_table_and_unreadable_images(here, folder, tmp_path):
    """If there is a folder val/, it is evaluated. A broken image is named and skipped, and the exit status is 2."""
    shutil.copytree(folder, tmp_path / "val")
    (tmp_path / "val/ship/broken.png").write_bytes(b"no image")
    status, out, err = here(tmp_path, "--batch", 1, "--workers", 0)
    assert status == 2 and len(err.splitlines()) == 1
    assert err.startswith(f"alexnet evaluate: error: {tmp_path}/val/ship/broken.png: not an image in a format")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == list(PHOTOS) and lines[2].endswith("of 1")
    assert lines[-1].startswith(f"cifar10, 6 images of {tmp_path}/val: top-1 ")
    assert ", top-5 " in lines[-1] and "1 skipped that cannot be read" in lines[-1]


BAD = {
    "no folder": (["nowhere"], "nowhere: no such folder"),
    "long name": (["a" * 300], f"{'a' * 300}: cannot be read: File name too long"),
    "another class": (["other"], "cifar10 has no class 'lamp': a folder must have a class's name, such as 'airplane'"),
    "weights": (["good", "--weights", "nothing"], "nothing: no such file, and no weights of that name"),
    "all broken": (["broken"], "broken/cat/0.png: not an image"),
    "batch": (["good", "--batch", "0"], "argument --batch: must be a whole number, at least 1, got '0'"),
    "plot": (["good", "--plot", "a.svg"], "argument --plot: must name a .png file, got 'a.svg'"),
    "plot nowhere": (["good", "--plot", "no/a.png"], "no/a.png: cannot be written: No such file"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(here, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    os.symlink(folder, "good")
    for path in ("other/lamp", "broken/cat"):
        Path(path).mkdir(parents=True)
        Path(path, "0.png").write_bytes(b"no image")
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"alexnet evaluate: error: {message}"), err
    assert len(err.splitlines()) == (2 if arguments == ["broken"] else 1)


def test_no_memory(here, folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(accuracy, "measure_accuracy", full)
    status, out, err = here(folder, "--batch", 4096)
    assert (status, out) == (2, "")
    assert err.startswith("alexnet evaluate: error: batch 4096 does not fit in the memory of ")


@pytest.mark.full
def test_weights_that_overflow(here, folder, tmp_path, monkeypatch):
    """The weights are finite, but the probabilities are NaN: JSON has no NaN, and no class is the likeliest."""
    loaded = weights.load()
    huge = {name: (weight * 1e20, bias) for name, (weight, bias) in loaded.layers.items()}
    monkeypatch.setattr(weights, "load", lambda _: replace(loaded, layers=huge))
    status, out, err = here(folder, "--json", "--workers", 0, "--plot", tmp_path / "a.png")
    assert (status, out) == (2, "")
    assert err == f"alexnet evaluate: error: {folder}: cifar10 overflows in fp32: its probabilities are not numbers\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_classes_do_not_command_the_terminal(here, folder, tmp_path, monkeypatch):
    """Their names come from folders and from the file of weights."""
    loaded = weights.load()
    classes = tuple("a\x1b[2J\nb" if name == "cat" else name for name in loaded.classes)
    monkeypatch.setattr(weights, "load", lambda _: replace(loaded, classes=classes))
    shutil.copytree(folder / "cat", tmp_path / "a\x1b[2J\nb")
    status, out, err = here(tmp_path, "--workers", 0)
    assert status == 0, err
    assert out.splitlines()[0].startswith(r"a\x1b[2J\nb  ")


@pytest.mark.full
def test_a_folders_name_is_no_formula(here, folder, tmp_path):
    """Matplotlib takes text between two $ for TeX."""
    os.symlink(folder, tmp_path / "$x_{$")
    status, _, err = here(tmp_path / "$x_{$", "--workers", 0, "--plot", tmp_path / "a.png")
    assert status == 0 and err == f"drawn in {tmp_path}/a.png\n"


def counted(rank, size, port, results):
    """Measures, in a process of its own, the accuracy of rank ``rank`` of ``size`` on numbers that stand for images."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks = Ranks(torch.device("cpu"))
    table = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Module()
    net.fc8 = Linear(1, 9, relu=False)
    net.fc8.operators = torch_ops
    net.forward = lambda x: table[x[:, 0, 0, 0].long()]
    found = accuracy.measure_accuracy(net, Numbers(), batch=2, workers=0, ranks=ranks)
    results.put((rank, found.confusion.tolist(), round(found.loss, 9), found.top5, found.unreadable))
    ranks.leave()


class Numbers(Photos):
    """Seven images. The fourth one cannot be read."""

    def __init__(self):
        super().__init__([("", index % 3) for index in range(7)], None)

    def __getitem__(self, index):
        number = torch.full((3, 1, 1), float(index)).numpy()
        return (None, 0, "broken") if index == 3 else (number, index % 3, None)


@pytest.mark.full
def test_many_processes_count_as_one():
    """Seven images over one, two and three processes."""
    results, found = PROCESSES.Queue(), []
    for size in (1, 2, 3):
        port = 20000 + (os.getpid() + 17 * size) % 20000
        processes = [start(counted, rank, size, port, results) for rank in range(size)]
        found += [results.get(timeout=120) for _ in processes]
        for process in processes:
            process.join(60)
    assert len(found) == 6
    assert all(each[1:] == found[0][1:] for each in found)
    assert sum(map(sum, found[0][1])) == 6 and found[0][4] == ["broken"]
