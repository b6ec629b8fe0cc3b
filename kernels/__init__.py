"""AlexNet's operators as Triton kernels, named and called as in ``torch.nn.functional``.

Each is imported when it is first used, so that ``import kernels`` and every command's ``--help`` need no PyTorch.
Two things need an import before:

- a kernel of your own runs as these do (compiled or interpreted) if it is decorated after
  ``from kernels import runtime``;
- :func:`torch.export.load` knows the operators' names after ``from kernels import *``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.arguments import ArgumentError
    from kernels.ops.bias_relu import bias_relu
    from kernels.ops.conv2d import conv2d
    from kernels.ops.cross_entropy import cross_entropy
    from kernels.ops.dropout import dropout
    from kernels.ops.linear import linear
    from kernels.ops.local_response_norm import local_response_norm
    from kernels.ops.lrn_max_pool2d import lrn_max_pool2d
    from kernels.ops.max_pool2d import max_pool2d
    from kernels.ops.softmax import softmax

__all__ = [
    "ArgumentError",
    "bias_relu",
    "conv2d",
    "cross_entropy",
    "dropout",
    "linear",
    "local_response_norm",
    "lrn_max_pool2d",
    "max_pool2d",
    "softmax",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "kernels.arguments" if name == "ArgumentError" else f"kernels.ops.{name}"
    found = getattr(import_module(module), name)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return list(__all__)
