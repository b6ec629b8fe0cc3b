"""What the compiler makes of each kernel, for any GPU, without one: ``python -m kernels.assembly``.

Triton compiles for a named target on any machine. The launches are those that the operators themselves make for
AlexNet's layers, noted instead of run.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import runtime, tiles
from kernels.layers import Layer

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}


class Assembly(NamedTuple):
    """One compiled kernel, counted."""

    kernel: str
    tile: tiles.Tile
    registers: int  # per thread
    spills: int  # bytes of stack on NVIDIA, registers on AMD
    shared: int  # bytes of shared memory (LDS on AMD) per program
    copies: dict[int, int]  # asynchronous copies global -> shared: bytes each -> how many in the code
    tensor_cores: int  # matrix instructions in the code
    text: dict[str, str]  # "ptx" and "sass", or "amdgcn"


def launches(layer: Layer, dtype: torch.dtype, batch: int, architecture: str) -> list[runtime.Launch]:
    """What the operator would launch for a layer on ``architecture``."""
    with runtime.recording() as recorded, tiles.target(architecture):
        layer.run(*layer.operands(batch, dtype, "cpu"))
    return recorded


def compile_launch(launch: runtime.Launch, architecture: str) -> Assembly:
    """Compiles a launch for ``architecture`` as Triton would on that GPU, and counts what came out."""
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
    options = {name: given[name] for name in ("num_warps", "num_stages") if name in given}
    compiled = triton.compile(source, target=TARGETS[architecture], options=options)
    tile = {name: launch.constants[name] for name in launch.constants if name.startswith(("BLOCK", "GROUP_M", "num_"))}
    count = _count_amd if architecture.startswith("gfx") else _count_nvidia
    return Assembly(kernel.__name__, tile, shared=compiled.metadata.shared, **count(compiled.asm))


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _count_nvidia(asm: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        sass = _tool("nvdisasm", "-c", cubin)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
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


def _tool(name: str, *arguments: object) -> str:
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
    return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
