"""What the PTX machine must not let pass: each check on a small kernel with one fault, and without it."""

import re
import warnings

import pytest
import torch

from kernels.ptx import PtxError, PtxWarning, UnsupportedInstructionError
from tests.ptx_text import execute

SHARED = "shl.b32 %r1, %t0, 2;\nadd.s64 %rd1, %arg0, %at0;\nxor.b32 %r2, %r1, 128;\nmov.b32 %r4, 5;\n"
"""Thread t's place: [%r1] in shared memory and [%rd1] in ``x``. Another warp's place is [%r2]."""


def run(body: str, threads: int = 64, shared: int = 1024, size: int = 256, **more) -> None:
    execute(SHARED + body, threads=threads, shared=shared, x=torch.zeros(size, dtype=torch.int32), **more)


def refused(message: str, body: str, **more) -> None:
    """The kernel is stopped with this message; ``LINE`` is the number of the line that holds ``<--``."""
    lines = (SHARED + body).strip().split("\n")
    (line,) = (number for number, text in enumerate(lines, 1) if "<--" in text)
    with pytest.raises(PtxError) as error:
        run(body.replace("<--", ""), **more)
    text = str(error.value)
    assert text.startswith("kernel, program (") and f"; kernel.py:{line})" in text, text
    assert message in text, text


# Global memory


@pytest.mark.parametrize("opcode, operands", [("ld", "%r3, [%rd2]"), ("st", "[%rd2], %r3")])
@pytest.mark.parametrize("offset, threads, thread, where", [
    (4, 64, 63, "4 bytes at byte 256 of x (256 bytes), 4 bytes past its end"),
    (1024, 64, 0, "4 bytes at byte 1024 of x (256 bytes), 772 bytes past its end"),
    (-4, 64, 0, "4 bytes at byte -4 of x (256 bytes), 4 bytes before its first"),
])  # fmt: skip
def test_access_outside_a_tensor(opcode, operands, offset, threads, thread, where):
    """Kernel, program, thread, tensor, distance, instruction, line."""
    text = f"{opcode}.global.b32 {operands};"
    expected = f"kernel, program (0, 0, 0), thread {thread}: {where} ({text[:-1]}; kernel.py:6)"
    with pytest.raises(PtxError, match="^" + re.escape(expected) + "$"):
        run(f"add.s64 %rd2, %rd1, {offset};\n{text}", size=64, threads=threads)


def test_access_outside_by_one_program_of_many():
    body = """mov.u32 %r5, %ctaid.y;
        mul.wide.u32 %rd2, %r5, 256;
        add.s64 %rd2, %rd1, %rd2;
        st.global.b32 [%rd2], %r4;<--"""
    run(body.replace("<--", ""), grid=(2, 4))
    refused("program (0, 4, 0), thread 0: 4 bytes at byte 1024 of x (1024 bytes), 4 bytes past", body, grid=(2, 5))


def test_vector_that_begins_inside_and_ends_outside():
    body = "mul.wide.u32 %rd2, %t0, 16;\nadd.s64 %rd2, %arg0, %rd2;\nld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd2];<--"
    run(body.replace("<--", ""), size=256)
    refused("thread 63: 16 bytes at byte 1008 of x (1016 bytes), 8 bytes past its end", body, size=254)


def test_access_to_no_tensor():
    refused("address 0x0 is in no tensor", "mov.b64 %rd2, 0;\nld.global.b32 %r3, [%rd2];<--")


def test_guard_keeps_a_thread_from_an_access():
    body = "setp.lt.u32 %p1, %t0, 60;\n{guard}st.global.b32 [%rd1], %r4;<--"
    run(body.format(guard="@%p1 ").replace("<--", ""), size=60)
    refused("thread 60: 4 bytes at byte 240 of x (240 bytes)", body.format(guard=""), size=60)


def test_misaligned_vectors():
    refused("is not a multiple of 8 bytes", "ld.global.v2.b32 {%a0, %a1}, [%rd1];<--")
    refused("thread 1: shared address 4 is not a multiple of 8 bytes", "st.shared.v2.b32 [%r1], {%r4, %r4};<--")


def test_source_of_a_copy_outside():
    refused("thread 60: 4 bytes at byte 240 of x (240 bytes), 4 bytes past its end",
            "cp.async.ca.shared.global [%r1], [%rd1], 0x4;<--", size=60)  # fmt: skip


# Shared memory


def test_access_outside_shared_memory():
    body = "st.shared.b32 [%r1], %r4;<--"
    run(body.replace("<--", ""), shared=256)
    refused("thread 63: 4 bytes at shared address 252 of 252", body, shared=252)
    refused("thread 62: 4 bytes at shared address 252 of 252",
            "cp.async.ca.shared.global [%r1+4], [%rd1], 0x4;<--", shared=252)  # fmt: skip


def test_read_of_shared_memory_that_nobody_wrote():
    body = "st.shared.b32 [%r1], %r4;\nbar.sync 0;\nld.shared.b32 %r3, [%r1{offset}];<--"
    run(body.format(offset="").replace("<--", ""))
    refused("thread 63: reads shared memory that nobody has written", body.format(offset="+4"))


def test_unwritten_part_of_a_vector():
    refused("thread 0: reads shared memory that nobody has written",
            "st.shared.b32 [%r1], %r4;\nbar.sync 0;\nsetp.eq.u32 %p1, %t0, 0;\n"
            "@%p1 ld.shared.v4.b32 {%a0, %a1, %a2, %a3}, [248];<--".replace("[248]", "[%r1+256]"))  # fmt: skip


WRITE, READ, WRITE_OTHER, READ_OTHER = (
    "st.shared.b32 [%r1], %r4;\n",
    "ld.shared.b32 %r3, [%r1];\n",
    "st.shared.b32 [%r2], %t0;\n",
    "ld.shared.b32 %r3, [%r2];\n",
)
BARRIER = "bar.sync 0;\n"


@pytest.mark.parametrize("first, second, message", [
    (WRITE, READ_OTHER, "thread 0: race: warp 0 reads what warp 1 wrote, without a barrier between"),
    (WRITE + BARRIER + READ, WRITE_OTHER, "thread 0: race: warp 0 writes what warp 1 read, without a barrier between"),
    (WRITE, WRITE_OTHER, "thread 0: race: warp 0 writes what warp 1 wrote, without a barrier between"),
], ids=["read-after-write", "write-after-read", "write-after-write"])  # fmt: skip
def test_races(first, second, message):
    run(first + BARRIER + second)
    refused(message, first + second.replace("\n", "<--"))


def test_race_with_several_readers():
    """Which of the readers is not known."""
    body = "mov.b32 %r5, 0;\nsetp.eq.u32 %p1, %t0, 0;\n@%p1 st.shared.b32 [%r5], %r4;\nbar.sync 0;\n"
    body += "ld.shared.b32 %r3, [%r5];\n"
    refused("warp 0 writes what another warp read", body + "@%p1 st.shared.b32 [%r5], %r4;<--")
    run(body + BARRIER + "@%p1 st.shared.b32 [%r5], %r4;")


def test_what_is_no_race():
    """A warp's own values, and the same value written twice."""
    run(WRITE + READ + WRITE + READ, threads=32)
    run(WRITE + "xor.b32 %r5, %r1, 4;\nld.shared.b32 %r3, [%r5];\nst.shared.b32 [%r5], %t0;")
    run(WRITE + WRITE.replace("%r1", "%r2"))


def test_barrier_of_an_earlier_round_does_not_count():
    """The second round of a loop writes what the other warp may still read in the first."""
    body = """mov.b32 %r5, 0;
        $LOOP: st.shared.b32 [%r1], %r5;<--
        bar.sync 0;
        ld.shared.b32 %r3, [%r2];
        {barrier}
        add.s32 %r5, %r5, 1;
        setp.lt.s32 %p1, %r5, 3;
        @%p1 bra $LOOP;"""
    run(body.format(barrier="bar.sync 0;").replace("<--", ""))
    refused("race: warp 0 writes what warp 1 read", body.format(barrier=""))


def test_threads_that_store_different_values_to_one_place():
    with pytest.warns(PtxWarning, match=r"store different values to one shared address.*kernel.py:5"):
        run("st.shared.b32 [0], %t0;".replace("[0]", "[%r9]").replace("st.", "mov.b32 %r9, 0; st."), threads=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("mov.b32 %r9, 0;\nst.shared.b32 [%r9], %r4;", threads=32)


# Asynchronous copies


COPY = "cp.async.ca.shared.global [%r1], [%rd1], 0x4;\ncp.async.commit_group;\n"
IN_FLIGHT = "reads shared memory that an asynchronous copy may not have written yet"


def test_read_of_a_copy_on_its_way():
    run(COPY + "cp.async.wait_group 0;\n" + READ)
    refused(f"thread 0: {IN_FLIGHT}", COPY + READ.replace("\n", "<--"))
    refused(IN_FLIGHT, COPY.replace("cp.async.commit_group;\n", "") + "cp.async.wait_group 0;\n" + READ[:-1] + "<--")


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_wait_for_too_few_groups(allowed):
    second = COPY.replace("[%r1]", "[%r1+256]").replace("[%rd1]", "[%rd1+256]")
    body = COPY + second + f"cp.async.wait_group {allowed};\n"
    if allowed < 2:
        run(body + READ)
    if allowed < 1:
        run(body + READ.replace("[%r1]", "[%r1+256]"))
    else:
        refused(IN_FLIGHT, body + "ld.shared.b32 %r3, [%r1+256];<--")


def test_copy_waited_for_after_the_barrier():
    """A thread waits for its own copies only: the barrier must follow the wait."""
    run(COPY + "cp.async.wait_group 0;\nbar.sync 0;\n" + READ_OTHER)
    refused(
        "race: warp 0 reads what warp 1 wrote", COPY + "bar.sync 0;\ncp.async.wait_group 0;\n" + READ_OTHER[:-1] + "<--"
    )


def test_copy_to_what_another_warp_reads():
    """A copy writes at any time after its issue."""
    copy = COPY.replace("[%r1]", "[%r2]").replace("0x4;", "0x4;<--")
    run(WRITE + BARRIER + READ + BARRIER + copy.replace("<--", ""))
    refused("race: warp 0 writes what warp 1 read", WRITE + BARRIER + READ + copy)


# Warps


def test_barrier_that_not_all_threads_reach():
    body = "setp.lt.u32 %p1, %t0, {count};\n@%p1 bra $END;\nbar.sync 0;<--\n$END: mov.b32 %r3, 0;"
    run(body.format(count=64).replace("<--", ""))
    run(body.format(count=0).replace("<--", ""))
    refused("thread 0: a thread does not reach this barrier", body.format(count=32))
    refused("thread 0: a thread does not reach this barrier", body.format(count=5))


@pytest.mark.parametrize("together", [
    "shfl.sync.bfly.b32 %r3, %r4, 1, 0x1f, 0xffffffff;",
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r1];",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%c0, %c1, %c2, %c3}, {%a0, %a1}, {%b0}, {%c0, %c1, %c2, %c3};",
], ids=lambda text: text.split(".")[0])  # fmt: skip
def test_warp_that_is_torn_apart(together):
    """All threads of a warp, or none."""
    body = "shl.b32 %r1, %t0, 4;\nst.shared.v4.b32 [%r1], {%r4, %r4, %r4, %r4};\nsetp.lt.u32 %p1, %t0, COUNT;\n"
    body += f"@%p1 bra $END;\n{together}<--\n$END: mov.b32 %r3, 0;"
    run(body.replace("COUNT", "32").replace("<--", ""))
    refused("thread 32: a thread does not take part", body.replace("COUNT", "37"))


# wgmma

DESCRIPTOR = 16 << 32 | 3 << 62
"""An operand of 8 rows of 32 bytes, swizzled, at the start of shared memory; 64 rows of it follow each other."""
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%c0, %c1, %c2, %c3}, %rd2, %rd2, %p1, 1, 1, 0, 0;"
WGMMA = {
    "write": "shl.b32 %r5, %t0, 4;\nst.shared.v4.b32 [%r5], {%t0, %t0, %t0, %t0};",
    "proxy": "fence.proxy.async.shared::cta;",
    "barrier": "bar.sync 0;",
    "begin": f"mov.b64 %rd2, {DESCRIPTOR};\nsetp.eq.s32 %p1, 0, 1;\nmov.b32 %c0, 0;\nmov.b32 %c1, 0;\nmov.b32 %c2, 0;\n"
    "mov.b32 %c3, 0;\nadd.u32 %c0, %c0, 0;",
    "fence": "wgmma.fence.sync.aligned;",
    "product": PRODUCT,
    "chained": PRODUCT,
    "commit": "wgmma.commit_group.sync.aligned;",
    "wait": "wgmma.wait_group.sync.aligned 0;",
    "use": "st.global.b32 [%rd1], %c0;",
    "again": "st.shared.v4.b32 [%r5], {%t0, %t0, %t0, %t0};",
}


def wgmma(marked: str | None = None, **changes: str) -> str:
    """A product, with some of its parts changed, and ``<--`` at one of them."""
    parts = WGMMA | changes
    return "\n".join(text + "<--" * (name == marked) for name, text in parts.items() if text)


def test_wgmma_as_it_should_be():
    run(wgmma(), threads=128, shared=2048)


@pytest.mark.parametrize("message, marked, changes", [
    ("%c0 belongs to a wgmma that no wgmma.wait_group has waited for", "use", {"wait": ""}),
    ("%c0 belongs to a wgmma", "use", {"wait": "wgmma.wait_group.sync.aligned 1;"}),
    ("%c0 belongs to a wgmma", "use", {"commit": ""}),
    ("writes shared memory that a wgmma may still read", "again", {"wait": "", "use": ""}),
    ("%c0 was written, and no wgmma.fence came before this wgmma", "product", {"fence": ""}),
    ("wgmma reads what was stored without a fence.proxy.async after it", "product", {"proxy": ""}),
    ("wgmma reads what was stored without", "product", {"write": f"{WGMMA['proxy']}\n{WGMMA['write']}", "proxy": ""}),
    ("reads what warp", "product", {"barrier": ""}),
    ("reads shared memory that nobody has written", "product", {"write": ""}),
    ("bytes at shared address", "product", {"begin": WGMMA["begin"].replace(str(DESCRIPTOR), str(DESCRIPTOR + 64))}),
    ("%rd2 is not the same in all threads", "product", {"begin": WGMMA["begin"] + "\ncvt.u64.u32 %rd2, %t0;"}),
    ("a thread does not take part", "product",
     {"begin": WGMMA["begin"] + "\nsetp.eq.u32 %p2, %t0, 7;\n@%p2 bra $END;", "use": "$END: " + WGMMA["use"]}),
])  # fmt: skip
def test_wgmma_with_a_fault(message, marked, changes):
    refused(message, wgmma(marked, **changes), threads=128, shared=2048)


def test_a_move_behind_the_fence_is_a_warning():
    """LLVM moves registers there, and ptxas decides which register an accumulator is."""
    with pytest.warns(PtxWarning, match="%c1 was moved, and no wgmma.fence"):
        run(wgmma(begin=WGMMA["begin"].replace("mov.b32 %c1, 0;", ""), fence=WGMMA["fence"] + "\nmov.b32 %c1, 0;"),
            threads=128, shared=2048)  # fmt: skip


def test_products_of_programs_that_part():
    """A product on its way holds its registers in the programs that go on alone."""
    split = (
        "mov.u32 %r6, %ctaid.x;\nsetp.eq.u32 %p2, %r6, 1;\n@%p2 bra $END;\nadd.s32 %r7, %r6, 1;\n$END: mov.b32 %r7, 0;"
    )
    wait = WGMMA["wait"]
    run(wgmma(commit=WGMMA["commit"] + "\n" + split), threads=128, shared=2048, grid=(3,))
    refused("%c0 belongs to a wgmma", wgmma("use", commit=WGMMA["commit"] + "\n" + split, wait=wait[:-2] + "1;"),
            threads=128, shared=2048, grid=(3,))  # fmt: skip


# What is not known


@pytest.mark.parametrize("text", [
    "frobnicate.b32 %r3, %r4;",
    "add.rz.f32 %r3, %r4, %r4;",
    "add.s32 %r3, %r4;",
    "mov.b32 %r3, %clock;",
    "mov.b32 %r3, %ctaid.w.x;",
    "ld.local.b32 %r3, [%rd1];",
    "ld.global.v8.b32 {%r3}, [%rd1];",
    "atom.global.add.u32 %r3, [%rd1], 1;",
    "bar.sync 1;",
    "bar.sync 0, 32;",
    "bar.arrive 0, 64;",
    "shfl.sync.down.b32 %r3, %r4, 1, 0x1f, 0xffffffff;",
    "shfl.sync.bfly.b32 %r3, %r4, 1, 0x1f, 0x0000ffff;",
    "shfl.sync.bfly.b32 %r3, %r4, 1, 0x0f, 0xffffffff;",
    "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%c0}, {%a0}, {%b0}, {%c0};",
    "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%c0, %c1}, {%a0, %a1}, {%b0}, {%c0, %c1};",
    "ldmatrix.sync.aligned.m16n16.x1.shared.b8 {%r3}, [%r1];",
    "cp.async.bulk.commit_group;",
    "fence.acq_rel.gpu;",
    "membar.gl;",
    "tcgen05.wait.ld.sync.aligned;",
    "mbarrier.init.shared.b64 [%r1], 1;",
    PRODUCT.replace("f32.f16.f16", "f32.e4m3.e4m3"),
    PRODUCT.replace("1, 1, 0, 0", "-1, 1, 0, 0"),
])  # fmt: skip
def test_unknown_instructions_are_named(text):
    with pytest.raises(UnsupportedInstructionError) as error:
        run("mov.b32 %r3, 0;\n" + text, threads=128)
    message = str(error.value)
    assert message.startswith(f"kernel: {text[:-1]} (kernel.py:6): "), message
    assert "known" in message or "takes" in message or "negates" in message


def test_partial_copy_is_refused():
    with pytest.raises(UnsupportedInstructionError, match=r"cp\.async\.ca.*copies a part of its bytes"):
        run("mov.b32 %r3, 2;\ncp.async.ca.shared.global [%r1], [%rd1], 0x4, %r3;")
