"""The device that runs the kernels here, and the measured speeds. A figure names its GPU, or says that it is a model.

With a GPU, notebooks measure. Without a GPU they show speeds that were measured elsewhere, from ``measurements/``. If
there are none, they show a model: FLOPs, bytes, and the least time that these take under the limits of an H100.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from kernels import runtime
from kernels.tools import measurements
from kernels.tools.measurements import Roofs, Row

MEASUREMENTS = Path(__file__).parents[1] / "measurements"

H100 = {
    "fp16": Roofs(3.35e12, 989.4e12),
    "bf16": Roofs(3.35e12, 989.4e12),
    "tf32": Roofs(3.35e12, 494.7e12),
    "fp32": Roofs(3.35e12, 66.9e12),
}
"""An H100 SXM5's memory bandwidth, and its rates for dense matrix products (fp32: outside the tensor cores).

From "NVIDIA H100 Tensor Core GPU Architecture", table 2:
https://resources.nvidia.com/en-us-hopper-architecture/nvidia-h100-tensor-c
"""


class Limits(NamedTuple):
    """Roofs to draw, and their source."""

    roofs: Roofs
    measured: bool
    label: str


def gpu() -> str | None:
    """Returns the GPU's name, or None without a GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def rows() -> list[Row]:
    """Returns this GPU's measured table. If there is none, returns the first table, or an empty list."""
    tables = measurements.tables(MEASUREMENTS)
    here = [path for path in tables if gpu() and path.stem == measurements.slug(gpu())]
    return measurements.load((here or tables)[0]) if tables else []


def measure(*operators: str, batch: int = 128, dtype: str = "fp16", pass_: str = "forward") -> list[Row]:
    """Returns timings of operators in all layers of AlexNet that use them.

    With a GPU, ``alexnet bench`` measures them now, in another process. Without a GPU, they come from the table.

    Args:
        operators: names, as ``alexnet bench`` takes them. Without any, the whole network is timed.
        batch, dtype, pass_: as the options of ``alexnet bench``.
    """
    if not gpu():
        chosen = [row for row in rows() if (row.batch, row.dtype, row.pass_) == (batch, dtype, pass_)]
        return [row for row in chosen if row.operator in (operators or ("alexnet",))]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--batch", str(batch), "--dtype", dtype, "--pass", pass_, "--out", folder]
        done = subprocess.run(
            [sys.executable, "-m", "model.cli", "bench", *(operators or ["--network"]), *options],
            cwd=Path(__file__).parents[2],
            env=dict(os.environ, TRITON_INTERPRET="0"),
        )
        if done.returncode != 1:  # status 1: some operators failed, it has said which, and the others are measured
            done.check_returncode()
        return [row for path in Path(folder).glob("*.csv") for row in measurements.load(path)]


def ours(measured: list[Row]) -> dict[str, float]:
    """Returns our kernels' median time of each layer, in ms."""
    return {row.layer: row.p50_ms for row in measured if row.provider == "triton"}


def limits(dtype: str = "fp16") -> Limits:
    """Returns the roofs of the measured table. If nothing was measured, returns an H100's, as NVIDIA states them."""
    table = rows()
    measured = measurements.roofs(table, dtype)
    if measured:
        return Limits(measured, True, f"{table[0].gpu}, {dtype}, roofs measured")
    return Limits(H100[dtype], False, f"a model, not measured: limits of an H100 SXM5 as NVIDIA states them, {dtype}")


def describe() -> None:
    """Prints what runs the kernels here, and where speeds come from. Every notebook's first cell calls it."""
    if runtime.INTERPRETED:
        print("Kernels run in Triton's interpreter, on the CPU: results are right, times mean nothing.")
    if gpu():
        print(f"Speeds are measured on this machine's {gpu()}.")
        return
    table = rows()
    if table:
        newest = max(row.date for row in table)[:10]
        print(f"Measured speeds: {table[0].gpu}, PyTorch {table[0].torch}, Triton {table[0].triton}, {newest}.")
    else:
        print("No GPU here, and nothing has been measured on one yet: plots show a model, under an H100's limits.")
