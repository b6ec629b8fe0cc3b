"""Compiles kernels for a GPU, also a notebook's own kernels, and counts what is in the code. This needs no GPU."""

import importlib
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from kernels import runtime

PRELUDE = "import triton\nimport triton.language as tl\n\nfrom kernels import runtime\n\n\n"


class Launch(NamedTuple):
    """A kernel and the arguments of its launch. Of tensors only the dtype matters."""

    kernel: Callable
    arguments: tuple
    constants: dict  # tl.constexpr, num_warps and num_stages by name


class Compiled(NamedTuple):
    """Numbers that describe a kernel's code."""

    registers: int  # per thread
    spills: int  # bytes of stack per thread
    copies: dict[int, int]  # bytes of an asynchronous copy to shared memory -> how many of them
    tensor_cores: int  # number of matrix instructions


def compile(launches: Mapping[str, Launch], architecture: str = "sm_90") -> dict[str, Compiled]:
    """Compiles each launch's kernel in another process, because Triton interprets in this one.

    A notebook's kernel may use ``triton``, ``tl`` and ``kernels.runtime``, and no other names.
    """
    tasks = []
    for launch in launches.values():
        function = getattr(launch.kernel, "fn", launch.kernel)
        own = function.__module__ == "__main__"
        source = PRELUDE + inspect.getsource(function) if own else function.__module__
        arguments = [x.dtype if isinstance(x, torch.Tensor) else x for x in launch.arguments]
        tasks.append((source, own, function.__name__, arguments, launch.constants, architecture))
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    child = subprocess.run(
        [sys.executable, "-m", "lesson.compiler"],
        input=pickle.dumps(tasks),
        stdout=subprocess.PIPE,
        check=True,
        env=dict(os.environ, TRITON_INTERPRET="0", PYTHONPATH=path),
    )
    return {name: Compiled(*found) for name, found in zip(launches, pickle.loads(child.stdout), strict=True)}


def _compile(source: str, own: bool, name: str, arguments: list, constants: dict, architecture: str) -> tuple:
    from kernels.tools import assembly

    arguments = [torch.empty(0, dtype=x) if isinstance(x, torch.dtype) else x for x in arguments]
    with tempfile.TemporaryDirectory() as folder:
        kernel = getattr(_load(source, Path(folder)) if own else importlib.import_module(source), name)
        launch = runtime.Launch(kernel, lambda META: (1,), tuple(arguments), constants)
        found = assembly.compile_launch(launch, {}, True, architecture)
    return found.registers, found.spills, found.copies, found.tensor_cores


def _load(source: str, folder: Path) -> ModuleType:
    """Loads source as a module from a file, because Triton reads a kernel's source from its file."""
    path = folder / "from_notebook.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(compiled: Mapping[str, Compiled]) -> None:
    """Prints the numbers, one row per kernel."""
    width = max(map(len, compiled))
    print(f"{'':{width}}  registers  bytes spilled  asynchronous copies  matrix instructions")
    for name, found in compiled.items():
        copies = ", ".join(f"{count} of {size} bytes" for size, count in sorted(found.copies.items())) or "none"
        print(f"{name:{width}}  {found.registers:9}  {found.spills:13}  {copies:>19}  {found.tensor_cores:19}")


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps([_compile(*task) for task in pickle.load(sys.stdin.buffer)]))
