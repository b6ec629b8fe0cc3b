"""What the compiler makes of each kernel, for any GPU, without one: ``alexnet assembly``.

Triton compiles for a named target on any machine. The launches are those that the operators themselves make for
AlexNet's layers, noted instead of run; each is compiled with the tile that it would run with on that GPU, and with the
others that the tuner tries.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import tiles
from kernels.errors import AlexNetError
from kernels.tiles import Problem, choices
from kernels.tools import command
from kernels.tools.command import Parser
from kernels.tools.workloads import DTYPES, WORKLOADS, torch_dtype

# PyTorch takes seconds to import: only once the arguments make sense, inside functions.
if TYPE_CHECKING:
    import torch

    from kernels import runtime

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    "torch.float16": "*fp16",
    "torch.bfloat16": "*bf16",
    "torch.float32": "*fp32",
    "torch.int64": "*i64",
    "torch.int32": "*i32",
    "torch.int8": "*i8",
    "torch.uint8": "*u8",
}


class Assembly(NamedTuple):
    """One compiled kernel, counted."""

    kernel: str
    tile: tiles.Config
    chosen: bool  # whether the layer runs with this tile on that GPU
    registers: int  # per thread
    spills: int  # bytes of stack on NVIDIA, registers on AMD
    shared: int  # bytes of shared memory (LDS on AMD) per program
    copies: dict[int, int]  # asynchronous copies global -> shared: bytes each -> how many in the code
    tensor_cores: int  # matrix instructions in the code
    text: dict[str, str]  # "ptx" and "sass", or "amdgcn"


class Task(NamedTuple):
    """What to compile: one layer's kernels, with the tile that each runs with or with every tile that is tried."""

    layer: str
    architecture: str
    dtype: str = "fp16"
    batch: int = 128
    backward: bool = False  # the kernels of the backward pass instead of the forward pass's
    every_tile: bool = False


def assemble(tasks: Iterable[Task]) -> Iterator[tuple[Task, list[Assembly]]]:
    """Compiles each task, on all cores; results in order, of each kernel the tile that it runs with first.

    In processes of their own, where triton compiles: in this one it may have been told to interpret.
    """
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "0"
    try:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            tasks = list(tasks)
            yield from zip(tasks, pool.map(_assemble, tasks), strict=True)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def _assemble(task: Task) -> list[Assembly]:
    return [compile_launch(launch, tile, chosen, task.architecture) for launch, tile, chosen in launches(task)]


def compile_ahead(task: Task) -> None:
    """Puts a task's kernels into the cache of the Triton here; what fails to compile fails again when it is run.

    For processes of the tuner's, and not in its own file: other processes do not import a package's ``__main__``.
    """
    for launch, _, _ in launches(task):
        with contextlib.suppress(Exception):
            launch.kernel.warmup(*launch.args, grid=(1,), **launch.constants)


def launches(task: Task) -> Iterator[tuple[runtime.Launch, tiles.Config, bool]]:
    """What the operator would launch for the layer on that architecture, each launch with the tile that it would run
    with, and then, if ``every_tile``, with each of the others that the tuner tries."""
    for index, (problem, tile, launch) in enumerate(_noted(task)):
        yield launch, tile, True
        for other in choices.candidates(task.architecture, problem) if task.every_tile else []:
            if other != tile:
                with tiles.use(problem.operator, other):
                    yield _noted(task)[index][2], other, False


def _noted(task: Task) -> list[tuple[Problem, tiles.Config, runtime.Launch]]:
    import torch

    from kernels import runtime

    layer = WORKLOADS[task.layer]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if task.dtype == "tf32" else "ieee"
    try:
        operands = layer.operands(task.batch, torch_dtype(task.dtype), "cpu")  # never filled
    except RuntimeError as error:
        raise AlexNetError(f"--batch {task.batch}: {task.layer}'s tensors do not fit in the memory here") from error
    for operand in layer.trained(operands) if task.backward else []:
        operand.requires_grad_()
    with tiles.target(task.architecture):
        with runtime.record_launches() as recorded, tiles.record_configs() as noted:
            output = layer.run(*operands)
        if task.backward:
            with runtime.record_launches() as recorded, tiles.record_configs() as noted:
                torch.autograd.grad(output, layer.trained(operands), torch.empty_like(output))
    return [(problem, tile, launch) for (problem, tile), launch in zip(noted, recorded, strict=True)]


def compile_launch(launch: runtime.Launch, tile: tiles.Config, chosen: bool, architecture: str) -> Assembly:
    """Compiles a launch as Triton would on that GPU, and counts what came out."""
    import torch

    kernel = launch.kernel
    given = dict(zip(kernel.arg_names, launch.args, strict=False)) | launch.constants
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = given.pop(name)
        if kernel.params[position].is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type(value)
        # What Triton's launcher tells the compiler of each argument: torch's allocations are aligned to 16 bytes.
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=TARGETS[architecture], options=given)  # what is left: warps and stages
    count = _count_amd if architecture.startswith("gfx") else _count_nvidia
    return Assembly(kernel.__name__, tile, chosen, shared=compiled.metadata.shared, **count(compiled.asm))


def _type(value: torch.Tensor | int | float) -> str:
    if isinstance(value, float):
        return "fp32"
    if not isinstance(value, int):
        return _TYPES[str(value.dtype)]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _count_nvidia(asm: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        sass = _tool("nvdisasm", "-c", cubin)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    copies: dict[int, int] = {}
    for width in re.findall(r"cp\.async\.c[ag]\.shared\.global\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)", asm["ptx"]):
        copies[int(width, 0)] = copies.get(int(width, 0), 0) + 1
    return {
        "registers": registers,
        "spills": stack,
        "copies": copies,
        "tensor_cores": len(
            re.findall(r"^\s*(?:@\S+\s+)?(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", asm["ptx"], re.M)
        ),
        "text": {"ptx": asm["ptx"], "sass": sass},
    }


def _tool(name: str, *arguments: str | Path) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _count_amd(asm: dict) -> dict:
    text = asm["amdgcn"]
    return {
        "registers": _field(text, "vgpr_count"),
        "spills": _field(text, "vgpr_spill_count") + _field(text, "sgpr_spill_count"),
        "copies": {},
        "tensor_cores": len(re.findall(r"^\s*v_mfma", text, re.M)),
        "text": {"amdgcn": text},
    }


def _field(text: str, name: str) -> int:
    return int(re.findall(rf"\.{name}:\s*(\d+)", text)[0])


def _print_table(results: Iterable[tuple[Task, list[Assembly]]]) -> None:
    """One line a kernel and tile."""
    row = "{:5}  {:19} {}{:56} {:>9} {:>6} {:>6}  {:15} {:>6}"
    print(row.format("layer", "kernel", " ", "tile", "registers", "spills", "shared", "copies", "matrix"))
    for task, assemblies in results:
        for a in assemblies:
            name = a.kernel.removeprefix("_").removesuffix("_kernel")
            tile = " ".join(f"{key.removeprefix('BLOCK_').removeprefix('num_')}={size}" for key, size in a.tile.items())
            copies = " ".join(f"{count}x{width}B" for width, count in sorted(a.copies.items())) or "-"
            mark, matrix = "*" if a.chosen else " ", a.tensor_cores or "-"
            print(row.format(task.layer, name, mark, tile, a.registers, a.spills, a.shared, copies, matrix), flush=True)


def run(argv: list[str] | None) -> int:
    parser = Parser(
        prog="alexnet assembly",
        description="Compiles AlexNet's kernels for a GPU that need not be here: registers per thread, spills (bytes "
        "of stack on NVIDIA, registers on AMD), bytes of shared memory, asynchronous copies to shared memory "
        "(how many in the code x bytes each), matrix instructions in the code. * marks the tile a layer runs with; the "
        "others are those that the tuner tries.",
    )
    operators = sorted({layer.operator for layer in WORKLOADS.values()})
    parser.add_argument(
        "operator", nargs="?", choices=operators, metavar="OPERATOR", help=f"{', '.join(operators)} (all)"
    )
    parser.add_argument("--arch", choices=tiles.ARCHITECTURES, default="sm_90", help="of the GPU (%(default)s)")
    parser.add_argument(
        "--layer", choices=WORKLOADS, metavar="LAYER", help=f"{', '.join(WORKLOADS)} (all of the operator's)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="tf32: fp32 multiplied as TF32 (%(default)s)")
    parser.add_argument(
        "--batch", type=int, default=128, metavar="N", help="images, which decide the tile (%(default)s)"
    )
    parser.add_argument("--backward", action="store_true", help="the backward pass's kernels")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--ptx", action="store_true", help="prints the PTX of the tiles that the layers run with")
    text.add_argument("--sass", action="store_true", help="prints the machine code of those tiles")
    options = parser.parse_args(argv)
    if options.batch < 1:
        parser.error(f"argument --batch: must be at least 1, got {options.batch}")
    if options.arch.startswith("gfx") and (options.ptx or options.sass):
        parser.error("argument --ptx/--sass: NVIDIA's; for AMD's assembly see kernels.tools.assembly.Assembly.text")
    layers = [
        name
        for name, layer in WORKLOADS.items()
        if options.operator in (None, layer.operator) and options.layer in (None, name)
    ]
    if not layers:
        operator = WORKLOADS[options.layer].operator
        parser.error(f"argument --layer: {options.layer} is a layer of {operator}, not of {options.operator}")

    code = "ptx" if options.ptx else "sass" if options.sass else None
    what = options.arch, options.dtype, options.batch, options.backward
    tasks = [Task(layer, *what, every_tile=not code) for layer in layers]
    results = assemble(tasks)
    if code:
        for _, assemblies in results:
            for assembly in assemblies:
                print(f"// {assembly.kernel} {assembly.tile}\n{assembly.text[code]}")
    else:
        _print_table(results)
    return 0


def main(argv: list[str] | None = None) -> int:
    return command.run("alexnet assembly", run, argv)


if __name__ == "__main__":
    sys.exit(main())
