"""Choices of the products: of convolutions and linear layers, and of their gradients.

What makes a product's config good:

- Large tiles read less: a tile reads A 1 / BLOCK_N times as often as there are outputs, and B 1 / BLOCK_M times.
- Small tiles fill the GPU if M x N is small, and waste less if M or N is no multiple of the tile.
- More stages keep more loads in flight, in shared memory. More warps hold a larger accumulator in registers.
"""

import triton

from kernels.tiles.choices import ITEMSIZE, Choices, Config, Problem, power

MULTIPROCESSORS = 132  # an H100's

# Bytes of shared memory that a program may have (CUDA C++ Programming Guide, compute capabilities; CDNA3 ISA). Other
# GPUs have at least 64 KB.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}

# BLOCK_M, BLOCK_N, warps, stages, bytes of a row of A or B per step
PRODUCTS = (
    (128, 256, 8, 3, 128), (128, 256, 8, 4, 128), (256, 128, 8, 3, 128), (128, 128, 8, 3, 128), (128, 128, 8, 4, 128),
    (128, 128, 4, 4, 64), (256, 64, 8, 3, 128), (128, 64, 4, 4, 128), (64, 128, 4, 4, 128), (64, 64, 4, 4, 128),
    (64, 64, 4, 5, 128), (64, 32, 4, 5, 128), (128, 32, 4, 4, 128), (256, 32, 4, 5, 32), (128, 64, 4, 3, 64),
    (64, 64, 4, 4, 64), (32, 64, 4, 4, 128), (32, 32, 4, 5, 256), (16, 64, 4, 4, 256), (16, 32, 4, 5, 256),
    (16, 16, 2, 5, 512),
)  # fmt: skip


def by_rule(*, split: bool = False, transposed: bool = False, four_warps_in_float32: bool = False) -> Choices:
    """Choices of a product with a default by simple rules.

    ``split``: the kernel has SPLIT_K, the number of programs that share the terms of one tile. ``transposed``: one
    operand is transposed on its way to the tensor cores. ``four_warps_in_float32``: with 8 warps and float32 the
    compiler spills one or two registers per thread.
    """

    def default(architecture: str, problem: Problem) -> Config:
        _, dtype, M, N, K = problem
        # Narrow tiles reload A often and feed the tensor cores less well; wide ones compute columns beyond N. Without
        # tensor cores a product holds its operands in registers too, and a wide or deep tile spills. So does one that
        # is transposed for TF32: tensor cores take 32-bit numbers in one order only, so each number is moved alone.
        narrow = dtype == "float32" or (dtype == "tf32" and transposed)
        speed = {64: 0.85, 32: 0.55, 16: 0.3} if narrow else {128: 1.0, 64: 0.85, 32: 0.55, 16: 0.3}
        block_n = min(speed, key=lambda block: triton.cdiv(N, block) * block / speed[block])
        block_m = power(M, 16, 128)
        # Enough programs to occupy about a hundred multiprocessors. Hopper's products take at least 64 rows.
        while triton.cdiv(M, block_m) * triton.cdiv(N, block_n) < 128 and max(block_m, block_n) > 64:
            if block_m > 64:
                block_m //= 2
            else:
                block_n //= 2
        large = block_m * block_n >= 128 * (64 if narrow else 128)
        if four_warps_in_float32 and dtype == "float32":
            large = False
        stages = 4 if block_m + block_n <= 128 else 3  # as many as an MI300X has shared memory for
        run = 64 if dtype == "float32" else 128
        config = _config(dtype, block_m, block_n, warps=8 if large else 4, stages=stages, run=run)
        config["BLOCK_K"] = min(config["BLOCK_K"], power(K, 16, 1024))
        if split:
            # If there are still too few: share the terms, as long as each share keeps the pipeline busy.
            programs, steps, splits = triton.cdiv(M, block_m) * triton.cdiv(N, block_n), K // config["BLOCK_K"], 1
            while programs * splits < 128 and steps >= 8 * splits and splits < 8:
                splits *= 2
            config["SPLIT_K"] = splits
        return config

    def tried(architecture: str, problem: Problem) -> list[Config]:
        _, dtype, M, N, K = problem
        mostly_padding = lambda config: config["BLOCK_M"] >= 2 * max(M, 16) or config["BLOCK_N"] >= 2 * max(N, 16)
        found = [config for config in _fitting(architecture, dtype) if not mostly_padding(config)]
        if not split:
            return found
        few = triton.cdiv(M, 64) * triton.cdiv(N, 64) < 128
        splits = [count for count in (1, 2, 4, 8) if count * 256 <= K] if few else [1]
        return [config | {"SPLIT_K": count} for config in found for count in splits]

    return Choices(default, tried, lambda problem: _interpreter(problem, split), tf32=True)


def by_model(*, sums_the_batch: bool = False) -> Choices:
    """Choices of a product with a default by a model of what limits it.

    ``sums_the_batch``: K grows with the batch, instead of M, and the kernel has SPLIT_K.
    """

    def ranked(architecture: str, problem: Problem) -> list[Config]:
        configs = _fitting(architecture, problem.dtype)
        if sums_the_batch:
            configs = [config | {"SPLIT_K": s} for config in configs for s in _splits(config, problem)]
        return sorted(configs, key=lambda config: _cycles(config, problem))

    def default(architecture: str, problem: Problem) -> Config:
        # The accumulator and the addresses have to fit in registers. So do the operands, unless tensor cores read them
        # from shared memory, as Hopper's and Blackwell's do.
        if problem.dtype == "float32":
            block_m = 64 if sums_the_batch else 128
            fits = lambda config: (config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]) == (block_m, 64, 16)
        elif problem.dtype == "tf32" or architecture not in ("sm_90", "sm_100"):
            fits = lambda config: config["BLOCK_M"] * config["BLOCK_N"] <= 128 * 128
        else:
            fits = lambda _: True
        return next(config for config in ranked(architecture, problem) if fits(config))

    return Choices(
        default,
        lambda architecture, problem: ranked(architecture, problem)[:24],
        lambda problem: _interpreter(problem, sums_the_batch),
        tf32=True,
        batch="K" if sums_the_batch else "M",
    )


def _cycles(config: Config, problem: Problem) -> float:
    """What a product takes by a model of an H100.

    Per cycle, a multiprocessor multiplies ``rate`` pairs of elements and reads 64 bytes from L2, and all of them
    together read 4096: small tiles wait for L2. Programs run in rounds, one program per multiprocessor.
    """
    _, dtype, M, N, K = problem
    rate = {"float32": 128, "tf32": 1024}.get(dtype, 2048)
    block_m, block_n, block_k = (config[size] for size in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    splits = config.get("SPLIT_K", 1)
    rows, columns, steps = triton.cdiv(M, block_m), triton.cdiv(N, block_n), triton.cdiv(K, block_k * splits)
    programs = rows * columns * splits
    read = (M / rows + N / columns) * block_k * ITEMSIZE[dtype]  # bytes per step; what is masked is not read
    step = max(block_m * block_n * block_k / rate, read / 64)
    busy = triton.cdiv(programs, MULTIPROCESSORS) * (steps * step + 2000)
    adding = 5000 + splits * M * N * 8 / 1500 if splits > 1 else 0  # partial sums, written and read
    return max(busy, programs * steps * read / 4096) + adding


def _splits(config: Config, problem: Problem) -> list[int]:
    """Values of SPLIT_K that fill the multiprocessors once, twice or three times, if K is long enough for them."""
    programs = triton.cdiv(problem.M, config["BLOCK_M"]) * triton.cdiv(problem.N, config["BLOCK_N"])
    found = {MULTIPROCESSORS * rounds // programs for rounds in (1, 2, 3)}
    return [1, *sorted(splits for splits in found if 1 < splits <= problem.K // (4 * config["BLOCK_K"]))]


def _fitting(architecture: str, dtype: str) -> list[Config]:
    """Those of PRODUCTS that shared memory holds."""
    configs = [_config(dtype, m, n, warps=warps, stages=stages, run=run) for m, n, warps, stages, run in PRODUCTS]
    limit = SHARED_MEMORY.get(architecture, 64 * 1024)
    return [config for config in configs if shared_memory(architecture, config, dtype) <= limit]


def shared_memory(architecture: str, config: Config, dtype: str) -> int:
    """Bytes that a product's pipeline takes: a tile of A and one of B per stage, except the last on AMD's GPUs."""
    buffers = config["num_stages"] - architecture.startswith("gfx")
    return (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * ITEMSIZE[dtype] * buffers


def _config(dtype: str, block_m: int, block_n: int, *, warps: int, stages: int, run: int) -> Config:
    """``run``: bytes of a row of A or B per step; 128 are a line of cache and of shared memory."""
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": run // ITEMSIZE[dtype], "GROUP_M": 8}
    return sizes | {"num_warps": warps, "num_stages": stages}


def _interpreter(problem: Problem, split: bool) -> Config:
    """Everything at once if it fits. Half of Triton's limit of 2^20 elements per tile was fastest."""
    block_n = power(problem.N, 16, 1024)
    block_k = power(problem.K, 16, 512)
    block_m = power(problem.M, 16, 2**19 // max(block_n, block_k))
    config = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 1}
    return config | {"SPLIT_K": 1} if split else config
