"""The run's log: a CSV with a row for each step, and its curves."""

import contextlib
import csv
import io
import os
from pathlib import Path

from kernels.errors import AlexNetError
from kernels.tools.files import write_bytes

FIELDS = (
    "step",
    "epoch",
    "rate",
    "loss",
    "accuracy",
    "images_per_second",
    "validation_loss",
    "validation_accuracy",
)


class Log:
    """``log.csv``; ``step`` counts from 1, and validation stands in the last row of an epoch.

    Args:
        path: of the file.
        steps: how many of a previous run's rows stay; those after, of steps that a resumed run does again, are dropped,
            and so are those from the first on that cannot be read.
    """

    def __init__(self, path: Path, steps: int = 0):
        self.path = path
        self.rows: list[dict] = []
        if steps and path.exists():
            with (
                open(path, newline="") as file,
                contextlib.suppress(KeyError, TypeError, ValueError, csv.Error),  # of no such columns, or no numbers
            ):
                for row in csv.DictReader(file):
                    if len(self.rows) == steps or row["step"] != str(len(self.rows) + 1):
                        break
                    empty = {name: None for name in FIELDS if name.startswith("validation") and not row[name]}
                    self.rows.append({name: float(row[name]) for name in FIELDS if name not in empty} | empty)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(FIELDS)
        writer.writerows(map(_text, self.rows))
        write_bytes(path, text.getvalue().encode())
        self.file = path.open("a", newline="")
        self.writer = csv.writer(self.file)

    def add(self, row: dict) -> None:
        """One more step.

        Raises:
            AlexNetError: it cannot be written.
        """
        row = dict.fromkeys(FIELDS) | row
        self.rows.append(row)
        try:
            self.writer.writerow(_text(row))
            self.file.flush()
        except OSError as error:
            raise AlexNetError(f"{self.path}: cannot be written: {error.strerror}") from error

    def sync(self) -> None:
        """Waits until it is on the disk; before a checkpoint, which promises these rows."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    def mean(self, field: str, last: int) -> float:
        """Over the last so many steps."""
        values = [row[field] for row in self.rows[-last:]]
        return sum(values) / max(len(values), 1)


def _text(row: dict) -> list[str]:
    whole = ("step", "epoch")
    return ["" if row[name] is None else str(int(row[name]) if name in whole else row[name]) for name in FIELDS]


def draw(rows: list[dict], per_epoch: int, out: Path) -> None:
    """Loss and accuracy over the epochs: each step thin, the mean of an epoch thick, validation with dots.

    Draws nothing where there are no rows, as where a run that is at its end is resumed and its log is gone.
    """
    if not rows:
        return
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    at = np.array([row["step"] for row in rows]) / per_epoch
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axis, name, scale in zip(axes, ("loss", "accuracy"), (1.0, 100.0), strict=True):
        values = np.array([row[name] for row in rows], float) * scale
        width = min(per_epoch, len(values))
        smooth = np.convolve(values, np.full(width, 1.0 / width), "valid")
        axis.plot(at, values, color="tab:blue", alpha=0.25, linewidth=0.8, label="training, each step")
        axis.plot(at[width - 1 :], smooth, color="tab:blue", label="training, mean of an epoch")
        validated = [(a, row[f"validation_{name}"]) for a, row in zip(at, rows, strict=True)]
        validated = [(a, value * scale) for a, value in validated if value is not None]
        if validated:
            axis.plot(*zip(*validated, strict=True), "o-", color="tab:orange", markersize=4, label="validation")
        axis.set(xlabel="epoch", ylabel=name + (" (%)" if name == "accuracy" else ""), ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, 1.1 * np.nanpercentile([row["loss"] for row in rows], 99))  # the first steps may be far up
    axes[1].set_ylim(0, 100)
    axes[0].legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=110)
    plt.close(figure)
    write_bytes(out, png.getvalue())
