"""Finds the fastest configs for the GPU here, and writes its table: ``alexnet tune``.

Each config is checked against float64 before it is timed, as ``alexnet bench`` does it: a config that the compiler gets
wrong must not win. The whole operator is timed, because only the sum of its launches counts. ``triton.autotune`` times
single kernels, so it is not used.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import kernels
from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tiles.choices import Config, Problem, candidates
from kernels.tools import command
from kernels.tools.assembly import Task, launches
from kernels.tools.command import Parser, count, interrupts_exit
from kernels.tools.files import write_bytes
from kernels.tools.workloads import DTYPES, OPERATORS, WORKLOADS, layers_of, operator, torch_dtype

if TYPE_CHECKING:
    from kernels.tools.bench.device import Gpu


def compile_ahead(task: Task) -> None:
    """Puts a task's kernels into Triton's cache. What fails to compile fails again when it is run."""
    for launch, _, _ in launches(task):
        with contextlib.suppress(Exception):
            launch.kernel.warmup(*launch.args, grid=(1,), **launch.constants)


def tune(gpu: Gpu, task: Task) -> dict[Problem, Config]:
    """The fastest config for each problem of the task. None for a problem that no config solves right."""
    from kernels import runtime
    from kernels.tools.bench.check import time_work
    from kernels.tools.bench.works import Work

    layer = WORKLOADS[task.layer]
    work = Work(layer.name, (layer,), "backward" if task.backward else "forward")
    operands = work.random_operands(task.batch, torch_dtype(task.dtype), gpu.device)
    started = work.start(work.ours, kernels.cross_entropy, operands)  # a backward pass after its forward pass
    with tiles.record_configs() as recorded:
        started.run()
    found = {}
    for problem in dict.fromkeys(problem for problem, _ in recorded):
        timed = []
        for config in candidates(runtime.architecture(gpu.device), problem):
            with tiles.use(problem.operator, config):
                result = time_work(gpu, "triton", work, task.dtype, work.ours, kernels.cross_entropy, operands)
            if result.times:
                timed.append((result.p50_ms, config))
            elif result.problem.startswith("WRONG"):
                tqdm.write(f"{task.layer}, {problem}: {config}: {result.problem}", file=sys.stderr)
        if timed:
            found[problem] = min(timed, key=lambda entry: entry[0])[1]
    return found


def write(path: Path, device: str, tuned: dict[Problem, Config]) -> None:
    """Writes a table: a JSON with one row per problem."""
    import torch
    import triton

    head = {"device": device, "torch": torch.__version__, "triton": triton.__version__, "date": str(date.today())}
    rows = ",\n".join(json.dumps({**problem._asdict(), "tile": config}) for problem, config in sorted(tuned.items()))
    write_bytes(path, f'{json.dumps(head)[:-1]}, "tiles": [\n{rows}\n]}}\n'.encode())
    tiles.forget()


def run(argv: list[str] | None) -> int:
    parser = Parser(
        prog="alexnet tune",
        description="Finds the fastest configs for the GPU here, and adds them to the table of its architecture. Takes "
        "about a second per config, for about twenty configs per layer, dtype and batch.",
    )
    add = parser.add_argument
    names = ", ".join(OPERATORS)
    add("operators", nargs="*", type=operator, metavar="OPERATOR", help=f"{names} (those of the network)")
    batches = [1, 16, 128, 256, 1024]
    add("--batch", type=count, nargs="+", default=batches, metavar="N", help=f"images ({' '.join(map(str, batches))})")
    add("--dtype", nargs="+", choices=DTYPES, default=["fp16"], help="tf32: fp32 multiplied as TF32 (fp16)")
    add("--backward", action="store_true", help="tunes the backward pass instead of the forward pass")
    add("--out", type=Path, metavar="DIR", help="where to write the table (kernels/tiles/, which the kernels read)")
    args = parser.parse_args(argv)
    with interrupts_exit():
        from kernels import runtime
        from kernels.tools.bench.device import Gpu, precision

    if runtime.INTERPRETED:
        raise AlexNetError("no GPU is here to tune for; operators run with the defaults beside their kernels")
    gpu = Gpu()
    architecture = runtime.architecture(gpu.device)
    out = tiles.path(architecture)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        out = args.out / out.name
    tuned = tiles.read(out)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for dtype, batch in itertools.product(args.dtype, args.batch):
            what = f"{dtype}, batch {batch}"
            tasks = [Task(layer.name, architecture, dtype, batch, args.backward) for layer in layers_of(args.operators)]
            # First on all cores: compiling a config takes longer than timing it.
            ahead = [task._replace(every_config=True) for task in tasks]
            for _ in tqdm(pool.map(compile_ahead, ahead), f"compiling {what}", total=len(ahead)):
                pass
            for task in tqdm(tasks, f"tuning {what}"):
                with precision(dtype):
                    tuned |= tune(gpu, task)
                write(out, gpu.name, tuned)
                gpu.release()
    return 0


main = functools.partial(command.run, "alexnet tune", run)
