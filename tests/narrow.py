"""A thin AlexNet on plain PyTorch that trains in milliseconds, and processes that end themselves at a chosen moment."""

import multiprocessing
import os
import signal
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import model.training.checkpoint
import model.training.log
import model.training.start
import model.training.step
from model import train
from model.alexnet import LRN, AlexNet
from model.layers import Conv2d, Dropout, Linear, LRNMaxPool2d, MaxPool2d

PROCESSES = multiprocessing.get_context("forkserver")  # imports PyTorch once, for all of them
PROCESSES.set_forkserver_preload(["tests.narrow", "model.training.trainer"])


class Narrow(AlexNet):
    """AlexNet's layers with a sixteenth of its channels."""

    def __init__(self, num_classes: int = 1000, keep_prob: float = 0.5, lrn: str = "bvlc"):
        nn.Module.__init__(self)
        self.lrn = lrn
        self.conv1 = Conv2d(3, 6, kernel_size=11, stride=4)
        self.pool1 = LRNMaxPool2d(**LRN[lrn])
        self.conv2 = Conv2d(6, 16, kernel_size=5, padding=2, groups=2)
        self.pool2 = LRNMaxPool2d(**LRN[lrn])
        self.conv3 = Conv2d(16, 24, kernel_size=3, padding=1)
        self.conv4 = Conv2d(24, 24, kernel_size=3, padding=1, groups=2)
        self.conv5 = Conv2d(24, 16, kernel_size=3, padding=1, groups=2)
        self.pool5 = MaxPool2d(kernel_size=3, stride=2)
        self.fc6 = Linear(16 * 6 * 6, 64, relu=True)
        self.drop6 = Dropout(1.0 - keep_prob)
        self.fc7 = Linear(64, 64, relu=True)
        self.drop7 = Dropout(1.0 - keep_prob)
        self.fc8 = Linear(64, num_classes, relu=False)

    def initialise(self, scheme: str = "paper") -> None:
        """He's initialisation, so that signals pass through few channels; conv1 takes pixels up to 255."""
        for layer in self.children():
            if hasattr(layer, "weight"):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.conv1.weight, std=0.001)
        nn.init.normal_(self.fc8.weight, std=0.01)


COLOURS = {"blue": (60, 80, 200), "green": (70, 190, 90), "red": (210, 70, 60)}


def make_folder(path: Path, each: int) -> Path:
    """Noisy photos of three colours, ``each`` per colour."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (path / name).mkdir(parents=True)
        for index in range(each):
            pixels = random.normal(colour, 50.0, (40, 48, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{index}.png")
    return path


def trap(event: str, number: int) -> None:
    """Ends this process when an event happens for the ``number``-th time.

    ``step``: after a step, before it is logged. ``row``: in the middle of a row of the log. ``half``: in the middle of
    writing a checkpoint. ``rename``: a checkpoint is written but not yet in its place. ``renamed``: it has just been
    put there. ``term``: as ``step``, but with SIGTERM, after which the run must save and end by itself.
    """
    left = number
    step, replace, add, save = (
        model.training.step.TrainStep.__call__,
        os.replace,
        model.training.log.Log.add,
        model.training.checkpoint.save,
    )

    def at(now: str, end: int = signal.SIGKILL) -> None:
        nonlocal left
        if now == event:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), end)

    def trapped_step(*arguments):
        metrics = step(*arguments)
        at("step")
        at("term", signal.SIGTERM)
        return metrics

    def trapped_save(*arguments):
        data = save(*arguments)
        return data[: len(data) // 2] if event == "half" and left == 1 else data  # it ends before the rename

    def trapped_replace(source, target):
        checkpoint = Path(target).suffix == ".safetensors"
        if checkpoint:
            at("half")
            at("rename")
        replace(source, target)
        if checkpoint:
            at("renamed")

    def trapped_add(log, row):
        if event == "row" and left == 1:
            log.file.write("7,")
            log.file.flush()
        at("row")
        add(log, row)

    model.training.step.TrainStep.__call__, model.training.checkpoint.save = trapped_step, trapped_save
    model.training.log.Log.add, os.replace = trapped_add, trapped_replace


def signal_after(patch, step: int) -> None:
    """SIGTERM comes during this step, counted from 1, of a run in this process; ``patch`` is a pytest.MonkeyPatch."""
    whole = model.training.step.TrainStep.__call__

    def signalled(self, number, *arguments):
        if number + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return whole(self, number, *arguments)

    patch.setattr(model.training.step.TrainStep, "__call__", signalled)


def start(function: Callable, *arguments) -> multiprocessing.Process:
    """``function(*arguments)`` in a process of its own."""
    process = PROCESSES.Process(target=function, args=arguments)
    # The parent of all these processes imports what they need, and looks for it only there.
    with unittest.mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent.parent)):
        process.start()
    return process


class Process:
    """A process that trains a thin network with these arguments; ``join`` gives its exit status."""

    def __init__(self, arguments: list, output: Path, trapped: tuple[str, int] | None = None, **environment: str):
        self.output = output
        self.process = start(_main, [str(argument) for argument in arguments], output, trapped, environment)

    def join(self) -> tuple[int, str]:
        """Exit status (negative: the signal that ended it), and what it printed."""
        self.process.join(120)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"hangs: {self.output.read_text()}")
        return self.process.exitcode, self.output.read_text()


def _main(arguments: list[str], output: Path, trapped: tuple[str, int] | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)  # with so little work, threads only wait for each other
    sys.stdout = sys.stderr = output.open("w", buffering=1)
    if trapped:
        trap(*trapped)
    model.training.start.AlexNet = Narrow
    raise SystemExit(train.main([*arguments, "--operators", "torch", "--device", "cpu"]))
