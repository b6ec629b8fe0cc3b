"""``python -m model.infer`` as a user runs it: in a process of its own, from another folder."""

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image

from kernels import runtime
from kernels.errors import AlexNetError
from kernels.tools import command, torch_ops
from kernels.tools.measurements import roofs_for
from model import weights
from model.alexnet import AlexNet
from model.calibration import Calibration
from model.checkout import MEASUREMENTS
from model.classify import Prediction, classify
from model.device import choose_device
from model.infer import draw, imagenet_hint, main, photo_table
from model.photos.folders import find_photos, read_folder
from model.photos.preprocess import open_image
from model.training import checkpoint
from model.weights.common import describe
from tests.reference_alexnet import reference_alexnet

ROOT = Path(__file__).parent.parent
DATA = Path(skimage.__file__).parent / "data"


def infer(folder, *arguments):
    """Returns (exit status, lines of stdout, lines of stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "model.infer", *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONIOENCODING": "utf-8",
            "TORCH_HOME": str(folder),
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.fixture(scope="module")
def expected():
    """A function from a photo to the probabilities of the bundled weights, in float64."""
    loaded = weights.load()

    def probabilities(path):
        x = loaded.preprocess(open_image(path))[None]
        logits = reference_alexnet(loaded.layers, x)[0] / loaded.calibration.temperature
        return dict(zip(loaded.classes, logits.softmax(0).tolist(), strict=True))

    return probabilities


def test_default_photo_with_layers_and_plot(tmp_path, expected):
    status, out, err = infer(tmp_path, "--layers", "--plot", "out.png", "--top", 3)
    assert status == 0, err
    assert err[0].startswith("no photo given: taking scikit-image's chelsea, a cat")
    assert out[0] == str(DATA / "chelsea.png")
    best = sorted(expected(DATA / "chelsea.png").items(), key=lambda item: -item[1])[:3]
    for rank, (label, probability) in enumerate(best, 1):
        row = out[rank].split()
        assert row[:3] == [str(rank), label, f"{probability:.1%}"]
        assert "".join(row[3:]) == "█" * round(40 * probability)
    assert not out[4]

    rows = {line.split()[0]: line for line in out[5:] if line}
    assert rows["conv2"].split()[1:9] == ["1", "x", "256", "x", "27", "x", "27", "307,456"]
    assert rows["fc8"].split()[1:5] == ["1", "x", "10", "40,970"]
    assert rows["total"].split()[1:3] == ["56,909,194", "720.4"]
    assert rows["pool5"].endswith("-"), "no roof has been measured"
    assert rows["cifar10"].startswith("cifar10 on ") and "fp32: 1 photo in " in rows["cifar10"]
    assert rows["10"] == "10 classes only; for ImageNet's 1000: --weights bvlc, which downloads 244 MB"

    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    with Image.open(tmp_path / "out.png") as plot:
        assert plot.format == "PNG" and min(plot.size) > 500
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 1000, "an empty picture"


def test_from_python(tmp_path, expected):
    """A photo that cannot be read has a message, and comes before the others of its batch."""
    loaded = weights.load()
    photos = [DATA / "chelsea.png", tmp_path / "no.png", DATA / "rocket.jpg"]
    first, second = classify(photos, AlexNet.from_weights(loaded).use(torch_ops), loaded, batch=2, top=3)
    assert (first.photos, second.photos) == (photos[:1], photos[2:])
    assert (first.unreadable, second.unreadable) == ([f"{tmp_path}/no.png: no such file"], [])
    for batch in (first, second):
        truth = expected(batch.photos[0])
        best = sorted(truth, key=truth.get, reverse=True)[:3]
        assert [prediction.label for prediction in batch.predictions[0]] == best
        assert [loaded.classes[prediction.index] for prediction in batch.predictions[0]] == best
        assert [prediction.probability for prediction in batch.predictions[0]] == pytest.approx(
            [truth[label] for label in best], abs=1e-5
        )


def test_calibrated_weights(monkeypatch, capsys, expected):
    """The temperature divides the logits, and below the threshold a line says that it is probably something else."""
    loaded, photo = weights.load(), DATA / "chelsea.png"
    net = AlexNet.from_weights(loaded).use(torch_ops)
    logits = torch.tensor(list(expected(photo).values()), dtype=torch.float64).log() * loaded.calibration.temperature
    surest = (logits / 3.0).softmax(0).max().item()
    assert surest < logits.softmax(0).max().item() - 0.05, "the temperature changes nothing here"
    for none_below, none in ((None, None), (surest - 1e-3, False), (surest + 1e-3, True)):
        calibrated = replace(loaded, calibration=Calibration(3.0, none_below))
        (batch,) = classify([photo], net, calibrated, top=1)
        assert batch.predictions[0][0].probability == pytest.approx(surest, abs=1e-5) and batch.none == [none]
        monkeypatch.setattr(weights, "load", lambda _, calibrated=calibrated: calibrated)
        assert main([str(photo), "--top", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[2] == f"{surest:.1%}"
        assert lines[2] == ("      probably none of the ten classes" if none else "")
    assert main([str(photo), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["none_of_the_classes"] is True
    for classes, number in ((2, "two"), (12, "twelve"), (13, "13"), (1000, "1,000")):
        table = photo_table(classes, photo, batch.predictions[0], True)
        assert table.splitlines()[2] == f"      probably none of the {number} classes"


@pytest.mark.full
def test_folder_with_a_broken_file(tmp_path, expected):
    """Other processes decode two batches. Broken files are named, and the others come out in order."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    shutil.copy(DATA / "rocket.jpg", folder / "b.JPG")
    shutil.copy(DATA / "coffee.png", folder / "below" / "c.png")
    (folder / "a.png").write_bytes((DATA / "coffee.png").read_bytes()[:5000])
    (folder / ".hidden.png").write_text("no photo")
    (folder / "notes.txt").write_text("no photo")
    cat = tmp_path / "not a png.txt"
    shutil.copy(DATA / "chelsea.png", cat)
    status, out, err = infer(tmp_path, "photos", "nowhere.jpg", cat, "--json", "--layers", "--batch", 2, "--top", 10)
    assert status == 2
    assert len(err) == 3 and all(line.startswith("alexnet infer: error: ") for line in err), err
    assert any("nowhere.jpg: no such file" in line for line in err)
    assert any("photos/a.png: cannot be read as an image: " in line for line in err)
    assert err[-1] == "alexnet infer: error: 1 of 4 photos cannot be read"
    records = [json.loads(line) for line in out]
    assert [record["image"] for record in records] == ["photos/b.JPG", "photos/below/c.png", str(cat)]
    for record in records:
        found = {p["label"]: p["probability"] for p in record["predictions"]}
        truth = expected(tmp_path / record["image"])
        assert found == pytest.approx(truth, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert all(list(truth)[p["index"]] == p["label"] for p in record["predictions"])
        assert record["weights"] == "cifar10" and record["device"]
        assert record["mode"] == ("compiled" if torch.cuda.is_available() else "interpreted")
    layers = records[1]["layers"]
    assert [layer["name"] for layer in layers][:3] == ["conv1", "pool1", "conv2"]
    assert [record["layers"][0]["output"] for record in records] == [[1, 96, 55, 55], [2, 96, 55, 55], [2, 96, 55, 55]]
    assert all(layer["ms"] > 0 for layer in layers)
    measured = records[1]["mode"] == "compiled" and roofs_for(records[1]["device"], "fp32", MEASUREMENTS) is not None
    assert all((layer["roofline"] is not None) == measured for layer in layers)
    assert layers[0]["flops"] == 2 * layers[0]["macs"] == 2 * 2 * 105_415_200
    assert layers[0]["gflops"] == pytest.approx(layers[0]["flops"] / layers[0]["ms"] / 1e6)


BAD = {
    "missing photo": (["nowhere.jpg"], "nowhere.jpg: no such file"),
    "empty name": ([""], "'': no such file"),
    "long name": (["a" * 300], f"{'a' * 300}: cannot be read: File name too long"),
    "empty folder": (["empty"], "empty: no photos in this folder"),
    "option": (["--nothing"], "unrecognized arguments: --nothing"),
    "top below 1": (["--top", "0"], "argument --top: must be a whole number, at least 1, got '0'"),
    "top not a number": (["--top", "x"], "argument --top: must be a whole number, at least 1, got 'x'"),
    "batch": (["--batch", "0"], "argument --batch: must be a whole number, at least 1, got '0'"),
    "dtype": (["--dtype", "fp8"], "argument --dtype: invalid choice: 'fp8'"),
    "plot of two": (["a.png", "a.png", "--plot", "out.png"], "--plot takes one photo, got 2"),
    "plot not png": (["a.png", "--plot", "out.svg"], "argument --plot: must name a .png file, got 'out.svg'"),
    "plot nowhere": (["a.png", "--plot", "no/out.png"], "no/out.png: cannot be written: No such file"),
    "plot a folder": (["a.png", "--plot", "folder.png"], "folder.png: cannot be written: is a folder"),
    "truncated photo": (["cut.png", "--plot", "out.png"], "cut.png: cannot be read as an image: "),
}
SLOW_BAD = {  # these import PyTorch, as the truncated photo does
    "weights": (["a.png", "--weights", "other"], "other: no such file, and no weights of that name (cifar10, "),
    "top above the classes": (["a.png", "--top", "11"], "--top must be at most the 10 classes of cifar10, got 11"),
    "no GPU": (["a.png", "--device", "cuda", "--plot", "out.png"], "device cuda: no GPU here that PyTorch can use"),
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(pytest.param(*case, id=name) for name, case in BAD.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.full) for name, case in SLOW_BAD.items()),
    ],
)
def test_one_line_for_bad_input(tmp_path, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    shutil.copy(DATA / "chelsea.png", tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((DATA / "chelsea.png").read_bytes()[:9999])
    before = sorted(tmp_path.iterdir())
    status, out, err = infer(tmp_path, *arguments)
    assert (status, out, len(err)) == (2, [], 1), (status, out, err)
    assert err[0].startswith(f"alexnet infer: error: {message}")
    assert sorted(tmp_path.iterdir()) == before, "left a file behind"


def test_weights_that_do_not_fit(tmp_path):
    """One line that names the file and the layer."""
    loaded = weights.load()
    meta = describe(loaded.classes, loaded.lrn, loaded.preprocess)
    checkpoint.write(tmp_path / "a.safetensors", {"fc8.bias": torch.zeros(3)}, meta)
    status, out, err = infer(tmp_path, "--weights", "a.safetensors")
    assert (status, out, len(err)) == (2, [], 1)
    assert err[0].startswith("alexnet infer: error: a.safetensors: fc8 must have a weight and a bias")


@pytest.mark.full
def test_weights_that_overflow(monkeypatch, capsys):
    """The weights are finite, but the probabilities are NaN: JSON has no NaN, and no class is the likeliest."""
    loaded = weights.load()
    huge = {name: (weight * 1e20, bias) for name, (weight, bias) in loaded.layers.items()}
    monkeypatch.setattr(weights, "load", lambda _: replace(loaded, layers=huge))
    cat = str(DATA / "chelsea.png")
    for options in ([], ["--json"]):
        status = main([cat, *options])
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert err == f"alexnet infer: error: {cat}: cifar10 overflows in float32: its probabilities are not numbers\n"


def test_no_memory_for_a_graph(monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runtime, "mode", lambda: "compiled")
    monkeypatch.setattr(AlexNet, "capture", full)
    cat = str(DATA / "chelsea.png")
    assert main([cat, cat, "--batch", "1", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith("alexnet infer: error: batch 1 does not fit in the memory of ")


def test_compiled_kernels_without_a_gpu(monkeypatch):
    """As if TRITON_INTERPRET=0 was set here."""
    monkeypatch.setattr(runtime, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AlexNetError, match="TRITON_INTERPRET=0 asks for compiled kernels, but no GPU is here"):
        choose_device("auto")


def test_labels_do_not_command_the_terminal():
    """Labels come from the file of weights, whose author may not be trusted."""
    predictions = [Prediction(0, "a\x1b[2J\ncat", 0.5), Prediction(1, "dog", 0.25)]
    lines = photo_table(10, Path("a.png"), predictions).splitlines()
    assert lines[1].split()[:3] == ["1", r"a\x1b[2J\ncat", "50.0%"]
    assert lines[2].index("25.0%") == lines[1].index("50.0%")


def test_labels_are_no_formulas(tmp_path):
    """Matplotlib takes text between two $ for TeX."""
    predictions = [Prediction(0, "$x_{$", 0.5)]
    draw(tmp_path / "a.png", DATA / "chelsea.png", predictions, torch.ones(96, 55, 55), "of $x_{$")
    assert (tmp_path / "a.png").stat().st_size


def test_hint_about_imagenet(tmp_path, monkeypatch):
    """Weights in the cache are named. If there are none, a download is offered. Nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = weights.load()
    offer = "\n10 classes only; for ImageNet's 1000: --weights bvlc, which downloads 244 MB"
    assert imagenet_hint(loaded) == offer
    assert imagenet_hint(replace(loaded, name="other")) == ""
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "bvlc_alexnet.caffemodel").write_bytes(b"half of it")
    assert imagenet_hint(loaded) == offer
    with open(cache / "alexnet-owt-7be5be79.pth", "wb") as file:
        file.truncate(weights.NAMED["torchvision"].sources[0].bytes)
    cached = "\n10 classes only; for ImageNet's 1000: --weights torchvision, which is in the cache"
    assert imagenet_hint(loaded) == cached


def test_stdout_may_be_no_file():
    """In a notebook it is not a file, and neither is a redirected one."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert command.run("alexnet infer", lambda _: print("a cat") or 0, None) == 0
    assert out.getvalue() == "a cat\n"


def test_folder_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    """The folder is named, and the one beside it is read."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    scandir = os.scandir

    def refuse(path):
        if Path(path) == tmp_path / "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = f"{tmp_path}/a: cannot be read: Permission denied"
    assert find_photos([str(tmp_path)]) == ([tmp_path / "b/0.png"], [message])
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"alexnet infer: error: {message}"
    with pytest.raises(AlexNetError, match="a: cannot be read: Permission denied"):
        read_folder(tmp_path)
