"""The truth that the operators are compared with: PyTorch in float64 on the CPU, and how close is close."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F

from kernels import ArgumentError
from kernels.runtime import default_device

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of max|out - ref| / max|ref|
TF32_BOUND = 2e-3


def name(value: object) -> str:
    """Test ids: ``float16`` for ``torch.float16``."""
    return str(value).removeprefix("torch.")


def cases(values: Mapping[str, object] | Iterable, *quick: str) -> list:
    """Parameters of a test. The quick set of tests takes those whose ids are in ``quick``, the full set takes all."""
    named = values if isinstance(values, Mapping) else {name(value): value for value in values}
    assert named.keys() >= {*quick}, f"no such case: {sorted({*quick} - named.keys())}"
    marks = lambda id: () if id in quick else pytest.mark.full
    return [pytest.param(value, id=id, marks=marks(id)) for id, value in named.items()]


def exact(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """``tensor`` in float64 on the CPU; differentiable."""
    return None if tensor is None else tensor.cpu().double()


def conv2d(input, weight, bias=None, *args, relu=False, **kwargs):
    y = F.conv2d(exact(input), exact(weight), exact(bias), *args, **kwargs)
    return F.relu(y) if relu else y


def linear(input, weight, bias=None, *, relu=False):
    y = F.linear(exact(input), exact(weight), exact(bias))
    return F.relu(y) if relu else y


def bias_relu(input, bias):
    return F.relu(exact(input) + exact(bias))


def local_response_norm(input, *args, **kwargs):
    return F.local_response_norm(exact(input), *args, **kwargs)


def max_pool2d(input, *args, **kwargs):
    return F.max_pool2d(exact(input), *args, **kwargs)


def padded_max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """:func:`max_pool2d` of an input that is padded first, for its gradient.

    With dilation a window can lie in the padding alone. PyTorch's own gradient of it is stored outside of the tensor.
    """
    x = exact(input)
    size = F.max_pool2d(x.detach(), kernel_size, stride, padding, dilation, ceil_mode).shape[-2:]
    pads = []
    for axis in (1, 0):  # in F.pad's order, the last axis first
        k, s, before, d = (
            value if isinstance(value, int) else value[axis]
            for value in (kernel_size, kernel_size if stride is None else stride, padding, dilation)
        )
        pads += [before, max((size[axis] - 1) * s + d * (k - 1) + 1 - before - x.shape[axis - 2], 0)]
    y = F.max_pool2d(F.pad(x, pads, value=float("-inf")), kernel_size, stride, dilation=dilation)
    return y[..., : size[0], : size[1]]


def lrn_max_pool2d(input, size, alpha, beta, k, kernel_size, stride):
    x = exact(input) if input.dim() == 4 else exact(input).unsqueeze(0)  # (C, H, W), as in max_pool2d
    y = F.max_pool2d(F.local_response_norm(x, size, alpha, beta, k), kernel_size, stride)
    return y if input.dim() == 4 else y.squeeze(0)


def softmax(input, dim=-1):
    return F.softmax(exact(input), dim)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same numbers for every dtype, except for rounding."""
    return torch.randn(shape).to(dtype)


def _sliced(x: torch.Tensor) -> torch.Tensor:
    view = x.new_zeros([2 * size + 1 for size in x.shape])[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch_inside": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:, :1].expand_as(x),  # other numbers: one channel repeated
}
"""A 4-D tensor with the same numbers in another order of memory."""


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None, bound: float | None = None
) -> None:
    """Fails unless ``actual`` is ``expected``, a float64 tensor, within the bound of its dtype.

    max|actual - expected| / max|expected|, over finite values, must not exceed ``bound``. NaN and inf must stand in the
    same places; an expected value that overflows ``dtype`` counts as inf.
    """
    dtype = dtype or actual.dtype
    if bound is None:
        tf32 = dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        bound = TF32_BOUND if tf32 else BOUNDS[dtype]
    assert actual.dtype == dtype, f"dtype is {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"shape is {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not actual.numel():
        return
    got, want = exact(actual), exact(expected)
    want = torch.where(want.to(dtype).isinf(), want.to(dtype).double(), want)
    finite = want.isfinite()
    scale = want[finite].abs().max().item() if finite.any() else 0.0
    same = (got == want) | (got.isnan() & want.isnan())
    near = finite & ((got - want).abs() <= bound * scale)  # false for a NaN
    wrong = (~(same | near)).nonzero()
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{len(wrong)} of {got.numel()} elements are wrong; the first is [{', '.join(map(str, first))}]: "
            f"got {got[first].item()!r}, expected {want[first].item()!r} (bound {bound:g} x {scale:g})"
        )


def assert_gradients(
    ours: Callable,
    theirs: Callable,
    tensors: Sequence[torch.Tensor | None],
    guarded: Callable = lambda tensor: tensor,
    bound: float | None = None,
) -> None:
    """Fails unless ``ours(*tensors)`` has the gradients of ``theirs(*tensors)`` in float64, all within the bound.

    Both get the same random gradient of their output; ours gets it in a guarded buffer of NaN. None and tensors of
    integers are passed on and have no gradient.
    """
    differentiable = lambda tensor: tensor is not None and tensor.is_floating_point()
    given = [guarded(tensor) for tensor in tensors]
    given = [tensor.detach().requires_grad_() if differentiable(tensor) else tensor for tensor in given]
    wanted = [exact(tensor).detach().requires_grad_() if differentiable(tensor) else tensor for tensor in tensors]
    output, reference = ours(*given), theirs(*wanted)
    gradient = torch.randn(reference.shape).to(output.dtype)
    got = torch.autograd.grad(output, [t for t in given if differentiable(t)], guarded(gradient))
    want = torch.autograd.grad(reference, [t for t in wanted if differentiable(t)], exact(gradient))
    positions = [position for position, tensor in enumerate(tensors) if differentiable(tensor)]
    for position, actual, expected in zip(positions, got, want, strict=True):
        try:
            assert_close(actual, expected, tensors[position].dtype, bound)
        except AssertionError as error:
            raise AssertionError(f"gradient of argument {position}: {error}") from None


def assert_refused(ours: Callable, theirs: Callable, arguments: dict, words: Sequence[str]) -> None:
    """Fails unless both raise errors of one family, and ours names the operator and contains each of ``words``.

    PyTorch runs on the CPU: on a GPU a wrong class in cross_entropy would end the process.
    """
    with pytest.raises(Exception) as torchs:
        theirs(**arguments)
    here = {name: x.to(default_device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises((ArgumentError, TypeError, IndexError)) as error:
        ours(**here)
    family = ArgumentError
    if isinstance(torchs.value, (TypeError, AttributeError)):
        family = TypeError
    elif isinstance(torchs.value, IndexError):
        family = IndexError
    assert isinstance(error.value, family), f"{error.value!r} where PyTorch has {torchs.value!r}"
    message = str(error.value)
    for word in (f"{ours.__name__}: ", *words):
        assert word in message, f"{word!r} not in {message!r}"
