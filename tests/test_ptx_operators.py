"""Every operator as compiled for two architectures, in four precisions, forward and backward, on the PTX machine.

The operators' own tests run on it, too, in .ci/run, with ALEXNET_BACKEND=ptx: more of each operator, mostly in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import runtime
from kernels.tools.workloads import WORKLOADS, Workload
from tests import reference
from tests.reference import assert_close, assert_gradients, exact, randn

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ARCH = pytest.mark.parametrize("arch", ["sm_80", "sm_90"])


class Call(NamedTuple):
    """An operator, its reference in float64, and the shapes of its tensors."""

    ours: Callable
    theirs: Callable
    shapes: tuple[tuple[int, ...], ...]
    multiplies: bool = False  # on tensor cores, so that TF32 differs from float32


def _both(name: str, shapes: tuple, multiplies: bool = False, **arguments: object) -> Call:
    ours, theirs = getattr(kernels, name), getattr(reference, name)
    return Call(lambda *x: ours(*x, **arguments), lambda *x: theirs(*x, **arguments), shapes, multiplies)


TARGET = torch.tensor([3, 0, 299, -100, 17])
CALLS = {
    # More terms than a pipeline's stages hold, and sizes that are no multiple of a tile.
    "linear": _both("linear", ((70, 400), (50, 400), (50,)), True, relu=True),
    "linear, uneven": _both("linear", ((33, 201), (19, 201), (19,)), True),
    "linear, one row": _both("linear", ((1, 500), (70, 500), (70,)), True),
    "conv2d": _both("conv2d", ((2, 40, 7, 9), (24, 40, 3, 3), (24,)), True, padding=1, relu=True),
    "conv2d, groups": _both("conv2d", ((2, 32, 9, 8), (48, 16, 5, 5), (48,)), True, padding=2, groups=2),
    "conv2d, conv1": _both("conv2d", ((1, 3, 39, 43), (32, 3, 11, 11), (32,)), True, stride=4, relu=True),
    "conv2d, uneven": _both("conv2d", ((3, 5, 8, 7), (7, 5, 3, 2), None), True, stride=(2, 1), dilation=(1, 2)),
    "max_pool2d": _both("max_pool2d", ((2, 9, 11, 13),), kernel_size=3, stride=2),
    "max_pool2d, padded": _both("max_pool2d", ((2, 16, 8, 9),), kernel_size=3, padding=1),
    "local_response_norm": _both("local_response_norm", ((2, 48, 5, 6),), size=5, alpha=0.7),
    "lrn_max_pool2d": Call(
        lambda x: kernels.lrn_max_pool2d(x, 5, 0.7, 0.75, 1.0, 3, 2),
        lambda x: reference.lrn_max_pool2d(x, 5, 0.7, 0.75, 1.0, 3, 2),
        ((2, 48, 9, 7),),
    ),
    "bias_relu": _both("bias_relu", ((37, 300), (300,))),
    "softmax": _both("softmax", ((9, 300),), dim=-1),
    "cross_entropy": Call(
        lambda x: kernels.cross_entropy(x, TARGET, label_smoothing=0.1),
        lambda x: F.cross_entropy(exact(x), TARGET, label_smoothing=0.1),
        ((5, 300),),
    ),
    "dropout": Call(
        lambda x: kernels.dropout(x, 0.3, seed=5),
        lambda x: exact(x) * (kernels.dropout(torch.ones(x.shape), 0.3, seed=5) > 0) / 0.7,  # interpreted or compiled
        ((700,),),
    ),
}
CASES = [
    pytest.param(call, precision, id=f"{name}-{precision}")
    for name, call in CALLS.items()
    for precision in PRECISIONS
    if precision != "tf32" or call.multiplies
]


def tensors(call: Call, precision: str) -> list[torch.Tensor | None]:
    return [None if shape is None else randn(*shape, dtype=PRECISIONS[precision]) for shape in call.shapes]


def for_gradients(given: list[torch.Tensor | None], precision: str) -> list[torch.Tensor | None]:
    """Of TF32, numbers that it holds: rounded ones could change an output's sign, and so what ReLU lets through."""
    return [x if x is None or precision != "tf32" else x.half().float() for x in given]


def set_precision(fp32_precision: Callable, precision: str) -> None:
    fp32_precision("tf32" if precision == "tf32" else "ieee")


@ARCH
@pytest.mark.parametrize("call, precision", CASES)
def test_values_and_gradients(call, precision, arch, guarded, fp32_precision):
    set_precision(fp32_precision, precision)
    given = tensors(call, precision)
    with runtime.backend("ptx", arch):
        assert_close(call.ours(*map(guarded, given)), call.theirs(*given), PRECISIONS[precision])
        assert_gradients(call.ours, call.theirs, for_gradients(given, precision), guarded)


@ARCH
@pytest.mark.parametrize("name, precision", [("linear", "fp16"), ("conv2d", "tf32"), ("softmax", "fp32")])
def test_the_same_bits_every_time(name, precision, arch, fp32_precision):
    """Also in the second of two launches, which finds its program decoded."""
    set_precision(fp32_precision, precision)
    given = [tensor.requires_grad_() for tensor in tensors(CALLS[name], precision)]

    def compute() -> list[torch.Tensor]:
        output = CALLS[name].ours(*given)
        return [output, *torch.autograd.grad(output, given, torch.ones_like(output))]

    with runtime.backend("ptx", arch):
        assert all(map(torch.equal, compute(), compute()))


def theirs(layer: Workload) -> Callable:
    return lambda *operands: getattr(reference, layer.operator)(*operands, **layer.arguments)


@pytest.mark.full
@ARCH
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
@pytest.mark.parametrize("name", [name for name, layer in WORKLOADS.items() if layer.operator != "dropout"])
def test_layers_of_alexnet_at_full_size(name, precision, arch, guarded, fp32_precision):
    """Forward, with one photo. Backward takes a minute a layer here."""
    set_precision(fp32_precision, precision)
    layer = WORKLOADS[name]
    given = layer.random_operands(1, PRECISIONS[precision], "cpu")
    with runtime.backend("ptx", arch):
        assert_close(layer.run(*map(guarded, given)), theirs(layer)(*given), PRECISIONS[precision])
