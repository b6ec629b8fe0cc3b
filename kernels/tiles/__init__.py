"""Which tile a kernel runs with: tuned where a table has it, a default everywhere else."""

import torch
import triton

from kernels import runtime

Tile = dict[str, int]


def lookup(operator: str, tensor: torch.Tensor, M: int, N: int, K: int) -> Tile:
    """The tile for one launch: M x N outputs (pixels or rows x channels), K terms reduced for each."""
    if runtime.INTERPRETED:
        return _interpreter(operator, M, N, K)
    return _default(operator, M, N, K)


def _interpreter(operator: str, M: int, N: int, K: int) -> Tile:
    """Large tiles: the interpreter's cost is per operation and per program, hardly per element."""
    if operator in ("conv2d", "linear"):
        # Everything at once where it fits; half of Triton's limit of 2^20 elements a tile was fastest.
        block_n = _power(N, 16, 1024)
        block_k = _power(K, 16, 512)
        block_m = _power(M, 16, 2**19 // max(block_n, block_k))
        return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 1}
    if operator in ("bias_relu", "dropout"):
        return {"BLOCK_M": _power(M, 1, 2**18)}
    block_n = _power(N, 1, 2**18)
    return {"BLOCK_M": _power(M, 1, 2**18 // block_n), "BLOCK_N": block_n}


def _default(operator: str, M: int, N: int, K: int) -> Tile:
    """A good tile for any GPU."""
    if operator in ("conv2d", "linear"):
        block_m = _power(M, 16, 128)
        block_n = _power(N, 16, 128)
        warps = 8 if block_m * block_n >= 128 * 128 else 4
        stages = 3 if warps == 8 else 4
        return {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": 64,
            "GROUP_M": 8,
            "num_warps": warps,
            "num_stages": stages,
        }
    if operator in ("bias_relu", "dropout"):
        return {"BLOCK_M": 1024, "num_warps": 4}
    if operator == "softmax":
        return {"BLOCK_M": 1, "BLOCK_N": _power(N, 1, 1024), "num_warps": 4}
    block_n = _power(N, 1, 128)
    return {"BLOCK_M": 2048 // block_n, "BLOCK_N": block_n, "num_warps": 4}


def _power(size: int, low: int, high: int) -> int:
    """The power of two that holds ``size``, between ``low`` and ``high``."""
    return max(low, min(high, triton.next_power_of_2(size)))
