"""kernels.tools.ptx_counts: instructions, sectors and bank conflicts of small kernels, counted by hand."""

import inspect

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import kernels
from kernels import ptx, runtime
from kernels.ptx.program import parse
from kernels.tools.ptx_counts import Tally, bank_wavefronts, coalescing, count
from tests.reference import randn

LANES = np.arange(32)


@triton.jit
def _copy_kernel(x_ptr, y_ptr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs * STRIDE)
    tl.store(y_ptr + offs, x)


def copy(stride: int):
    """Two programs of two warps. Each thread copies one fp32."""
    x, y = torch.arange(stride * 128, dtype=torch.float32), torch.empty(128)
    constants = {"STRIDE": stride, "BLOCK": 64, "num_warps": 2}
    found = count(lambda: runtime.launch(_copy_kernel, lambda _: (2,), x, y, **constants), "sm_80")
    assert torch.equal(y, x[::stride])
    return found


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (100, 32)])
def test_coalescing_of_a_copy(stride, sectors):
    """Four warps load and store 32 fp32 each: 4 sectors if they lie side by side, up to 32 if not."""
    found = copy(stride)
    ((program, grid),) = found.launches
    assert (program.name, grid) == ("_copy_kernel", (2, 1, 1))
    kinds = found.kinds()
    assert kinds["ld.global"] == Tally(4, 512, 0, 4, 4 * sectors, 16)
    assert kinds["st.global"] == Tally(4, 0, 512, 4, 16, 16)


def test_lines_kinds_and_total_agree():
    found = copy(2)
    lines, first = inspect.getsourcelines(_copy_kernel.fn)
    place = lambda text: next(number for number, line in enumerate(lines, first) if text in line)
    load, store = (found.lines()["_copy_kernel", place(text)] for text in ("tl.load", "tl.store"))
    assert (load.loaded, load.stored, store.loaded, store.stored) == (512, 0, 0, 512)
    ((program, _),) = found.launches
    assert found.total.instructions == 4 * len(program.code)  # there is no branch: each of four warps runs all
    for groups in (found.lines(), found.kinds()):
        assert Tally(*map(sum, zip(*groups.values(), strict=True))) == found.total


def test_table():
    lines = copy(8).table().splitlines()
    assert lines[0] == "_copy_kernel, grid (2, 1, 1) of 64 threads"
    (load,) = (line.split() for line in lines if line.endswith("x = tl.load(x_ptr + offs * STRIDE)"))
    assert load[2:5] == ["512", "32.0", "4.0"]
    kinds = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("st.global", "all"))}
    assert kinds["st.global"] == ["4", "512", "4.0", "4.0"]
    assert kinds["all"][1:] == ["512", "512", "18.0", "4.0"]


def test_nothing_launched():
    found = count(lambda: None)
    assert (found.table(), found.total) == ("", Tally())


def test_unknown_architecture():
    with pytest.raises(runtime.BackendError, match="got 'sm_100'"):
        count(lambda: None, "sm_100")


SHARED = """
.visible .entry shared() .reqntid 64
{
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	mov.u32 %r1, %tid.x;
	mul.lo.s32 %r2, %r1, STRIDE;
	st.shared.TYPE [ %r2 + 0 ], VALUE;
	ld.shared.TYPE VALUE, [%r2];
	ret;
}
"""


@pytest.mark.parametrize(
    ("type_", "value", "stride", "wavefronts", "conflicts"),
    [
        ("b32", "%r3", 4, 1, 0),
        ("b32", "%r3", 8, 2, 1),
        ("b32", "%r3", 128, 32, 31),  # all in one bank
        ("b32", "%r3", 132, 1, 0),  # one word more per row: the classic padding
        ("b64", "%rd3", 8, 2, 0),
        ("b64", "%rd3", 128, 32, 30),
        ("v4.b32", "{%r3, %r4, %r5, %r6}", 16, 4, 0),
        ("v4.b32", "{%r3, %r4, %r5, %r6}", 32, 8, 4),
        ("v4.b32", "{%r3, %r4, %r5, %r6}", 144, 4, 0),
    ],
)
def test_bank_conflicts(type_, value, stride, wavefronts, conflicts):
    """Of a store and a load by two warps, each thread at a distance from the next."""
    text = SHARED.replace("TYPE", type_).replace("VALUE", value).replace("STRIDE", str(stride))
    program = parse(text, shared=64 * stride)
    kinds = count(lambda: ptx.run(program, (3,), [], ptx.Tensors([]))).kinds()
    expected = Tally(6, wavefronts=6 * wavefronts, conflicts=6 * conflicts)  # three programs of two warps
    assert kinds["st.shared"] == kinds["ld.shared"] == expected


def test_threads_share_words():
    """A bank gives one word to many threads, and two bytes of a word at once."""
    assert bank_wavefronts(LANES, np.zeros(32, int), 4) == (1, 1)
    assert bank_wavefronts(LANES, 2 * LANES, 2) == (1, 1)
    assert bank_wavefronts(LANES, LANES % 2 * 128, 4) == (2, 1)
    assert bank_wavefronts(LANES[:8], 128 * LANES[:8], 16) == (8, 1)  # one matrix of ldmatrix, without a swizzle


def test_requests_are_of_warps():
    """Two warps that load the same sector are two requests. Threads that load the same bytes need them once."""
    addresses = np.zeros(64, np.uint64)
    assert coalescing(np.arange(64), addresses, 4) == (2, 2, 2)
    assert coalescing(np.arange(64), addresses + 60 * np.arange(64, dtype=np.uint64), 4)[1] == 2 * 32
    assert coalescing(np.array([3]), np.array([40], np.uint64), 8) == (1, 1, 1)
    assert coalescing(LANES, 32 * LANES.astype(np.uint64), 16) == (1, 32, 16)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_linear(arch):
    """Triton's swizzles leave no bank conflict. Every element of x and w is loaded once, by asynchronous copies."""
    x, w = randn(64, 128, dtype=torch.float16), randn(64, 128, dtype=torch.float16)
    found = count(lambda: kernels.linear(x, w), arch)
    kinds = found.kinds()
    assert found.total.conflicts == 0 < found.total.wavefronts
    assert kinds["cp.async"].loaded == x.nbytes + w.nbytes
    assert kinds["cp.async"].sectors == kinds["cp.async"].least == (x.nbytes + w.nbytes) // 32
    assert kinds["st.global"].stored == 64 * 64 * 2
    multiplied = kinds["mma"] if arch == "sm_80" else kinds["wgmma.mma_async"]
    # 64 x 64 x 128 products: 16 x 8 x 16 per mma of a warp, 64 x 64 x 16 per wgmma of four warps
    assert multiplied.instructions == (8 * 4 * 8 if arch == "sm_80" else 4 * 8)
