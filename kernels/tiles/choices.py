"""What an operator's config is chosen from. Each operator registers its :class:`Choices` beside its kernel.

Choices that several operators share stand at the end; those of products are in :mod:`kernels.tiles.products`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import triton

Config = dict[str, int]
"""A kernel's tile sizes, ``BLOCK_M`` and so on, with its ``num_warps`` and ``num_stages``: a ``triton.Config``."""

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "tf32": 4}
"""Bytes of an element. A product of float32 has the dtype ``tf32`` if the tensor cores make it."""


class Problem(NamedTuple):
    """What a config is chosen for: M x N outputs (pixels or rows x channels), each from K terms."""

    operator: str
    dtype: str  # a key of ITEMSIZE
    M: int
    N: int
    K: int


@dataclass(frozen=True)
class Choices:
    """The configs of one operator, for (architecture, problem).

    In the interpreter large tiles are best: its cost is per operation and per program, hardly per element.
    """

    default: Callable[[str, Problem], Config]  # for a GPU without a tuned table
    tried: Callable[[str, Problem], list[Config]]  # by the tuner
    interpreter: Callable[[Problem], Config]
    tf32: bool = False  # whether tensor cores may multiply float32 as TF32, which takes other configs
    batch: Literal["M", "K"] = "M"  # the size that grows with the batch


CHOICES: dict[str, Choices] = {}
"""By operator; an operator is here once its module is imported."""


def register(operator: str, choices: Choices) -> None:
    """Registers the configs that :func:`kernels.tiles.lookup` chooses from for ``operator``."""
    CHOICES[operator] = choices


def candidates(architecture: str, problem: Problem) -> list[Config]:
    """The configs that the tuner compares for a problem on ``architecture``, the default first."""
    choices = CHOICES[problem.operator]
    default = choices.default(architecture, problem)
    return [default, *(config for config in choices.tried(architecture, problem) if config != default)]


def warp_size(architecture: str) -> int:
    """Threads of a warp."""
    return 64 if architecture.startswith("gfx") else 32


def vectors(problem: Problem) -> int:
    """Runs of 16 bytes of channels in the output."""
    return problem.M * triton.cdiv(problem.N * ITEMSIZE[problem.dtype], 16)


def power(size: int, low: int, high: int) -> int:
    """The power of two that holds ``size``, between ``low`` and ``high``."""
    return max(low, min(high, triton.next_power_of_2(size)))


ELEMENTWISE = Choices(
    default=lambda architecture, problem: {"BLOCK_M": 1024, "num_warps": 4},
    tried=lambda architecture, problem: [
        {"BLOCK_M": block_m, "num_warps": warps} for block_m in (512, 1024, 2048, 4096) for warps in (4, 8)
    ],
    interpreter=lambda problem: {"BLOCK_M": power(problem.M, 1, 2**18)},
)
"""M elements, BLOCK_M a program."""

VECTORISED = Choices(
    default=lambda architecture, problem: {"BLOCK_M": 256, "num_warps": 4},
    tried=lambda architecture, problem: [
        {"BLOCK_M": warp_size(architecture) * warps * rows, "num_warps": warps}
        for rows in (1, 2)
        for warps in (1, 2, 4, 8)
    ],
    interpreter=lambda problem: {"BLOCK_M": power(vectors(problem), 1, 2**15)},
)
"""M pixels x N channels, in BLOCK_M vectors of 16 bytes of channels a program."""


def whole_rows(problem: Problem) -> Config:
    """In the interpreter: rows [M, N], as many of them at once as a tile holds."""
    block_n = power(problem.N, 1, 2**18)
    return {"BLOCK_M": power(problem.M, 1, 2**18 // block_n), "BLOCK_N": block_n}


def _row_of_classes(problem: Problem, warps: int) -> Config:
    return {"BLOCK_M": 1, "BLOCK_N": power(problem.N, 1, 1024), "num_warps": warps}


ROWS_OF_CLASSES = Choices(
    default=lambda architecture, problem: _row_of_classes(problem, 4),
    tried=lambda architecture, problem: [_row_of_classes(problem, warps) for warps in (1, 2, 8)],
    interpreter=whole_rows,
)
"""M rows x N classes: a row a program."""
