"""Tunes the tiles for the GPU that is here, and writes its table: ``alexnet tune``.

Every tile is checked against float64 before it is timed, as ``alexnet bench`` does it: a tile that the compiler gets
wrong must not win. What is timed is the whole operator: a split convolution launches two kernels, a folded one three,
and only their sum counts. That is why ``triton.autotune``, which times one kernel by itself, is not used.
"""

from __future__ import annotations

import datetime
import itertools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tqdm import tqdm

import kernels
from kernels import tiles
from kernels.tiles.choices import Config, Problem, candidates
from kernels.tools import command
from kernels.tools.assembly import Task, compile_ahead
from kernels.tools.command import Parser, interrupts_exit
from kernels.tools.files import write_bytes
from kernels.tools.workloads import ALEXNET, DTYPES, WORKLOADS, torch_dtype

# PyTorch takes seconds to import: only once the arguments make sense, inside functions.
if TYPE_CHECKING:
    from kernels.tools.bench.timing import Gpu


def tune(gpu: Gpu, task: Task, done: dict[Problem, Config]) -> None:
    """Adds to ``done`` the fastest tile of each problem that the task poses, one after another."""
    from kernels import runtime
    from kernels.tools.bench.timing import Work, judge_work

    layer = WORKLOADS[task.layer]
    work = Work(layer.name, (layer,), "backward" if task.backward else "forward")
    operands = work.random_operands(task.batch, torch_dtype(task.dtype), gpu.device)
    started = lambda: work.start(work.ours, kernels.cross_entropy, operands)
    with tiles.record_configs() as noted:
        started().run()
    if task.backward:  # the forward pass before it is tuned by itself
        with tiles.record_configs() as before:
            started()
        noted = noted[len(before) :]
    for problem in dict.fromkeys(problem for problem, _ in noted):
        if problem in done:
            continue
        timed = []
        for tile in candidates(runtime.architecture(gpu.device), problem):
            with tiles.use(problem.operator, tile):
                result = judge_work(gpu, "triton", work, task.dtype, work.ours, kernels.cross_entropy, operands)
            if result.times:
                timed.append((result.times[1], tile))
            elif result.problem.startswith("WRONG"):
                tqdm.write(f"{task.layer}, {problem}: {tile}: {result.problem}", file=sys.stderr)
        if timed:
            done[problem] = min(timed, key=lambda entry: entry[0])[1]


def write(architecture: str, device: str, tuned: dict[Problem, Config]) -> None:
    """Writes the table, whole or not at all."""
    import torch
    import triton

    table = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "tiles": [
            {**problem._asdict(), "tile": tile} for problem, tile in sorted(tuned.items(), key=lambda item: item[0])
        ],
    }
    rows = ",\n".join(json.dumps(row) for row in table.pop("tiles"))
    text = json.dumps(table)[:-1] + f', "tiles": [\n{rows}\n]}}\n'
    write_bytes(tiles.path(architecture), text.encode())
    tiles.forget()


def run(argv: list[str] | None) -> int:
    operators = sorted({layer.operator for layer in WORKLOADS.values()})
    parser = Parser(
        prog="alexnet tune",
        description="Tunes the tiles for the GPU that is here. Adds to the table of its architecture; about a second a "
        "tile, and some twenty tiles for each layer, dtype and batch.",
    )
    add = parser.add_argument
    add("operators", nargs="*", metavar="OPERATOR", help=f"{', '.join(operators)} (those of the network)")
    batches = [1, 16, 128, 256, 1024]
    add("--batch", type=int, nargs="+", default=batches, metavar="N", help=f"images ({' '.join(map(str, batches))})")
    add("--dtype", nargs="+", choices=DTYPES, default=["fp16"], help="tf32: fp32 multiplied as TF32 (fp16)")
    add("--backward", action="store_true", help="tunes the backward pass instead of the forward pass")
    options = parser.parse_args(argv)
    for operator in options.operators:
        if operator not in operators:
            parser.error(f"argument OPERATOR: must be among {', '.join(operators)}; got {operator}")
    if min(options.batch) < 1:
        parser.error(f"argument --batch: must be at least 1, got {min(options.batch)}")
    with interrupts_exit():
        from kernels import runtime
        from kernels.tools.bench.timing import Gpu, precision

    if runtime.INTERPRETED:
        parser.error("no GPU is here to tune for; without one, operators run with the defaults beside their kernels")

    gpu = Gpu()
    architecture = runtime.architecture(gpu.device)
    layers = [x for x in WORKLOADS.values() if x.operator in options.operators] if options.operators else ALEXNET
    tuned = dict(tiles.table(architecture))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for dtype, batch in itertools.product(options.dtype, options.batch):
            what = f"{dtype}, batch {batch}"
            tasks = [Task(layer.name, architecture, dtype, batch, options.backward) for layer in layers]
            # On all cores first: compiling a tile takes longer than timing it.
            ahead = [task._replace(every_tile=True) for task in tasks]
            for _ in tqdm(pool.map(compile_ahead, ahead), f"compiling {what}", total=len(ahead)):
                pass
            for task in tqdm(tasks, f"tuning {what}"):
                done: dict[Problem, Config] = {}
                with precision(dtype):
                    tune(gpu, task, done)
                tuned |= done
                write(architecture, gpu.name, tuned)
                gpu.release()
    return 0


def main(argv: list[str] | None = None) -> int:
    return command.run("alexnet tune", run, argv)


if __name__ == "__main__":
    sys.exit(main())
