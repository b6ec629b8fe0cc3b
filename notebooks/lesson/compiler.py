"""What the compiler makes of a kernel for a GPU, with or without one here, the notebook's own kernels included."""

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
    """What a kernel would be launched with: of tensors only the dtype matters."""

    kernel: Callable
    arguments: tuple
    constants: dict  # tl.constexpr, num_warps and num_stages by name


class Compiled(NamedTuple):
    """A kernel's code, counted."""

    registers: int  # of a thread
    spills: int  # bytes of stack of a thread
    copies: dict[int, int]  # asynchronous copies global -> shared memory: bytes each -> how many in the code
    tensor_cores: int  # matrix instructions in the code


def compile(launches: Mapping[str, Launch], architecture: str = "sm_90") -> dict[str, Compiled]:
    """Compiles each launch's kernel, in a process of its own: in this one Triton interprets.

    A notebook's kernel may use ``triton``, ``tl`` and ``kernels.runtime``, as if these were all that it imports.
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
    """Source as a module: Triton reads a kernel's source from a file."""
    path = folder / "from_notebook.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(compiled: Mapping[str, Compiled]) -> None:
    """Prints what was counted."""
    width = max(map(len, compiled))
    print(f"{'':{width}}  registers  bytes spilled  asynchronous copies  matrix instructions")
    for name, found in compiled.items():
        copies = ", ".join(f"{count} of {size} bytes" for size, count in sorted(found.copies.items())) or "none"
        print(f"{name:{width}}  {found.registers:9}  {found.spills:13}  {copies:>19}  {found.tensor_cores:19}")


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps([_compile(*task) for task in pickle.load(sys.stdin.buffer)]))
