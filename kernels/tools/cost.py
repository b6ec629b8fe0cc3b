"""What each operator costs at the least, by its name: ``cost.conv2d``, and ``cost.conv2d_gradient`` for its gradient.

The formulas stand beside the operators in ``kernels/ops``, and their conventions in ``kernels/ops/cost.py``.
"""

from collections.abc import Callable
from importlib import import_module

import kernels
from kernels.ops.cost import Cost as Cost
from kernels.ops.cost import Shape as Shape


def __getattr__(name: str) -> Callable[..., Cost]:
    operator = name.removesuffix("_gradient")
    if operator not in kernels.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"kernels.ops.{operator}")  # here, so that --help does not import PyTorch
    return getattr(module, "cost" if name == operator else "gradient_cost")
