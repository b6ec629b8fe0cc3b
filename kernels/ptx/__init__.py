"""A machine that executes the PTX that Triton compiles, on the CPU, and checks it as it runs.

Triton's interpreter runs a kernel's Python. A GPU runs something else: what the compiler made of it, with threads,
registers, shared memory, barriers and tensor-core fragments. This package runs that, in NumPy, on the bytes of CPU
tensors. Read it in this order:

    compiled.py      from a Triton kernel and its arguments to PTX, without a GPU
    program.py       the PTX text, taken apart into instructions
    arithmetic.py    what each arithmetic instruction computes: PTX's rounding, NaN, denormals
    memory.py        global memory (the tensors) and shared memory, with their checks
    fragments.py     which thread holds which element of a tensor core's operands
    group.py         programs that run in lock step: their registers, masks and branches
    instructions.py  loads and stores, asynchronous copies, barriers, what a warp does together
    tensor_cores.py  mma and wgmma
    machine.py       the loop that runs them all

Section numbers are those of the PTX ISA 8.8 (https://docs.nvidia.com/cuda/parallel-thread-execution/).

What it proves: addresses, masks, barriers, asynchronous copies, layouts and arithmetic of the compiled code. What it
does not: what ptxas makes of the PTX, time, and what only real concurrency shows. It knows no tcgen05 and no mbarrier,
which sm_100 needs.
"""

from kernels.ptx.compiled import ARCHITECTURES, compile_launch
from kernels.ptx.group import PtxError, PtxWarning
from kernels.ptx.instructions import Copy, Watcher, watcher
from kernels.ptx.machine import launch, run
from kernels.ptx.memory import Tensors
from kernels.ptx.program import Instruction, Program, UnsupportedInstructionError

__all__ = [
    "ARCHITECTURES",
    "Copy",
    "Instruction",
    "Program",
    "PtxError",
    "PtxWarning",
    "Tensors",
    "UnsupportedInstructionError",
    "Watcher",
    "compile_launch",
    "launch",
    "run",
    "watcher",
]
