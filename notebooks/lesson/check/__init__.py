"""Checkers of the exercises, one module per notebook: ``from lesson.check import nb00``, ``nb00.saxpy(my_kernel)``.

A checker takes an answer and returns a :class:`Result` of one line. It tries shapes that the text does not show. Inputs
lie in the middle of buffers full of NaN. Outputs are full of NaN and have guards around them. The checker also watches
the loads and stores of the answer's kernels, so it sees every access outside of a tensor.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kernels import runtime
from kernels.tools.trace import watching


@dataclass(frozen=True)
class Result:
    """What a checker found. A notebook shows its one line."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return ("passed: " if self.passed else "not yet: ") + self.message


class Wrong(Exception):  # noqa: N818 - the answer is wrong, not the program
    """An answer is wrong. The message says why, in one line."""


class Checker:
    """Decorator: makes a checker from a function that tries an answer.

    The function raises :class:`Wrong`, or returns one line about what it has tried. If an answer raises anything else,
    it is wrong, too.
    """

    def __init__(self, attempt: Callable[[Callable], str]):
        self.attempt = attempt
        functools.update_wrapper(self, attempt)

    def __call__(self, answer: Callable) -> Result:
        torch.manual_seed(0)
        _buffers.clear()
        _outside.clear()
        try:
            with watching(_note):
                return Result(True, self.attempt(answer))
        except Wrong as wrong:
            return Result(False, str(wrong))
        except NotImplementedError:
            return Result(False, "nothing is written yet")
        except Exception as error:
            while error.__cause__ is not None:  # the interpreter wraps a kernel's exceptions
                error = error.__cause__
            lines = str(error).strip().splitlines() or [""]
            return Result(False, f"it raised {type(error).__name__}: {lines[0]}")


MARGIN = 64  # elements of guard at each end

_buffers: list[torch.Tensor] = []  # the buffers of this attempt, with their guards
_outside: set[str] = set()  # "load" or "store", if this attempt's kernels did it in a guard


def given(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor into the middle of a buffer full of NaN, on the kernels' device, in the same memory order.

    Integers have no NaN. Their buffer is full of their largest number.
    """
    return _inside(tensor).copy_(tensor)


def output(like: torch.Tensor) -> torch.Tensor:
    """Returns a tensor to write into. It is full of NaN and has guards around it, which :func:`same` checks."""
    return _inside(like)


def _inside(like: torch.Tensor) -> torch.Tensor:
    fill = float("nan") if like.is_floating_point() else torch.iinfo(like.dtype).max
    buffer = torch.full((like.numel() + 2 * MARGIN,), fill, dtype=like.dtype, device=runtime.default_device())
    _buffers.append(buffer)
    return buffer.as_strided(like.shape, like.stride(), MARGIN)


def _note(kind: str, addresses: np.ndarray, mask: np.ndarray) -> None:
    """Records a load or a store with a lane in a guard. (A comparison of values misses a NaN stored over a NaN.)"""
    taken = addresses[np.broadcast_to(mask.astype(bool), addresses.shape)].astype(np.int64)
    for buffer in _buffers:
        place = (taken - buffer.data_ptr()) // buffer.element_size()
        there = (place >= 0) & (place < buffer.numel())
        if (there & ((place < MARGIN) | (place >= buffer.numel() - MARGIN))).any():
            _outside.add(kind)


def same(actual: object, expected: torch.Tensor, case: str, bound: float = 1e-5) -> None:
    """Checks that a result is right: max|actual - expected| <= ``bound`` * max|expected|.

    Args:
        actual: the answer's result, perhaps in a tensor of :func:`output`.
        expected: the right result, on any device.
        case: what was tried, for the message: ``"with 1000 elements"``.
        bound: of the error.

    Raises:
        Wrong: the result is not right, or a kernel has loaded or stored something outside the tensors of :func:`given`
            and :func:`output`.
    """
    if not isinstance(actual, torch.Tensor):
        raise Wrong(f"{case}: expected a tensor, got {type(actual).__name__}")
    if actual.shape != expected.shape:
        raise Wrong(f"{case}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    buffer = actual._base if actual._base is not None else actual
    if buffer.dim() == 1 and buffer.numel() == actual.numel() + 2 * MARGIN and actual.storage_offset() == MARGIN:
        guards = torch.cat([buffer[:MARGIN], buffer[-MARGIN:]])
        if "store" in _outside or not guards.isnan().all():
            raise Wrong(f"{case}: a store wrote outside the output: does it have a mask?")
    if "load" in _outside:
        raise Wrong(f"{case}: a load read outside an input: does each load have its mask?")
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    wrong = ~((actual - expected).abs() <= bound * expected.abs().max())
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        where = ", ".join(map(str, first))
        got, should = actual[first].item(), expected[first].item()
        hint = " (never written, or computed from values outside the inputs)" if got != got else ""
        raise Wrong(f"{case}: element [{where}] should be {should:.6g}, got {got:.6g}{hint}")
