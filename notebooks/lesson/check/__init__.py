"""Checkers of the exercises, a module a notebook: ``from lesson.check import nb00`` and ``nb00.saxpy(my_kernel)``.

A checker takes the answer and gives a :class:`Result` of one line. It tries shapes that the text does not show, inputs
in the middle of buffers full of NaN, and outputs full of NaN with guards around them, and it watches the loads and
stores of the answer's kernels, so that what is read or written where it should not be shows.
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
    """What a checker found; in a notebook its line."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return ("passed: " if self.passed else "not yet: ") + self.message


class Wrong(Exception):  # noqa: N818 - it is the answer that is wrong
    """What is wrong with an answer, in a line."""


class Checker:
    """A checker, of a function that tries an answer: it raises :class:`Wrong`, or returns what it has tried, in a line.

    Whatever else an answer raises is wrong, too. Used as a decorator.
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
            while error.__cause__ is not None:  # the interpreter wraps what a kernel raises
                error = error.__cause__
            lines = str(error).strip().splitlines() or [""]
            return Result(False, f"it raised {type(error).__name__}: {lines[0]}")


MARGIN = 64  # elements of guard at each end

_buffers: list[torch.Tensor] = []  # of this attempt, guards included
_outside: set[str] = set()  # "load", "store": what this attempt's kernels did in the guards


def given(tensor: torch.Tensor) -> torch.Tensor:
    """A copy where the kernels run, of the same order in memory, in the middle of a buffer full of NaN.

    Integers have no NaN: theirs is full of the largest.
    """
    return _inside(tensor).copy_(tensor)


def output(like: torch.Tensor) -> torch.Tensor:
    """A tensor to be written, full of NaN, with guards around it that :func:`same` looks at."""
    return _inside(like)


def _inside(like: torch.Tensor) -> torch.Tensor:
    fill = float("nan") if like.is_floating_point() else torch.iinfo(like.dtype).max
    buffer = torch.full((like.numel() + 2 * MARGIN,), fill, dtype=like.dtype, device=runtime.default_device())
    _buffers.append(buffer)
    return buffer.as_strided(like.shape, like.stride(), MARGIN)


def _note(kind: str, addresses: np.ndarray, mask: np.ndarray) -> None:
    """Of a load or a store: whether any of its lanes is in a guard. (A NaN stored over a guard's would not show.)"""
    taken = addresses[np.broadcast_to(mask.astype(bool), addresses.shape)].astype(np.int64)
    for buffer in _buffers:
        place = (taken - buffer.data_ptr()) // buffer.element_size()
        there = (place >= 0) & (place < buffer.numel())
        if (there & ((place < MARGIN) | (place >= buffer.numel() - MARGIN))).any():
            _outside.add(kind)


def same(actual: object, expected: torch.Tensor, case: str, bound: float = 1e-5) -> None:
    """Raises :class:`Wrong` unless a result is right: max|actual - expected| <= ``bound`` * max|expected|.

    So it does if a kernel has loaded or stored something outside the tensors of :func:`given` and :func:`output`.

    Args:
        actual: what the answer made, perhaps in a tensor of :func:`output`.
        expected: what is right, on any device.
        case: what was tried, for the message: ``"with 1000 elements"``.
        bound: of the error.
    """
    if not isinstance(actual, torch.Tensor):
        raise Wrong(f"{case}: a tensor should come back, got {type(actual).__name__}")
    if actual.shape != expected.shape:
        raise Wrong(f"{case}: shape {tuple(expected.shape)} should come back, got {tuple(actual.shape)}")
    buffer = actual._base if actual._base is not None else actual
    if buffer.dim() == 1 and buffer.numel() == actual.numel() + 2 * MARGIN and actual.storage_offset() == MARGIN:
        guards = torch.cat([buffer[:MARGIN], buffer[-MARGIN:]])
        if "store" in _outside or not guards.isnan().all():
            raise Wrong(f"{case}: something was stored outside the output: does the store have a mask?")
    if "load" in _outside:
        raise Wrong(f"{case}: something was loaded outside an input: does each load have its mask?")
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    wrong = ~((actual - expected).abs() <= bound * expected.abs().max())
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        where = ", ".join(map(str, first))
        got, should = actual[first].item(), expected[first].item()
        hint = " (never written, or computed from what is no input)" if got != got else ""
        raise Wrong(f"{case}: element [{where}] should be {should:.6g}, got {got:.6g}{hint}")
