"""The table of a run: the CSV that rows are added to, and the lines on the screen."""

import csv
import datetime
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from tqdm import tqdm

from kernels.errors import AlexNetError
from kernels.tools.bench import check
from kernels.tools.bench.check import Result
from kernels.tools.bench.device import Device
from kernels.tools.bench.works import Work
from kernels.tools.columns import align
from kernels.tools.measurements import COLUMNS, PROVIDERS, Row, load, roofs
from kernels.tools.workloads import torch_dtype


class Table:
    """A CSV. Rows are added as they come, so that an interrupted run keeps what it measured.

    Raises:
        AlexNetError: it cannot be written, or is not such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise AlexNetError(f"--out: cannot write {path}: {error.strerror}") from None
        self.writer = csv.writer(self.file, lineterminator="\n")
        if self.file.tell():
            load(path)
        else:
            self.writer.writerow(COLUMNS)

    def append(self, row: Row) -> None:
        """Writes one row, through to the disk."""
        digits = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
        try:
            self.writer.writerow(digits)
            self.file.flush()
        except OSError as error:
            raise AlexNetError(f"--out: cannot write {self.path}: {error.strerror}") from error


def commit() -> str:
    """The commit of the measured code, with ``-dirty`` if the kernels differ from it. Without Git: ``$GIT_COMMIT``."""
    package = Path(__file__).parents[2]
    git = lambda *arguments: subprocess.run(
        ["git", "-C", package, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):  # a copy without its history
        return os.environ.get("GIT_COMMIT", "unknown")


def _line(*cells: object) -> str:
    return align([cells], left=(0, 1, 3, 6), widths=(20, 8, 5, 5, 10, 10, 12, 6, 8, 9))[0]


HEADER = _line("layer", "pass", "batch", "dtype", "ours ms", "best ms", "best is", "ratio", "of roof", "error")


class Bench:
    """One run. What it measures goes to the screen line by line, and to the table if there is one."""

    def __init__(self, device: Device, table: Table | None) -> None:
        self.device = device
        self.table = table
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self.commit = commit()

    def show(self, line: str) -> None:
        """Prints one line on stdout, above the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def record(self, what: tuple, provider: str, result: Result, flops: int, bytes: int) -> None:
        """Keeps a timing, or the reason why there is none, of ``what``: operator, layer, pass, dtype, batch."""
        if result.times is None:
            _, layer, pass_, dtype, batch = what
            name = layer if pass_ == "forward" else f"{layer}, {pass_}"
            self.problems.append(f"{name}, batch {batch}, {dtype}: {result.variant} {result.problem}")
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        versions = self.commit, self.device.name, str(torch.__version__), triton.__version__
        row = Row(*(now, *versions, *what, provider, *result.times, flops, bytes, result.error))
        self.rows.append(row)
        if self.table:
            self.table.append(row)

    def roofs(self, dtype: str) -> None:
        """Measures the roofs for one dtype."""
        copy, matmul = check.roof_copy, functools.partial(check.roof_matmul, dtype=dtype)
        for name, of, measure in (("roof_copy", "fp32", copy), ("roof_matmul", dtype, matmul)):
            result, flops, bytes = measure(self.device)
            self.record((name, name, "forward", of, 1), "torch", result, flops, bytes)
            self.device.release()
        found = roofs(self.rows, dtype)
        if found:
            product = f"{dtype} matrix product {found.rate * 1e-12:.3g} TFLOP/s"
            self.show(f"roofs: copy {found.bandwidth * 1e-12:.3g} TB/s, {product}")

    def work(self, work: Work, batch: int, dtype: str, providers: list[str], step: Callable[[], object]) -> None:
        """Measures one thing by every provider, and shows the comparison. Calls ``step`` after each provider."""
        found: dict[str, Result] = {}
        known = len(self.problems)
        _, _, flops, bytes = work.cost(batch, torch_dtype(dtype).itemsize)
        what = work.operator, work.name, work.pass_, dtype, batch
        try:
            operands = work.random_operands(batch, torch_dtype(dtype), self.device.device)
        except RuntimeError as error:  # torch.OutOfMemoryError, or what the CPU's allocator raises
            self.problems.append(f"{work.name}, batch {batch}, {dtype}: making its tensors {check.failure(error)}")
            self.show(f"  {self.problems[-1]}")
            return
        layout = "NHWC" if operands[0].dim() == 4 else ""
        for provider in sorted(providers, key=list(PROVIDERS).index):  # torch before compile: it gives the layout
            results = check.time_provider(self.device, provider, work, dtype, operands, layout)
            fastest = found[provider] = min(results, key=lambda result: result.p50_ms)
            for result in results:
                if result is fastest or not result.times:
                    self.record(what, provider, result, flops, bytes)
            if provider == "torch" and fastest.times:
                layout = fastest.variant.partition(" ")[2]
            step()
        del operands
        self.device.release()
        self.show(self.line(what, found, flops, bytes))
        for problem in self.problems[known:]:
            self.show(f"  {problem}")

    def line(self, what: tuple, found: dict[str, Result], flops: int, bytes: int) -> str:
        """The comparison as a line of the table on the screen."""
        _, layer, pass_, dtype, batch = what
        ours = found.get("triton", Result("-", None, problem="-"))
        others = [result for provider, result in found.items() if provider != "triton" and result.times]
        best = min(others, key=lambda result: result.p50_ms, default=None)
        limits = None if self.device.interpreted else roofs(self.rows, dtype)
        return _line(
            *(layer, pass_, batch, dtype),
            f"{ours.p50_ms:.4g}" if ours.times else ours.problem.split(":")[0],
            f"{best.p50_ms:.4g}" if best else "-",
            best.variant if best else "-",
            f"{best.p50_ms / ours.p50_ms:.2f}x" if best and ours.times else "-",
            f"{limits.floor_ms(flops, bytes) / ours.p50_ms:.1%}" if limits and ours.times else "-",
            "-" if math.isnan(ours.error) else f"{ours.error:.1e}",
        )
