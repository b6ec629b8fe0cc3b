"""The run's log: a CSV with a row per step, and its curves."""

import contextlib
import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kernels.errors import AlexNetError
from kernels.tools.files import write_bytes, write_figure


class Row(NamedTuple):
    """A step. ``step`` and ``epoch`` count from 1. The last row of an epoch has the validation."""

    step: int
    epoch: int
    rate: float
    loss: float
    accuracy: float
    images_per_second: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


class Log:
    """``log.csv`` at ``path``, whose folder is made. Of the run before, the first ``steps`` rows stay, if readable.

    All methods raise AlexNetError if the file cannot be written.
    """

    def __init__(self, path: Path, steps: int = 0):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.rows = _read(path, steps) if path.exists() else []
            text = io.StringIO(newline="")
            csv.writer(text).writerows([Row._fields, *self.rows])
            write_bytes(path, text.getvalue().encode())
            self.file = path.open("a", newline="")
        except OSError as error:
            raise AlexNetError(f"{error.filename or path}: cannot be written: {error.strerror}") from error

    def add(self, row: Row) -> None:
        """Writes one more step."""
        self.rows.append(row)
        try:
            csv.writer(self.file).writerow(row)
            self.file.flush()
        except OSError as error:
            raise AlexNetError(f"{self.path}: cannot be written: {error.strerror}") from error

    def sync(self) -> None:
        """Waits until all rows are on the disk: a checkpoint, written next, relies on them."""
        os.fsync(self.file.fileno())

    def means(self, steps: int) -> tuple[float, float, float]:
        """The means of (loss, accuracy, images per second) over the last ``steps`` rows."""
        last = self.rows[-steps:]
        loss, accuracy, speed = (sum(values) / len(last) for values in list(zip(*last, strict=True))[3:6])
        return loss, accuracy, speed


def _read(path: Path, steps: int) -> list[Row]:
    """The first ``steps`` rows, up to the first one that cannot be read."""
    optional = lambda cell: float(cell) if cell else None
    kinds: list[Callable] = [int, int, float, float, float, float, optional, optional]
    rows: list[Row] = []
    with open(path, newline="") as file, contextlib.suppress(ValueError, csv.Error):
        reader = csv.reader(file)
        if next(reader, None) != list(Row._fields):
            return []
        for cells in reader:
            row = Row(*(kind(cell) for kind, cell in zip(kinds, cells, strict=True)))
            if len(rows) == steps or row.step != len(rows) + 1:
                break
            rows.append(row)
    return rows


def draw_curves(rows: list[Row], per_epoch: int, path: Path) -> None:
    """Loss and accuracy over the epochs: each step thin, the mean of an epoch thick, validation with dots."""
    if not rows:  # a finished run was resumed, but its log is gone
        return
    import numpy as np
    from matplotlib.figure import Figure

    epochs = np.array([row.step for row in rows]) / per_epoch
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, scale in zip(axes, ("loss", "accuracy"), (1.0, 100.0), strict=True):
        values = np.array([getattr(row, name) for row in rows]) * scale
        width = min(per_epoch, len(values))
        smooth = np.convolve(values, np.full(width, 1.0 / width), "valid")
        axis.plot(epochs, values, color="tab:blue", alpha=0.25, linewidth=0.8, label="training, each step")
        axis.plot(epochs[width - 1 :], smooth, color="tab:blue", label="training, mean of an epoch")
        validation = np.array([getattr(row, f"validation_{name}") for row in rows], float) * scale  # NaN for None
        done = np.isfinite(validation)
        if done.any():
            axis.plot(epochs[done], validation[done], "o-", color="tab:orange", markersize=4, label="validation")
        axis.set(xlabel="epoch", ylabel=name + (" (%)" if name == "accuracy" else ""), ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1.1 * np.nanpercentile([row.loss for row in rows], 99))  # the first steps may be far up
    axes[1].set_ylim(0, 100)
    axes[0].legend(frameon=False)
    write_figure(path, figure)
