"""Unpickling what nobody vouches for.

A pickle is a program, and its instructions may do more than name a function to call: build a billion objects of one
byte each, claim a buffer of 2^60 bytes, or take as a key a tuple of tuples of tuples, each twice the same, which
hashing walks through in 2^60 steps.
"""

import mmap
import pickle
from typing import BinaryIO

_INSTRUCTIONS = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "PERSID", "BINPERSID"),
)


class _Budget(dict):
    """Functions by their instruction, for so many times."""

    left = 100_000

    def __getitem__(self, code: int):
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("it has more instructions than weights need")
        return super().__getitem__(code)

    def __missing__(self, code: int):
        raise pickle.UnpicklingError(f"its instruction {code:#x} is none that weights need")


class Unpickler(pickle._Unpickler):
    """Builds plain containers, and what a subclass's ``find_class`` gives; raises for all else.

    It derives from the one in Python: instructions are few, and the one in C takes gigabytes for a damaged number of a
    memo entry.
    """

    stack: list  # what the instructions so far have built

    def __init__(self, file: BinaryIO | mmap.mmap):
        super().__init__(file, encoding="bytes")  # Python 2's str: bytes, as arrays need
        codes = (getattr(pickle, name)[0] for name in _INSTRUCTIONS)
        self.dispatch = _Budget((code, pickle._Unpickler.dispatch[code]) for code in codes)
        for code, instruction in (
            (pickle.DICT, Unpickler.load_dict),
            (pickle.SETITEM, Unpickler.load_setitem),
            (pickle.SETITEMS, Unpickler.load_setitems),
            (pickle.REDUCE, Unpickler.load_reduce),
            (pickle.BUILD, Unpickler.load_build),
        ):
            self.dispatch[code[0]] = instruction
        self.items = 1_000_000

    def weigh(self, value: object) -> None:
        """Walks through a value and all in it, as hashing or copying would, until the pickle's steps are used up."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            children = value if isinstance(value, (tuple, list)) else ()
            if isinstance(value, dict):
                children = (*value, *value.values())
            self.items -= 1 + len(children)
            if self.items < 0:
                raise pickle.UnpicklingError("it has more items than weights need")
            waiting.extend(children)

    def load_dict(self) -> None:
        self.weigh(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        self.weigh(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        self.weigh(self.stack[::2])
        super().load_setitems()

    def load_reduce(self) -> None:
        self.weigh(self.stack[-1])
        super().load_reduce()

    def load_build(self) -> None:
        if not hasattr(type(self.stack[-2]), "__setstate__"):
            raise pickle.UnpicklingError("it sets attributes, and weights are only arrays")
        self.weigh(self.stack[-1])
        super().load_build()
