"""Which tile a kernel runs with: tuned where a table has it, a good default everywhere else.

A table, ``<architecture>.json`` beside this file, is made on that GPU by ``python -m kernels.tiles``. It has one row
for each operator, dtype and problem that was tuned: M x N outputs (pixels or rows x channels), each from K terms.
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import triton

from kernels import runtime

Tile = dict[str, int]

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""What the kernels are compiled for in the tests: A100, H100 and H200, B200, MI300X."""

_architecture: str | None = None  # set inside target()
_used: dict[str, Tile] = {}  # set inside use()


def lookup(operator: str, tensor: torch.Tensor, M: int, N: int, K: int) -> Tile:
    """The tile for one launch on ``tensor``'s device, for its dtype."""
    if operator in _used:
        return _used[operator]
    architecture = _architecture or runtime.architecture(tensor.device)
    if architecture == "interpreter":
        return _interpreter(operator, M, N, K)
    return _tuned(architecture, operator, tensor.dtype, M, N, K) or default(operator, tensor.dtype, M, N, K)


@contextlib.contextmanager
def use(operator: str, tile: Tile) -> Iterator[None]:
    """Every launch of ``operator`` inside runs with ``tile``: for the tuner and the tests."""
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


def table(architecture: str) -> list[dict]:
    """The rows that were tuned on ``architecture``; none for a GPU that nobody has tuned for."""
    path = Path(__file__).parent / f"{architecture}.json"
    return json.loads(path.read_text())["tiles"] if path.exists() else []


@functools.cache
def _tuned(architecture: str, operator: str, dtype: torch.dtype, M: int, N: int, K: int) -> Tile | None:
    """The row of the same operator, dtype, N and K, at the M nearest by ratio: layers keep N and K, batches vary.

    None where the nearest M is more than four times off.
    """
    rows = [
        row
        for row in table(architecture)
        if (row["operator"], row["dtype"], row["N"], row["K"]) == (operator, str(dtype).removeprefix("torch."), N, K)
    ]
    nearest = min(rows, key=lambda row: abs(math.log(row["M"] / M)), default=None)
    return nearest["tile"] if nearest and 1 / 4 <= nearest["M"] / M <= 4 else None


def default(operator: str, dtype: torch.dtype, M: int, N: int, K: int) -> Tile:
    """A good tile for a GPU that nobody has tuned for."""
    if operator in ("conv2d", "linear"):
        return _matmul(dtype, M, N)
    if operator == "linear_row":
        return {"BLOCK_N": 4, "BLOCK_K": 2048 // dtype.itemsize, "num_warps": 4}
    if operator in ("bias_relu", "dropout"):
        return {"BLOCK_M": 1024, "num_warps": 4}
    if operator == "softmax":
        return {"BLOCK_M": 1, "BLOCK_N": _power(N, 1, 1024), "num_warps": 4}
    block_n = _power(N, 1, 128)
    return {"BLOCK_M": 2048 // block_n, "BLOCK_N": block_n, "num_warps": 4}


def _matmul(dtype: torch.dtype, M: int, N: int) -> Tile:
    # Columns: few beyond N, but narrow tiles reload A often and feed the tensor cores less well.
    speed = {128: 1.0, 64: 0.85, 32: 0.55, 16: 0.3}
    block_n = min(speed, key=lambda block: triton.cdiv(N, block) * block / speed[block])
    block_m = _power(M, 16, 128)
    # Enough programs to occupy some hundred multiprocessors; Hopper's products take 64 rows at least.
    while triton.cdiv(M, block_m) * triton.cdiv(N, block_n) < 128 and (block_m > 64 or block_n > 32):
        if block_m > 64:
            block_m //= 2
        else:
            block_n //= 2
    large = block_m * block_n >= 128 * 128
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": 128 // dtype.itemsize,
        "GROUP_M": 8,
        "num_warps": 8 if large else 4,
        "num_stages": 3 if large else 4,
    }


def _interpreter(operator: str, M: int, N: int, K: int) -> Tile:
    """Large tiles: the interpreter's cost is per operation and per program, hardly per element."""
    if operator in ("conv2d", "linear"):
        # Everything at once where it fits; half of Triton's limit of 2^20 elements a tile was fastest.
        block_n = _power(N, 16, 1024)
        block_k = _power(K, 16, 512)
        block_m = _power(M, 16, 2**19 // max(block_n, block_k))
        return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 1}
    if operator == "linear_row":
        block_k = _power(K, 1, 1024)
        return {"BLOCK_N": _power(N, 1, 2**19 // block_k), "BLOCK_K": block_k}
    if operator in ("bias_relu", "dropout"):
        return {"BLOCK_M": _power(M, 1, 2**18)}
    block_n = _power(N, 1, 2**18)
    return {"BLOCK_M": _power(M, 1, 2**18 // block_n), "BLOCK_N": block_n}


def _power(size: int, low: int, high: int) -> int:
    """The power of two that holds ``size``, between ``low`` and ``high``."""
    return max(low, min(high, triton.next_power_of_2(size)))
