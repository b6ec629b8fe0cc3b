"""What the compiler makes of each kernel, for a GPU that need not be here: ``alexnet assembly``.

Triton compiles for a named target on any machine. The operators' launches for AlexNet's layers are recorded instead of
run. Each is compiled with the config that it would run with on that GPU, and with the others that the tuner tries.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tiles import Config, Problem, choices
from kernels.tools import command
from kernels.tools.columns import align
from kernels.tools.command import Parser, count
from kernels.tools.workloads import DTYPES, OPERATORS, WORKLOADS, names_of, torch_dtype

if TYPE_CHECKING:
    from kernels.runtime import Launch


class Assembly(NamedTuple):
    """One compiled kernel, and numbers about its code."""

    kernel: str
    config: Config
    chosen: bool  # whether the layer runs with this config on that GPU
    shared: int  # bytes of shared memory (LDS on AMD) per program
    registers: int  # per thread
    spills: int  # bytes of stack on NVIDIA, registers on AMD
    copies: dict[int, int]  # bytes of an asynchronous copy global -> shared: how many of them are in the code
    tensor_cores: int  # matrix instructions in the code
    text: dict[str, str]  # "ptx" and "sass", or "amdgcn"


class Task(NamedTuple):
    """What to compile: one layer's kernels, each with the config that it runs with, or with all that are tried."""

    layer: str
    architecture: str
    dtype: str = "fp16"
    batch: int = 128
    backward: bool = False  # the kernels of the backward pass instead of the forward pass's
    every_config: bool = False


def assemble(tasks: Iterable[Task]) -> Iterator[tuple[Task, list[Assembly]]]:
    """Compiles the tasks on all cores, and yields the results in order. The config that a kernel runs with is first.

    In other processes, where Triton compiles. In this one it may interpret.
    """
    tasks = list(tasks)
    pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
    with mock.patch.dict(os.environ, TRITON_INTERPRET="0"), pool:
        yield from zip(tasks, pool.map(_assemble, tasks), strict=True)


def _assemble(task: Task) -> list[Assembly]:
    return [compile_launch(*launch, task.architecture) for launch in launches(task)]


def launches(task: Task) -> Iterator[tuple[Launch, Config, bool]]:
    """Yields what the operator would launch for the layer: each launch, its config, and whether it is the chosen one.

    The chosen config comes first. If ``every_config``, the others that the tuner tries follow.
    """
    for index, (problem, config, launch) in enumerate(_recorded(task)):
        yield launch, config, True
        for other in choices.candidates(task.architecture, problem) if task.every_config else []:
            if other != config:
                with tiles.use(problem.operator, other):
                    yield _recorded(task)[index][2], other, False


def _recorded(task: Task) -> list[tuple[Problem, Config, Launch]]:
    import torch

    from kernels import runtime

    layer = WORKLOADS[task.layer]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if task.dtype == "tf32" else "ieee"
    try:
        operands = layer.operands(task.batch, torch_dtype(task.dtype), "cpu")  # never filled
    except RuntimeError as error:
        raise AlexNetError(f"--batch {task.batch}: {task.layer}'s tensors do not fit in the memory here") from error
    trained = operands[layer.first :]
    for operand in trained:
        operand.requires_grad_(task.backward)
    with tiles.target(task.architecture), runtime.record_launches() as recorded, tiles.record_configs() as configs:
        output = layer.run(*operands)
        if task.backward:  # without the forward pass before it
            recorded.clear()
            configs.clear()
            torch.autograd.grad(output, trained, torch.empty_like(output))
    return [(problem, config, launch) for (problem, config), launch in zip(configs, recorded, strict=True)]


def compile_launch(launch: Launch, config: Config, chosen: bool, architecture: str) -> Assembly:
    """Compiles a launch as Triton would on that GPU, and counts what is in the code."""
    import torch

    kernel = launch.kernel
    given = dict(zip(kernel.arg_names, launch.args, strict=False)) | launch.constants
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = given.pop(name)
        if kernel.params[position].is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = mangle_type(value)
        # What Triton's launcher tells the compiler about an argument. PyTorch aligns its memory to 16 bytes.
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    amd = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if amd else GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=given)  # the rest: warps and stages
    numbers = (_numbers_amd if amd else _numbers_nvidia)(compiled.asm)
    return Assembly(kernel.__name__, config, chosen, compiled.metadata.shared, *numbers)


Numbers = tuple[int, int, dict[int, int], int, dict[str, str]]  # the last fields of an Assembly


def _numbers_nvidia(asm: dict) -> Numbers:
    ptx = asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        sass = _tool("nvdisasm", "-c", cubin)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    widths = re.findall(r"cp\.async\.c[ag]\.shared\.global\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)", ptx)
    matrix = re.findall(r"^\s*(?:@\S+\s+)?(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", ptx, re.M)
    copies = Counter(int(width, 0) for width in widths)
    return registers, stack, copies, len(matrix), {"ptx": ptx, "sass": sass}


def _tool(name: str, *arguments: str | Path) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _numbers_amd(asm: dict) -> Numbers:
    text = asm["amdgcn"]
    registers, *spills = (
        int(re.findall(rf"\.{name}:\s*(\d+)", text)[0])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    )
    return registers, sum(spills), {}, len(re.findall(r"^\s*v_mfma", text, re.M)), {"amdgcn": text}


# The command


def _print_table(results: Iterable[tuple[Task, list[Assembly]]]) -> None:
    """Prints one line per kernel and config, as they are compiled."""

    def show(*cells: object) -> None:
        print(align([cells], left=(0, 1, 2, 6), widths=(5, 19, 58, 9, 6, 6, 15, 6))[0], flush=True)

    short = lambda key: key.removeprefix("BLOCK_").removeprefix("num_")
    show("layer", "kernel", "  config", "registers", "spills", "shared", "copies", "matrix")
    for task, assemblies in results:
        for a in assemblies:
            name = a.kernel.removeprefix("_").removesuffix("_kernel")
            config = " ".join(["*" if a.chosen else " ", *(f"{short(key)}={size}" for key, size in a.config.items())])
            copies = " ".join(f"{number}x{width}B" for width, number in sorted(a.copies.items())) or "-"
            show(task.layer, name, config, a.registers, a.spills, a.shared, copies, a.tensor_cores or "-")


def run(argv: list[str] | None) -> int:
    parser = Parser(
        prog="alexnet assembly",
        description="Compiles AlexNet's kernels for a GPU that need not be here. Shows registers per thread, spills "
        "(bytes of stack on NVIDIA, registers on AMD), bytes of shared memory, asynchronous copies to shared memory "
        "(how many in the code x bytes each), and matrix instructions in the code. * marks the config that a layer "
        "runs with; the others are those that the tuner tries.",
    )
    add = parser.add_argument
    add("operator", nargs="?", choices=OPERATORS, metavar="OPERATOR", help=f"{', '.join(OPERATORS)} (all)")
    add("--arch", choices=tiles.ARCHITECTURES, default="sm_90", help="of the GPU (%(default)s)")
    layers = ", ".join(WORKLOADS)
    add("--layer", choices=WORKLOADS, metavar="LAYER", help=f"{layers} (all of the operator's)")
    add("--dtype", choices=DTYPES, default="fp16", help="tf32: fp32 multiplied as TF32 (%(default)s)")
    add("--batch", type=count, default=128, metavar="N", help="images, on which the config depends (%(default)s)")
    add("--backward", action="store_true", help="the backward pass's kernels")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--ptx", action="store_true", help="prints the PTX of the configs that the layers run with")
    text.add_argument("--sass", action="store_true", help="prints the machine code of those configs")
    args = parser.parse_args(argv)
    if args.arch.startswith("gfx") and (args.ptx or args.sass):
        raise AlexNetError("--ptx/--sass: NVIDIA's; for AMD's assembly see kernels.tools.assembly.Assembly.text")
    code = "ptx" if args.ptx else "sass" if args.sass else None
    what = args.arch, args.dtype, args.batch, args.backward
    results = assemble(Task(name, *what, every_config=not code) for name in names_of(args.operator, args.layer))
    if code is None:
        _print_table(results)
        return 0
    for _, assemblies in results:
        for assembly in assemblies:
            print(f"// {assembly.kernel} {assembly.config}\n{assembly.text[code]}")
    return 0


main = functools.partial(command.run, "alexnet assembly", run)
