"""The PTX machine: launches that run as compiled code on the CPU."""

import pytest
import torch

import kernels
from kernels import runtime
from tests import reference
from tests.reference import assert_close, randn


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=reference.name)
def test_linear(arch, dtype):
    """Of 70 x 100 times 100 x 50: no size is a multiple of a tile."""
    x, w, b = randn(70, 100, dtype=dtype), randn(50, 100, dtype=dtype), randn(50, dtype=dtype)
    with runtime.backend("ptx", arch):
        assert_close(kernels.linear(x, w, b), reference.linear(x, w, b))


def test_interpreter_and_ptx_machine_take_turns():
    """The interpreter changes triton.language, which the compiler needs as it was."""
    x = randn(5, 37)
    for _ in range(2):
        interpreted = kernels.softmax(x)
        with runtime.backend("ptx"):
            assert runtime.mode() == "ptx"
            compiled = kernels.softmax(x)
        assert_close(compiled, reference.softmax(x))
        assert_close(interpreted, reference.softmax(x))


def test_unknown_backends_are_refused():
    with pytest.raises(runtime.BackendError, match="sm_80"):
        runtime.backend("ptx", "sm_100")
    with pytest.raises(runtime.BackendError, match='"ptx" or "default"'):
        runtime.backend("cuda")
