"""Tensors in the middle of a larger buffer full of NaN: a stray read shows in the output, a stray write in the buffer.

A GPU raises no error for an address a little past a tensor's end, and neither does Triton's interpreter.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

MARGIN = 4096  # elements on either side; a power of two, so that alignment stays what it was
# NaN that no computation makes; another around inputs, so that one that was read and written on shows as a change.
POISON = {
    torch.float32: {"output": 0x7FC0A5A5, "input": 0x7FC05A5A},
    torch.float16: {"output": 0x7E25, "input": 0x7E5A},
    torch.bfloat16: {"output": 0x7FC5, "input": 0x7FDA},
    torch.int64: {"output": 0x5A5A5A5A5A5A5A5B, "input": 0x2525252525252525},
    torch.int32: {"output": 0x5A5A5A5B, "input": 0x25252525},
    torch.uint8: {"output": 0x5B, "input": 0x25},
}
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Buffer(NamedTuple):
    label: str
    whole: torch.Tensor
    span: int  # elements from the tensor's first to its last, holes included
    poison: int  # its bits


class Guards:
    """Allocates guarded tensors, and checks all of their guards at once."""

    def __init__(self):
        self._buffers: list[_Buffer] = []

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device, label="output"):
        """An uninitialised tensor, full of NaN (integers: of a fixed odd number), as are its guards."""
        span = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        poison = POISON[dtype][label]
        whole = _empty(span + 2 * MARGIN, dtype=BITS[dtype.itemsize], device=device).fill_(poison).view(dtype)
        self._buffers.append(_Buffer(f"{label} of shape {tuple(shape)}", whole, span, poison))
        return whole.as_strided(shape, stride, MARGIN)

    def guarded(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` with the same numbers and strides, its holes and what lies around it NaN."""
        copy = self.empty(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, "input")
        target, source = copy, tensor
        for d, step in enumerate(tensor.stride()):
            if step == 0 and tensor.numel():  # expanded: write it once
                target, source = target.narrow(d, 0, 1), source.narrow(d, 0, 1)
        target.copy_(source)
        return copy

    def check(self) -> None:
        """Fails if a guard has changed by a bit; forgets all buffers."""
        buffers, self._buffers = self._buffers, []
        for label, whole, span, poison in buffers:
            changed = (whole.view(BITS[whole.itemsize]) != poison).nonzero()[:, 0] - MARGIN
            before, past = changed[changed < 0].tolist(), changed[changed >= span].tolist()
            assert not before, f"{label}: written {-before[-1]} elements before its start"
            assert not past, f"{label}: written {past[0] - span + 1} elements past its end"


_empty, _empty_like = torch.empty, torch.empty_like
with torch.device("meta"):  # where PyTorch notes, once and for all, which functions this is about: these two, not ours
    torch.empty(0)


def poison_allocations(monkeypatch, guards: Guards) -> None:
    """Makes ``torch.empty`` and ``torch.empty_like``, called from the package ``kernels``, return guarded tensors."""

    def replace(function):
        def allocate(*args, **kwargs):
            ours = sys._getframe(1).f_globals["__name__"].startswith("kernels.")
            if not ours or _get_current_dispatch_mode() is not None:  # somebody else's, or shapes without memory
                return function(*args, **kwargs)
            device = kwargs.get("device") or (args[0].device if isinstance(args[0], torch.Tensor) else "cpu")
            like = function(*args, **{**kwargs, "device": "meta"})
            if torch.device(device).type == "meta":
                return like
            return guards.empty(like.shape, like.stride(), like.dtype, device)

        return allocate

    monkeypatch.setattr(torch, "empty", replace(_empty))
    monkeypatch.setattr(torch, "empty_like", replace(_empty_like))
