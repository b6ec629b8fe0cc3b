"""Tables of measured times, and what follows from them: roofs, shares of the roofline, comparisons.

``alexnet bench`` writes one table per GPU. A kernel's floor is the longer of two times: its FLOPs at the rate of a
large matrix product, and its bytes at the bandwidth of a large copy (Williams, Waterman and Patterson 2009,
https://doi.org/10.1145/1498765.1498785). Both roofs are measured on the GPU, in the same run as the kernels, because no
kernel reaches the numbers of a datasheet.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kernels.errors import AlexNetError

PROVIDERS = {"triton": "ours (Triton)", "torch": "PyTorch", "compile": "torch.compile"}
ROOFS = ("roof_copy", "roof_matmul")
"""The operators of the rows that measure a roof."""


class Row(NamedTuple):
    """One timing: a line of the table, whose columns are these."""

    date: str  # ISO 8601, UTC
    commit: str
    gpu: str
    torch: str
    triton: str
    operator: str
    layer: str
    pass_: str  # forward, backward, or step: a training step; the column is called pass
    dtype: str  # fp16, bf16, fp32, or tf32: fp32 tensors multiplied as TF32
    batch: int
    provider: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    flops: int
    bytes: int
    error: float  # max|out - ref| / max|ref|, of the run that was timed


COLUMNS = tuple(name.rstrip("_") for name in Row._fields)


class Roofs(NamedTuple):
    """The most that a device can do."""

    bandwidth: float  # bytes per second, read and written
    rate: float  # FLOP per second, in matrix products of one dtype

    def floor_ms(self, flops: int, bytes: int) -> float:
        """The least time, in ms."""
        return 1e3 * max(flops / self.rate, bytes / self.bandwidth)


def load(path: str | Path) -> list[Row]:
    """Reads a table. If a timing was repeated, the latest counts. The order is the table's.

    Raises:
        AlexNetError: no such file, not a CSV, other columns, or something else where a number belongs.
    """
    latest: dict[tuple, Row] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            if tuple(header) != COLUMNS:
                raise AlexNetError(f"{path}: columns must be {','.join(COLUMNS)}, got {','.join(header)}")
            for line in lines:
                row = Row(*(kind(value) for kind, value in zip(Row.__annotations__.values(), line, strict=True)))
                key = (row.gpu, row.operator, row.layer, row.pass_, row.dtype, row.batch, row.provider)
                if key not in latest or row.date >= latest[key].date:  # within a second, the lower line is the later
                    latest[key] = row
    except OSError as error:
        raise AlexNetError(f"{path}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise AlexNetError(f"{path}: not a table: line {lines.line_num}: {error}") from None
    return list(latest.values())


def slug(gpu: str) -> str:
    """The name of a GPU's table: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def tables(folder: Path) -> list[Path]:
    """The tables of GPUs in a folder, sorted. The interpreter's table does not count: its times are no speeds."""
    return sorted(path for path in folder.glob("*.csv") if path.stem != "interpreter")


def roofs(rows: Sequence[Row], dtype: str) -> Roofs | None:
    """The measured roofs for products in ``dtype``. None unless both are in the table."""
    date = lambda row: row.date
    copy = max((row for row in rows if row.operator == "roof_copy"), key=date, default=None)
    products = (row for row in rows if row.operator == "roof_matmul" and row.dtype == dtype)
    matmul = max(products, key=date, default=None)
    if not (copy and matmul):
        return None
    return Roofs(copy.bytes / copy.p50_ms * 1e3, matmul.flops / matmul.p50_ms * 1e3)


def roofs_for(gpu: str, dtype: str, folder: Path) -> Roofs | None:
    """The roofs of a GPU, by PyTorch's name for it, from its table in ``folder``. None if they were not measured."""
    path = folder / f"{slug(gpu)}.csv"
    return roofs(load(path), dtype) if path.is_file() else None


def share(row: Row, roofs: Roofs) -> float:
    """How much of the roofline a timing reaches: 1 is the floor. A network's is under the sum of its layers' floors."""
    return roofs.floor_ms(row.flops, row.bytes) / row.p50_ms


class Comparison(NamedTuple):
    """Our timing of one thing, and the fastest of the others. Either may be missing."""

    ours: Row | None
    best: Row | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is as the best of the others: over 1 if ours is faster."""
        return self.best.p50_ms / self.ours.p50_ms if self.ours and self.best else None


def compare(rows: Iterable[Row]) -> dict[tuple[str, str, str, int], Comparison]:
    """A comparison for each (layer, pass, dtype, batch) that was timed, in the table's order, without the roofs."""
    compared: dict[tuple[str, str, str, int], Comparison] = {}
    for row in rows:
        if row.operator not in ROOFS:
            key = row.layer, row.pass_, row.dtype, row.batch
            ours, best = compared.get(key, (None, None))
            if row.provider == "triton":
                ours = row
            elif best is None or row.p50_ms < best.p50_ms:
                best = row
            compared[key] = Comparison(ours, best)
    return compared


def main_batch(rows: Iterable[Row], dtype: str, pass_: str = "forward") -> tuple[int, dict[str, Comparison]]:
    """The batch that most layers were timed at in ``dtype``, the largest of several, and its comparisons by layer."""
    batches: dict[int, dict[str, Comparison]] = {}
    for (layer, *key, batch), found in compare(rows).items():
        if key == [pass_, dtype]:
            batches.setdefault(batch, {})[layer] = found
    return max(batches.items(), key=lambda item: (len(item[1]), item[0]), default=(0, {}))
