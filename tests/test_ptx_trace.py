"""kernels.tools.ptx_trace: the instructions of one program, its registers, memory and fragments, and its command."""

import inspect

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import kernels
from kernels import ptx, runtime, tiles
from kernels.ptx.program import parse
from kernels.tools import trace_cli
from kernels.tools.bench.device import precision
from kernels.tools.ptx_trace import trace_ptx
from kernels.tools.trace import TraceError
from kernels.tools.workloads import torch_dtype
from tests.reference import randn

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 1, "num_warps": 4, "num_stages": 3}


@triton.jit
def _add_kernel(x_ptr, y_ptr, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n)
    tl.store(y_ptr + offs + SHIFT, x + 1, mask=offs < n)


def add(x, y, shift=0):
    """Three programs of a warp, 32 elements each."""
    constants = {"SHIFT": shift, "BLOCK": 32, "num_warps": 1}
    runtime.launch(_add_kernel, lambda _: (3,), x, y, len(x), **constants)


@pytest.fixture
def x():
    return torch.arange(77.0)


@pytest.fixture
def y():
    return torch.full((77,), -5.0)


def test_head_and_steps(x, y):
    found = trace_ptx(lambda: add(x, y), "_add_kernel", (2,), "sm_80")
    assert (found.code.name, found.program, found.grid, found.arch) == ("_add_kernel", (2, 0, 0), (3, 1, 1), "sm_80")
    assert [step.instruction for step in found.steps] == found.code.code and not found.fault
    lines, first = inspect.getsourcelines(_add_kernel.fn)
    for number, step in enumerate(found.steps):
        assert found.source(number) == lines[step.instruction.line - first].strip()


def test_one_program_runs(x, y):
    """Of the first launch. Later launches run whole."""
    other = torch.zeros(77)

    def call():
        add(x, y)
        add(x, other)

    trace_ptx(call, "_add_kernel", (1,))
    assert (y[:32] == -5).all() and (y[64:] == -5).all() and torch.equal(y[32:64], x[32:64] + 1)
    assert torch.equal(other, x + 1)


def test_registers_and_accesses(x, y):
    found = trace_ptx(lambda: add(x, y), "_add_kernel", (2,), "sm_80")
    taking = np.arange(32) < 77 - 64
    (load,) = found.find("ld.global")
    (store,) = found.find("st.global")
    for number, kind, name in ((load, "load", "x_ptr"), (store, "store", "y_ptr")):
        step = found.steps[number]
        assert (step.active == taking).all()
        (access,) = step.accesses
        assert (access.kind, access.space, access.size) == (kind, "global", 4)
        assert found.tensors.names[access.argument] == name
        assert access.elements.tolist() == [[64 + thread] for thread in range(13)]
    (register,) = found.steps[load].sets
    assert found.steps[load].registers[register][:13].view(np.float32).tolist() == x[64:].tolist()
    assert not found.steps[store].sets
    assert found.facts(load, 0, 3) == [
        "13 of the warp's 32 threads take part, this one",
        f"{register} = 67; in the warp 13 values, 64 ... 76",
        "load of 13 threads, 52 bytes: x_ptr 64 ... 76",
        "this thread: x_ptr 67",
    ]
    assert found.facts(store, 0, 20) == [
        "13 of the warp's 32 threads take part, this one not",
        "store of 13 threads, 52 bytes: y_ptr 64 ... 76",
    ]


def test_listing(x, y):
    found = trace_ptx(lambda: add(x, y), "_add_kernel", (1,), "sm_80")
    lines = found.listing(0, 5).splitlines()
    assert lines[0] == "_add_kernel for sm_80, program (1, 0, 0) of (3, 1, 1), warp 0 of 1, thread 5 of 32"
    numbers = [line[:6] for line in lines[1:] if not line.startswith(("line", " " * 7))]
    assert list(map(int, numbers)) == list(range(len(found.steps)))
    assert any(line.endswith("= x_ptr + 0, in the whole warp") for line in lines)
    assert any(line.endswith("= x_ptr + 37; in the warp 32 values, x_ptr + 32 ... x_ptr + 63") for line in lines)
    assert any(line.endswith(": x = tl.load(x_ptr + offs, mask=offs < n)") for line in lines)
    for warp, lane in ((1, 0), (0, 32), (-1, 0)):
        with pytest.raises(TraceError, match=f"has 1 warps of 32 threads, got warp {warp}, thread {lane}"):
            found.listing(warp, lane)


def test_fault(x):
    """A stray thread ends the program. The steps before remain."""
    found = trace_ptx(lambda: add(x, torch.zeros(77), shift=60), "_add_kernel", (1,), "sm_80")
    (message,) = found.fault
    assert "thread 0" in message and "past its end" in message and "y_ptr" in message
    assert found.steps[-1].instruction.number + 1 == next(
        instruction.number for instruction in found.code.code if instruction.opcode.startswith("st.global")
    )
    assert found.listing().endswith(f"fault: {message}")


MATRIX = """
.visible .entry matrix() .reqntid 64
{
	.reg .b32 %r<9>;
	mov.u32 %r1, %tid.x;
	shl.b32 %r2, %r1, 2;
	st.shared.b32 [ %r2 + 0 ], %r1;
	and.b32 %r3, %r1, 31;
	shl.b32 %r4, %r3, 4;
	bar.sync 0;
	ldmatrix.sync.aligned.m8n8.x2.TRANSshared.b16 {%r5, %r6}, [%r4];
	ret;
}
"""


@pytest.mark.parametrize("trans", [False, True], ids=["as it is", "transposed"])
def test_ldmatrix(trans):
    """Thread t writes t into its word: as 16-bit elements t, 0. Row j of matrix i is words 32 i + 4 j and on."""
    program = parse(MATRIX.replace("TRANS", "trans." * trans), shared=256)
    found = trace_ptx(lambda: ptx.run(program, (1,), [], ptx.Tensors([])), "matrix")
    (number,) = found.find("ldmatrix")
    step = found.steps[number]
    for warp in (0, 1):
        matrices = found.fragments(number, warp)
        assert [matrix.name for matrix in matrices] == ["matrix 0", "matrix 1"]
        for index, matrix in enumerate(matrices):
            expected = np.zeros((8, 8), np.uint16)
            expected[:, ::2] = 32 * index + np.arange(32).reshape(8, 4)
            assert (matrix.values.astype(np.float16).view(np.uint16) == expected).all()
            assert matrix.held(32 * warp + 13) == ([(2, 3), (3, 3)] if trans else [(3, 2), (3, 3)])
    assert step.registers["%r6"][13] == (0 if trans else 32 + 13)
    assert step.registers["%r6"][8] == (33 + (37 << 16) if trans else 32 + 8)
    assert (found.shared(number).writer == np.repeat([0, 1], 128)).all()
    assert (found.shared(number - 5).writer == -1).all()
    held = "row 2, 3, column 3" if trans else "row 3, column 2, 3"
    assert f"matrix 0: this thread holds {held}" in found.facts(number, 0, 13)


def test_mma():
    """One product of 16 x 8 x 16: A, B and D are x, w transposed, and y."""
    x, w = randn(16, 16, dtype=torch.float16), randn(16, 16, dtype=torch.float16)
    with tiles.use("linear", {**TILE, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 1}):
        found = trace_ptx(lambda: kernels.linear(x, w), "_linear_kernel", arch="sm_80")
    products = found.find("mma")
    assert len(products) == 2
    for number, columns in zip(products, (slice(8), slice(8, 16)), strict=True):
        a, b, d = found.fragments(number)
        assert [fragment.name for fragment in (a, b, d)] == ["A", "B", "D"]
        assert (a.values == x.float().numpy()).all()
        assert (b.values == w[columns].T.float().numpy()).all()
        assert np.allclose(d.values, (x.double() @ w[columns].T.double()).numpy(), atol=1e-5)
        assert a.held(5) == [(1, 2), (1, 3), (9, 2), (9, 3), (1, 10), (1, 11), (9, 10), (9, 11)]
        assert b.held(5) == [(2, 1), (3, 1), (10, 1), (11, 1)]
        assert d.held(5) == [(1, 2), (1, 3), (9, 2), (9, 3)]
        assert "D: this thread holds row 1, 9, column 2, 3" in found.facts(number, 0, 5)


@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_other_types_of_operands(dtype):
    """ldmatrix and mma hold the same elements of x, two or one per register."""
    x, w = (randn(16, 32, dtype=torch_dtype(dtype)) for _ in range(2))
    with precision(dtype), tiles.use("linear", {**TILE, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 1}):
        found = trace_ptx(lambda: kernels.linear(x, w), "_linear_kernel", arch="sm_80")
    terms = 8 if dtype == "tf32" else 16
    matrices = [part.values for part in found.fragments(found.find("ldmatrix")[0])]
    a = found.fragments(found.find("mma")[0])[0].values
    assert a.shape == (16, terms) and found.element_type == dtype
    assert np.allclose(a, x[:, :terms].float().numpy(), atol=2e-3)
    top, bottom = (x[rows, : terms // 2].float().numpy() for rows in (slice(8), slice(8, 16)))
    assert (matrices[0] == top).all() and (matrices[1] == bottom).all()


def linear(arch: str, terms: int = 128):
    x, w = randn(64, terms, dtype=torch.float16), randn(64, terms, dtype=torch.float16)
    with tiles.use("linear", TILE):
        return x, w, trace_ptx(lambda: kernels.linear(x, w), "_linear_kernel", arch=arch)


def test_wgmma_fills_an_accumulator():
    """Each wgmma adds 16 terms to 64 x 64 sums, which 128 threads hold together."""
    x, w, found = linear("sm_90")
    products = found.find("wgmma.mma_async")
    assert len(products) == 128 // 16
    for terms, number in enumerate(products, 1):
        (d,) = found.fragments(number, warp=2)
        assert (d.first, d.places.shape, d.values.shape) == (0, (128, 32), (64, 64))
        expected = x[:, : 16 * terms].double() @ w[:, : 16 * terms].double().T
        assert np.allclose(d.values, expected.numpy(), atol=1e-4)
    assert d.held(2 * 32 + 5)[:4] == [(33, 2), (33, 3), (41, 2), (41, 3)]
    assert found.steps[products[3]].products == 4
    x_operand, w_operand = found.steps[products[1]].accesses
    for operand, name in ((x_operand, "a_ptr"), (w_operand, "b_ptr")):
        assert found.tensors.names[operand.argument] == name
        assert operand.elements.reshape(64, 16).tolist() == [[128 * m + 16 + k for k in range(16)] for m in range(64)]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_asynchronous_copies_and_the_swizzle(arch):
    """Row m of x's block is 128 bytes, and its 16-byte pieces are exchanged by m % 8."""
    _, _, found = linear(arch)
    commits, waits = found.find("cp.async.commit_group"), found.find("cp.async.wait_group")
    first = found.shared(commits[0])
    block = slice(0, 64 * 128)
    assert first.flying[block].all() and first.flying.sum() == 64 * 128
    assert set(found.tensors.names[index] for index in set(first.argument[block])) == {"a_ptr"}
    m, piece, k = np.meshgrid(np.arange(64), np.arange(8), np.arange(8), indexing="ij")
    elements = first.elements[block].reshape(64, 8, 8, 2)
    assert (elements[m, piece ^ m % 8, k] == (128 * m + 8 * piece + k)[..., None]).all()
    assert (first.writer[block].reshape(4, 4, 512) == np.arange(4)[None, :, None]).all()  # 4 rows in 32 threads
    assert len(found.steps[commits[0]].copies) == 2 and not found.steps[commits[0]].copies[-1]
    assert not found.shared(waits[-1]).flying.any()
    facts = found.facts(commits[0])
    assert facts == ["copies in flight: 8,192 bytes in groups, 0 bytes not committed"]


def test_ldmatrix_names_the_elements():
    """Thread 5 of warp 0 holds row 1, columns 2 and 3, of each of four matrices."""
    _, _, found = linear("sm_80")
    number = found.find("ldmatrix")[0]
    (access,) = found.steps[number].accesses
    assert found.tensors.names[access.argument] == "a_ptr"
    facts = [fact for fact in found.facts(number, 0, 5) if fact.startswith("matrix 0")]
    assert facts == ["matrix 0: this thread holds row 1, column 2, 3: a_ptr 130 ... 131"]


class TestErrors:
    @pytest.mark.parametrize("program", [(3,), (0, 1), (-1,)])
    def test_outside_the_grid(self, x, y, program):
        with pytest.raises(TraceError, match=r"outside the grid \(3, 1, 1\) of _add_kernel"):
            trace_ptx(lambda: add(x, y), "_add_kernel", program)
        assert (y == -5).all()

    def test_another_kernel(self, x, y):
        with pytest.raises(TraceError, match="'_softmax_kernel' was not launched; launched: _add_kernel"):
            trace_ptx(lambda: add(x, y), "_softmax_kernel")

    def test_unknown_architecture(self):
        with pytest.raises(runtime.BackendError, match="got 'sm_100'"):
            trace_ptx(lambda: None, "_add_kernel", arch="sm_100")

    def test_fault_in_another_kernel(self, x, y):
        """It is raised, since it is no part of the trace."""

        def call():
            add(x, y)
            add(x, y, shift=60)

        with pytest.raises(ptx.PtxError, match="past its end"):
            trace_ptx(call, "_add_kernel")


class TestCommand:
    def test_listing(self, capsys):
        assert trace_cli.main(["softmax", "--ptx", "--arch", "sm_80", "--warp", "2", "--thread", "7"]) == 0
        lines = capsys.readouterr().out.splitlines()
        head = "_softmax_kernel for sm_80, program (0, 0, 0) of (1, 1, 1), warp 2 of 4, thread 7 of 32"
        assert lines[0] == head
        assert any(line.endswith("this thread: x_ptr 284 ... 287") for line in lines)

    def test_kernel_and_dtype(self, capsys):
        arguments = ["max_pool2d", "--ptx", "--kernel", "_max_pool2d_kernel", "--dtype", "fp16", "--program", "1"]
        assert trace_cli.main(arguments) == 0
        assert "_max_pool2d_kernel for sm_90, program (1, 0, 0)" in capsys.readouterr().out

    def test_counts(self, capsys):
        assert trace_cli.main(["softmax", "--ptx", "--counts"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "_softmax_kernel, grid (1, 1, 1) of 128 threads"
        assert any(line.split()[2:5] == ["4,000", "15.6", "15.6"] for line in lines if "x = tl.load(" in line)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--counts"], "--counts: needs --ptx"),
            (["--warp", "1"], "--warp: needs --ptx"),
            (["--dtype", "tf32"], "--dtype tf32: only GPUs have it, so it needs --ptx"),
            (["--ptx", "--warp", "4"], "has 4 warps of 32 threads, got warp 4, thread 0"),
            (["--ptx", "--program", "5"], "program (5, 0, 0) is outside the grid (1, 1, 1)"),
            (["--ptx", "--kernel", "_no_kernel"], "'_no_kernel' was not launched; launched: _softmax_kernel"),
            (["--ptx", "--arch", "sm_100"], "the PTX machine knows sm_75, sm_80, sm_86, sm_89, sm_90"),
            (["--arch", "sm_20"], "--arch: must be one of sm_80, sm_90, sm_100, gfx942, got sm_20"),
        ],
        ids=["counts", "warp", "tf32", "no such warp", "program", "kernel", "no PTX machine", "architecture"],
    )
    def test_refusals(self, arguments, message, capsys):
        assert trace_cli.main(["softmax", *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and not captured.out
