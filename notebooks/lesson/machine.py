"""What the kernels run on here, and what has been measured: a figure names its GPU, or says that it is a model.

With a GPU, notebooks measure. Without one they show what was measured elsewhere, from ``measurements/``; where nothing
was, they show a model: FLOPs, bytes, and the least time that these take under the limits of an H100.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from kernels import runtime
from kernels.tools import roofline
from kernels.tools.roofline import Roofs, Row

H100 = {
    "fp16": Roofs(3.35e12, 989.4e12),
    "bf16": Roofs(3.35e12, 989.4e12),
    "tf32": Roofs(3.35e12, 494.7e12),
    "fp32": Roofs(3.35e12, 66.9e12),
}
"""An H100 SXM5's memory bandwidth and rates of dense matrix products (of fp32: outside the tensor cores), from "NVIDIA
H100 Tensor Core GPU Architecture", table 2: https://resources.nvidia.com/en-us-hopper-architecture/nvidia-h100-tensor-c
"""


class Limits(NamedTuple):
    """Roofs to draw, and where they are from."""

    roofs: Roofs
    measured: bool
    label: str


def gpu() -> str | None:
    """The GPU's name; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def rows() -> list[Row]:
    """The measured table of this GPU; without a GPU or a table of it, the first there is; nothing if there is none."""
    tables = sorted(path for path in roofline.MEASUREMENTS.glob("*.csv") if path.stem != "interpreter")
    here = [path for path in tables if gpu() and path.stem == roofline.slug(gpu())]
    return roofline.load((here or tables)[0]) if tables else []


def measure(*operators: str, batch: int = 128, dtype: str = "fp16", pass_: str = "forward") -> list[Row]:
    """Timings of operators in all of AlexNet's layers that they make: now, on a GPU; without one, from the table.

    Args:
        operators: as ``alexnet bench`` takes them, which measures in a process of its own; none: the network.
        batch, dtype, pass_: likewise.
    """
    if not gpu():
        chosen = [row for row in rows() if (row.batch, row.dtype, row.pass_) == (batch, dtype, pass_)]
        return [row for row in chosen if row.operator in (operators or ("alexnet",))]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--batch", str(batch), "--dtype", dtype, "--pass", pass_, "--out", folder]
        done = subprocess.run(
            [sys.executable, "-m", "model.cli", "bench", *(operators or ["--network"]), *options],
            cwd=roofline.MEASUREMENTS.parent.parent,
            env=dict(os.environ, TRITON_INTERPRET="0"),
        )
        if done.returncode != 1:  # some of it was wrong or failed, of which it has told, and the rest is measured
            done.check_returncode()
        return [row for path in Path(folder).glob("*.csv") for row in roofline.load(path)]


def ours(measured: list[Row]) -> dict[str, float]:
    """The kernels' median time of each layer, in ms."""
    return {row.layer: row.p50_ms for row in measured if row.provider == "triton"}


def limits(dtype: str = "fp16") -> Limits:
    """The roofs of the measured table, or, where nothing was measured, an H100's as its maker states them."""
    table = rows()
    measured = roofline.roofs(table, dtype)
    if measured:
        return Limits(measured, True, f"{table[0].gpu}, {dtype}, roofs measured")
    return Limits(H100[dtype], False, f"a model, not measured: limits of an H100 SXM5 as NVIDIA states them, {dtype}")


def describe() -> None:
    """Prints what runs here and where speeds come from: the first cell of every notebook."""
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
