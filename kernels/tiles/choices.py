"""What an operator's config is chosen from. Each operator registers its :class:`Choices` beside its kernel."""

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
    """The configs of one operator.

    Attributes:
        default: a good config for (architecture, problem), for a GPU without a tuned table.
        tried: the configs that the tuner tries for (architecture, problem).
        interpreter: the config in the interpreter. Large tiles are best: its cost is per operation and per program,
            hardly per element.
        tf32: whether tensor cores may multiply float32 as TF32, which takes other configs.
        batch: the size that grows with the batch.
    """

    default: Callable[[str, Problem], Config]
    tried: Callable[[str, Problem], list[Config]]
    interpreter: Callable[[Problem], Config]
    tf32: bool = False
    batch: Literal["M", "K"] = "M"


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
