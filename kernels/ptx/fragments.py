"""Which thread holds which element: the operands of tensor cores, and of ldmatrix.

A warp's 32 threads hold a matrix together, a few elements in each thread's registers (sections 9.7.14.5 and 9.7.15.5).
With g = lane // 4 and t = lane % 4, register i of a 16-bit operand A of mma.m16n8k16 holds two elements, at

    row g + 8 * (i % 2), columns 2 * t + 8 * (i // 2) and the next one.

Positions here are arrays of shape [32, elements]: for each lane and each element that it holds, in the order of its
registers, lower half first, its place in the flattened matrix.
"""

import functools

import numpy as np

from kernels.ptx.program import Array

LANES = np.arange(32)
GROUP, THREAD = LANES // 4, LANES % 4


def _positions(rows: list[Array], columns: list[Array], width: int) -> Array:
    return np.stack([row * width + column for row, column in zip(rows, columns, strict=True)], 1)


@functools.cache
def positions(operand: str, registers: int, per_register: int) -> Array:
    """Places of mma's operand "A", "B" (as K x 8) or "C" (16 x 8).

    Args:
        registers: that each lane holds: 4, 2 and 4 of m16n8k16.
        per_register: elements in a register: 2 of a 16-bit type, else 1.
    """
    held = [(register, element) for register in range(registers) for element in range(per_register)]
    k = lambda element, half: per_register * THREAD + element + 4 * per_register * half
    if operand == "A":
        width = 4 * per_register * registers // 2
        return _positions([GROUP + 8 * (i % 2) for i, _ in held], [k(e, i // 2) for i, e in held], width)
    if operand == "B":
        return _positions([k(e, i) for i, e in held], [GROUP for _ in held], 8)
    return _positions([GROUP + 8 * (i // 2) for i, _ in held], [2 * THREAD + i % 2 for i, _ in held], 8)


def gather(values: Array, places: Array, rows: int, columns: int) -> Array:
    """Matrices [warps, rows, columns] from what each lane holds, [warps, 32, elements]."""
    matrix = np.empty((len(values), rows * columns), values.dtype)
    matrix[:, places.reshape(-1)] = values.reshape(len(values), -1)
    return matrix.reshape(-1, rows, columns)


def scatter(matrix: Array, places: Array) -> Array:
    """What each lane holds of matrices: [warps, rows, columns] -> [warps, 32, elements]."""
    return matrix.reshape(len(matrix), -1)[:, places]


@functools.cache
def accumulator_positions(columns: int) -> Array:
    """Places of wgmma's accumulator, 64 x columns, over the 128 threads of a warp group: [128, columns / 2].

    Each warp has 16 rows of it, and in those the layout of mma's C, repeated every 8 columns (section 9.7.15.5.1.1).
    """
    thread = np.arange(128)[:, None]
    register = np.arange(columns // 2)[None]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (register // 2 % 2)
    return row * columns + 8 * (register // 4) + 2 * (thread % 4) + register % 2


def matrix_offsets(
    rows: int, k: int, itemsize: int, lead: Array, stride: Array, swizzle: int, transposed: bool
) -> Array:
    """Where wgmma finds the element (row, k) of an operand in shared memory: bytes from the descriptor's start.

    Before the swizzle, which exchanges 16-byte pieces by the address (section 9.7.15.5.1.2).

    Args:
        rows: M of operand A, N of operand B.
        lead, stride: the descriptor's two offsets in bytes, [groups, 1, 1].
        swizzle: bytes of a row of the swizzled pattern: 128, 64 or 32; 16 for none.
        transposed: whether rows, and not k, lie one after another in memory.

    Returns:
        [groups, rows, k].
    """
    row, column = np.arange(rows)[:, None], np.arange(k)[None]
    if swizzle == 16:
        if transposed:
            return row * itemsize % 16 + row * itemsize // 16 * stride + column % 8 * 16 + column // 8 * lead
        return row % 8 * 16 + row // 8 * stride + column * itemsize // 16 * lead + column * itemsize % 16
    if transposed:
        per = swizzle // itemsize
        return row % per * itemsize + row // per * lead + column % 8 * swizzle + column // 8 * stride
    return row % 8 * swizzle + row // 8 * stride + column * itemsize + 0 * lead


def swizzled(address: Array, swizzle: int) -> Array:
    """The address after the swizzle: bits 4 to 6 are exchanged by bits 7 to 9."""
    return address ^ ((address >> 7 & (swizzle // 16 - 1)) << 4)
