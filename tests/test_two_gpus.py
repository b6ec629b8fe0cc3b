"""AlexNet split over two processes: as a user runs it, and its halves in threads of one process."""

import dataclasses
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from lesson import halves as threads

import pytest
import skimage
import torch
import torch.nn.functional as F

from model import halves, two_gpus, weights
from model.photos.preprocess import open_image
from tests.reference_alexnet import reference_alexnet, relative_error

ROOT = Path(__file__).parent.parent
CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "model.two_gpus")


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def loaded():
    return weights.load()


@pytest.fixture(scope="module")
def photo(loaded):
    return loaded.preprocess(open_image(CHELSEA))[None]


@pytest.mark.full
def test_logits_of_one_process(loaded, photo):
    process = start(*TORCHRUN)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].endswith("chelsea.png") and lines[1].startswith("2 processes, "), "both processes print"
    rows = {line.split()[0]: line.split() for line in lines[5:18]}
    assert {name: " ".join(row[1:-2]) for name, row in rows.items()} == {
        "conv1": "48 x 55 x 55",
        "pool1": "48 x 27 x 27",
        "conv2": "128 x 27 x 27",
        "pool2": "128 x 13 x 13",
        "conv3": "192 x 13 x 13",
        "conv4": "192 x 13 x 13",
        "conv5": "128 x 13 x 13",
        "pool5": "128 x 6 x 6",
        "fc6": "2048",
        "fc7": "2048",
        "fc8": "5",
        "logits": "10",
        "total": "",
    }
    number = lambda text: int(text.replace(",", ""))
    parameters, received = ({name: number(row[at]) for name, row in rows.items()} for at in (-2, -1))
    for name, layer in loaded.layers.items():
        assert parameters[name] == sum(tensor.numel() for tensor in layer) / 2
    assert parameters["total"] == 56_909_194 / 2
    # float32 maps of the other process: where the paper exchanges them, and 2 for each normalisation.
    maps = {"conv3": 128 * 13 * 13, "fc6": 128 * 6 * 6, "fc7": 2048, "fc8": 2048, "logits": 5}
    border = {"pool1": 2 * 55 * 55, "pool2": 2 * 27 * 27}
    expected = {name: 4 * count for name, count in (maps | border).items()}
    assert received == {**dict.fromkeys(rows, 0), **expected, "total": sum(expected.values())}

    # On a CPU it was 0: the sums run in one order. On a GPU, half and whole may have other tiles.
    assert lines[19].startswith("largest difference from one process's logits: ")
    assert float(lines[19].split()[7]) < 1e-5
    probability, best = reference_alexnet(loaded.layers, photo)[0].softmax(0).max(0)
    assert lines[20:] == [f"prediction: {loaded.classes[best]}, {probability:.1%}"]


def test_exact_in_float64(loaded, photo, monkeypatch):
    """The logits of one process. conv1 is 16 times larger than usual, so that normalisation matters."""
    weight, bias = loaded.layers["conv1"]
    loud = dataclasses.replace(loaded, layers={**loaded.layers, "conv1": (weight * 16, bias * 16)})
    reference = reference_alexnet(loud.layers, photo)
    (first, second), _ = threads.run(loud, photo.double())
    assert relative_error(first, reference) < 1e-12
    assert torch.equal(first, second)

    # The paper's GPUs normalised only their own maps.
    monkeypatch.setattr(halves.BorderedLRNMaxPool2d, "forward", halves.LRNMaxPool2d.forward)
    (first, _), _ = threads.run(loud, photo.double())
    assert relative_error(first, reference) > 1e-4, "the maps beyond the border make no difference"


def test_no_halves_of_torchvisions_network(loaded):
    with pytest.raises(weights.WeightsError, match="lrn must be one of bvlc, tensorflow, paper, got None"):
        halves.Half.from_weights(dataclasses.replace(loaded, lrn=None), 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_halves_of_the_weights(loaded, rank):
    layers = halves.halve(loaded, rank).layers
    shapes = {name: tuple(weight.shape) for name, (weight, _) in layers.items()}
    assert shapes == {
        "conv1": (48, 3, 11, 11),
        "conv2": (128, 48, 5, 5),
        "conv3": (192, 256, 3, 3),
        "conv4": (192, 192, 3, 3),
        "conv5": (128, 192, 3, 3),
        "fc6": (2048, 9216),
        "fc7": (2048, 4096),
        "fc8": (5, 4096),
    }
    for name, groups in (("conv2", 2), ("conv3", 1), ("conv4", 2), ("conv5", 2)):
        whole, half = ([tensor.double() for tensor in layer[name]] for layer in (loaded.layers, layers))
        x = torch.randn(1, groups * whole[0].shape[1], 7, 7, dtype=torch.float64)
        expected = F.conv2d(x, *whole, groups=groups).chunk(2, 1)[rank]
        torch.testing.assert_close(F.conv2d(x.chunk(groups, 1)[rank % groups], *half), expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_joined_channels_keep_their_order(rank, monkeypatch):
    """fc6's columns are in the order C, H, W, and C has the channels of both processes."""
    whole = torch.arange(256 * 6 * 6.0).reshape(1, 256, 6, 6)
    parts = whole.chunk(2, 1)
    monkeypatch.setattr(halves.Other, "swap", lambda other, mine: parts[1 - rank])
    joined = halves.Other(rank).join(parts[rank])
    assert torch.equal(joined.flatten(1), whole.flatten(1))


@pytest.mark.parametrize(
    ("rank", "processes", "arguments", "message"),
    [
        ("0", "1", [], "takes 2 processes, got 1: torchrun --nproc-per-node 2 -m model.two_gpus [IMAGE]"),
        ("2", "3", ["a.png"], "takes 2 processes, got 3: torchrun --nproc-per-node 2 -m model.two_gpus a.png"),
        ("0", "2", ["nowhere.png"], "nowhere.png: no such file"),
        ("0", "2", ["a.png", "b.png"], "unrecognized arguments: b.png"),
    ],
)
def test_one_line_for_what_cannot_be_done(rank, processes, arguments, message, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", processes)
    waited = []
    monkeypatch.setattr(two_gpus.time, "sleep", waited.append)
    assert two_gpus.main(arguments) == 2
    assert capsys.readouterr() == ("", f"alexnet two-gpus: error: {message}\n")
    assert bool(waited) == (rank != "0"), "only rank 0 speaks at once"


@pytest.mark.full
@pytest.mark.parametrize(
    ("processes", "message"),
    [(1, "process 0 did not find the other one: "), (2, "process 0 lost the other one: ")],
    ids=["never came", "left"],
)
def test_waits_for_no_lost_process(processes, message):
    """Process 1 does not start, or leaves while process 0 waits for its maps."""
    patience = timedelta(seconds=2 if processes == 1 else 30)
    script = (
        "import datetime, os, sys\nfrom model import halves, two_gpus\n"
        f"two_gpus.PATIENCE = {patience!r}\n"
        "if os.environ['RANK'] == '1':\n    halves.Half.forward = lambda *_: os._exit(3)\n"
        "sys.exit(two_gpus.main([]))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [start("-c", script, RANK=str(rank), **meeting) for rank in range(processes)]
    try:
        out, err = started[0].communicate(timeout=60)
    finally:
        for process in started:
            process.kill()
            process.wait()
    errors = [line for line in err.splitlines() if line.startswith("alexnet two-gpus: error: ")]
    assert (started[0].returncode, out, len(errors)) == (2, "", 1), err
    assert errors[0].startswith(f"alexnet two-gpus: error: {message}") and "Traceback" not in err
