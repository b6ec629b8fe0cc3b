"""The checks of arguments that operators share. Messages say what was given and what is accepted."""

import numbers
from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from kernels import runtime
from kernels.errors import AlexNetError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class ArgumentError(AlexNetError, ValueError, RuntimeError):
    """An argument that the operator does not take: a ValueError, and a RuntimeError, as PyTorch raises."""


def check(condition: bool, message: str) -> None:
    """Raises :class:`ArgumentError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(message)


def check_tensor(operator: str, name: str, value: object, like: torch.Tensor | None = None) -> None:
    """Checks that the kernels can read ``value``, and if ``like`` is given that dtype and device are the same."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, got {type(value).__name__}")
    kind = "nested" if value.is_nested else value.layout
    check(kind is torch.strided, f"{operator}: {name} must be a dense tensor, got a {kind} one")
    tangent = forward_ad.unpack_dual(value).tangent  # torch.library has no forward mode: it would be lost
    check(tangent is None, f"{operator}: {name} has a tangent, but the kernels are differentiated in reverse mode only")
    check(value.dtype in DTYPES, f"{operator}: {name} must be float32, float16 or bfloat16, got {value.dtype}")
    if like is None:
        check(
            runtime.runs_on(value.device),
            f"{operator}: {name} is on {value.device}, but the kernels are compiled for the GPU here; "
            "move it with .to('cuda'), or set TRITON_INTERPRET=1 to run on the CPU",
        )
        return
    check(value.dtype == like.dtype, f"{operator}: {name} must be {like.dtype} as input is, got {value.dtype}")
    check(value.device == like.device, f"{operator}: {name} must be on {like.device} as input is, got {value.device}")


def batched(operator: str, input: torch.Tensor, filled: int) -> torch.Tensor:
    """``input``, (N, C, H, W) or (C, H, W) with the last ``filled`` of these at least 1, as (N, C, H, W)."""
    check_tensor(operator, "input", input)
    shape = tuple(input.shape)
    fits = len(shape) in (3, 4) and 0 not in shape[-filled:]
    takes = f"(N, C, H, W) or (C, H, W) with the last {filled} at least 1"
    check(fits, f"{operator}: input must be {takes}, got shape {shape}")
    return input if len(shape) == 4 else input.unsqueeze(0)


def gradient_wanted(tensor: torch.Tensor) -> bool:
    """Whether autograd needs the gradient of ``tensor``."""
    return torch.is_grad_enabled() and tensor.requires_grad


def integer(operator: str, name: str, value: object, low: int = -(2**63)) -> int:
    """``value`` as an int of 64 bits, at least ``low``. NumPy's integers are accepted, a bool or a float is not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{operator}: {name} must be an int, got {value!r}")
    check(low <= int(value) < 2**63, f"{operator}: {name} must be from {low} to 2^63 - 1, got {value}")
    return int(value)


def number(operator: str, name: str, value: object) -> float:
    """``value`` as a float. NumPy's numbers are accepted."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{operator}: {name} must be a number, got {value!r}")
    return float(value)


def boolean(operator: str, name: str, value: object) -> bool:
    """``value``, which must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{operator}: {name} must be True or False, got {value!r}")
    return value


def pair(operator: str, name: str, value: int | Sequence[int], low: int) -> list[int]:
    """``value`` as [vertical, horizontal], each at least ``low``. An int, or a sequence of one, stands for both."""
    values = [value] if isinstance(value, numbers.Real) else value
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{operator}: {name} must be an int or a pair of ints, got {value!r}")
    values = [integer(operator, name, v) for v in values]
    check(len(values) in (1, 2), f"{operator}: {name} must be an int or a pair of ints, got {value!r}")
    check(min(values) >= low, f"{operator}: {name} must be at least {low}, got {value!r}")
    check(max(values) < 2**31, f"{operator}: {name} must be below 2^31, got {value!r}")
    return values * 2 if len(values) == 1 else values
