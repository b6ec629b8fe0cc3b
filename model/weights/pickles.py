"""A check of pickles from unknown sources, before anything is built from them.

A pickle is a program. ``find_class`` decides which functions it may call, but even without any call it can take all
memory or all time: build millions of objects, claim a buffer of 2^60 bytes, or use as a dictionary's key a tuple of two
tuples of two tuples and so on, which takes 2^60 steps to hash.
"""

import io
import mmap
import pickle
import pickletools
from typing import IO, cast

_MOST_INSTRUCTIONS = 100_000
_UNUSED = {
    *("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"),
}
_CALLS = ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # these change the lowest object that they take
_ALLOCATES = ("builtins bytearray", "__builtin__ bytearray", "torch._utils _rebuild_device_tensor_from_cpu_tensor")


def check(file: io.BytesIO | mmap.mmap, size: int) -> None:
    """Reads one pickle from ``file`` and leaves ``file`` after its end, without building anything.

    It follows how large each object on the pickle's stack would be: 1, plus the bytes of a text, plus its items. What
    is hashed or handed to functions must not be more in total than a million and four times ``size``.

    Args:
        file: a mapped file or one in memory. Lengths beyond its end then allocate nothing.
        size: bytes of ``file``.

    Raises:
        pickle.UnpicklingError: the pickle does more than weights need.
        ValueError, IndexError, KeyError: it is damaged.
    """
    left = 1_000_000 + 4 * size
    stack: list[list[int]] = []  # the size of each object, in a list: a container may grow after others took it
    memo: dict[int, list[int]] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
        name = opcode.name
        if count == _MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError("it has more instructions than weights need")
        if name in _UNUSED:
            raise pickle.UnpicklingError(f"weights do not need its instruction {name}")
        if name == "GLOBAL" and argument in _ALLOCATES:
            raise pickle.UnpicklingError(f"weights do not need its function {argument.replace(' ', '.')}")
        if "PUT" in name or name == "MEMOIZE":
            index = len(memo) if argument is None else argument
            if index > _MOST_INSTRUCTIONS:  # pickle would make a table as long as that
                raise pickle.UnpicklingError("it numbers more objects than weights need")
            memo[index] = stack[-1]
        elif "GET" in name or name == "DUP":
            stack.append(stack[-1] if argument is None else memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            taken = _take(stack, opcode.stack_before)
            text = len(argument) if isinstance(argument, (str, bytes)) else 0
            total = min(1 + text + sum(item[0] for item in taken), 2**60)
            hashed = taken[::2] if name == "DICT" else taken[1::2] if name.startswith("SETITEM") else []
            left -= total if name in _CALLS else sum(item[0] for item in hashed)
            if left < 0:
                raise pickle.UnpicklingError("it has more items than weights need")
            if name in _FILLS:
                taken[0][0] = total
                stack.append(taken[0])
            else:
                stack.extend([total] for _ in opcode.stack_after)


_MARK = [0]


def _take(stack: list[list[int]], kinds: list) -> list[list[int]]:
    """Removes from the stack what an instruction takes, and returns it, the lowest first, without the mark."""
    taken = []
    for kind in reversed(kinds):
        if kind is pickletools.markobject:
            while (item := stack.pop()) is not _MARK:
                taken.append(item)
        elif kind is not pickletools.stackslice:
            taken.append(stack.pop())
    return taken[::-1]
