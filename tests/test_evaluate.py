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
from model.calibration import Calibration, expected_calibration_error
from model.layers import Linear
from model.photos.loading import Photos
from model.photos.preprocess import open_image
from model.training import accuracy, checkpoint
from model.training.distributed import Ranks
from model.weights import deep_compression
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

    def truth(crops, temperature=loaded.calibration.temperature):
        inputs = lambda photo: loaded.preprocess.ten_crops(photo) if crops == "ten" else loaded.preprocess(photo)[None]
        with torch.inference_mode():
            logits = lambda path: net(inputs(open_image(path)))
            return [(target, (logits(path) / temperature).softmax(1).mean(0)) for target, path in photos]

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
    table, targets = torch.stack([p for _, p in truth]), torch.tensor([target for target, _ in truth])
    assert record["calibration_error"] == pytest.approx(expected_calibration_error(table, targets), abs=1e-4)
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


def test_calibrate(here, folder, probabilities, tmp_path):
    """Fitted on photos 0, 2, 4, measured on 1, 3, 5. In each format the weights stay the same, and are then used."""
    targets, p = zip(*probabilities("centre", temperature=1.0), strict=True)
    logits, targets = torch.stack(p).double().log(), torch.tensor(targets)
    loss = lambda rows, t: torch.nn.functional.cross_entropy(logits[rows] / t, targets[rows]).item()
    fit, rest = slice(0, 6, 2), slice(1, 6, 2)
    status, out, err = here(folder, "--workers", 0, "--calibrate", tmp_path / "a.net", "--json")
    assert status == 0, err
    found = json.loads(out)["calibration"]
    t = found["temperature"]
    assert loss(fit, t) <= min(loss(fit, t * 1.01), loss(fit, t / 1.01))
    surest = (logits[fit] / t).softmax(1).amax(1)
    assert surest.min().item() - 2e-4 < found["none_below"] < surest.min().item() + 1e-4
    assert (found["fitted_on"], found["measured_on"]) == (3, 3)
    for when, temperature in (("before", weights.load().calibration.temperature), ("after", t)):
        expected = (logits[rest] / temperature).softmax(1)
        assert found[when]["loss"] == pytest.approx(loss(rest, temperature), rel=1e-3)
        error = expected_calibration_error(expected, targets[rest])
        assert found[when]["calibration_error"] == pytest.approx(error, abs=1e-3)

    status, out, err = here(folder, "--workers", 0, "--calibrate", tmp_path / "a.safetensors")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[-3].startswith(f"fitted on 3 images: temperature {t:.4f}, none of the classes below ")
    assert lines[-2].startswith("on the other 3: calibration error ") and lines[-2].endswith(" are not below")
    assert lines[-1] == f"written to {tmp_path}/a.safetensors"
    bundled = weights.load()
    for name in ("a.net", "a.safetensors"):
        loaded = weights.load(tmp_path / name)
        assert loaded.calibration == Calibration(t, found["none_below"])
        assert (loaded.classes, loaded.lrn, loaded.preprocess) == (bundled.classes, bundled.lrn, bundled.preprocess)
        for layer, pair in bundled.layers.items():
            assert all(map(torch.equal, pair, loaded.layers[layer]))
    original, anew = weights.path_of("cifar10").read_bytes(), (tmp_path / "a.net").read_bytes()
    about = bundled.classes, bundled.lrn, bundled.preprocess, bundled.calibration
    described = json.dumps(weights.common.describe(*about)).encode()
    assert original.endswith(described + len(described).to_bytes(4, "little") + deep_compression.MAGIC)
    assert anew.startswith(original[: -len(described) - 12])
    status, out, err = here(folder, "--workers", 0, "--weights", tmp_path / "a.net", "--json")
    assert json.loads(out)["loss"] == pytest.approx((loss(fit, t) + loss(rest, t)) / 2, rel=1e-3)
    assert sorted(os.listdir(tmp_path)) == ["a.net", "a.safetensors"]


BAD = {
    "calibrate: format": (["good", "--calibrate", "a.npy"], "--calibrate must name a .safetensors or .net file, got"),
    "calibrate: crops": (["good", "--calibrate", "a.net", "--ten-crop"], "--calibrate takes central crops, as"),
    "calibrate: nowhere": (["good", "--calibrate", "no/a.net"], "no/a.net: cannot be written: No such file"),
    "calibrate: one photo": (["one", "--calibrate", "a.net"], "--calibrate takes at least 2 images that can be read"),
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
    shutil.copytree(folder / "ship", "one/ship")
    for path in ("other/lamp", "broken/cat"):
        Path(path).mkdir(parents=True)
        Path(path, "0.png").write_bytes(b"no image")
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"alexnet evaluate: error: {message}"), err
    assert len(err.splitlines()) == (2 if arguments == ["broken"] else 1)
    assert not Path("a.net").exists() and not Path("a.npy").exists()


def test_calibrate_from_another_format(here, folder, tmp_path):
    """What is no .net file would lose by becoming one."""
    source = tmp_path / "a.safetensors"
    checkpoint.write_weights(source, weights.load())
    status, out, err = here(folder, "--weights", source, "--calibrate", tmp_path / "b.net")
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith(f"alexnet evaluate: error: {source}: not a .net file, so --calibrate writes a .safetensors")


def test_calibrate_in_one_process(here, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, err = here(folder, "--calibrate", "a.net")
    assert (status, out) == (2, "") and "--calibrate runs in one process, not under torchrun" in err


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
