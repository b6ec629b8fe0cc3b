"""Which config a kernel runs with: a tuned one if a table has it, else the operator's default.

A config is a kernel's tile sizes with its warps and stages. ``alexnet tune`` makes the table of a GPU's architecture on
that GPU: ``<architecture>.json`` beside this file, one row per tuned problem.
"""

from __future__ import annotations

import functools
import json
import math
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.tiles.choices import CHOICES, Config, Problem
from kernels.tiles.choices import register as register

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""The tests compile the kernels for these: A100, H100 and H200, B200, MI300X."""

_used: ContextVar[dict[str, Config]] = ContextVar("used")
_target: ContextVar[str] = ContextVar("target")
_recorded: ContextVar[list[tuple[Problem, Config]]] = ContextVar("recorded")


def lookup(operator: str, tensor: torch.Tensor, M: int, N: int, K: int) -> Config:
    """The config for one launch of ``operator`` on ``tensor``'s device, for its dtype."""
    from kernels import runtime  # here, so that --help does not import PyTorch

    dtype = str(tensor.dtype).removeprefix("torch.")
    choices = CHOICES[operator]
    if choices.tf32 and runtime.dot_precision(tensor.dtype) == "tf32":
        dtype = "tf32"
    problem = Problem(operator, dtype, M, N, K)
    architecture = _target.get(None) or runtime.architecture(tensor.device)
    used, recorded = _used.get({}), _recorded.get(None)
    if operator in used:
        config = used[operator]
    elif architecture == "interpreter":
        config = choices.interpreter(problem)
    else:
        config = tuned(architecture, problem) or choices.default(architecture, problem)
    if recorded is not None:
        recorded.append((problem, config))
    return config


def use(operator: str, config: Config) -> AbstractContextManager[object]:
    """Every launch of ``operator`` inside the ``with`` runs with ``config``."""
    from kernels import runtime

    return runtime.set_inside(_used, _used.get({}) | {operator: config})


def target(architecture: str) -> AbstractContextManager[object]:
    """Every look-up inside the ``with`` is for ``architecture``, whatever GPU is here."""
    from kernels import runtime

    return runtime.set_inside(_target, architecture)


def record_configs() -> AbstractContextManager[list[tuple[Problem, Config]]]:
    """Collects the look-ups made inside the ``with``, in order. If nested, the innermost alone gets them."""
    from kernels import runtime

    return runtime.set_inside(_recorded, [])


def path(architecture: str) -> Path:
    """Where the table of an architecture is, if there is one."""
    return Path(__file__).parent / f"{architecture}.json"


@functools.cache
def table(architecture: str) -> dict[Problem, Config]:
    """The configs that were tuned on ``architecture``."""
    return read(path(architecture))


def read(path: Path) -> dict[Problem, Config]:
    """Reads a table. If there is no such file, it is empty."""
    rows = json.loads(path.read_text())["tiles"] if path.exists() else []
    return {Problem(*(row[field] for field in Problem._fields)): row["tile"] for row in rows}


@functools.cache
def tuned(architecture: str, problem: Problem) -> Config | None:
    """The tuned config of the same problem at the nearest batch, from a quarter to four times this one.

    A layer keeps its N and K if the batch varies, so that M tells the batch (or K, if the product sums over the batch).
    """
    rows = table(architecture)
    axis = CHOICES[problem.operator].batch
    size = getattr(problem, axis)
    ratios = {row: getattr(row, axis) / size for row in rows if row._replace(**{axis: size}) == problem}
    alike = [row for row, ratio in ratios.items() if 1 / 4 <= ratio <= 4]
    return rows[min(alike, key=lambda row: abs(math.log(ratios[row])))] if alike else None


def forget() -> None:
    """Reads the tables again at the next look-up, after they were written."""
    table.cache_clear()
    tuned.cache_clear()
