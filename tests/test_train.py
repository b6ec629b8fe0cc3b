"""``alexnet train``: killed and resumed, in several processes, in Python, and with bad input.

Most runs here are of a thin network on plain PyTorch (tests/narrow.py), in processes of their own.
"""

import csv
import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kernels.errors import AlexNetError
from model import train, weights
from model.photos.preprocess import FOLDER, RESIZE, Preprocess
from model.training import checkpoint, trainer
from model.training.config import TrainingConfig
from model.training.log import Log, Row, draw_curves
from model.training.step import TrainStep
from model.training.trainer import Trainer
from model.weights.common import describe
from tests.narrow import COLOURS, Narrow, Process, make_folder, signal_after

ROOT = Path(__file__).parent.parent
SMALL = ["--batch", 4, "--lr", 0.003, "--workers", 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """15 training images and 6 to validate with."""
    path = tmp_path_factory.mktemp("images")
    make_folder(path / "train", 5)
    make_folder(path / "val", 2)
    return path


@pytest.fixture
def here(monkeypatch, capsys, one_thread):
    """Runs the command in this process, on the thin network: (exit status, stdout, stderr)."""
    monkeypatch.setattr("model.training.start.AlexNet", Narrow)

    def run(*arguments):
        status = train.main([str(a) for a in (*arguments, "--operators", "torch", "--device", "cpu")])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_in_python(here, folder, tmp_path):
    """The config and the trainer give the bytes that the command gives, in another thread too."""
    same = {"batch": 4, "lr": 0.003, "workers": 0, "operators": "torch", "device": "cpu", "epochs": 1}
    trainer = Trainer(TrainingConfig(folder, tmp_path / "python", **same))
    with ThreadPoolExecutor() as pool:
        assert pool.submit(trainer.fit).result() is True
    assert trainer.summary().startswith(f"done: {tmp_path}/python/last.safetensors; best validation ")
    assert here(folder, *SMALL, "--epochs", 1, "--out", tmp_path / "command")[0] == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
    assert rows(tmp_path / "python") == rows(tmp_path / "command")


def test_config_is_frozen_and_checked():
    config = TrainingConfig("photos", freeze=("conv1",), weights=Path("a.npy"))
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3
    assert config.fixed() == json.loads(json.dumps(config.fixed())) and config.fixed()["weights"] == "a.npy"
    assert not {"data", "out", "resume"} & config.fixed().keys() and config.fixed()["freeze"] == ["conv1"]
    for wrong, message in (
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"augment": "no"}, "augment must be one of paper, scale, none, got 'no'"),
        ({"keep_prob": float("nan")}, "keep_prob must be from 0 to 1, got nan"),
        ({"lr": float("inf")}, "lr must be positive, got inf"),
        ({"zoom": (0.5,)}, r"zoom must be two parts in ascending order, over 0 to 16, got \[0.5\]"),
        ({"zoom": (float("nan"), 1.0)}, "zoom must be two parts"),
        ({"skip_layer": ["fc8"]}, "skip_layer leaves out layers of weights, but no weights are given"),
    ):
        with pytest.raises(AlexNetError, match=message):
            TrainingConfig("photos", **wrong)
    with pytest.raises(AlexNetError, match="data must name a folder, got none"):
        TrainingConfig([])
    assert TrainingConfig("a").folders == TrainingConfig([Path("a")]).folders == [Path("a")]
    assert TrainingConfig("a").fixed()["zoom"] is None and TrainingConfig("a").fixed()["even_classes"] is False


def rows(out):
    """The log without the speeds."""
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


@pytest.mark.full
def test_killed_at_any_moment(folder, tmp_path):
    """A killed run ends with the same weights, optimizer, position and log as a run that nobody disturbs."""
    arguments = [folder, *SMALL, "--epochs", 4, "--save-every", 2]
    whole = Process([*arguments, "--out", tmp_path / "whole"], tmp_path / "whole.txt")
    out = tmp_path / "killed"
    moments = [
        ("step", 1),  # before anything is saved
        ("half", 1),
        ("rename", 2),
        ("renamed", 1),
        ("row", 2),
        ("renamed", 2),
        ("term", 1),
        ("half", 2),
        ("step", 2),
    ]
    for moment in moments:
        status, printed = Process([*arguments, "--out", out, "--resume"], tmp_path / "a.txt", moment).join()
        assert status == (130 if moment[0] == "term" else -9), printed
        if moment[0] == "term":
            assert "stopped after step " in printed
    status, printed = Process([*arguments, "--out", out, "--resume", "--workers", 2], tmp_path / "a.txt").join()
    assert status == 0 and "going on after step " in printed, printed
    assert whole.join()[0] == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert rows(out) == rows(tmp_path / "whole") and len(rows(out)) == 12
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors",
        "curves.png",
        "last.safetensors",
        "log.csv",
    ]
    status, printed = Process([*arguments, "--out", out, "--resume"], tmp_path / "a.txt").join()
    assert status == 0 and "12 of 12" in printed


def test_folders_classes_and_zoom(here, folder, tmp_path, monkeypatch):
    """Two folders, one without val/. A run that stops goes on with the same folders, classes and windows."""
    more = make_folder(tmp_path / "more", 2)
    arguments = [folder, more, *SMALL, "--epochs", 2, "--even-classes", "--zoom", 0.4, 1.5]
    status, out, err = here(*arguments, "--out", tmp_path / "whole")
    assert status == 0 and out.startswith("21 images of 3 classes, 6 to validate with; 5 steps an epoch"), err
    config = checkpoint.read(tmp_path / "whole/last.safetensors")[1]["training"]["config"]
    assert config["even_classes"] is True and config["zoom"] == [0.4, 1.5]
    with monkeypatch.context() as patch:
        signal_after(patch, 7)
        assert here(*arguments, "--out", tmp_path / "cut")[0] == 130
    for wrong, message in (
        (["--zoom", 0.4, 1.0], "cannot resume: zoom was [0.4, 1.5] in "),
        ([], "cannot resume: even_classes was True in "),
    ):
        without = [folder, more, *SMALL, "--epochs", 2, *(["--even-classes"] if wrong else ["--zoom", 0.4, 1.5])]
        status, _, err = here(*without, *wrong, "--out", tmp_path / "cut", "--resume")
        assert status == 2 and message in err and len(err.splitlines()) == 1
    status, _, err = here(folder, *arguments[2:], "--out", tmp_path / "cut", "--resume")
    assert status == 2 and "are not those that" in err
    assert here(*arguments, "--out", tmp_path / "cut", "--resume")[0] == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for changed in (["--zoom", 0.4, 1.5], ["--even-classes"]):
        assert here(folder, more, *SMALL, "--epochs", 2, *changed, "--out", tmp_path / changed[0])[0] == 0
        assert rows(tmp_path / changed[0]) != rows(tmp_path / "whole")


@pytest.mark.parametrize("options", [["--dtype", "fp16"], ["--optimizer", "adamw", "--dtype", "bf16"]], ids=str)
def test_resumes_every_state(here, folder, tmp_path, options, monkeypatch):
    """float16's scaler and AdamW's two moments go on too."""
    arguments = [folder, *SMALL, "--epochs", 2, "--schedule", "cosine", *options]
    assert here(*arguments, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        signal_after(patch, 2)
        assert here(*arguments, "--out", tmp_path / "cut")[0] == 130
    assert here(*arguments, "--out", tmp_path / "cut", "--resume")[0] == 0
    assert (tmp_path / "cut/last.safetensors").read_bytes() == (tmp_path / "whole/last.safetensors").read_bytes()


def test_a_damaged_log(tmp_path):
    """Rows before the damage stay. A run whose log is gone ends without curves."""
    path = tmp_path / "log.csv"
    written = Log(path)
    for step in range(1, 4):
        written.add(Row(step, epoch=1, rate=0.1, loss=2.0, accuracy=0.5, images_per_second=9.0))
    written.file.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged, left in (
        (whole, 3),
        (lines[0] + lines[1] + b"2,1,x,2.0,0.5,9.0,,\r\n" + lines[3], 1),
        (lines[0] + lines[1] + lines[2][:6], 1),
        (b"junk\n", 0),
        (b"\x89PNG\xff", 0),
        (b"", 0),
    ):
        path.write_bytes(damaged)
        log = Log(path, steps=3)
        log.file.close()
        assert [row.step for row in log.rows] == [1, 2, 3][:left]
        assert path.read_bytes() == b"".join(lines[: left + 1])
    draw_curves(log.rows, 1, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_disk_without_room_for_the_log(tmp_path):
    log = Log(tmp_path / "log.csv")
    log.file.close()
    log.file = Mock(flush=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(AlexNetError, match=r"log\.csv: cannot be written: No space left on device"):
        log.add(Row(1, 1, 0.1, 2.0, 0.5, 9.0))


def two(arguments, folder, **trapped):
    """Two processes of one run in ``folder``/two; rank 1 gets ``trapped``."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": "2"}
    arguments = [*arguments, "--out", folder / "two"]
    return [
        Process(arguments, folder / "0.txt", RANK="0", **address),
        Process(arguments, folder / "1.txt", RANK="1", **address, **trapped),
    ]


def test_two_processes_train_as_one(folder, tmp_path):
    """Two ranks have the same global batches and average their gradients. Dropout is off: it differs by rank."""
    arguments = [folder, *SMALL, "--epochs", 2, "--keep-prob", 1]
    alone = Process([*arguments, "--out", tmp_path / "one"], tmp_path / "one.txt")
    both = two(arguments, tmp_path)
    assert alone.join()[0] == 0
    for process in both:
        status, printed = process.join()
        assert status == 0, printed
    assert not (tmp_path / "1.txt").read_text(), "only rank 0 prints"
    one, other = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(other) == 6
    for a, b in zip(one, other, strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-4)
        assert (b["step"], b["accuracy"], b["validation_accuracy"]) == (
            a["step"],
            a["accuracy"],
            a["validation_accuracy"],
        )
    alone, together = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    for name, tensor in alone.items():
        assert torch.allclose(together[name], tensor, atol=1e-4), name


def test_a_rank_that_vanishes(folder, tmp_path):
    """The other rank ends too, and says why."""
    first, second = two([folder, *SMALL, "--epochs", 2], tmp_path, trapped=("step", 2))
    assert second.join()[0] == -9
    status, printed = first.join()
    assert status == 2
    assert printed.splitlines()[-1] == "alexnet train: error: rank 0: another rank has ended, and this one with it"


@pytest.mark.full
def test_a_failing_rank_ends_the_run(folder, tmp_path):
    """Under torchrun, with the real network: the line names the rank and the reason, and all ranks end at once."""
    images = tmp_path / "images"
    make_folder(images, 2)
    for path in images.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    next(iter(sorted(images.glob("*/*.png")))).unlink()
    Image.new("RGB", (9, 9)).save(images / "blue" / "whole.png")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "model.train", images, "--strict", "--batch=2", "--operators=torch", "--device=cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "alexnet train: error: rank " in done.stderr and "cannot be read as an image" in done.stderr, done.stderr
    assert not list((tmp_path / "training").glob("*.safetensors"))


def test_learns(here, tmp_path):
    """The network learns to tell three colours apart, and the curves are drawn."""
    images = make_folder(tmp_path / "images", 10)
    easy = ["--optimizer", "adamw", "--lr", 0.001, "--schedule", "cosine", "--keep-prob", 1, "--augment", "none"]
    status, out, err = here(images, "--out", tmp_path / "run", "--epochs", 12, "--batch", 10, "--workers", 0, *easy)
    assert status == 0 and not err
    accuracy = [float(row["accuracy"]) for row in rows(tmp_path / "run")]
    assert sum(accuracy[-3:]) / 3 > 0.95, accuracy
    assert out.splitlines()[0].startswith("30 images of 3 classes; 3 steps an epoch; fp32, torch, on ")
    assert "epoch 12/12: loss 0." in out
    with Image.open(tmp_path / "run" / "curves.png") as plot:
        assert plot.format == "PNG" and len(plot.convert("RGB").getcolors(1 << 24)) > 100


@pytest.mark.full
def test_fine_tuning_and_what_reads_it(tmp_path, capsys):
    """The real network from the bundled weights; only fc8 trains. Its checkpoint is a file of weights."""
    images = make_folder(tmp_path / "images", 2)
    frozen = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    arguments = [images, "--out", tmp_path / "run", "--weights", "cifar10", "--skip-layer", "fc8", "--batch", "3"]
    arguments += ["--freeze", *frozen, "--epochs", "1", "--operators", "torch", "--device", "cpu", "--workers", "0"]
    assert train.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    loaded, bundled = weights.load(tmp_path / "run" / "last.safetensors"), weights.load()
    assert loaded.classes == tuple(COLOURS) and loaded.lrn == bundled.lrn
    assert loaded.preprocess.mean == bundled.preprocess.mean and "256x256" in loaded.preprocess.resize
    for name in frozen:
        assert all(map(torch.equal, loaded.layers[name], bundled.layers[name])), name
    assert loaded.layers["fc8"][0].shape == (3, 4096) and loaded.layers["fc8"][1].abs().max() > 0, "fc8 did not move"
    found = {name for name in load_file(tmp_path / "run" / "last.safetensors") if name.startswith("optimizer.")}
    assert found == {f"optimizer.fc8.{part}.momentum_buffer" for part in ("weight", "bias")}
    (tmp_path / "run" / "last.safetensors").unlink()  # 230 MB


def test_weights_of_divided_inputs(here, folder, tmp_path):
    """Weights keep the mean and std that they were trained with, but take photos that are not shrunk."""
    start = tmp_path / "start.safetensors"
    own = Preprocess((100.0, 110.0, 120.0), next(rule for rule in RESIZE if "32x32" in rule), (50.0, 60.0, 70.0), "RGB")
    checkpoint.write(start, dict(Narrow(3).named_parameters()), describe(list(COLOURS), "paper", own))
    arguments = [folder, *SMALL, "--out", tmp_path / "run", "--weights", start, "--augment", "scale"]
    status, _, err = here(*arguments, "--epochs", 1)
    assert status == 0, err
    loaded = weights.load(tmp_path / "run" / "last.safetensors")
    assert loaded.preprocess == replace(own, resize=FOLDER) and loaded.lrn == "paper"
    status, out, err = here(*arguments, "--epochs", 1, "--resume")
    assert status == 0 and "3 of 3" in out, err


def test_none_right_is_the_best_so_far(here, folder, tmp_path, monkeypatch):
    """best.safetensors is written after the first validation, even if its accuracy is 0."""
    count = trainer.measure_accuracy

    def counts_none(*args, **options):
        counts = count(*args, **options)
        return replace(counts, confusion=torch.tensor([[0, 2, 0], [2, 0, 0], [2, 0, 0]]))

    monkeypatch.setattr(trainer, "measure_accuracy", counts_none)
    status, out, err = here(folder, *SMALL, "--epochs", 2, "--out", tmp_path)
    assert status == 0, err
    assert out.splitlines()[-1].endswith(f"; best validation 0.0% in {tmp_path}/best.safetensors")
    assert weights.load(tmp_path / "best.safetensors").classes == tuple(COLOURS)


def test_unreadable_images(here, tmp_path):
    """A broken photo is named once and counted, and the next one takes its place. With --strict the run ends."""
    images = make_folder(tmp_path / "images", 3)
    broken = images / "green" / "1.png"
    broken.write_bytes(b"no image")
    arguments = [images, *SMALL, "--epochs", 4, "--out", tmp_path / "run"]
    status, out, err = here(*arguments)
    assert status == 0
    assert err.splitlines() == [f"{broken}: not an image in a format that Pillow reads; skipped"]
    assert out.splitlines()[-1].endswith("; images that cannot be read and were skipped: 1")
    status, _, err = here(*arguments[:-1], tmp_path / "other", "--strict")
    assert status == 2
    assert err.splitlines() == [f"alexnet train: error: {broken}: not an image in a format that Pillow reads"]


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_vanish(here, tmp_path, monkeypatch, workers):
    """All photos vanish during a run, as if a network disk is gone: one line, and the checkpoint stays."""
    images, step = make_folder(tmp_path / "images", 3), TrainStep.__call__

    def vanish(self, number, *args):
        for path in images.glob("*/*.png"):
            path.unlink(missing_ok=True)
        return step(self, number, *args)

    monkeypatch.setattr(TrainStep, "__call__", vanish)
    options = ["--epochs", 9, "--save-every", 1, "--out", tmp_path / "run"]
    status, _, err = here(images, *SMALL, *options, "--workers", workers)
    *skipped, line = err.splitlines()
    assert status == 2 and all(other.endswith("; skipped") for other in skipped)
    assert line.startswith("alexnet train: error: not one of 9 images can be read; ")
    assert line.endswith(": no such file")
    assert weights.load(tmp_path / "run" / "last.safetensors").classes == tuple(COLOURS)


@pytest.mark.parametrize("every", [1, 3])
def test_a_loss_that_is_no_number(here, folder, tmp_path, every):
    """Loss or weights become NaN: these are not saved, and the last good checkpoint stays."""
    out = tmp_path / "run"
    status, _, err = here(folder, *SMALL, "--epochs", 3, "--out", out, "--lr", 3e4, "--save-every", every)
    assert status == 2 and len(err.splitlines()) == 1
    assert "the loss of step " in err or " made weights of NaN or infinity; " in err
    assert err.endswith("; a lower lr may help\n")
    if (out / "last.safetensors").exists():
        assert f"; {out / 'last.safetensors'}, of step " in err
        assert weights.load(out / "last.safetensors").classes == tuple(COLOURS), "holds NaN"
    else:
        assert "no checkpoint was written yet" in err


def test_weights_that_are_no_numbers_are_not_saved(here, folder, tmp_path, monkeypatch):
    step = TrainStep.__call__

    def overflows(self, number, *args):
        metrics = step(self, number, *args)
        if number == 4:
            self.net.fc7.bias.data[3] = torch.inf
        return metrics

    monkeypatch.setattr(TrainStep, "__call__", overflows)
    status, _, err = here(folder, *SMALL, "--epochs", 3, "--out", tmp_path / "run", "--save-every", 1)
    assert status == 2 and "step 5 made weights of NaN or infinity" in err and "of step 4, is kept" in err
    assert weights.load(tmp_path / "run" / "last.safetensors").layers["fc7"][1].isfinite().all()


BAD = {
    "no folder": (["nowhere"], "nowhere: no such folder"),
    "long name": (["a" * 300], f"{'a' * 300}: cannot be read: File name too long"),
    "none readable": (["broken"], "broken: none of the 5 images tried can be read; broken/a/0.png: not an image"),
    "a file": (["a.txt"], "a.txt: not a folder"),
    "no classes": (["none"], "none: must hold a sub-folder of images for each class"),
    "empty class": (["empty"], "empty: no images of the class 'b' (names must end as in .jpg"),
    "other classes in val": (["other"], "other: train and val must have the same classes; only one of them has 'c'"),
    "classes of two folders": (["good", "other/val"], "good/train and other/val must have the same classes; only one"),
    "no second folder": (["good", "nowhere"], "nowhere: no such folder"),
    "zoom": (["good", "--zoom", "2", "1"], "zoom must be two parts in ascending order, over 0 to 16, got [2.0, 1.0]"),
    "zoom 0": (["good", "--zoom", "0", "1"], "zoom must be two parts in ascending order, over 0 to 16, got [0.0, 1.0]"),
    "one zoom": (["good", "--zoom", "1"], "argument --zoom: expected 2 arguments"),
    "zoom of centres": (["good", "--zoom", "1", "1", "--augment", "none"], "zoom is random, which augment none is not"),
    "batch": (["good", "--batch", "16"], "batch 16 is more than the 15 images of good/train"),
    "batch 0": (["good", "--batch", "0"], "batch must be at least 1, got 0"),
    "lr": (["good", "--lr", "-1"], "lr must be positive, got -1.0"),
    "keep-prob": (["good", "--keep-prob", "2"], "keep_prob must be from 0 to 1, got 2.0"),
    "dtype": (["good", "--dtype", "fp8"], "argument --dtype: invalid choice: 'fp8'"),
    "weights": (["good", "--weights", "nothing.npy"], "nothing.npy: no such file, and no weights of that name"),
    "class count": (["good", "--weights", "4.safetensors"], "4.safetensors: fc8's weight must be (3, 64), got (4, 64)"),
    "another network": (
        ["good", "--weights", "odd.safetensors"],
        "odd.safetensors: weights of another network, whose lrn is not",
    ),
    "layer": (["good", "--freeze", "conv9"], "freeze must name layers among conv1, conv2, "),
    "skipped": (["good", "--skip-layer", "fc8"], "skip_layer leaves out layers of weights, but no weights are given"),
    "all frozen": (["good", "--freeze", *weights.LAYER_NAMES], "freeze leaves no layer to train"),
    "a run is there": (["good", "--out", "run"], "run holds a run: resume it, or choose another out"),
    "not a checkpoint": (["good", "--out", "run", "--resume"], "run/last.safetensors: cannot be read: "),
    "out": (["good", "--out", "a.txt"], "a.txt: cannot be written: File exists"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_one_line_for_bad_input(here, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    os.symlink(folder, "good")
    Path("a.txt").write_text("")
    for path in ("none", "empty/b", "other/val/c", "run"):
        Path(path).mkdir(parents=True)
    os.symlink(folder / "train" / "red", "empty/a")
    Path("broken/a").mkdir(parents=True)
    for index in range(5):
        Path(f"broken/a/{index}.png").write_text("no image")
    os.symlink(folder / "train", "other/train")
    for name in COLOURS:
        os.symlink(folder / "train" / name, f"other/val/{name}")
    os.symlink(folder / "train" / "red" / "0.png", "other/val/c/0.png")
    Path("run/last.safetensors").write_bytes(b"junk")
    bundled = weights.load()
    weight, bias = bundled.layers["fc8"]
    odd = describe(bundled.classes, "other", bundled.preprocess)
    four = describe("abcd", "bvlc", bundled.preprocess)
    checkpoint.write(Path("4.safetensors"), dict(Narrow(4).named_parameters()), four)
    checkpoint.write(Path("odd.safetensors"), {"fc8.weight": weight, "fc8.bias": bias}, odd)
    status, out, err = here(*arguments, *([] if "--batch" in arguments else ["--batch", 4]))
    assert (status, out) == (2, "")
    assert err.startswith(f"alexnet train: error: {message}") and len(err.splitlines()) == 1, err


def test_resume_must_be_asked_for_the_same(here, folder, tmp_path):
    out = tmp_path / "run"
    assert here(folder, *SMALL, "--epochs", 1, "--out", out)[0] == 0
    for option, message in (
        (["--lr", 0.5], "cannot resume: lr was 0.003 in "),
        (["--seed", 1], "cannot resume: seed was 0 in "),
        (["--epochs", 2], "cannot resume: epochs was 1 in "),
    ):
        status, _, err = here(folder, *SMALL, "--epochs", 1, "--out", out, "--resume", *option)
        assert status == 2 and message in err
    tensors, meta = checkpoint.read(out / "last.safetensors")
    for older in ({"step": 3, "arguments": {"epochs": 1}}, meta["training"] | {"config": {"epochs": 1}}):
        checkpoint.write(out / "last.safetensors", tensors, meta | {"training": older})
        status, _, err = here(folder, *SMALL, "--epochs", 1, "--out", out, "--resume")
        assert status == 2 and "another version wrote this run, so it cannot go on; a new run can start from it" in err
    checkpoint.write(out / "last.safetensors", tensors, meta)
    smaller = make_folder(tmp_path / "smaller", 4)
    status, _, err = here(smaller, *SMALL, "--epochs", 1, "--out", out, "--resume")
    assert status == 2 and "are not those that" in err
