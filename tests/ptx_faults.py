"""``python -m tests.ptx_faults``: plants faults in compiled kernels, one at a time, and runs each on the PTX machine.

A fault is an edit of a kernel's PTX, of the kind that a compiler or a kernel's author could make: a barrier that is
missing, a wait for too few copies, a mask that was dropped. The machine must stop the kernel, or the result must be
wrong. Masks are dropped where they hold back a thread. What changes nothing is listed with the reason: barriers
and waits may be there twice, so all of them are removed at once, too. ``tests/ptx_faults.txt`` has the last result.
"""

import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from tqdm import tqdm

import kernels
from kernels import runtime
from kernels.ptx import Instruction, Program, PtxError, PtxWarning, compiled, machine
from kernels.ptx.instructions import watcher
from kernels.tools import command
from kernels.tools.command import Parser
from tests import results
from tests.guards import Guards, poison_allocations
from tests.reference import assert_close, randn

RESULT = Path(__file__).with_suffix(".txt")


class Edit(NamedTuple):
    """What stands in the PTX, as a regular expression, what stands there instead, and why that can change nothing."""

    what: str
    right: str
    wrong: str | Callable[[re.Match], str]
    harmless: str = ""
    every: bool = False  # at every place, not only at three of them


def _one_more(match: re.Match) -> str:
    return f"{match[1]}{int(match[2]) + 1}"


def _one_further(match: re.Match) -> str:
    """The address of the next access of the same size."""
    count, bits = re.fullmatch(r"(?:v(\d)\.)?b(\d+)", match[2]).groups()
    return f"{match[1]}+ {int(count or 1) * int(bits) // 8} ]"


def _another_swizzle(match: re.Match) -> str:
    """Of 64 bytes instead of 128, and of 32 instead of 64: bits 62 and 63 of the descriptor."""
    return f"{match[1]}{(int(match[2]) + (1 << 62)) % (1 << 64)}"


WAIT = "the wait stands twice, or what it waits for is not read any more"
MASK = "what is read in vain is inside the tensor, and not used or multiplied by the other operand's zeros"
EDITS = (
    Edit("store one further", r"(st\.global\.(\S+) \[ %rd\d+ )\+ 0 \]", _one_further),
    Edit("mask of a store dropped", r"@!?%p\d+ (st\.global)", r"\1",
         "other threads hold the same number, or a later store puts it right: races in global memory are not watched"),
    Edit("mask of a load dropped", r"@!?%p\d+ (ld\.global)", r"\1", MASK),
    Edit("mask of a copy dropped", r"(cp\.async\.c[ag][^;]*), %r\d+;", r"\1;", MASK),
    Edit("barrier removed", r"bar\.sync\s+0;", "", "another barrier stands between the same accesses", every=True),
    Edit("wait for one copy too few", r"(cp\.async\.wait_group\s+)(\d+)", _one_more, WAIT, every=True),
    Edit("commit of copies removed", r"cp\.async\.commit_group;", "",
         "the copies join the next group, which is waited for at the same time"),
    Edit("wait for wgmma removed", r"wgmma\.wait_group\.sync\.aligned \d+;", "", WAIT, every=True),
    Edit("wait for one wgmma too few", r"(wgmma\.wait_group\.sync\.aligned )(\d+)", _one_more, WAIT, every=True),
    Edit("fence of wgmma removed", r"wgmma\.fence\.sync\.aligned;", "",
         "no register of the product was written before it", every=True),
    Edit("fence of shared memory removed", r"fence\.proxy\.async\.shared::cta;", "", every=True),
    Edit("swizzle of a descriptor changed", r"((?:or|add)\.[bs]64\s+%rd\d+, %rd\d+, )(46116862\d+|92233722\d+)",
         _another_swizzle),
    Edit("operands of wgmma exchanged", r"(wgmma\.mma_async[^}]*\}, )(%rd\d+), (%rd\d+)", r"\1\3, \2"),
    Edit("two registers of mma exchanged", r"(mma\.sync\S+ \{[^}]*\}, \{ %r\d+, )(%r\d+), (%r\d+)", r"\1\3, \2",
         "the product lies outside of the output"),
    Edit("operand of mma read twice", r"(mma\.sync\S+ \{[^}]*\}, \{[^}]*\}, \{ )(%r\d+), %r\d+", r"\1\2, \2",
         "the product lies outside of the output"),
    Edit("ldmatrix not transposed", r"(ldmatrix\S+)\.trans", r"\1", "the matrix lies outside of the output"),
    Edit("shuffle with the thread itself", r"(shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, )(?:16|8|4|2|1),", r"\g<1>0,"),
)  # fmt: skip


class Case(NamedTuple):
    """A call of an operator, and of its gradients. Names of inputs are their shapes."""

    name: str
    function: Callable
    shapes: tuple[tuple[int, ...], ...]
    precision: str
    architectures: tuple[str, ...] = ("sm_80", "sm_90")


def _linear(x, w, b):
    return kernels.linear(x, w, b, relu=True)


def _conv2d(x, w, b):
    return kernels.conv2d(x, w, b, padding=1, relu=True)


# Sums long enough to go round the pipeline, and sizes that are no multiple of a tile.
CASES = (
    Case("linear", _linear, ((70, 400), (50, 400), (50,)), "fp16"),
    Case("conv2d", _conv2d, ((2, 40, 7, 9), (24, 40, 3, 3), (24,)), "tf32"),
    Case("softmax", lambda x: kernels.softmax(x, -1), ((9, 300),), "fp32", ("sm_80",)),
    Case("cross_entropy", lambda x: kernels.cross_entropy(x, torch.arange(9)), ((9, 300),), "fp32", ("sm_80",)),
    Case("max_pool2d", lambda x: kernels.max_pool2d(x, 3, 2), ((2, 9, 11, 13),), "fp16", ("sm_80",)),
    Case("local_response_norm", lambda x: kernels.local_response_norm(x, 5), ((2, 96, 5, 6),), "fp16", ("sm_80",)),
)
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def compute(case: Case) -> list[torch.Tensor]:
    """The output and the gradients, in memory that was full of NaN."""
    torch.manual_seed(0)
    inputs = [randn(*shape, dtype=DTYPES[case.precision]).requires_grad_() for shape in case.shapes]
    with pytest.MonkeyPatch.context() as patch:
        poison_allocations(patch, Guards())
        output = case.function(*inputs)
        gradients = torch.autograd.grad(output, inputs, randn(*output.shape, dtype=output.dtype))
    return [output.detach(), *gradients]


class Masks:
    """A watcher that counts, per instruction of a program, the threads that run it and those that access memory."""

    def __init__(self):
        self.ran: Counter[Instruction] = Counter()
        self.accessed: Counter[Instruction] = Counter()

    def begin(self, program, grid, ids, tensors):
        return ids

    def step(self, group, instruction):
        self.ran[instruction] += group.size

    def access(self, group, instruction, space, lanes, addresses, size):
        self.accessed[instruction] += len(lanes) if space == "global" else 0


def verdict(case: Case, right: list[torch.Tensor], known: set[str]) -> str:
    """What a run shows: ``stopped``, ``warned``, ``wrong``, or ``nothing``. ``known`` are warnings without a fault."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PtxWarning)
        try:
            found = compute(case)
        except PtxError:
            return "stopped"
    if {str(warning.message) for warning in caught} - known:
        return "warned"
    try:
        for got, expected in zip(found, right, strict=True):
            assert_close(got, expected.double())
    except AssertionError:
        return "wrong"
    return "nothing"


def replaced(edit: Edit, text: str, matches: list[re.Match]) -> str:
    """The PTX with the edit at some of its places."""
    for match in reversed(matches):
        wrong = match.expand(edit.wrong) if isinstance(edit.wrong, str) else edit.wrong(match)
        text = text[: match.start()] + wrong + text[match.end() :]
    return text


ACCESS = re.compile(r"(?:ld|st)\.global|cp\.async\.c[ag]\.")


def places(edit: Edit, text: str, program: Program, masks: Masks) -> list[re.Match]:
    """Where the edit changes what the kernel does: a mask must hold back a thread, and a store must be made."""
    accesses = [instruction for instruction in program.code if ACCESS.match(instruction.opcode)]
    telling = []
    for match in re.finditer(edit.right, text):
        if ACCESS.search(match[0]):
            instruction = accesses[len(ACCESS.findall(text, 0, match.start()))]
            ran, accessed = masks.ran[instruction], masks.accessed[instruction]
            if not (accessed > 0 if edit.what.startswith("store") else accessed < ran):
                continue
        telling.append(match)
    return telling


def plant(case: Case, architecture: str) -> Iterator[tuple[str, Edit, dict[str, str]]]:
    """For each kernel of a case and each edit: what the faults show, by their place, one at a time and all at once."""
    texts: dict[int, tuple[str, int]] = {}
    parse, masks = compiled.parse, Masks()

    def remember(text: str, shared: int) -> Program:
        program = parse(text, shared)
        texts[id(program)] = text, shared
        return program

    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.precision == "tf32" else "ieee"
    with mock.patch.dict(compiled._programs, clear=True), runtime.backend("ptx", architecture):
        with (
            mock.patch.object(compiled, "parse", remember),
            runtime.set_inside(watcher, masks),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", PtxWarning)
            right = compute(case)
        known = {str(warning.message) for warning in caught}
        for key, program in list(compiled._programs.items()):
            text, shared = texts[id(program)]
            for edit in EDITS:
                matches = places(edit, text, program, masks)
                alone = (
                    matches if edit.every or len(matches) < 3 else [matches[0], matches[len(matches) // 2], matches[-1]]
                )
                trials = {f"{matches.index(match) + 1} of {len(matches)}": [match] for match in alone}
                trials |= {"all": matches} if len(matches) > 1 else {}
                shown = {}
                for place, some in trials.items():
                    with mock.patch.dict(compiled._programs, {key: parse(replaced(edit, text, some), shared)}):
                        shown[place] = verdict(case, right, known)
                    machine.decode.cache_clear()
                if shown:
                    yield program.name, edit, shown


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="python -m tests.ptx_faults", description="Plants faults in compiled kernels.")
    parser.parse_args(argv)
    started, lines, counts, unexplained = time.monotonic(), [], Counter(), 0
    for case, architecture in tqdm([(each, arch) for each in CASES for arch in each.architectures], disable=None):
        for kernel, edit, shown in plant(case, architecture):
            unseen = [place for place, what in shown.items() if what == "nothing"]
            counts.update(shown.values())
            line = (
                f"{len(shown) - len(unseen)} of {len(shown)}  {case.name} {case.precision} {architecture}, {kernel}: "
            )
            line += f"{edit.what} ({', '.join(sorted(set(shown.values()) - {'nothing'})) or 'not seen'})"
            if unseen:
                unexplained += not edit.harmless or (edit.every and "all" in unseen)
                line += f"; not {', '.join(unseen)}: {edit.harmless or 'NOT EXPLAINED'}"
            lines.append(line)
            tqdm.write(line)
    seen = counts.total() - counts["nothing"]
    summary = f"{seen} of {counts.total()} faults seen: {counts['stopped']} stopped, {counts['wrong']} wrong numbers, "
    summary += f"{counts['warned']} warned of; {counts['nothing']} change nothing, {unexplained} of them unexplained"
    results.write(RESULT, lines, summary, started)
    return 1 if unexplained else 0


def main(argv: list[str] | None = None) -> int:
    return command.run("tests.ptx_faults", run, argv)


if __name__ == "__main__":
    sys.exit(main())
