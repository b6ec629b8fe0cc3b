"""The PTX machine: launches that run as compiled code on the CPU."""

import inspect

import pytest
import torch
import triton

import kernels
from kernels import ptx, runtime, tiles
from kernels.ops.softmax import _softmax_kernel
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


TILE = {"BLOCK_M": 1, "BLOCK_N": 64, "num_warps": 2}


class Recorder:
    """A watcher that lets the first program run alone."""

    def begin(self, program, grid, ids, tensors):
        self.program, self.grid, self.tensors = program, grid, tensors
        self.steps, self.accesses = [], []
        return ids[:1]

    def step(self, group, instruction):
        self.steps.append(instruction)

    def access(self, group, instruction, space, lanes, addresses, size):
        self.accesses.append((space, lanes, addresses, size))


def test_a_watcher_sees_steps_and_accesses_of_the_programs_that_it_lets_run():
    x, watcher = randn(5, 37), Recorder()
    with runtime.backend("ptx"), runtime.set_inside(ptx.watcher, watcher), tiles.use("softmax", TILE):
        kernels.softmax(x)
    assert (watcher.program.name, watcher.grid) == ("_softmax_kernel", (5, 1, 1))
    assert watcher.steps == watcher.program.code
    load, store = [access for access in watcher.accesses if access[0] == "global"]
    for (_, lanes, addresses, size), name in ((load, "x_ptr"), (store, "y_ptr")):
        assert (size, lanes.tolist()) == (4, list(range(37)))
        tensor, element = watcher.tensors.locate(addresses)
        assert {watcher.tensors.names[index] for index in tensor} == {name}
        assert element.tolist() == list(range(37))


def test_an_instruction_names_the_line_of_the_kernel():
    """Also if it is in a function inside an inlined function, here tl.max in online_softmax."""
    watcher = Recorder()
    with runtime.backend("ptx"), runtime.set_inside(ptx.watcher, watcher):
        kernels.softmax(randn(5, 37))
    lines, first = inspect.getsourcelines(_softmax_kernel.fn)
    assert {step.line - first for step in watcher.steps} <= set(range(len(lines)))
    if not triton.__version__.startswith(("3.6.", "3.7.")):  # which do not say where a function was inlined
        (where,) = {step.where for step in watcher.steps if step.where.count(" in ") == 3}
        assert [place.partition(":")[0] for place in where.split(" in ")] == ["standard.py"] * 2 + ["softmax.py"] * 2
    assert watcher.program.file == inspect.getsourcefile(_softmax_kernel.fn)


def test_calls_that_were_inlined_in_a_circle_have_an_end():
    """Triton's unrolled loops say so of tl.maximum in local_response_norm, in fp16 for sm_80."""
    x = randn(2, 20, 5, 6, dtype=torch.float16)
    with runtime.backend("ptx", "sm_80"):
        assert_close(kernels.local_response_norm(x, 5), reference.local_response_norm(x, 5))


def test_declarations_are_not_locations():
    """LLVM declares ``.local`` memory for some kernels, which then do not use it."""
    ptx_text = """.visible .entry kernel()
.reqntid 32
{
.local .align 2 .b8 __local_depot0[2];
.loc 1 7 0
ret;
}"""
    assert [step.line for step in ptx.program.parse(ptx_text, 0).code] == [7]
