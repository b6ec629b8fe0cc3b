"""From a Triton kernel and its arguments to PTX, on a machine without a GPU.

Where kernels are interpreted, a kernel is an ``InterpretedFunction``, and so is everything that it calls. The compiler
takes ``JITFunction`` only. :func:`jit_twin` makes one of the same Python function, whose globals are twins, too. The
interpreter also replaces functions of ``triton.language``, and leaves some of its own there. So this module keeps the
originals, which the compiler needs: import it before anything is interpreted.
"""

import contextlib
import re
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, mangle_type

from kernels.ptx.program import Program, parse

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")

_programs: dict[tuple, Program] = {}
_twins: dict[int, tuple[Any, Any]] = {}  # (original, twin) by the original's id, which it keeps as long as it is here
_compiling = threading.Lock()  # Triton's compiler keeps state in globals


def compile_launch(kernel: Any, args: tuple, constants: dict, architecture: str) -> Program:
    """The program that Triton would compile for a launch ``kernel[grid](*args, **constants)`` on that GPU.

    Triton keeps compiled kernels in its cache on disk; what is taken apart is kept in memory.

    Args:
        kernel: a ``@triton.jit`` function, compiled or interpreted.
        args: tensors (on any device) and numbers.
        constants: the other arguments, and the config (``num_warps``, ``num_stages``).
        architecture: one of :data:`ARCHITECTURES`.
    """
    given = bind(kernel, args, constants)
    options = {name: value for name, value in constants.items() if name not in given}
    twin = jit_twin(kernel)
    signature, compiled_in, attributes = {}, {}, {}
    for position, (name, value) in enumerate(given.items()):
        # Compiled in: a tl.constexpr, and 1, for which Triton specialises.
        if twin.params[position].is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], compiled_in[name] = "constexpr", value
            continue
        signature[name] = mangle_type(value)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if isinstance(number, int) and number % 16 == 0:  # what Triton's launcher tells the compiler
            attributes[position,] = [["tt.divisibility", 16]]
    key = (twin, architecture, *map(repr, (signature, compiled_in, attributes, options)))
    with _compiling:
        if key not in _programs:
            target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
            source = ASTSource(twin, signature, compiled_in, attributes)
            with _original_language():
                compiled = triton.compile(source, target=target, options=options)
            _programs[key] = parse(compiled.asm["ptx"], compiled.metadata.shared)
            _programs[key].file = twin.fn.__code__.co_filename
            _programs[key].passed = [name for name in given if name not in compiled_in]
        return _programs[key]


_LANGUAGE = [tl, tl.core, tl.math, tl.standard, tl.random]
_LANGUAGE += [value for value in vars(tl.core).values() if isinstance(value, type)]
_ORIGINALS = [dict(vars(holder)) for holder in _LANGUAGE]


@contextlib.contextmanager
def _original_language() -> Iterator[None]:
    """Inside, ``triton.language`` is as it was before the interpreter."""
    changed = [dict(vars(holder)) for holder in _LANGUAGE]
    _set_language(_ORIGINALS)
    try:
        yield
    finally:
        _set_language(changed)


def _set_language(states: list[dict[str, Any]]) -> None:
    for holder, wanted in zip(_LANGUAGE, states, strict=True):
        now = dict(vars(holder))
        for name in now.keys() - wanted.keys():
            delattr(holder, name)
        for name, value in wanted.items():
            if name not in now or now[name] is not value:
                setattr(holder, name, value)


def bind(kernel: Any, args: tuple, constants: dict) -> dict[str, Any]:
    """The kernel's arguments by name, in the order of its parameters."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | constants
    return {name: given[name] for name in kernel.arg_names}


def jit_twin(function: Any) -> JITFunction:
    """The ``JITFunction`` of an interpreted function; another is returned as it is."""
    return _twin_of("", function)


def _twin_of(name: str, value: Any) -> Any:
    """Of an interpreted function, and of a module that holds some, a twin for the compiler. Else the value itself."""
    if name == "_INTERPRETED":  # kernels.runtime's own
        return tl.constexpr(False)
    interpreted = isinstance(value, InterpretedFunction)
    if not interpreted and not (isinstance(value, types.ModuleType) and _holds_interpreted(value)):
        return value
    if id(value) in _twins:
        return _twins[id(value)][1]
    scope, twin = _function_twin(value.fn) if interpreted else _module_twin(value)
    _twins[id(value)] = value, twin  # before its globals, which may name it
    original = value.fn.__globals__ if interpreted else vars(value)
    names = set(re.findall(r"\w+", twin.src)) if interpreted else original
    scope.update({name: _twin_of(name, original[name]) for name in names if name in original})
    return twin


def _holds_interpreted(module: types.ModuleType) -> bool:
    return any(isinstance(value, InterpretedFunction) for value in vars(module).values())


def _function_twin(function: types.FunctionType) -> tuple[dict[str, Any], JITFunction]:
    """A JITFunction of the same code with globals of its own, which are returned empty."""
    scope: dict[str, Any] = {}
    code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
    copy = types.FunctionType(code, scope, function.__name__, defaults, closure)
    for name in ("__kwdefaults__", "__annotations__", "__qualname__", "__module__", "__doc__"):
        setattr(copy, name, getattr(function, name))
    return scope, JITFunction(copy)


def _module_twin(module: types.ModuleType) -> tuple[dict[str, Any], types.ModuleType]:
    twin = types.ModuleType(module.__name__)
    return vars(twin), twin
