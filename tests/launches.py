"""The arguments with which the interpreter launches kernels, so that the compiler can be given the same."""

from collections.abc import Callable
from types import FunctionType

import torch
from triton.runtime import interpreter


def recorder(launches: dict[str, tuple[tuple, dict]], own: Callable[[FunctionType], bool]) -> Callable:
    """Returns a ``GridExecutor.__call__`` that records the launches of each kernel for which ``own`` is true.

    ``launches`` gets, by the kernel's name, the arguments and constants of a :class:`lesson.compiler.Launch`.
    """
    run = interpreter.GridExecutor.__call__

    def call(executor, *args, **constants):
        if own(executor.fn) and any(isinstance(value, torch.Tensor) for value in args):
            known = {name: value for name, value in constants.items() if name in executor.arg_names}
            launches[executor.fn.__name__] = args, known | {"num_warps": 4, "num_stages": 3}
        return run(executor, *args, **constants)

    return call
