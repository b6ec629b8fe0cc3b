"""kernels.tools.trace: every step of one program, its loads and stores, its errors, its command."""

import contextlib
import inspect
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

import kernels
from kernels import runtime, tiles
from kernels.tools import trace, trace_cli
from kernels.tools.trace import TraceError

pytestmark = pytest.mark.skipif(not runtime.INTERPRETED, reason="only interpreted kernels can be traced")


@triton.jit
def _twice(x):
    doubled = x + x
    return doubled


@triton.jit
def _sums_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(2):
        x = tl.load(x_ptr + offs + step, mask=mask, other=-1.0)
        acc += _twice(x)
    tl.store(y_ptr + offs, acc, mask=mask)


@triton.jit
def _fill_kernel(y_ptr, value, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.zeros((BLOCK,), tl.float32) + value, mask=offs < n)


@triton.jit
def _scale_kernel(x_ptr, y_ptr, gain, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(y_ptr + offs, x * (gain * gain) / 3.0, mask=mask)


@pytest.fixture
def x():
    return torch.arange(12.0) * 10


@pytest.fixture
def y():
    return torch.full((11,), -5.0)


@pytest.fixture
def sums(x, y):
    """A launch of the kernel on 11 elements: three programs of four lanes."""
    return lambda: _sums_kernel[(3,)](x, y, 11, BLOCK=4)


LAST = {  # program 2: elements 8 to 11; 11 is masked
    "offs": [8, 9, 10, 11],
    "mask": [True, True, True, False],
    "first": [80, 90, 100, -1],  # what the two loads return
    "second": [90, 100, 110, -1],
}


def test_steps(sums):
    found = trace.trace(sums, "_sums_kernel", (2,))
    first, second = (np.array(LAST[name], dtype=np.float32) for name in ("first", "second"))
    expected = [
        ("offs = ", {"offs": LAST["offs"]}),
        ("mask = ", {"mask": LAST["mask"]}),
        ("acc = ", {"acc": [0, 0, 0, 0]}),
        ("for step in range(2):", {"step": 0}),
        ("x = tl.load", {"x": first}),
        ("acc += _twice(x)", {"acc": 2 * first}),
        ("for step in range(2):", {"step": 1}),
        ("x = tl.load", {"x": second}),
        ("acc += _twice(x)", {"acc": 2 * (first + second)}),
        ("tl.store", {}),
    ]
    lines, start = inspect.getsourcelines(_sums_kernel.fn)
    assert len(found.steps) == len(expected)
    for step, (source, values) in zip(found.steps, expected, strict=True):
        assert step.source.startswith(source)
        assert lines[step.line - start].strip() == step.source
        assert step.values.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(step.values[name], value)


def test_head(sums, x, y):
    found = trace.trace(sums, "_sums_kernel", (1,))
    assert (found.kernel, found.program, found.grid) == ("_sums_kernel", (1, 0, 0), (3, 1, 1))
    assert found.arguments["x_ptr"] is x and found.arguments["y_ptr"] is y
    assert (found.arguments["n"], found.arguments["BLOCK"]) == (11, 4)


def test_values_are_kept(sums):
    """Each value is a copy, so an earlier value of an accumulator does not change when it grows."""
    values = trace.trace(sums, "_sums_kernel", (0,)).values("acc")
    assert [value.tolist() for value in values] == [[0] * 4, [0, 20, 40, 60], [20, 60, 100, 140]]


def test_accesses(sums):
    found = trace.trace(sums, "_sums_kernel", (2,))
    loads, (store,) = found.accesses("x_ptr"), found.accesses("y_ptr")
    assert [load.kind for load in loads] == ["load", "load"] and store.kind == "store"
    assert [load.offsets.tolist() for load in loads] == [[8, 9, 10, 11], [9, 10, 11, 12]]
    assert store.offsets.tolist() == LAST["offs"]
    assert all(access.mask.tolist() == LAST["mask"] for access in (*loads, store))
    assert [len(step.accesses) for step in found.steps if step.source.startswith(("x = ", "tl.store"))] == [1, 1, 1]


def test_one_program_runs(sums, x, y):
    """Only the given program of the first launch runs. Outside of a trace all programs run."""
    trace.trace(sums, "_sums_kernel", (1,))
    expected = torch.full((11,), -5.0)
    expected[4:8] = 2 * (x[4:8] + x[5:9])
    assert torch.equal(y, expected)
    sums()
    assert torch.equal(y, 2 * (x[:11] + x[1:]))


def test_others_run_whole(sums, x, y):
    """Other kernels run whole, and so do later launches of the same kernel."""
    other = torch.zeros(11)

    def call():
        _fill_kernel[(3,)](x, 3.0, 12, BLOCK=4)
        sums()
        _sums_kernel[(3,)](x, other, 11, BLOCK=4)

    found = trace.trace(call, "_sums_kernel", (0,))
    assert (found.values("x")[0] == 3).all()
    assert y.tolist() == [12.0] * 4 + [-5.0] * 7
    assert other.tolist() == [12.0] * 11


def test_grid(x, y):
    """A grid may have three dimensions, and may be a function."""
    for grid in ((1, 1, 2), lambda META: (1, 1, META["BLOCK"] // 2)):
        found = trace.trace(lambda grid=grid: _fill_kernel[grid](y, 1.0, 4, BLOCK=4), "_fill_kernel", (0, 0, 1))
        assert found.grid == (1, 1, 2)
        assert found.values("offs")[0].tolist() == [0, 1, 2, 3]


def test_conv2d_at_the_padding():
    """Each of the nine taps loads the right pixels, and the padding switches off the right lanes."""
    size, channels, rows = 5, 16, 32
    x = torch.randn(1, channels, size, size)
    w = torch.randn(16, channels, 3, 3)
    tile = {"BLOCK_M": rows, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 1, "SPLIT_K": 1}
    with tiles.use("conv2d", tile):
        found = trace.trace(lambda: kernels.conv2d(x, w, padding=1), "_conv2d_kernel")
    assert found.grid == (1, 1, 1)
    loads = found.accesses("x_ptr")
    assert len(loads) == 9
    m = np.arange(rows)
    for number, load in enumerate(loads):
        h, w_ = m // size - 1 + number // 3, m % size - 1 + number % 3
        inside = (m < size * size) & (h >= 0) & (h < size) & (w_ >= 0) & (w_ < size)
        assert (load.mask == inside[:, None]).all()
        expected = ((h * size + w_) * channels)[:, None] + np.arange(channels)
        assert (load.offsets[load.mask] == expected[load.mask]).all()
    # On each axis, 13 of the 15 pairs of a pixel and a tap are inside.
    assert sum(load.mask[:, 0].sum() for load in loads) == 13 * 13
    (store,) = found.accesses("y_ptr")
    assert store.mask.sum() == size * size * 16
    reference = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)[0].permute(1, 2, 0).reshape(-1, 16)
    assert np.abs(found.values("acc")[-1][: size * size] - reference.numpy()).max() < 1e-4


def test_watching_and_multiplications(sums, x, y):
    """All programs are watched. One may be inside another, and a trace may be inside."""
    seen = []
    with trace.watching(lambda *found: seen.append(found)), trace.multiplications() as found:
        sums()
        trace.trace(sums, "_sums_kernel", (1,))
        _scale_kernel[(3,)](x, y, 2.5, 11, BLOCK=4)
    assert [kind for kind, _, _ in seen] == ["load", "load", "store"] * 4 + ["load", "store"] * 3
    assert [mask.sum() for _, _, mask in seen[-2:]] == [3, 3]
    assert (seen[-2][1] - x.data_ptr()).tolist() == [32, 36, 40, 44]
    assert found == [4, 4] * 3  # a product of tiles and a quotient, not the product of two numbers
    assert torch.allclose(y, x[:11] * 2.5 * 2.5 / 3)


class TestErrors:
    @pytest.mark.parametrize("program", [(3,), (0, 1), (0, 0, 1), (-1,)])
    def test_outside_the_grid(self, sums, y, program):
        with pytest.raises(TraceError, match=r"outside the grid \(3, 1, 1\) of _sums_kernel"):
            trace.trace(sums, "_sums_kernel", program)
        assert (y == -5).all()

    def test_another_kernel(self, sums):
        with pytest.raises(TraceError, match="'_softmax_kernel' was not launched; launched: _sums_kernel"):
            trace.trace(sums, "_softmax_kernel")

    def test_nothing_launched(self):
        with pytest.raises(TraceError, match="launched: none"):
            trace.trace(lambda: None, "_sums_kernel")

    def test_compiled(self, sums, monkeypatch):
        monkeypatch.setattr(runtime, "INTERPRETED", False)
        with pytest.raises(TraceError, match="set TRITON_INTERPRET=1"):
            trace.trace(sums, "_sums_kernel")


@pytest.mark.parametrize(
    ("program", "value", "error"),
    [((0,), 1.0, None), ((9,), 1.0, TraceError), ((0,), None, InterpreterError)],
    ids=["traced", "refused", "raised in the kernel"],
)
def test_leaves_nothing_behind(y, program, value, error):
    state = lambda: (interpreter.GridExecutor.__call__, sys.gettrace(), vars(interpreter.interpreter_builder).keys())
    before = *state()[:2], set(state()[2])
    with pytest.raises(error) if error else contextlib.nullcontext():
        trace.trace(lambda: _fill_kernel[(3,)](y, value, 11, BLOCK=4), "_fill_kernel", program)
    assert (*state()[:2], set(state()[2])) == before


class TestCommand:
    def test_softmax(self, capsys):
        assert trace_cli.main(["softmax"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "_softmax_kernel, program (0, 0, 0) of (1, 1, 1)"
        assert "       loads elements 0 ... 999 of x_ptr, 1,000 of 1,024 lanes" in lines
        assert "       mask = [1 x 1024], 98% true" in lines
        assert "       n0 = 0" in lines
        assert lines[-1] == "       stores elements 0 ... 999 of y_ptr, 1,000 of 1,024 lanes"

    def test_layer_and_program(self, capsys):
        assert trace_cli.main(["max_pool2d", "--layer", "pool5", "--program", "1", "--arch", "sm_80"]) == 0
        assert "program (1, 0, 0) of (" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["softmax", "--program", "5"], "program (5, 0, 0) is outside the grid (1, 1, 1)"),
            (["conv2d", "--layer", "pool1"], "pool1 is a layer of lrn_max_pool2d, not of conv2d"),
            (["softmax", "--program", "0", "0", "0", "0"], "takes up to three ids, got 4"),
            (["sofmax"], "invalid choice: 'sofmax'"),
        ],
        ids=["program", "layer", "ids", "operator"],
    )
    def test_refusals(self, arguments, message, capsys):
        assert trace_cli.main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err and not captured.out
