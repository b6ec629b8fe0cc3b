"""Counts what a launch's compiled code does: instructions, bytes, sectors and bank conflicts, exactly, without a GPU.

The PTX machine (:mod:`kernels.ptx`) runs the launch. What it counts is what a GPU's memory is asked for:

- A load or store of a warp is one request. Global memory serves it in sectors of 32 bytes: the fewer a request touches,
  the better it is coalesced.
- Shared memory has 32 banks of 4 bytes. In one wavefront each bank gives one word, to any number of threads. If threads
  of a warp want different words of a bank, the request takes more wavefronts: a bank conflict. Requests of 8 bytes
  per thread are served in two halves of a warp, those of 16 bytes, ldmatrix's too, in four quarters, as the CUDA C
  Programming Guide said for compute capability 2.x. No GPU's counters have been compared with these.

Instructions are PTX's. ptxas makes others of them, and adds accesses to memory if it spills registers.
"""

import linecache
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import numpy as np

from kernels import ptx, runtime
from kernels.ptx import Instruction, Program
from kernels.ptx.group import Group
from kernels.ptx.program import Array
from kernels.tools.columns import align

SECTOR, BANKS, WORD = 32, 32, 4  # bytes, number, bytes


class Tally(NamedTuple):
    """What an instruction, or several, did in all programs."""

    instructions: int = 0  # once per warp that executes it
    loaded: int = 0  # bytes of global memory that threads loaded
    stored: int = 0
    requests: int = 0  # loads and stores of global memory, once per warp
    sectors: int = 0  # that the requests touched
    least: int = 0  # sectors that they would touch if the bytes of each lay side by side
    wavefronts: int = 0  # of shared memory
    conflicts: int = 0  # wavefronts beyond one per warp, half warp or quarter


_Key = TypeVar("_Key", bound=Hashable)


class Counts(NamedTuple):
    """What the launches of a call did."""

    launches: list[tuple[Program, tuple[int, ...]]]  # and their grids
    tallies: dict[tuple[Program, Instruction], Tally]

    def by(self, key: Callable[[Program, Instruction], _Key]) -> dict[_Key, Tally]:
        """Sums over the instructions for which ``key`` is the same, in the order of the code."""
        groups = defaultdict(list)
        for (program, instruction), tally in self.tallies.items():
            groups[key(program, instruction)].append(tally)
        return {name: Tally(*map(sum, zip(*tallies, strict=True))) for name, tallies in groups.items()}

    @property
    def total(self) -> Tally:
        """The sum over all instructions."""
        return self.by(lambda *_: None).get(None, Tally())

    def kinds(self) -> dict[str, Tally]:
        """By kind of instruction: ``"add"``, ``"ld.global"``, ``"cp.async"``, ``"mma"``."""
        return self.by(lambda _, instruction: kind(instruction))

    def lines(self) -> dict[tuple[str, int], Tally]:
        """By kernel and line of its file. What an inlined function does counts for the line that calls it."""
        return self.by(lambda program, instruction: (program.name, instruction.line))

    def table(self) -> str:
        """Two tables for each kernel as text: by line of Python, and by kind of instruction."""
        texts = []
        for name, total in self.by(lambda program, _: program.name).items():
            launches = [(program, grid) for program, grid in self.launches if program.name == name]
            grids = ", ".join(f"{grid} of {program.threads} threads" for program, grid in launches)
            lines = sorted((line, tally) for (kernel, line), tally in self.lines().items() if kernel == name)
            source = lambda line, file=launches[0][0].file: linecache.getline(file, line).strip()
            kinds = self._replace(tallies={k: v for k, v in self.tallies.items() if k[0].name == name}).kinds()
            often = sorted(((tally.instructions, each) for each, tally in kinds.items()), reverse=True)
            rows = [_cells(line, tally, source(line)) for line, tally in lines]
            texts += [f"{name}, grid {grids}", *align([("line", *HEAD, "source"), *rows], left=(len(HEAD) + 1,)), ""]
            rows = [*(_cells(each, kinds[each]) for _, each in often), _cells("all", total)]
            texts += [*align([("kind", *HEAD), *rows]), ""]
        return "\n".join(texts).rstrip()


HEAD = ("instructions", "loaded", "stored", "sectors/request", "at least", "wavefronts", "conflicts")


def _cells(first: object, tally: Tally, *rest: str) -> list[str]:
    each = lambda number: f"{number / tally.requests:.1f}" if tally.requests else ""
    numbers = [tally.loaded, tally.stored, tally.wavefronts, tally.conflicts]
    loaded, stored, wavefronts, conflicts = (f"{number:,}" if number else "" for number in numbers)
    cells = [str(first), f"{tally.instructions:,}", loaded, stored, each(tally.sectors), each(tally.least)]
    return [*cells, wavefronts, conflicts, *rest]


def kind(instruction: Instruction) -> str:
    """The kind of an instruction: its name, and of what accesses memory or is asynchronous also the next word."""
    first, *rest = instruction.parts
    more = rest[:1] if first in ("ld", "st", "cp", "wgmma", "shfl", "bar") else []
    return ".".join([first, *more]).partition("::")[0]


def count(call: Callable[[], object], arch: str = "sm_90") -> Counts:
    """Runs a call's launches on the PTX machine, and counts what they do.

    Args:
        call: launches kernels through :func:`kernels.runtime.launch`, for example ``lambda: kernels.softmax(x)``.
        arch: the GPU to compile for, as in :func:`kernels.runtime.backend`.

    Raises:
        BackendError: an unknown architecture.
        PtxError: a kernel does what it must not do.
    """
    counter = _Counter()
    with runtime.backend("ptx", arch), runtime.set_inside(ptx.watcher, counter):
        call()
    order = sorted(counter.tallies, key=lambda key: key[1].number)
    return Counts(counter.launches, {key: Tally(*counter.tallies[key].tolist()) for key in order})


class _Counter:
    """A watcher that adds up."""

    def __init__(self) -> None:
        self.launches: list[tuple[Program, tuple[int, ...]]] = []
        self.tallies: dict[tuple[Program, Instruction], Array] = defaultdict(lambda: np.zeros(len(Tally()), np.int64))

    def add(self, group: Group, instruction: Instruction, **numbers: int) -> None:
        self.tallies[group.program, instruction] += Tally(**numbers)

    def begin(self, program: Program, grid: tuple[int, ...], ids: Array, tensors: ptx.Tensors) -> Array:
        self.launches.append((program, grid))
        return ids

    def step(self, group: Group, instruction: Instruction) -> None:
        running = group.running
        warps = group.size // 32 if running is None else int(running.reshape(-1, 32).any(1).sum())
        self.add(group, instruction, instructions=warps)

    def access(
        self, group: Group, instruction: Instruction, space: str, lanes: Array, addresses: Array, size: int
    ) -> None:
        if space == "global":
            requests, sectors, least = coalescing(lanes, addresses, size)
            moved = {"stored" if instruction.parts[0] == "st" else "loaded": len(lanes) * size}
            self.add(group, instruction, requests=requests, sectors=sectors, least=least, **moved)
        elif instruction.parts[0] != "wgmma":  # a tensor core reads its operand as a whole
            wavefronts, phases = bank_wavefronts(lanes, addresses, size)
            self.add(group, instruction, wavefronts=wavefronts, conflicts=wavefronts - phases)


def coalescing(lanes: Array, addresses: Array, size: int) -> tuple[int, int, int]:
    """Of accesses to global memory: (requests, sectors that they touch, sectors that their bytes would fill).

    Args:
        lanes: the numbers of the threads. 32 threads are a warp.
        addresses: of each thread's access, multiples of its size.
        size: bytes of each access, up to 16.
    """
    warp = lanes.astype(np.uint64) // 32 << np.uint64(48)  # before the address, so that a warp's accesses stay together
    sectors = len(np.unique(warp | addresses.astype(np.uint64) // SECTOR))
    distinct = np.unique(warp | addresses.astype(np.uint64))
    bytes_of_each = np.unique(distinct >> np.uint64(48), return_counts=True)[1] * size
    return len(bytes_of_each), sectors, int((-(-bytes_of_each // SECTOR)).sum())


def bank_wavefronts(lanes: Array, addresses: Array, size: int) -> tuple[int, int]:
    """Of accesses to shared memory: (wavefronts, wavefronts if there were no bank conflict).

    Args as of :func:`coalescing`.
    """
    together = 32 * WORD // max(size, WORD)  # threads that are served together
    words = addresses.astype(np.int64)[:, None] // WORD + np.arange(max(size // WORD, 1))
    phase = np.broadcast_to(lanes.astype(np.int64)[:, None] // together, words.shape)
    phase, word = np.unique(np.stack([phase.reshape(-1), words.reshape(-1)]), axis=1)  # each word is read once
    (phase, _), of_bank = np.unique(np.stack([phase, word % BANKS]), axis=1, return_counts=True)
    first = np.unique(phase, return_index=True)[1]
    return int(np.maximum.reduceat(of_bank, first).sum()), len(first)
