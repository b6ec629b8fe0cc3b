"""What the interpreter launches kernels with, for the compiler to be asked about."""

from collections.abc import Callable
from types import FunctionType

import torch
from triton.runtime import interpreter


def noting(launches: dict[str, tuple[tuple, dict]], own: Callable[[FunctionType], bool]) -> Callable:
    """A ``GridExecutor.__call__`` that notes, by its name, what each kernel that is ``own`` is launched with.

    That is the arguments and the constants of a :class:`lesson.compiler.Launch`.
    """
    run = interpreter.GridExecutor.__call__

    def call(executor, *args, **constants):
        if own(executor.fn) and any(isinstance(value, torch.Tensor) for value in args):
            known = {name: value for name, value in constants.items() if name in executor.arg_names}
            launches[executor.fn.__name__] = args, known | {"num_warps": 4, "num_stages": 3}
        return run(executor, *args, **constants)

    return call
