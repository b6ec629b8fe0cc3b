"""The PTX machine on small kernels that are written by hand: memory, branches, warps, tensor cores, and each check."""

import itertools

import numpy as np
import pytest
import torch

from kernels.ptx import UnsupportedInstructionError
from kernels.ptx.program import Address, parse
from tests.ptx_text import execute, program


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def random_bits(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


# The text


def test_text_is_taken_apart():
    """Guards, labels, addresses, groups of registers, numbers, and lines of inlined functions."""
    code = program(
        "$L1: @!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + -16 ];\n@%p2 bra $L1; add.f32 %r3, %r2, 0f3F800000;", 0
    ).code[2:]
    load, branch, add, end = code
    assert (load.guard, load.negated, load.opcode) == ("%p1", True, "ld.global.v2.b32")
    assert load.operands == (("%r1", "%r2"), Address("%rd1", -16))
    assert (branch.guard, branch.negated, branch.target) == ("%p2", False, load.number)
    assert (load.where, load.line, add.where, end.opcode) == ("kernel.py:1", 1, "kernel.py:2", "ret")


def test_line_of_an_inlined_function():
    text = '.file 1 "/a/conv2d.py"\n.file 2 "/b/standard.py"\n.entry k()\n.reqntid 32\n{\n'
    text += ".loc 2 43 11, function_name $L_info0, inlined_at 1 57 9\nret;\n}\n"
    assert parse(text, 0).code[0].where == "standard.py:43 in conv2d.py:57"


def test_text_without_a_kernel_is_refused():
    with pytest.raises(UnsupportedInstructionError, match="no kernel"):
        parse(".version 8.0", 0)


# Registers and memory


def test_each_thread_of_each_program_has_its_own_numbers():
    out = zeros(2, 3, 2, 64)
    execute(
        """
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z;
        mov.u32 %r4, %nctaid.x; mov.u32 %r5, %nctaid.y; mov.u32 %r6, %ntid.x;
        mad.lo.s32 %r7, %r3, %r5, %r2;
        mad.lo.s32 %r7, %r7, %r4, %r1;
        mad.lo.s32 %r7, %r7, %r6, %t0;
        mul.wide.u32 %rd1, %r7, 4;
        add.s64 %rd1, %arg0, %rd1;
        st.global.b32 [%rd1], %r7;
        """,
        threads=64, grid=(2, 3, 2), out=out,
    )  # fmt: skip
    assert out.flatten().tolist() == list(range(2 * 3 * 2 * 64))


def test_more_programs_than_run_at_once():
    out = zeros(1000, 32)
    execute(
        """
        mov.u32 %r1, %ctaid.x;
        mad.lo.s32 %r2, %r1, 32, %t0;
        mul.wide.u32 %rd1, %r2, 4;
        add.s64 %rd1, %arg0, %rd1;
        st.global.b32 [%rd1], %r1;
        """,
        grid=(1000,), out=out,
    )  # fmt: skip
    assert (out == torch.arange(1000, dtype=torch.int32)[:, None]).all()


def test_vectors_go_through_shared_memory():
    x, out = random_bits(64, 4), zeros(64, 4)
    execute(
        """
        mul.wide.u32 %rd1, %t0, 16;
        add.s64 %rd2, %arg0, %rd1;
        add.s64 %rd3, %arg1, %rd1;
        shl.b32 %r9, %t0, 4;
        xor.b32 %r8, %r9, 16;
        ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd2];
        st.shared.v2.b32 [%r9], {%r1, %r2};
        st.shared.v2.b32 [%r9+8], {%r3, %r4};
        bar.sync 0;
        ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r8];
        st.global.v4.b32 [%rd3], {%r4, %r3, %r2, %r1};
        """,
        threads=64, shared=1024, x=x, out=out,
    )  # fmt: skip
    assert torch.equal(out, x.view(32, 2, 4).flip(1).flip(2).view(64, 4))


def test_registers_are_packed_and_taken_apart():
    out = torch.zeros(32, dtype=torch.int64)
    execute(
        """
        mul.wide.u32 %rd1, %t0, 8;
        add.s64 %rd1, %arg0, %rd1;
        mov.b32 %r2, 0x12345678;
        mov.b32 {%h1, %h2}, %r2;
        mov.b32 %r1, {%h2, %h1};
        mov.b64 %rd2, {%r1, %t0};
        st.global.b64 [%rd1], %rd2;
        """,
        out=out,
    )  # fmt: skip
    assert out.tolist() == [(thread << 32) + 0x56781234 for thread in range(32)]


def test_narrow_loads_keep_their_sign():
    x, out = torch.arange(-16, 16, dtype=torch.int8), torch.zeros(2, 32, dtype=torch.int32)
    execute(
        """
        cvt.u64.u32 %rd1, %t0;
        add.s64 %rd1, %arg0, %rd1;
        add.s64 %rd2, %arg1, %at0;
        ld.global.s8 %r1, [%rd1];
        ld.global.u8 %r2, [%rd1];
        st.global.b32 [%rd2], %r1;
        st.global.b32 [%rd2+128], %r2;
        """,
        x=x, out=out,
    )  # fmt: skip
    assert out[0].tolist() == x.tolist() and out[1].tolist() == x.view(torch.uint8).tolist()


def test_guards_choose_the_threads_that_load_and_store():
    out = zeros(32)
    execute(
        """
        setp.lt.u32 %p1, %t0, 5;
        add.s64 %rd1, %arg0, %at0;
        mov.b32 %r1, 7;
        @%p1 mov.b32 %r1, 8;
        @!%p1 st.global.b32 [%rd1], %r1;
        @%p1 st.global.b32 [%rd1], %r1;
        """,
        out=out,
    )  # fmt: skip
    assert out.tolist() == [8] * 5 + [7] * 27


# Branches


def test_programs_that_branch_differently():
    out = zeros(5, 32)
    execute(
        """
        mov.u32 %r1, %ctaid.x;
        shl.b32 %r2, %r1, 7;
        cvt.u64.u32 %rd1, %r2;
        add.s64 %rd1, %arg0, %rd1;
        add.s64 %rd1, %rd1, %at0;
        and.b32 %r3, %r1, 1;
        setp.eq.s32 %p1, %r3, 0;
        @%p1 bra $EVEN;
        mov.b32 %r4, 100;
        bra.uni $END;
        $EVEN: mov.b32 %r4, 200;
        $END: add.s32 %r4, %r4, %t0;
        bar.sync 0;
        st.global.b32 [%rd1], %r4;
        """,
        grid=(5,), out=out,
    )  # fmt: skip
    assert out.tolist() == [[100 + 100 * (program % 2 == 0) + thread for thread in range(32)] for program in range(5)]


def test_threads_that_branch_differently_meet_again():
    """Three ways, one of them nested; all reach the barrier together."""
    out = zeros(64)
    execute(
        """
        add.s64 %rd1, %arg0, %at0;
        mov.b32 %r1, 1;
        setp.ge.u32 %p1, %t0, 20;
        @%p1 bra $HIGH;
        add.s32 %r1, %r1, 10;
        setp.ge.u32 %p2, %t0, 7;
        @%p2 bra $MEET;
        add.s32 %r1, %r1, 100;
        bra.uni $MEET;
        $HIGH: add.s32 %r1, %r1, 1000;
        $MEET: bar.sync 0;
        st.global.b32 [%rd1], %r1;
        """,
        threads=64, out=out,
    )  # fmt: skip
    assert out.tolist() == [111] * 7 + [11] * 13 + [1001] * 44


@pytest.mark.parametrize("count", ["%t0", "%ctaid.x", "both"])
def test_loops_with_different_trip_counts(count):
    """Of threads, of programs, and of both: the sum of the first numbers."""
    out = zeros(6, 32)
    trips = "mov.u32 %r3, %ctaid.x; add.s32 %r3, %r3, %t0;" if count == "both" else f"mov.u32 %r3, {count};"
    execute(
        f"""
        mov.u32 %r1, %ctaid.x;
        shl.b32 %r2, %r1, 7;
        cvt.u64.u32 %rd1, %r2;
        add.s64 %rd1, %arg0, %rd1;
        add.s64 %rd1, %rd1, %at0;
        {trips}
        mov.b32 %r4, 0; mov.b32 %r5, 0;
        $LOOP: setp.ge.s32 %p1, %r4, %r3;
        @%p1 bra $DONE;
        add.s32 %r4, %r4, 1;
        add.s32 %r5, %r5, %r4;
        bra.uni $LOOP;
        $DONE: bar.sync 0;
        st.global.b32 [%rd1], %r5;
        """,
        grid=(6,), out=out,
    )  # fmt: skip
    for program_, thread in itertools.product(range(6), range(32)):
        trips_ = {"%t0": thread, "%ctaid.x": program_, "both": program_ + thread}[count]
        assert out[program_, thread] == trips_ * (trips_ + 1) // 2


def test_threads_that_return_early():
    out = zeros(32)
    execute(
        """
        setp.lt.u32 %p1, %t0, 5;
        add.s64 %rd1, %arg0, %at0;
        @%p1 ret;
        st.global.b32 [%rd1], 1;
        """,
        out=out,
    )  # fmt: skip
    assert out.tolist() == [0] * 5 + [1] * 27


# Warps


@pytest.mark.parametrize("how, which, source", [
    *[("bfly", str(mask), lambda lane, mask=mask: lane ^ mask) for mask in (1, 2, 16, 31)],
    ("idx", "5", lambda lane: 5), ("idx", "%r2", lambda lane: (lane * 7 + 3) % 32),
])  # fmt: skip
def test_shfl(how, which, source):
    x, out = random_bits(64), zeros(64)
    execute(
        f"""
        add.s64 %rd1, %arg0, %at0;
        add.s64 %rd2, %arg1, %at0;
        mad.lo.s32 %r2, %t0, 7, 3;
        ld.global.b32 %r1, [%rd1];
        shfl.sync.{how}.b32 %r3, %r1, {which}, 0x1f, 0xffffffff;
        st.global.b32 [%rd2], %r3;
        """,
        threads=64, x=x, out=out,
    )  # fmt: skip
    assert out.tolist() == [x[thread // 32 * 32 + source(thread % 32)] for thread in range(64)]


LDMATRIX = """
    shl.b32 %r1, %t0, 4;
    mul.wide.u32 %rd1, %t0, 16;
    add.s64 %rd1, %arg0, %rd1;
    ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd1];
    st.shared.v4.b32 [%r1], {%a0, %a1, %a2, %a3};
    bar.warp.sync -1;
    """


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(trans, count):
    """Lane l gets row l / 4 of each matrix, columns 2 (l % 4) and the next one; transposed, column l / 4."""
    x, out = torch.randint(-(2**15), 2**15, (4, 8, 8), dtype=torch.int16), zeros(32, count)
    names = [f"%b{index}" for index in range(count)]
    execute(
        f"""{LDMATRIX}
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join(names)}}}, [%r1];
        mul.wide.u32 %rd2, %t0, {4 * count};
        add.s64 %rd2, %arg1, %rd2;
        """
        + "\n".join(f"st.global.b32 [%rd2+{4 * index}], {name};" for index, name in enumerate(names)),
        shared=512, x=x, out=out,
    )  # fmt: skip
    for lane, matrix, half in itertools.product(range(32), range(count), range(2)):
        place = (lane >> 2, 2 * (lane & 3) + half)
        expected = x[(matrix, *(place[::-1] if trans else place))]
        assert out.view(torch.int16)[lane, 2 * matrix + half] == expected


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_is_the_inverse_of_ldmatrix(trans):
    x, out = random_bits(32, 4), zeros(32, 4)
    execute(
        f"""{LDMATRIX}
        ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%b0, %b1, %b2, %b3}}, [%r1];
        stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r1+512], {{%b0, %b1, %b2, %b3}};
        ld.shared.v4.b32 {{%c0, %c1, %c2, %c3}}, [%r1+512];
        mul.wide.u32 %rd2, %t0, 16;
        add.s64 %rd2, %arg1, %rd2;
        st.global.v4.b32 [%rd2], {{%c0, %c1, %c2, %c3}};
        """,
        shared=1024, x=x, out=out,
    )  # fmt: skip
    assert torch.equal(out, x)


# Tensor cores, on small whole numbers: every sum is exact


TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}


def bits_of(matrix: torch.Tensor, type_: str) -> np.ndarray:
    """The elements' bits: 16 of them, of tf32 32."""
    given = matrix.to(TYPES[type_]).contiguous()
    return given.view(torch.int32 if type_ == "tf32" else torch.int16).numpy().view("u4" if type_ == "tf32" else "u2")


def in_registers(bits: np.ndarray, places: list[list[tuple[int, int]]]) -> torch.Tensor:
    """What each lane holds: the elements at its places, in its registers from the lowest bit on."""
    rows = np.array([[bits[place] for place in lane] for lane in places], bits.dtype)
    return torch.from_numpy(rows.view(np.int32).copy())


def places_a(lane: int, registers: int, type_: str) -> list[tuple[int, int]]:
    """Operand A as in the figures of sections 9.7.14.5.4 to 9.7.14.5.8: element by element."""
    group, thread = lane >> 2, lane % 4
    if type_ == "tf32":
        return [(group + 8 * (i in (1, 3)), thread + 4 * (i >= 2)) for i in range(registers)]
    return [
        (group if i in (0, 1, 4, 5) else group + 8, thread * 2 + (i & 1) + (8 if i >= 4 else 0))
        for i in range(2 * registers)
    ]


def places_b(lane: int, registers: int, type_: str) -> list[tuple[int, int]]:
    """Operand B, as (k, n)."""
    group, thread = lane >> 2, lane % 4
    if type_ == "tf32":
        return [(thread + 4 * i, group) for i in range(registers)]
    return [(thread * 2 + (i & 1) + (8 if i >= 2 else 0), group) for i in range(2 * registers)]


def places_c(lane: int) -> list[tuple[int, int]]:
    group, thread = lane >> 2, lane % 4
    return [(group if i < 2 else group + 8, thread * 2 + (i & 1)) for i in range(4)]


def braces(prefix: str, count: int) -> str:
    return "{" + ", ".join(f"%{prefix}{index}" for index in range(count)) + "}"


def loads(prefix: str, count: int, argument: int) -> str:
    """Each thread loads its row of an argument, ``count`` numbers of 32 bits, to registers."""
    return f"mad.lo.s64 %rd9, %at0, {count}, %arg{argument};\n" + "".join(
        f"ld.global.b32 %{prefix}{index}, [%rd9+{4 * index}];\n" for index in range(count)
    )


def stores(prefix: str, count: int, argument: int) -> str:
    return f"mad.lo.s64 %rd9, %at0, {count}, %arg{argument};\n" + "".join(
        f"st.global.b32 [%rd9+{4 * index}], %{prefix}{index};\n" for index in range(count)
    )


def whole_numbers(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 9, shape).float()


@pytest.mark.parametrize("type_, k, a_registers, b_registers", [
    ("f16", 16, 4, 2), ("f16", 8, 2, 1), ("bf16", 16, 4, 2), ("bf16", 8, 2, 1), ("tf32", 8, 4, 2), ("tf32", 4, 2, 1),
])  # fmt: skip
def test_mma(type_, k, a_registers, b_registers):
    a, b, c = whole_numbers(16, k), whole_numbers(k, 8), whole_numbers(16, 8)
    out = torch.zeros(32, 4)
    execute(
        loads("a", a_registers, 0) + loads("b", b_registers, 1) + loads("c", 4, 2)
        + f"mma.sync.aligned.m16n8k{k}.row.col.f32.{type_}.{type_}.f32 {braces('c', 4)}, {braces('a', a_registers)}, "
        f"{braces('b', b_registers)}, {braces('c', 4)};\n" + stores("c", 4, 3),
        a=in_registers(bits_of(a, type_), [places_a(lane, a_registers, type_) for lane in range(32)]),
        b=in_registers(bits_of(b, type_), [places_b(lane, b_registers, type_) for lane in range(32)]),
        c=torch.stack([torch.stack([c[place] for place in places_c(lane)]) for lane in range(32)]),
        out=out,
    )  # fmt: skip
    expected = a @ b + c
    assert out.tolist() == [[expected[place] for place in places_c(lane)] for lane in range(32)]


def test_tf32_drops_the_lower_13_bits():
    """Of 1 + 2^-10 the mantissa's 10 bits keep all, of 1 + 2^-11 nothing but 1."""
    a, out = torch.full((32, 2), 1 + 2**-10 + 2**-11), torch.zeros(32, 4)
    execute(
        loads("a", 2, 0) + "mov.b32 %b0, 0f3F800000; mov.b32 %c0, 0; mov.b32 %c1, 0; mov.b32 %c2, 0; mov.b32 %c3, 0;\n"
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%c0, %c1, %c2, %c3}, {%a0, %a1}, {%b0}, "
        "{%c0, %c1, %c2, %c3};\n" + stores("c", 4, 1),
        a=a, out=out,
    )  # fmt: skip
    assert (out == 4 * (1 + 2**-10)).all()


def pattern_address(row: int, byte: int, width: int) -> int:
    """Where a byte of a row lies in a pattern of 8 rows, ``width`` bytes each, whose 16-byte pieces are exchanged."""
    exchange = {128: row, 64: row // 2, 32: row // 4}[width]
    return row * width + (byte // 16 ^ exchange) * 16 + byte % 16


def in_shared(bits: np.ndarray, width: int, transposed: bool) -> tuple[np.ndarray, int, int]:
    """An operand [rows, k] as wgmma reads it.

    Returns:
        (bytes, lead, stride), the latter for the descriptor.
    """
    size, (rows, k) = bits.itemsize, bits.shape
    address = {}
    if width == 16:  # 8 rows of 16 bytes, one after the other: along k first
        lead, stride = 128, 128 * k * size // 16
        for row, column in itertools.product(range(rows), range(k)):
            byte = column * size
            address[row, column] = row // 8 * stride + byte // 16 * lead + row % 8 * 16 + byte % 16
    elif transposed:
        per = width // size
        stride = 8 * width
        lead = stride * (k // 8)
        for row, column in itertools.product(range(rows), range(k)):
            inside = pattern_address(column % 8, row % per * size, width)
            address[row, column] = row // per * lead + column // 8 * stride + inside
    else:
        lead, stride = 0, 8 * width
        for row, column in itertools.product(range(rows), range(k)):
            address[row, column] = row // 8 * stride + pattern_address(row % 8, column * size, width)
    image = np.zeros(-(-(max(address.values()) + size) // 2048) * 2048, np.uint8)
    for place, at in address.items():
        image.view(bits.dtype)[at // size] = bits[place]
    return image, lead, stride


def descriptor(start: int, lead: int, stride: int, width: int) -> int:
    """Section 9.7.15.5.1.2.2."""
    return start >> 4 | lead >> 4 << 16 | stride >> 4 << 32 | {16: 0, 128: 1, 64: 2, 32: 3}[width] << 62


def fill(argument: int, first: int, size: int) -> str:
    """128 threads copy ``size`` bytes, a multiple of 2048, of an argument to shared memory."""
    text = "shl.b32 %r1, %t0, 4; cvt.u64.u32 %rd8, %r1;\n" + f"add.s64 %rd9, %arg{argument}, %rd8;\n"
    for offset in range(0, size, 2048):
        text += f"ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%rd9+{offset}];\n"
        text += f"st.shared.v4.b32 [%r1+{first + offset}], {{%r2, %r3, %r4, %r5}};\n"
    return text


def places_accumulator(thread: int, n: int) -> list[tuple[int, int]]:
    """Figure of section 9.7.15.5.1.1: element d[i] of a thread."""
    return [
        (16 * (thread // 32) + thread % 32 // 4 + (8 if i % 4 >= 2 else 0), i // 4 * 8 + thread % 4 * 2 + i % 2)
        for i in range(n // 2)
    ]


READY = "fence.proxy.async.shared::cta;\nbar.sync 0;\n"


@pytest.mark.parametrize("keep", [True, False], ids=["adds", "begins"])
@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("type_, width, transposed, slices", [
    ("f16", 128, (False, False), 4), ("f16", 64, (False, False), 2), ("f16", 32, (False, False), 1),
    ("f16", 16, (False, False), 1), ("f16", 128, (True, False), 1), ("bf16", 128, (False, True), 1),
    ("bf16", 64, (True, True), 1), ("tf32", 128, (False, False), 4), ("tf32", 32, (False, False), 1),
])  # fmt: skip
def test_wgmma(type_, width, transposed, slices, n, keep):
    """Both operands in shared memory, swizzled; ``slices`` one after another along k."""
    k = 8 if type_ == "tf32" else 16
    a, b, c = whole_numbers(64, k * slices), whole_numbers(n, k * slices), whole_numbers(64, n)
    if transposed[1] and n * 2 < width:
        b = torch.cat([b, whole_numbers(width // 2 - n, k * slices)])
    left, *offsets_a = in_shared(bits_of(a, type_), width, transposed[0])
    right, *offsets_b = in_shared(bits_of(b, type_), width, transposed[1])
    flags = "" if type_ == "tf32" else f", {int(transposed[0])}, {int(transposed[1])}"
    out, count = torch.zeros(128, n // 2), n // 2
    text = loads("c", count, 2) + fill(0, 0, len(left)) + fill(1, len(left), len(right)) + READY
    text += f"setp.eq.s32 %p1, 0, {int(not keep)};\nwgmma.fence.sync.aligned;\n"
    for index in range(slices):
        descriptors = descriptor(32 * index, *offsets_a, width), descriptor(len(left) + 32 * index, *offsets_b, width)
        text += f"mov.b64 %rd1, {descriptors[0]};\nmov.b64 %rd2, {descriptors[1]};\n"
        text += f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{type_}.{type_} {braces('c', count)}, %rd1, %rd2, "
        text += f"%p1, 1, 1{flags};\nsetp.eq.s32 %p1, 0, 0;\n"
    text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" + stores("c", count, 3)
    execute(
        text,
        threads=128, shared=len(left) + len(right),
        a=torch.from_numpy(left), b=torch.from_numpy(right),
        c=torch.stack([torch.stack([c[place] for place in places_accumulator(t, n)]) for t in range(128)]), out=out,
    )  # fmt: skip
    expected = a @ b[:n].T + (c if keep else 0)
    assert out.tolist() == [[expected[place] for place in places_accumulator(t, n)] for t in range(128)]


@pytest.mark.parametrize("type_, registers", [("f16", 4), ("bf16", 4), ("tf32", 4)])
def test_wgmma_with_an_operand_in_registers(type_, registers):
    """Each warp holds 16 rows of A, as of mma."""
    k = 8 if type_ == "tf32" else 16
    a, b = whole_numbers(64, k), whole_numbers(8, k)
    image, *offsets = in_shared(bits_of(b, type_), 32, False)
    bits = bits_of(a, type_)
    held = [
        in_registers(bits[16 * w : 16 * w + 16], [places_a(t, registers, type_) for t in range(32)]) for w in range(4)
    ]
    out = torch.zeros(128, 4)
    text = loads("a", registers, 0) + fill(1, 0, len(image)) + READY
    text += f"mov.b64 %rd1, {descriptor(0, *offsets, 32)};\nsetp.eq.s32 %p1, 0, 1;\nwgmma.fence.sync.aligned;\n"
    text += f"wgmma.mma_async.sync.aligned.m64n8k{k}.f32.{type_}.{type_} {braces('c', 4)}, {braces('a', registers)}, "
    text += f"%rd1, %p1, 1, 1{'' if type_ == 'tf32' else ', 0'};\n"
    text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" + stores("c", 4, 2)
    execute(text, threads=128, shared=len(image), a=torch.cat(held), b=torch.from_numpy(image), out=out)
    expected = a @ b.T
    assert out.tolist() == [[expected[place] for place in places_accumulator(t, 8)] for t in range(128)]


# Asynchronous copies

COPY = """
    shl.b32 %r1, %t0, 2;
    add.s64 %rd1, %arg0, %at0;
    add.s64 %rd2, %arg1, %at0;
    """
"""Thread t's place: [%r1] in shared memory, [%rd1] in the first argument, [%rd2] in the second."""


def test_copies_arrive_in_groups():
    """Three groups of copies; the first is read while two are on their way."""
    x, out = random_bits(3, 32), zeros(3, 32)
    execute(
        f"""{COPY}
        cp.async.ca.shared.global [%r1], [%rd1], 0x4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r1+128], [%rd1+128], 0x4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r1+256], [%rd1+256], 0x4;
        cp.async.commit_group;
        cp.async.wait_group 2;
        ld.shared.b32 %r2, [%r1];
        cp.async.wait_group 1;
        ld.shared.b32 %r3, [%r1+128];
        cp.async.wait_all;
        ld.shared.b32 %r4, [%r1+256];
        st.global.b32 [%rd2], %r2;
        st.global.b32 [%rd2+128], %r3;
        st.global.b32 [%rd2+256], %r4;
        """,
        shared=384, x=x, out=out,
    )  # fmt: skip
    assert torch.equal(out, x)


def test_copy_of_no_bytes_fills_with_zeros():
    """It reads nothing, so its source may be anywhere."""
    x, out = random_bits(5), zeros(32)
    execute(
        f"""{COPY}
        setp.lt.u32 %p1, %t0, 5;
        selp.b32 %r2, 4, 0, %p1;
        cp.async.ca.shared.global [%r1], [%rd1], 0x4, %r2;
        cp.async.commit_group;
        cp.async.wait_group 0;
        ld.shared.b32 %r3, [%r1];
        st.global.b32 [%rd2], %r3;
        """,
        shared=128, x=x, out=out,
    )  # fmt: skip
    assert out.tolist() == x.tolist() + [0] * 27


def test_copies_of_programs_that_part():
    """Copies on their way belong to the program that began them, wherever it branches."""
    x, out = random_bits(6, 32), zeros(6, 32)
    execute(
        f"""{COPY}
        mov.u32 %r5, %ctaid.x;
        mul.wide.u32 %rd3, %r5, 128;
        add.s64 %rd1, %rd1, %rd3;
        add.s64 %rd2, %rd2, %rd3;
        cp.async.ca.shared.global [%r1], [%rd1], 0x4;
        cp.async.commit_group;
        and.b32 %r6, %r5, 1;
        setp.eq.s32 %p1, %r6, 0;
        mov.b32 %r7, 0;
        @%p1 bra $END;
        mov.b32 %r7, 1;
        $END: cp.async.wait_group 0;
        ld.shared.b32 %r2, [%r1];
        add.s32 %r2, %r2, %r7;
        st.global.b32 [%rd2], %r2;
        """,
        grid=(6,), shared=128, x=x, out=out,
    )  # fmt: skip
    assert torch.equal(out, x + torch.arange(6, dtype=torch.int32)[:, None] % 2)
