"""What the kernels run on here, and what has been measured: a figure names its GPU, or says that it is a model.

With a GPU, notebooks measure. Without one they show what was measured elsewhere, from ``measurements/``; where nothing
was, they show the model: FLOPs, bytes, and the least time that these take under the limits of an H100.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels import roofline, runtime
from kernels.roofline import Roofs, Row

# NumPy, under Triton's interpreter, warns of the NaN and inf that masked lanes compute silently on a GPU.
warnings.filterwarnings("ignore", ".*encountered in.*", RuntimeWarning)

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
    """The GPU's name where kernels are compiled; None where they are interpreted."""
    return None if runtime.INTERPRETED else torch.cuda.get_device_name()


def rows() -> list[Row]:
    """The measured table of this GPU; without a GPU or a table of it, the first there is; nothing if there is none."""
    tables = sorted(path for path in roofline.MEASUREMENTS.glob("*.csv") if path.stem != "interpreter")
    here = [path for path in tables if gpu() and path.stem == roofline.slug(gpu())]
    return roofline.load((here or tables)[0]) if tables else []


def limits(dtype: str = "fp16") -> Limits:
    """The roofs of the measured table, or, where nothing was measured, an H100's as its maker states them."""
    table = rows()
    measured = roofline.roofs(table, dtype)
    if measured:
        return Limits(measured, True, f"{table[0].gpu}, {dtype}, roofs measured")
    return Limits(H100[dtype], False, f"a model, not measured: limits of an H100 SXM5 as NVIDIA states them, {dtype}")


def milliseconds(call: Callable[[], object]) -> float | None:
    """The median time of a call on the GPU; None where kernels are interpreted, whose times mean nothing."""
    if runtime.INTERPRETED:
        return None
    from triton.testing import do_bench

    return do_bench(call, return_mode="median")


def describe() -> None:
    """Prints what runs here and where speeds come from: the first cell of every notebook."""
    name = gpu()
    if name:
        print(f"Kernels are compiled for {name}, and timed here.")
    else:
        print("No GPU in use: kernels run in Triton's interpreter on the CPU. Results are right, times mean nothing.")
    table = rows()
    if table:
        newest = max(row.date for row in table)[:10]
        print(f"Measured speeds: {table[0].gpu}, PyTorch {table[0].torch}, Triton {table[0].triton}, {newest}.")
    else:
        print("Nothing has been measured on a GPU yet: plots show a model, under an H100's limits.")
