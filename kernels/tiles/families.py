"""Choices that several operators share, except for products, which :mod:`kernels.tiles.products` has."""

from kernels.tiles.choices import Choices, Config, Problem, power, vectors, warp_size

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
