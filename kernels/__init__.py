"""AlexNet's operators as Triton kernels, named and called as in ``torch.nn.functional``."""

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
