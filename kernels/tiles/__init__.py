"""Which tile a kernel runs with: tuned where a table has it, a good default everywhere else.

A table, ``<architecture>.json`` beside this file, is made on that GPU by ``alexnet tune``. It has one row
for each problem that was tuned.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.tiles import choices
from kernels.tiles.choices import Config, Problem

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""What the kernels are compiled for in the tests: A100, H100 and H200, B200, MI300X."""

_used: dict[str, Config] = {}  # set inside use()
_architecture: str | None = None  # set inside target()
_noted: list[tuple[Problem, Config]] | None = None  # set inside record_configs()


def lookup(operator: str, tensor: torch.Tensor, M: int, N: int, K: int) -> Config:
    """The tile for one launch of ``operator`` on ``tensor``'s device, for its dtype."""
    from kernels import runtime  # imports PyTorch, which the operator has done by now, but not who asks for help

    dtype = str(tensor.dtype).removeprefix("torch.")
    if operator in choices.MATRIX and runtime.dot_precision(tensor.dtype) == "tf32":
        dtype = "tf32"
    problem = Problem(operator, dtype, M, N, K)
    architecture = _architecture or runtime.architecture(tensor.device)
    if operator in _used:
        tile = _used[operator]
    elif architecture == "interpreter":
        tile = choices.interpreter(problem)
    else:
        tile = tuned(architecture, problem) or choices.default(architecture, problem)
    if _noted is not None:
        _noted.append((problem, tile))
    return tile


@contextlib.contextmanager
def use(operator: str, tile: Config) -> Iterator[None]:
    """Every launch of ``operator`` inside runs with ``tile``."""
    _used[operator] = tile
    try:
        yield
    finally:
        del _used[operator]


@contextlib.contextmanager
def target(architecture: str) -> Iterator[None]:
    """Every look-up inside is for ``architecture``, whatever GPU is here."""
    global _architecture
    _architecture = architecture
    try:
        yield
    finally:
        _architecture = None


@contextlib.contextmanager
def record_configs() -> Iterator[list[tuple[Problem, Config]]]:
    """Collects what is looked up inside, one problem and its tile for each launch, in order."""
    global _noted
    noted: list[tuple[Problem, Config]] = []
    _noted = noted
    try:
        yield noted
    finally:
        _noted = None


def path(architecture: str) -> Path:
    """Where the table of an architecture is, or would be."""
    return Path(__file__).parent / f"{architecture}.json"


@functools.cache
def table(architecture: str) -> dict[Problem, Config]:
    """What was tuned on ``architecture``; nothing for a GPU that nobody has tuned for."""
    if not path(architecture).exists():
        return {}
    rows = json.loads(path(architecture).read_text())["tiles"]
    return {Problem(*(row[field] for field in Problem._fields)): row["tile"] for row in rows}


@functools.cache
def tuned(architecture: str, problem: Problem) -> Config | None:
    """The tile of the same problem at the nearest M, by ratio: a layer keeps N and K when the batch varies.

    At the nearest K where the batch is summed up. None where nothing within four times M was tuned.
    """
    rows = table(architecture)
    axis = "K" if problem.operator in choices.SUMS_THE_BATCH else "M"
    size = getattr(problem, axis)
    ratios = {row: getattr(row, axis) / size for row in rows if row._replace(**{axis: size}) == problem}
    alike = [row for row, ratio in ratios.items() if 1 / 4 <= ratio <= 4]
    return rows[min(alike, key=lambda row: abs(math.log(ratios[row])))] if alike else None


def forget() -> None:
    """Reads the tables anew at the next look-up: they have been written to."""
    table.cache_clear()
    tuned.cache_clear()
