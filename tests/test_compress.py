"""``alexnet compress``: each of its steps, weights that stay 0 once they are pruned, and the whole command."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

import model.alexnet
from kernels.tools import torch_ops
from model import compress, weights
from model.alexnet import AlexNet
from model.photos.preprocess import FOLDER, Preprocess
from model.training import checkpoint, compression
from model.training.config import RETRAINING, TrainingConfig
from model.weights import Weights, deep_compression
from model.weights.common import describe
from tests.narrow import COLOURS, Narrow, make_folder, signal_after

PREPROCESS = Preprocess((100.0, 110.0, 120.0), FOLDER, (50.0, 50.0, 50.0))


@pytest.fixture
def here(capsys):
    """Runs the command in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        status = compress.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def narrow(monkeypatch, one_thread):
    """The thin network, with random weights, in place of the real one, in files too."""
    net = Narrow(3)
    shapes = {name: tuple(net.get_submodule(name).weight.shape) for name in weights.LAYER_NAMES}
    monkeypatch.setattr("model.training.start.AlexNet", Narrow)
    monkeypatch.setattr(model.alexnet, "AlexNet", Narrow)
    monkeypatch.setattr(deep_compression, "shapes", lambda classes: shapes)
    return net


def layers_of(net):
    return {
        name: (net.get_submodule(name).weight.detach(), net.get_submodule(name).bias.detach())
        for name in weights.LAYER_NAMES
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 training images and 6 to validate with."""
    path = tmp_path_factory.mktemp("images")
    make_folder(path / "train", 4)
    make_folder(path / "val", 2)
    return path


@pytest.fixture
def start(narrow, tmp_path):
    """A file of the thin network's weights."""
    path = tmp_path / "start.safetensors"
    checkpoint.write(path, dict(narrow.named_parameters()), describe(list(COLOURS), "paper", PREPROCESS))
    return path


@pytest.mark.parametrize("density", [0.001, 0.09, 0.5, 1.0])
def test_prune(density):
    weight = torch.randn(30, 4, 5, 5)
    mask = compression.prune(weight, density)
    assert mask.shape == weight.shape and mask.sum() == round(density * 3000)
    magnitudes = sorted(weight.abs().flatten().tolist())
    assert sorted(weight[mask].abs().tolist()) == magnitudes[len(magnitudes) - int(mask.sum()) :]


def test_prune_few():
    assert compression.prune(torch.full((10, 10), -3.0), 0.25).sum() == 25  # equal weights
    weight = torch.zeros(10, 10)
    weight[3, 4] = -1.0
    assert torch.equal(compression.prune(weight, 0.5), weight != 0.0)


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
@pytest.mark.parametrize("count", [15, 255])
def test_cluster(count):
    """The same centres as SciPy's k-means from the same start."""
    values = np.random.default_rng(0).laplace(0.0, 0.02, 2000).astype(np.float32)
    centres = compression.cluster(values, count)
    assert centres.dtype == np.float32 and np.array_equal(centres, np.sort(centres))
    every = values.astype(np.float64)[:, None]
    start = np.linspace(every.min(), every.max(), count)[:, None]
    expected, _ = kmeans2(every, start, iter=200, minit="matrix")
    assert np.allclose(centres, expected[:, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 9, [-1.0, 0.25, 3.0]], ids=str)
def test_cluster_of_few(values):
    centres = compression.cluster(np.array(values, np.float32), 15)
    assert centres.shape == (15,) and np.isfinite(centres).all() and set(values) <= set(centres.tolist())


@pytest.mark.parametrize(("shape", "count"), [((40, 3, 5, 5), 256), ((50, 60), 16)], ids=["conv", "fc"])
def test_quantise(shape, count):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[np.abs(weight) < 1.0] = 0.0
    few, codebook = compression.quantise(weight)
    assert len(codebook) == count and codebook[0] == 0.0
    assert np.array_equal(few == 0.0, weight == 0.0) and set(few.ravel().tolist()) <= set(codebook.tolist())
    nearest = np.abs(weight.reshape(-1, 1) - codebook[1:]).min(1)
    assert np.allclose(np.abs(weight - few).ravel()[weight.ravel() != 0.0], nearest[weight.ravel() != 0.0], atol=1e-6)


def test_what_is_pruned_stays_so(narrow, folder, tmp_path):
    """Pruned weights stay 0 through momentum and decay. The others move, and without masks all would."""
    layers = layers_of(narrow)
    masks = {name: compression.prune(weight, 0.3) for name, (weight, _) in layers.items()}
    pruned = {name: (weight * masks[name], bias) for name, (weight, bias) in layers.items()}
    same = {"epochs": 3, "batch": 4, "workers": 0, "operators": "torch", "device": "cpu"}
    config = TrainingConfig(folder, tmp_path / "held", **RETRAINING | same)
    loaded = Weights(pruned, tuple(COLOURS), "paper", PREPROCESS, "narrow")
    retrained = compression.retrain(loaded, masks, config)
    for name, (weight, bias) in retrained.layers.items():
        assert not weight[~masks[name]].any(), name
        assert (weight[masks[name]] != pruned[name][0][masks[name]]).float().mean() > 0.5, name
        assert bias.isfinite().all() and bias.shape == pruned[name][1].shape
    free = compression.retrain(loaded, {}, dataclasses.replace(config, out=tmp_path / "free"))
    assert all(weight[~masks[name]].any() for name, (weight, _) in free.layers.items())


def test_command(here, start, folder, tmp_path):
    """Every step prints its accuracy, and a retraining that was stopped goes on."""
    out = tmp_path / "small.net"
    arguments = [start, out, "--data", folder, "--epochs", 2, "--batch", 4, "--workers", 0, "--operators", "torch"]
    arguments += ["--device", "cpu", "--density", "fc6=0.5", "fc8=1"]
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, 4)
        status, printed, err = here(*arguments)
    assert status == 130 and "stopped after step 4 of 6" in printed and not out.exists(), err
    status, _, err = here(*arguments[:-1], "fc8=0.5", "--resume")
    assert status == 2 and f"cannot resume: weights was {start}, density fc6=0.5, fc8=1.0 in " in err
    (tmp_path / "small.net.training" / "notes.txt").write_text("the user's own")
    status, printed, err = here(*arguments, "--resume")
    assert status == 0, err
    assert [path.name for path in (tmp_path / "small.net.training").iterdir()] == ["notes.txt"]
    steps = [line.partition(":")[0] for line in printed.splitlines() if "; accuracy " in line]
    assert steps == [str(start), "pruned", "retrained", "quantised"]
    assert "going on after step 4 of 6" in printed and f"{out}: {out.stat().st_size:,} bytes" in printed
    assert "small.net.partial" not in [path.name for path in tmp_path.iterdir()]
    loaded = weights.load(out)
    assert (loaded.classes, loaded.lrn, loaded.preprocess) == (tuple(COLOURS), "paper", PREPROCESS)
    for name, (weight, _) in loaded.layers.items():
        share = {"fc6": 0.5, "fc8": 1.0}.get(name, compression.DENSITY[name])
        assert int(weight.count_nonzero()) == round(share * weight.numel()), name
        assert len(weight.unique()) <= (256 if weight.dim() == 4 else 16)


def test_in_python(start, tmp_path, capsys):
    """Without images: neither retrained nor measured, and an earlier retraining's folder stays."""
    out, earlier = tmp_path / "small.net", tmp_path / "small.net.training" / "last.safetensors"
    earlier.parent.mkdir()
    earlier.touch()
    assert compression.compress(start, out, {"fc6": 1.0}) is True
    printed = capsys.readouterr().out
    assert "retrained" not in printed and "accuracy" not in printed and earlier.exists()
    assert weights.load(out).layers["fc6"][0].count_nonzero() == weights.load(start).layers["fc6"][0].numel()


@pytest.mark.full
@pytest.mark.unguarded  # 57 million weights
def test_a_dense_network_of_true_size(here, tmp_path):
    """Random weights, which have no zeros: the file is under 8 MB, and gives the logits of the rounded weights."""
    shapes = deep_compression.shapes(10)
    layers = {name: (torch.randn(shape) * 0.02, torch.randn(shape[0])) for name, shape in shapes.items()}
    tensors = {f"{n}.{p}": t for n, pair in layers.items() for p, t in zip(("weight", "bias"), pair, strict=True)}
    source, out = tmp_path / "a.safetensors", tmp_path / "a.net"
    checkpoint.write(source, tensors, describe("0123456789", "bvlc", PREPROCESS))
    status, printed, err = here(source, out)
    source.unlink()  # 228 MB
    assert status == 0 and not err and "accuracy" not in printed and out.stat().st_size < 8e6
    loaded = weights.load(out)
    assert loaded.classes == tuple("0123456789") and loaded.preprocess == PREPROCESS
    few = {}
    for name, (weight, bias) in layers.items():
        pruned = weight.mul_(compression.prune(weight, compression.DENSITY[name])).numpy()
        few[name] = torch.from_numpy(compression.quantise(pruned)[0]), bias
    nets = [AlexNet.from_weights(of).use(torch_ops) for of in (loaded, dataclasses.replace(loaded, layers=few))]
    x = torch.randn(1, 3, 227, 227)
    with torch.inference_mode():
        assert torch.equal(nets[0](x), nets[1](x)) and nets[0](x).std() > 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--density", "fc9=0.1"], "density takes shares up to 1 for layers among conv1, "),
        (["--density", "fc6=0"], "got fc6=0.0"),
        (["--density", "fc6=nan"], "got fc6=nan"),
        (["--density", "fc6"], "got 'fc6'"),
        (["--epochs", "-1"], "epochs must be at least 0, got -1"),
        (["--lr", "0.1"], "--lr is for retraining, which takes --data DIR"),
        (["--odd"], "unrecognized arguments: --odd"),
        (["--data", "DATA", "--lr", "-1"], "lr must be positive"),
        (["--data", "DATA", "--weights", "cifar10"], "unrecognized arguments: --weights cifar10"),
        (["--data", "DATA", "--freeze", "conv1"], "unrecognized arguments: --freeze conv1"),
        (["--data", "DATA", "--out", "run"], "unrecognized arguments: --out run"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "OTHER"], "must have the classes of "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(here, start, folder, tmp_path, options, words):
    make_folder(tmp_path / "other", 1)
    (tmp_path / "other" / "red").rename(tmp_path / "other" / "pink")
    places = {"DATA": folder, "OTHER": tmp_path / "other"}
    before = sorted(tmp_path.iterdir())
    status, out, err = here(start, tmp_path / "a.net", *[places.get(option, option) for option in options])
    assert status == 2 and not out and len(err.splitlines()) == 1
    assert err.startswith("alexnet compress: error: ") and words in err
    assert sorted(tmp_path.iterdir()) == before


def test_bad_files(here, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    net = Narrow(3)
    state = dict(net.named_parameters())
    small, torchvision = tmp_path / "small.safetensors", tmp_path / "torchvision.safetensors"
    checkpoint.write(small, {n: p for n, p in state.items() if "conv4" not in n}, describe("abc", "bvlc", PREPROCESS))
    checkpoint.write(torchvision, state, describe("abc", None, PREPROCESS))
    for source, out, words in (
        ("nothing.npy", "a.net", "nothing.npy: no such file"),
        (small, "a.net", "small.safetensors: must have conv4 with a weight of (24, 12, 3, 3)"),
        (
            torchvision,
            "a.net",
            "torchvision.safetensors: Deep Compression's format has no place for ",
        ),
        (start, "none/a.net", "none/a.net: cannot be written: No such file or directory"),
        (start, ".", ".: cannot be written: is a folder"),
        (start, "pipe", "pipe: cannot be written: is not a file"),
        (start, "x" * 300, "x: cannot be written: File name too long"),
    ):
        before = sorted(tmp_path.iterdir())
        status, printed, err = here(source, out)
        assert status == 2 and not printed and len(err.splitlines()) == 1
        assert words in err
        assert sorted(tmp_path.iterdir()) == before
