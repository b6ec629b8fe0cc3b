"""The tiles there are to choose from: a default, those that the tuner tries, and the interpreter's.

What makes a product's tile good:

- large tiles read less: a BLOCK_M x BLOCK_N tile reads A and B (1 / BLOCK_N + 1 / BLOCK_M) times as often;
- small ones fill the GPU where M x N is small, and waste less where it is no multiple;
- more stages keep more loads in flight, in shared memory; more warps hold a larger accumulator in registers.
"""

from typing import NamedTuple

import triton

Config = dict[str, int]


class Problem(NamedTuple):
    """What a tile is chosen for: M x N outputs (pixels or rows x channels), each from K terms."""

    operator: str
    dtype: str  # among ITEMSIZE
    M: int
    N: int
    K: int


ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "tf32": 4}
"""Bytes of an element. Products of float32 are ``tf32`` where the tensor cores make them, ``float32`` else."""


ELEMENTWISE = ("bias_relu", "dropout", "add_shares", "depth_to_space", "reduce_losses")
GRADIENTS = ("conv2d_input_gradient", "conv2d_weight_gradient")
MATRIX = ("conv2d", "linear", "linear_input_gradient", "linear_weight_gradient", *GRADIENTS)
"""Products: the tensor cores', where there are any for the dtype."""
SPLIT = ("conv2d", "conv2d_weight_gradient")
SUMS_THE_BATCH = ("conv2d_weight_gradient",)
"""Products whose K grows with the batch, where others' M does."""
ROWS_OF_CLASSES = ("softmax", "softmax_gradient", "cross_entropy", "cross_entropy_gradient")
SUMMED = ("bias_relu_gradient", "column_sums")
VECTORISED = ("local_response_norm", "local_response_norm_gradient", "max_pool2d", "max_pool2d_gradient")


def default(architecture: str, problem: Problem) -> Config:
    """A good tile for a GPU that nobody has tuned for."""
    operator, dtype, _, N, K = problem
    if operator in GRADIENTS:
        return _default_gradient(architecture, problem)
    if operator in MATRIX:
        return _default_product(problem)
    if operator == "linear_row":
        return {"BLOCK_N": 2, "BLOCK_K": 2048 // ITEMSIZE[dtype], "num_warps": 4}
    if operator in ELEMENTWISE:
        return {"BLOCK_M": 1024, "num_warps": 4}
    if operator in SUMMED:
        return _default_summed(problem)
    if operator in ROWS_OF_CLASSES:
        return {"BLOCK_M": 1, "BLOCK_N": _power(N, 1, 1024), "num_warps": 4}
    if operator in VECTORISED:
        return {"BLOCK_M": 256, "num_warps": 4}
    if operator == "lrn_max_pool2d_gradient":
        # Two vectors of channels a thread share neighbours, which saves arithmetic, once there are threads enough.
        return {"BLOCK_M": 128, "BLOCK_C": 2 if _vectors(problem) >= 2**18 else 1, "num_warps": 4}
    if operator == "lrn_max_pool2d":
        # Blocks of pixels, which save arithmetic, once there are threads enough; they need registers, as windows do.
        threads = _vectors(problem) if K <= 9 else 0
        block_p, block_q = 3 if threads >= 2**20 else 1, 3 if threads >= 2**18 else 1
        return {"BLOCK_M": 128, "BLOCK_P": block_p, "BLOCK_Q": block_q, "num_warps": 4}
    # space_to_depth: a warp reads 16 pixels side by side of few rows, and writes 32 bytes of each.
    block_n = 32 // ITEMSIZE[dtype]
    return {"BLOCK_M": 2048 // block_n, "BLOCK_N": block_n, "num_warps": 4}


def _default_product(problem: Problem) -> Config:
    operator, dtype, M, N, K = problem
    # Columns: few beyond N, but narrow tiles reload A often and feed the tensor cores less well. Without tensor cores
    # a product holds its operands in registers too, and a wide or a deep tile spills; so does one that is transposed,
    # number by number, on its way to the tensor cores, which take numbers of 32 bits in one order only.
    transposed = operator in ("linear_input_gradient", "linear_weight_gradient")
    narrow = dtype == "float32" or (dtype == "tf32" and transposed)
    speed = {64: 0.85, 32: 0.55, 16: 0.3} if narrow else {128: 1.0, 64: 0.85, 32: 0.55, 16: 0.3}
    block_n = min(speed, key=lambda block: triton.cdiv(N, block) * block / speed[block])
    block_m = _power(M, 16, 128)
    # Enough programs to occupy some hundred multiprocessors; Hopper's products take 64 rows at least.
    while triton.cdiv(M, block_m) * triton.cdiv(N, block_n) < 128 and max(block_m, block_n) > 64:
        if block_m > 64:
            block_m //= 2
        else:
            block_n //= 2
    large = block_m * block_n >= 128 * (64 if narrow else 128)
    if operator == "linear_weight_gradient" and dtype == "float32":
        large = False  # with 8 warps the compiler gives each thread too few registers by one or two
    stages = 4 if block_m + block_n <= 128 else 3  # as many as an MI300X has shared memory for
    run = 64 if dtype == "float32" else 128
    tile = _product(dtype, block_m, block_n, warps=8 if large else 4, stages=stages, run=run)
    tile["BLOCK_K"] = min(tile["BLOCK_K"], _power(K, 16, 1024))
    if operator == "conv2d":
        # Still too few: share out the taps, as long as each share keeps the pipeline busy.
        programs, steps, tile["SPLIT_K"] = triton.cdiv(M, block_m) * triton.cdiv(N, block_n), K // tile["BLOCK_K"], 1
        while programs * tile["SPLIT_K"] < 128 and steps >= 8 * tile["SPLIT_K"] and tile["SPLIT_K"] < 8:
            tile["SPLIT_K"] *= 2
    return tile


def _default_gradient(architecture: str, problem: Problem) -> Config:
    # What has to fit in registers: the accumulator, the addresses, and the operands too, unless tensor cores read them
    # from shared memory, as Hopper's and Blackwell's do.
    if problem.dtype == "float32":
        block_m = 64 if problem.operator in SUMS_THE_BATCH else 128
        fits = lambda tile: (tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]) == (block_m, 64, 16)
    elif problem.dtype == "tf32" or architecture not in ("sm_90", "sm_100"):
        fits = lambda tile: tile["BLOCK_M"] * tile["BLOCK_N"] <= 128 * 128
    else:
        fits = lambda _: True
    return next(tile for tile in _by_model(architecture, problem) if fits(tile))


def _by_model(architecture: str, problem: Problem) -> list[Config]:
    """Products' tiles, the one first that takes the least time by a model of an H100.

    In a cycle a multiprocessor multiplies so many elements and reads 64 bytes from L2, and all of them together read
    4096: what has small tiles waits for L2. Programs run in rounds of one for each multiprocessor.
    """
    operator, dtype, M, N, K = problem
    rate = {"float32": 128, "tf32": 1024}.get(dtype, 2048)

    def cycles(tile: Config) -> float:
        block_m, block_n, block_k, splits = (tile[x] for x in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT_K"))
        rows, columns, steps = triton.cdiv(M, block_m), triton.cdiv(N, block_n), triton.cdiv(K, block_k * splits)
        programs = rows * columns * splits
        read = (M / rows + N / columns) * block_k * ITEMSIZE[dtype]  # bytes a step; what is masked is not read
        step = max(block_m * block_n * block_k / rate, read / 64)
        busy = triton.cdiv(programs, MULTIPROCESSORS) * (steps * step + 2000)
        adding = 5000 + splits * M * N * 8 / 1500 if splits > 1 else 0  # shares, written and read
        return max(busy, programs * steps * read / 4096) + adding

    tried = [tile | {"SPLIT_K": splits} for tile in _fitting(architecture, dtype) for splits in _splits(tile, problem)]
    tried.sort(key=cycles)
    return [{key: size for key, size in tile.items() if key != "SPLIT_K" or operator in SPLIT} for tile in tried]


def _splits(tile: Config, problem: Problem) -> list[int]:
    """Numbers of shares that fill the multiprocessors once, twice, ... where K is long enough for the pipeline."""
    operator, _, M, N, K = problem
    programs = triton.cdiv(M, tile["BLOCK_M"]) * triton.cdiv(N, tile["BLOCK_N"])
    found = {1}
    if operator in SUMS_THE_BATCH:
        found |= {MULTIPROCESSORS * rounds // programs for rounds in (1, 2, 3)}
    return sorted(s for s in found if s == 1 or 1 < s <= K // (4 * tile["BLOCK_K"]))


def _default_summed(problem: Problem) -> Config:
    """8 KB of a [M, N] matrix a step. Few rows: one program has all of them, of few columns; many: a thousandth."""
    _, dtype, M, N, _ = problem
    few = M <= 1024
    block_n = _power(N, 1, 64 // ITEMSIZE[dtype] if few else 128)
    block_m = _power(M, 2, 8192 // ITEMSIZE[dtype] // block_n)  # a single row would never be summed up
    steps = _power(triton.cdiv(M, block_m if few else block_m * 1024), 1, 128)
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "STEPS": steps, "num_warps": 8}  # with 4, some spill


def _product(dtype: str, block_m: int, block_n: int, *, warps: int, stages: int, run: int = 128) -> Config:
    """``run`` is the bytes of a row of A or B that a step reads: 128 are a line of cache and of shared memory."""
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": run // ITEMSIZE[dtype],
        "GROUP_M": 8,
        "num_warps": warps,
        "num_stages": stages,
    }


# BLOCK_M, BLOCK_N, warps, stages, bytes of a row a step
PRODUCTS = (
    (128, 256, 8, 3, 128),
    (128, 256, 8, 4, 128),
    (256, 128, 8, 3, 128),
    (128, 128, 8, 3, 128),
    (128, 128, 8, 4, 128),
    (128, 128, 4, 4, 64),
    (256, 64, 8, 3, 128),
    (128, 64, 4, 4, 128),
    (64, 128, 4, 4, 128),
    (64, 64, 4, 4, 128),
    (64, 64, 4, 5, 128),
    (64, 32, 4, 5, 128),
    (128, 32, 4, 4, 128),
    (256, 32, 4, 5, 32),
    (128, 64, 4, 3, 64),
    (64, 64, 4, 4, 64),
    (32, 64, 4, 4, 128),
    (32, 32, 4, 5, 256),
    (16, 64, 4, 4, 256),
    (16, 32, 4, 5, 256),
    (16, 16, 2, 5, 512),
)

# Of the single-row kernel: BLOCK_N, bytes of a row a step, warps
ROWS = ((1, 4096, 4), (2, 2048, 4), (4, 1024, 2), (4, 2048, 4), (4, 4096, 8), (8, 1024, 4), (8, 2048, 4))

# Bytes of shared memory that a program may have (CUDA C++ Programming Guide, compute capabilities; CDNA3 ISA); other
# GPUs have 64 KB at least.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}


MULTIPROCESSORS = 132  # an H100's


def shared_memory(architecture: str, tile: Config, dtype: str) -> int:
    """Bytes that a product's pipeline takes: a tile of A and one of B for each stage, but for AMD's last."""
    buffers = tile["num_stages"] - architecture.startswith("gfx")
    return (tile["BLOCK_M"] + tile["BLOCK_N"]) * tile["BLOCK_K"] * ITEMSIZE[dtype] * buffers


def _fitting(architecture: str, dtype: str) -> list[Config]:
    """Products' tiles that shared memory holds."""
    tried = [_product(dtype, m, n, warps=w, stages=s, run=run) for m, n, w, s, run in PRODUCTS]
    limit = SHARED_MEMORY.get(architecture, 64 * 1024)
    return [tile for tile in tried if shared_memory(architecture, tile, dtype) <= limit]


def candidates(architecture: str, problem: Problem) -> list[Config]:
    """The tiles that the tuner tries for a problem on ``architecture``, the default first."""
    operator, dtype, M, N, K = problem
    first = default(architecture, problem)
    lanes = 64 if architecture.startswith("gfx") else 32  # of a warp
    if operator in GRADIENTS:
        tried = _by_model(architecture, problem)[:24]
    elif operator in MATRIX:
        # No tile that is mostly padding.
        tried = _fitting(architecture, dtype)
        tried = [t for t in tried if t["BLOCK_M"] < 2 * max(M, 16) and t["BLOCK_N"] < 2 * max(N, 16)]
        if operator in SPLIT:
            splits = [1]
            if triton.cdiv(M, 64) * triton.cdiv(N, 64) < 128:
                splits = [s for s in (1, 2, 4, 8) if s * 256 <= K]
            tried = [tile | {"SPLIT_K": s} for tile in tried for s in splits]
    elif operator == "linear_row":
        tried = [
            {"BLOCK_N": block_n, "BLOCK_K": run // ITEMSIZE[dtype], "num_warps": warps} for block_n, run, warps in ROWS
        ]
    elif operator in ELEMENTWISE:
        tried = [{"BLOCK_M": m, "num_warps": w} for m in (512, 1024, 2048, 4096) for w in (4, 8)]
    elif operator in SUMMED:
        rows, tried = first["BLOCK_M"] * first["STEPS"], []
        for block_n in (first["BLOCK_N"] // 2, first["BLOCK_N"], first["BLOCK_N"] * 2):
            for block_m in (first["BLOCK_M"] // 2, first["BLOCK_M"]):
                if block_m and 0 < block_n < 2 * N:
                    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "STEPS": rows // block_m}
                    tried += [tile | {"num_warps": warps} for warps in (4, 8)]
    elif operator in ROWS_OF_CLASSES:
        tried = [first | {"num_warps": warps} for warps in (1, 2, 8)]
    elif operator in VECTORISED:
        tried = [{"BLOCK_M": lanes * warps * rows, "num_warps": warps} for rows in (1, 2) for warps in (1, 2, 4, 8)]
    elif operator == "lrn_max_pool2d":
        tried = [
            {"BLOCK_M": lanes * warps, "BLOCK_P": p, "BLOCK_Q": q, "num_warps": warps}
            for p in (1, 2, 3, 7, 9)
            for q in (1, 2, 3)
            for warps in (2, 4)
        ]
    elif operator == "lrn_max_pool2d_gradient":
        tried = [
            {"BLOCK_M": lanes * warps, "BLOCK_C": c, "num_warps": warps} for c in (1, 2, 3) for warps in (1, 2, 4, 8)
        ]
    else:  # space_to_depth
        vector = first["BLOCK_N"] // 2
        tried = [
            {"BLOCK_M": lanes * warps * rows // n, "BLOCK_N": n * vector, "num_warps": warps}
            for n in (1, 2, 4, 8)
            for rows in (1, 2)
            for warps in (2, 4, 8)
        ]
    return [first] + [tile for tile in tried if tile != first]


def interpreter(problem: Problem) -> Config:
    """Large tiles: the interpreter's cost is per operation and per program, hardly per element."""
    operator, _, M, N, K = problem
    if operator in MATRIX:
        # Everything at once where it fits; half of Triton's limit of 2^20 elements a tile was fastest.
        block_n = _power(N, 16, 1024)
        block_k = _power(K, 16, 512)
        block_m = _power(M, 16, 2**19 // max(block_n, block_k))
        tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 1}
        return tile | {"SPLIT_K": 1} if operator in SPLIT else tile
    if operator == "linear_row":
        block_k = _power(K, 1, 1024)
        return {"BLOCK_N": _power(N, 1, 2**19 // block_k), "BLOCK_K": block_k}
    if operator in ELEMENTWISE:
        return {"BLOCK_M": _power(M, 1, 2**18)}
    if operator in SUMMED:
        block_n = _power(N, 1, 2**12)
        return {"BLOCK_M": _power(M, 1, 2**18 // block_n), "BLOCK_N": block_n, "STEPS": 1}
    if operator in (*VECTORISED, "lrn_max_pool2d", "lrn_max_pool2d_gradient"):
        block = {"lrn_max_pool2d": {"BLOCK_P": 1, "BLOCK_Q": 1}, "lrn_max_pool2d_gradient": {"BLOCK_C": 1}}
        return {"BLOCK_M": _power(_vectors(problem), 1, 2**15)} | block.get(operator, {})
    block_n = _power(N, 1, 2**18)
    return {"BLOCK_M": _power(M, 1, 2**18 // block_n), "BLOCK_N": block_n}


def _vectors(problem: Problem) -> int:
    """Runs of 16 bytes of channels in the output."""
    return problem.M * triton.cdiv(problem.N * ITEMSIZE[problem.dtype], 16)


def _power(size: int, low: int, high: int) -> int:
    """The power of two that holds ``size``, between ``low`` and ``high``."""
    return max(low, min(high, triton.next_power_of_2(size)))
