"""Global memory, which is the tensors, and shared memory. Each access is checked before it happens.

An access is checked for all threads at once. If one is wrong, the caller's ``complain`` gets its place and what it did.
The caller knows the instruction, and raises the error.
"""

from collections.abc import Callable, Iterable
from typing import NoReturn

import numpy as np
import torch

from kernels.ptx.program import UNSIGNED, Array

SPACING = 36  # tensors lie 2^36 bytes apart, so that no access past one ends in another
NOBODY, SEVERAL = -1, 63  # instead of a warp
COPIED, STORED = 1, 2  # by cp.async, and by a thread
_WARPS = 64

Complain = Callable[[int, str], NoReturn]
"""Raises the error of an access: its place in the array of addresses, and what is wrong."""


class Tensors:
    """Global memory: the bytes of CPU tensors, at made-up addresses that keep their alignment.

    Args:
        tensors: (name, tensor) of each argument. Two may share memory.
    """

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]]):
        self.names: list[str] = []
        self.dtypes: list[torch.dtype] = []
        self.addresses: list[int] = []
        self._bytes: list[Array] = []
        for index, (name, tensor) in enumerate(tensors):
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            elements = last + 1 if tensor.numel() else 0
            flat = tensor.detach().as_strided((elements,), (1,))
            self.names.append(name)
            self.dtypes.append(tensor.dtype)
            self._bytes.append(flat.view(torch.uint8).numpy())
            self.addresses.append((2 * index + 3 << SPACING - 1) + tensor.data_ptr() % 256)

    def locate(self, address: Array) -> tuple[Array, Array]:
        """For each address the number of the tensor there, and the distance in elements from its first."""
        index = np.clip((address >> np.uint64(SPACING)).astype(np.int64) - 1, 0, len(self.names) - 1)
        distance = address.astype(np.int64) - np.array(self.addresses)[index]
        return index, distance // np.array([dtype.itemsize for dtype in self.dtypes])[index]

    def load(self, address: Array, width: int, count: int, complain: Complain) -> Array:
        """``count`` numbers of ``width`` bytes at each address: [addresses, count]."""
        values = np.empty((len(address), count), UNSIGNED[width])
        for memory, lanes, rows in self._places(address, width, count, complain):
            values[lanes] = memory[rows]
        return values

    def store(self, address: Array, values: Array, complain: Complain) -> None:
        """Stores [addresses, count] numbers. Of several threads at one address, the last one's stays."""
        width, count = values.dtype.itemsize, values.shape[1]
        for memory, lanes, rows in self._places(address, width, count, complain):
            memory[rows] = values[lanes]

    def _places(self, address: Array, width: int, count: int, complain: Complain) -> Iterable[tuple]:
        """For each tensor with accesses: its memory as rows of ``count`` numbers, which threads, and their rows."""
        size = width * count
        misaligned = address % np.uint64(size) != 0
        if misaligned.any():
            lane = int(misaligned.argmax())
            complain(lane, f"address {int(address[lane]):#x} is not a multiple of {size} bytes")
        index = (address >> np.uint64(SPACING)).astype(np.int64) - 1
        present = index[:1] if (index == index[0]).all() else np.unique(index)
        for which in present.tolist():
            lanes = np.nonzero(index == which)[0] if len(present) > 1 else np.arange(len(index))
            if not 0 <= which < len(self.names):
                lane = int((index == which).argmax())
                complain(lane, f"address {int(address[lane]):#x} is in no tensor")
            memory = self._bytes[which]
            offset = address[lanes].astype(np.int64) - self.addresses[which]
            outside = (offset < 0) | (offset + size > len(memory))
            if outside.any():
                at = int(outside.argmax())
                self._outside(which, int(offset[at]), size, int(lanes[at]), complain)
            first = -self.addresses[which] % size  # where the first aligned access can begin
            rows = len(memory[first:]) // size
            aligned = memory[first : first + rows * size].view(UNSIGNED[width]).reshape(rows, count)
            yield aligned, lanes, (offset - first) // size

    def _outside(self, which: int, offset: int, size: int, lane: int, complain: Complain) -> NoReturn:
        length = len(self._bytes[which])
        distance = f"{-offset} bytes before its first" if offset < 0 else f"{offset + size - length} bytes past its end"
        complain(lane, f"{size} bytes at byte {offset} of {self.names[which]} ({length} bytes), {distance}")


class Shared:
    """Shared memory of a group of programs, and what happened to each piece of it.

    A piece is as large as the kernel's smallest access. To find races, a piece knows which warps wrote and read it
    since the last barrier. It also knows whether an asynchronous copy is on its way to it, whether a wgmma reads it,
    and whether ``fence.proxy.async`` came after the last write.

    Args:
        programs: how many.
        size: bytes for each.
        piece: bytes of the smallest access: 1, 2, 4, 8 or 16.
    """

    def __init__(self, programs: int, size: int, piece: int):
        self.size, self.piece = size, piece
        self.stride = -(-size // 16) * 16
        pieces = self.stride // piece
        self.bytes = np.zeros((programs, self.stride), np.uint8)
        self.writer = np.full((programs, pieces), NOBODY, np.int32)  # barriers passed * _WARPS + warp
        self.reader = np.full((programs, pieces), NOBODY, np.int32)  # the same; SEVERAL for more than one warp
        self.copies = np.zeros((programs, pieces), np.int16)  # cp.async on their way
        self.reads = np.zeros((programs, pieces), np.int16)  # wgmma that read
        self.unfenced = np.zeros((programs, pieces), np.int8)  # written since the last fence: STORED or COPIED
        self.barriers = 0

    def select(self, programs: Array) -> "Shared":
        """The memory of some of the programs (a mask)."""
        part = Shared(0, self.size, self.piece)
        for name in ("bytes", "writer", "reader", "copies", "reads", "unfenced"):
            setattr(part, name, getattr(self, name)[programs])
        part.barriers = self.barriers
        return part

    def pieces(self, program: Array, address: Array, size: int, complain: Complain) -> Array:
        """The pieces of accesses of ``size`` bytes, [accesses, pieces each], after a check of the addresses."""
        address = address.astype(np.int64)
        outside = address + size > self.size
        if outside.any():
            lane = int(outside.argmax())
            complain(lane, f"{size} bytes at shared address {address[lane]} of {self.size}")
        misaligned = address % size != 0
        if misaligned.any():
            lane = int(misaligned.argmax())
            complain(lane, f"shared address {address[lane]} is not a multiple of {size} bytes")
        first = (program * self.stride + address) // self.piece
        return first[:, None] + np.arange(max(size // self.piece, 1))

    def load(self, program: Array, warp: Array, address: Array, width: int, count: int, complain: Complain) -> Array:
        """``count`` numbers of ``width`` bytes at each address, read by the warps: [addresses, count]."""
        pieces = self.pieces(program, address, width * count, complain)
        self.check_read(pieces, warp, complain)
        self._note_read(pieces, warp)
        rows = (program * self.stride + address.astype(np.int64)) // (width * count)
        return self.bytes.reshape(-1).view(UNSIGNED[width]).reshape(-1, count)[rows]

    def check_read(self, pieces: Array, warp: Array, complain: Complain, everyone: bool = False) -> None:
        """Refuses to read what nobody wrote, what a copy may still write, or what another warp wrote since the barrier.

        Args:
            everyone: four warps read together. Any write since the last barrier is then another warp's for some.
        """
        writer = self.writer.reshape(-1)[pieces]
        unwritten = writer == NOBODY
        flying = self.copies.reshape(-1)[pieces] > 0
        fresh = (writer // _WARPS == self.barriers) & (everyone | (writer % _WARPS != warp[:, None]))
        wrong = unwritten | flying | fresh
        if not wrong.any():
            return
        lane, piece = divmod(int(wrong.argmax()), wrong.shape[1])
        if flying[lane, piece]:
            complain(lane, "reads shared memory that an asynchronous copy may not have written yet")
        if unwritten[lane, piece]:
            complain(lane, "reads shared memory that nobody has written")
        other = writer[lane, piece] % _WARPS
        complain(lane, f"race: warp {warp[lane]} reads what warp {other} wrote, without a barrier between")

    def _note_read(self, pieces: Array, warp: Array) -> None:
        reader, mine = self.reader.reshape(-1), self.barriers * _WARPS + warp.astype(np.int32)[:, None]
        before = reader[pieces]
        shared = (before // _WARPS == self.barriers) & (before != mine)
        several = np.int32(self.barriers * _WARPS + SEVERAL)
        mine = np.where(shared, several, mine)
        reader[pieces] = mine
        crossed = reader[pieces] != mine  # two warps read it with this one instruction
        if crossed.any():
            reader[pieces[crossed]] = several

    def store(
        self, program: Array, warp: Array, address: Array, values: Array, complain: Complain, how: int = STORED
    ) -> int | None:
        """Stores [addresses, count] numbers. Of several threads at one address, the last one's stays.

        Returns:
            The place in the array of a thread whose value did not stay, because another stored another value there.
        """
        size = values.dtype.itemsize * values.shape[1]
        pieces = self.pieces(program, address, size, complain)
        rows = (program * self.stride + address.astype(np.int64)) // size
        memory = self.bytes.reshape(-1).view(values.dtype).reshape(-1, values.shape[1])
        self.check_write(pieces, warp, complain, changes=(memory[rows] != values).any(1))
        memory[rows] = values
        self.writer.reshape(-1)[pieces] = self.barriers * _WARPS + warp.astype(np.int32)[:, None]
        self.unfenced.reshape(-1)[pieces] = how
        lost = (memory[rows] != values).any(1)
        return int(lost.argmax()) if lost.any() else None

    def check_write(self, pieces: Array, warp: Array, complain: Complain, changes: Array | None = None) -> None:
        """Refuses to write what another warp wrote or read since the last barrier, or what a wgmma still reads.

        Args:
            changes: which accesses change what is there, if not all: warps may write the same value twice.
        """
        mine = self.barriers * _WARPS + warp.astype(np.int32)[:, None]
        writer, reader = self.writer.reshape(-1)[pieces], self.reader.reshape(-1)[pieces]
        written = (writer // _WARPS == self.barriers) & (writer != mine)
        if changes is not None:
            written &= changes[:, None]
        read = (reader // _WARPS == self.barriers) & (reader != mine)
        used = self.reads.reshape(-1)[pieces] > 0
        wrong = written | read | used
        if not wrong.any():
            return
        lane, piece = divmod(int(wrong.argmax()), wrong.shape[1])
        if used[lane, piece]:
            complain(lane, "writes shared memory that a wgmma may still read: no wait_group came between")
        what, by = ("wrote", writer) if written[lane, piece] else ("read", reader)
        other = by[lane, piece] % _WARPS
        name = "another warp" if other == SEVERAL else f"warp {other}"
        complain(lane, f"race: warp {warp[lane]} writes what {name} {what}, without a barrier between")
