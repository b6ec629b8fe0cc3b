"""Tables of measured times, and what follows from them: roofs, shares of the roofline, comparisons.

``alexnet bench`` writes one table per GPU. A kernel's floor is the longer of two times: its FLOPs at the rate of a
large matrix product, and its bytes at the bandwidth of a large copy (Williams, Waterman and Patterson 2009,
https://doi.org/10.1145/1498765.1498785). Both roofs are measured on the GPU, in the same run as the kernels, because no
kernel reaches the numbers of a datasheet.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable
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


class TableError(AlexNetError):
    """A table that cannot be read."""


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
        TableError: no such file, not a CSV, other columns, or something else where a number belongs.
    """
    latest: dict[tuple, Row] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            if tuple(header) != COLUMNS:
                raise TableError(f"{path}: columns must be {','.join(COLUMNS)}, got {','.join(header)}")
            for line in lines:
                try:
                    types = Row.__annotations__.values()
                    row = Row(*(kind(value) for kind, value in zip(types, line, strict=True)))
                except ValueError as error:
                    raise TableError(f"{path}, line {lines.line_num}: {error}") from None
                key = (row.gpu, row.operator, row.layer, row.pass_, row.dtype, row.batch, row.provider)
                if key not in latest or row.date >= latest[key].date:  # within a second, the lower line is the later
                    latest[key] = row
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a table: {error}") from None
    return list(latest.values())


def slug(gpu: str) -> str:
    """The name of a GPU's table: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def tables(folder: Path) -> list[Path]:
    """The tables of GPUs in a folder, sorted. The interpreter's table does not count: its times are no speeds."""
    return sorted(path for path in folder.glob("*.csv") if path.stem != "interpreter")


def roofs(rows: Iterable[Row], dtype: str) -> Roofs | None:
    """The measured roofs for products in ``dtype``. None unless both are in the table."""
    rows = list(rows)
    copies = [row for row in rows if row.operator == "roof_copy"]
    products = [row for row in rows if row.operator == "roof_matmul" and row.dtype == dtype]
    if not (copies and products):
        return None
    copy, matmul = (max(found, key=lambda row: row.date) for found in (copies, products))
    return Roofs(copy.bytes / copy.p50_ms * 1e3, matmul.flops / matmul.p50_ms * 1e3)


def roofs_for(gpu: str, dtype: str, folder: Path) -> Roofs | None:
    """The roofs of a GPU, by PyTorch's name for it, from its table in ``folder``. None if they were not measured."""
    path = folder / f"{slug(gpu)}.csv"
    return roofs(load(path), dtype) if path.is_file() else None


def share(row: Row, roofs: Roofs) -> float:
    """How much of the roofline a timing reaches: 1 is the floor.

    A network's FLOPs and bytes are the sums of its layers', so its floor here is a little under the sum of the layers'
    floors.
    """
    return roofs.floor_ms(row.flops, row.bytes) / row.p50_ms


class Comparison(NamedTuple):
    """Our timing of one thing, and the fastest of the others. Either may be missing."""

    ours: Row | None
    best: Row | None

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Comparison":
        """Compares the timings of one thing."""
        rows = list(rows)
        ours = next((row for row in rows if row.provider == "triton"), None)
        others = [row for row in rows if row.provider != "triton"]
        return cls(ours, min(others, key=lambda row: row.p50_ms, default=None))

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is as the best of the others: over 1 if ours is faster."""
        return self.best.p50_ms / self.ours.p50_ms if self.ours and self.best else None


def compare(rows: Iterable[Row]) -> dict[tuple[str, str, str, int], Comparison]:
    """A comparison for each (layer, pass, dtype, batch) that was timed, in the table's order, without the roofs."""
    timed: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        if row.operator not in ROOFS:
            timed.setdefault((row.layer, row.pass_, row.dtype, row.batch), []).append(row)
    return {key: Comparison.of(found) for key, found in timed.items()}


def main_batch(rows: Iterable[Row], dtype: str, pass_: str = "forward") -> int | None:
    """The batch that most layers were timed at in ``dtype``; the largest of several. None if none was timed."""
    counts = Counter(batch for _, *key, batch in compare(rows) if key == [pass_, dtype])
    return max(counts, key=lambda batch: (counts[batch], batch), default=None)
