"""The checks themselves: a check that cannot fail is a defect."""

import importlib

import pytest
import torch
import triton
import triton.language as tl

import kernels
from kernels import runtime
from tests.guards import MARGIN, Guards
from tests.reference import BOUNDS, DTYPES, LAYOUTS, TF32_BOUND, assert_close, name, randn


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_close_is_accepted(dtype):
    expected = torch.randn(3, 4, dtype=torch.float64)
    expected[0, 0], expected[1, 1], expected[2, 2] = float("nan"), float("inf"), float("-inf")
    assert_close(expected.to(dtype), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_bound(dtype, factor):
    expected = torch.tensor([0.0, 8.0], dtype=torch.float64)
    actual = torch.tensor([8 * factor * BOUNDS[dtype], 8.0], dtype=dtype)
    if factor < 1:
        assert_close(actual, expected, dtype)
    else:
        with pytest.raises(AssertionError, match="1 of 2 elements are wrong"):
            assert_close(actual, expected, dtype)


def test_one_wrong_element_is_named():
    expected = torch.ones(3, 4, dtype=torch.float64)
    actual = expected.float()
    actual[1, 2] = 1.5
    actual[2, 0] = 3.0
    message = r"2 of 12 elements are wrong; the first is \[1, 2\]: got 1.5, expected 1.0"
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["actual", "expected"])
def test_nonfinite_on_one_side_fails(value, side):
    tensors = {"actual": torch.ones(5), "expected": torch.ones(5, dtype=torch.float64)}
    tensors[side][3] = value
    with pytest.raises(AssertionError, match=r"1 of 5 elements are wrong; the first is \[3\]"):
        assert_close(**tensors)


def test_wrong_sign_of_infinity_fails():
    with pytest.raises(AssertionError, match="got -inf, expected inf"):
        assert_close(torch.tensor([float("-inf")]), torch.tensor([float("inf")], dtype=torch.float64))


def test_overflow_counts_as_infinity():
    assert_close(torch.tensor([1.0, float("inf")]).half(), torch.tensor([1.0, 1e5], dtype=torch.float64))
    with pytest.raises(AssertionError, match="expected inf"):
        assert_close(torch.tensor([1.0, 65504.0]).half(), torch.tensor([1.0, 1e5], dtype=torch.float64))


def test_other_shape_fails():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(3, 1), torch.ones(3, dtype=torch.float64))


def test_other_dtype_fails():
    with pytest.raises(AssertionError, match="dtype"):
        assert_close(torch.ones(3).half(), torch.ones(3, dtype=torch.float64), torch.float32)


def test_nothing_but_zeros_has_no_tolerance():
    with pytest.raises(AssertionError, match="1 of 3"):
        assert_close(torch.tensor([0.0, 0.0, 1e-30]), torch.zeros(3, dtype=torch.float64))


def test_tf32_has_its_own_bound(fp32_precision):
    expected = torch.ones(2, dtype=torch.float64)
    actual = torch.tensor([1.0, 1.0 + TF32_BOUND / 2])
    with pytest.raises(AssertionError):
        assert_close(actual, expected)
    fp32_precision("tf32")
    assert_close(actual, expected)


@triton.jit
def _copy_kernel(x_ptr, y_ptr, elements, READ: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr):
    """y = x, but reading from READ elements too far, or writing WRITE elements too many on one side."""
    offs = tl.arange(0, BLOCK) - 8
    first = WRITE if WRITE < 0 else 0
    last = elements + WRITE if WRITE > 0 else elements
    x = tl.load(x_ptr + offs + READ, mask=(offs >= first) & (offs < last))
    tl.store(y_ptr + offs, x, mask=(offs >= first) & (offs < last))


def _copy(x, guards, read=0, write=0):
    y = guards.empty(x.shape, x.stride(), x.dtype, x.device)
    runtime.launch(_copy_kernel, lambda META: (1,), x, y, x.numel(), READ=read, WRITE=write, BLOCK=64)
    return y


@pytest.mark.parametrize("dtype", (*DTYPES, torch.int64), ids=name)
def test_sound_kernel_passes(dtype, guarded, device):
    mine = Guards()
    x = torch.arange(20).to(dtype)
    assert torch.equal(_copy(guarded(x), mine).cpu(), x)
    mine.check()


@pytest.mark.parametrize("dtype", (*DTYPES, torch.int64), ids=name)
@pytest.mark.parametrize("write, message", [(1, "1 elements past its end"), (-1, "1 elements before its start")])
def test_stray_write_is_caught(dtype, write, message, guarded, device):
    """What is written is the NaN that lies around the input, as in an elementwise kernel with a wrong mask."""
    mine = Guards()
    _copy(guarded(torch.arange(20).to(dtype)), mine, write=write)
    with pytest.raises(AssertionError, match=message):
        mine.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("read, wrong", [(1, 19), (-1, 0)])
def test_stray_read_shows(dtype, read, wrong, guarded, guards):
    y = _copy(guarded(torch.arange(20).to(dtype)), guards, read=read)
    assert y.isnan().nonzero().flatten().tolist() == [wrong]


def test_stray_write_into_an_input_is_caught(device):
    mine = Guards()
    x = mine.guarded(torch.ones(20, device=device))
    x.as_strided((1,), (1,), MARGIN + 20)[0] = 0.0
    with pytest.raises(AssertionError, match=r"input of shape \(20,\): written 1 elements past its end"):
        mine.check()


@triton.jit
def _fill_kernel(x_ptr, bias_ptr, y_ptr, elements, LENGTH, STEP, INDEX: tl.constexpr, BLOCK_M: tl.constexpr):
    offs = tl.arange(0, BLOCK_M)
    tl.store(y_ptr + offs, offs * 0.0, mask=(offs > 0) & (offs <= elements))


def test_operator_outputs_are_poisoned_and_guarded(monkeypatch, guards, guarded):
    monkeypatch.setattr(importlib.import_module("kernels.ops.bias_relu"), "_bias_relu_kernel", _fill_kernel)
    y = kernels.bias_relu(guarded(torch.ones(20)), guarded(torch.ones(1)))
    assert y.isnan().nonzero().flatten().tolist() == [0]
    with pytest.raises(AssertionError, match=r"output of shape \(20,\): written 1 elements past its end"):
        guards.check()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (0, 3, 4, 5), (2, 0, 4, 5)], ids=str)
def test_guarded_keeps_numbers_and_strides(layout, shape, guards):
    tensor = LAYOUTS[layout](randn(*shape))
    copy = guards.guarded(tensor)
    assert copy.stride() == tensor.stride()
    assert torch.equal(copy, tensor)
    assert copy.storage_offset() == MARGIN
