"""AlexNet's operators as Triton kernels, named and called as in ``torch.nn.functional``.

They are imported when the first of them is asked for: PyTorch takes seconds, which no command's ``--help`` is to wait
for. Two things need them before: a kernel of your own, to be interpreted where these are, is decorated after ``from
kernels import runtime``; and :func:`torch.export.load` knows their names after ``from kernels import *``.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.arguments import ArgumentError
    from kernels.bias_relu import bias_relu
    from kernels.conv2d import conv2d
    from kernels.cross_entropy import cross_entropy
    from kernels.dropout import dropout
    from kernels.linear import linear
    from kernels.local_response_norm import local_response_norm
    from kernels.lrn_max_pool2d import lrn_max_pool2d
    from kernels.max_pool2d import max_pool2d
    from kernels.softmax import softmax

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


class _Package(ModuleType):
    """This package, in which ``conv2d`` is the function, whether or not its file, of the same name, is imported yet.

    See https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access.
    """

    def __getattr__(self, name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        for each in __all__:
            file = "arguments" if each == "ArgumentError" else each
            operator = getattr(import_module(f"{self.__name__}.{file}"), each)
            self.__dict__.setdefault(each, operator)  # not in the place of what somebody has put there
        return self.__dict__[name]

    def __setattr__(self, name: str, value: object) -> None:
        if name in __all__ and isinstance(value, ModuleType):  # by Python, once it has imported the file
            value = self.__dict__.get(name, getattr(value, name))
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return list(__all__)

    def __reduce__(self) -> tuple:  # for cloudpickle, which knows modules by their exact type
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
