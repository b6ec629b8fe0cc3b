"""Cross entropy, fused with its softmax.

    loss[m] = sum over c of q[m, c] * (log-sum-exp of x[m] - x[m, c])
    q[m, c] = weight[c] * ((1 - smoothing) * t[m, c] + smoothing / C)

t is 1 at the target's class and 0 elsewhere, or the probabilities that are given as targets. q is 0 in ignored rows.
The mean divides by the sum of the targets' weights, or by the number of rows if the targets are probabilities.

The gradient, with s[m] the sum of q[m], and g[m] the gradient of loss[m]:

    dx[m, c] = g[m] * (s[m] * softmax(x[m])[c] - q[m, c])

One sweep finds the log-sum-exp, as in kernels/ops/softmax.py. It is kept in two parts, the largest x and the logarithm
of the sum of exp(x - largest): in one float32, a large first part would swallow the second. Besides dx, nothing of x's
size is stored: the gradient reads x again. Label smoothing as in Szegedy et al. 2016
(https://arxiv.org/abs/1512.00567).
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, gradient_wanted, integer, number
from kernels.ops.cost import Cost, Shape
from kernels.ops.softmax import LOWEST, online_softmax
from kernels.tiles.choices import ELEMENTWISE, ROWS_OF_CLASSES


@triton.jit
def _load_q(
    target_ptr, weight_ptr,
    target, offs_m, offs_c, mask,  # [BLOCK_M], [BLOCK_M], [BLOCK_N], [BLOCK_M, BLOCK_N]
    smoothing,
    C: tl.constexpr, HAS_WEIGHT: tl.constexpr, PROBABILITIES: tl.constexpr,
):  # fmt: skip
    """q of a tile, [BLOCK_M, BLOCK_N]; ``mask`` leaves out the ignored rows."""
    if PROBABILITIES:
        t = tl.load(target_ptr + (offs_m * C)[:, None] + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        t = (target[:, None] == offs_c[None, :]).to(tl.float32)
    q = (1.0 - smoothing) * t + smoothing / C
    if HAS_WEIGHT:
        q *= tl.load(weight_ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)[None, :]
    return tl.where(mask, q, 0.0)


@triton.jit
def _cross_entropy_kernel(
    x_ptr, target_ptr, weight_ptr,  # [M, C]; [M] classes, or [M, C] probabilities; [C]
    losses_ptr,  # [M]
    divisors_ptr,  # [M] float32: what each row adds to the mean's divisor
    log_sum_exp_ptr,  # [2, M] float32: each row's log-sum-exp in two parts
    M, ignored, smoothing,
    C: tl.constexpr, HAS_WEIGHT: tl.constexpr, PROBABILITIES: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    x_ptrs = x_ptr + (offs_m * C)[:, None]  # [BLOCK_M, 1]

    largest = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        mask = mask_m[:, None] & (offs_c < C)[None, :]
        x = tl.load(x_ptrs + offs_c[None, :], mask=mask, other=float("-inf")).to(tl.float32)  # [BLOCK_M, BLOCK_N]
        largest, rescale, powers = online_softmax(x, largest)
        total = total * rescale + tl.sum(powers, 1)
    log_total = tl.log(total)

    if PROBABILITIES:
        target = offs_m  # not read
        kept = mask_m
        divisor = tl.full((BLOCK_M,), 1.0, dtype=tl.float32)
    else:
        target = tl.load(target_ptr + offs_m, mask=mask_m, other=0)
        kept = mask_m & (target != ignored)
        known = (target >= 0) & (target < C)
        if HAS_WEIGHT:
            divisor = tl.load(weight_ptr + target, mask=kept & known, other=0.0).to(tl.float32)
        else:
            divisor = tl.where(kept, 1.0, 0.0)

    loss = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        mask = kept[:, None] & (offs_c < C)[None, :]
        q = _load_q(target_ptr, weight_ptr, target, offs_m, offs_c, mask, smoothing, C, HAS_WEIGHT, PROBABILITIES)
        x = tl.load(x_ptrs + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        cost = log_total[:, None] - (x - largest[:, None])
        loss += tl.sum(tl.where(q == 0.0, 0.0, q * cost), 1)  # 0 * inf would be NaN
    if not PROBABILITIES:
        loss = tl.where(kept & ~known, float("nan"), loss)

    tl.store(losses_ptr + offs_m, runtime.cast(loss, losses_ptr.dtype.element_ty), mask=mask_m)
    tl.store(divisors_ptr + offs_m, divisor, mask=mask_m)
    tl.store(log_sum_exp_ptr + offs_m, largest, mask=mask_m)
    tl.store(log_sum_exp_ptr + M + offs_m, log_total, mask=mask_m)


@triton.jit
def _reduce_losses_kernel(
    losses_ptr, divisors_ptr,  # [M]
    loss_ptr, divisor_ptr,  # []
    M,
    MEAN: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # One program adds up one number per row, in the same order every time.
    loss = tl.zeros((BLOCK_M,), dtype=tl.float32)
    divisor = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for step in range(runtime.trips(tl.cdiv(M, BLOCK_M))):
        offs_m = step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        loss += tl.load(losses_ptr + offs_m, mask=mask_m, other=0.0)
        divisor += tl.load(divisors_ptr + offs_m, mask=mask_m, other=0.0)
    total = tl.sum(loss, 0)
    whole = tl.sum(divisor, 0)
    if MEAN:
        total /= whole
    tl.store(divisor_ptr, whole)
    tl.store(loss_ptr, runtime.cast(total, loss_ptr.dtype.element_ty))


@triton.jit
def _cross_entropy_gradient_kernel(
    x_ptr, target_ptr, weight_ptr,  # [M, C]; [M] classes, or [M, C] probabilities; [C]
    grad_ptr,  # [] if the losses were reduced, else [M]
    log_sum_exp_ptr, divisor_ptr,  # [2, M]; []
    dx_ptr,  # [M, C]
    M, ignored, smoothing,
    C: tl.constexpr, HAS_WEIGHT: tl.constexpr, PROBABILITIES: tl.constexpr, REDUCTION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    if REDUCTION == "none":
        grad = tl.load(grad_ptr + offs_m, mask=mask_m, other=0.0).to(tl.float32)
    else:
        grad = tl.load(grad_ptr).to(tl.float32) + tl.zeros((BLOCK_M,), dtype=tl.float32)
        if REDUCTION == "mean":
            grad /= tl.load(divisor_ptr)
    largest = tl.load(log_sum_exp_ptr + offs_m, mask=mask_m, other=0.0)
    log_total = tl.load(log_sum_exp_ptr + M + offs_m, mask=mask_m, other=0.0)
    if PROBABILITIES:
        target = offs_m  # not read
        kept = mask_m
    else:
        target = tl.load(target_ptr + offs_m, mask=mask_m, other=0)
        kept = mask_m & (target != ignored)
        grad = tl.where((target >= 0) & (target < C), grad, float("nan"))

    total = tl.zeros((BLOCK_M,), dtype=tl.float32)  # s
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        mask = kept[:, None] & (offs_c < C)[None, :]
        q = _load_q(target_ptr, weight_ptr, target, offs_m, offs_c, mask, smoothing, C, HAS_WEIGHT, PROBABILITIES)
        total += tl.sum(q, 1)
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        mask = kept[:, None] & (offs_c < C)[None, :]
        q = _load_q(target_ptr, weight_ptr, target, offs_m, offs_c, mask, smoothing, C, HAS_WEIGHT, PROBABILITIES)
        offs = (offs_m * C)[:, None] + offs_c[None, :]  # [BLOCK_M, BLOCK_N]
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        dx = grad[:, None] * (total[:, None] * tl.exp(x - largest[:, None] - log_total[:, None]) - q)
        dx = tl.where(mask, dx, 0.0)  # ignored rows have no gradient, even if they hold NaN
        tl.store(dx_ptr + offs, runtime.cast(dx, dx_ptr.dtype.element_ty), mask=mask_m[:, None] & (offs_c < C)[None, :])


tiles.register("cross_entropy", ROWS_OF_CLASSES)
tiles.register("reduce_losses", ELEMENTWISE)
tiles.register("cross_entropy_gradient", ROWS_OF_CLASSES)


def _launch(operator, kernel, input, target, weight, others, ignore_index, label_smoothing, **constants):
    M, C = input.shape
    weights = input if weight is None else weight.contiguous()  # without a weight the kernel does not read it
    runtime.launch(
        kernel, lambda META: (triton.cdiv(M, META["BLOCK_M"]),),
        input.contiguous(), target.contiguous(), weights, *others, M, ignore_index, label_smoothing,
        C=C, HAS_WEIGHT=weight is not None, PROBABILITIES=target.is_floating_point(), **constants,
        INDEX=runtime.index_type(input), **tiles.lookup(operator, input, M, C, 1),
    )  # fmt: skip


def launch_cross_entropy(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None,
    ignore_index: int, reduction: str, label_smoothing: float,
    results: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:  # fmt: skip
    """For [M, C] logits; the results are (loss, log_sum_exp, divisor).

    These are [], [2, M] and []; without a reduction [M], [2, M] and empty.
    """
    loss, log_sum_exp, divisor = results
    M, C = input.shape
    # Checked here, not in the public function: there, torch.compile and torch.export would have to know the numbers.
    if runtime.mode() == "interpreted" and not runtime.is_recording() and not target.is_floating_point():
        wrong = target[(target != ignore_index) & ((target < 0) | (target >= C))]
        if len(wrong):
            raise IndexError(f"cross_entropy: target must be from 0 to {C - 1}, got {wrong[0].item()}")
    losses = loss if reduction == "none" else log_sum_exp.new_empty(M)
    divisors = log_sum_exp.new_empty(M)
    if M > 0:
        others = losses, divisors, log_sum_exp
        kernel = _cross_entropy_kernel
        _launch("cross_entropy", kernel, input, target, weight, others, ignore_index, label_smoothing)
    if reduction != "none":
        config = tiles.lookup("reduce_losses", losses, M, 1, 1)
        mean = reduction == "mean"
        runtime.launch(
            _reduce_losses_kernel, lambda META: (1,), losses, divisors, loss, divisor, M, MEAN=mean, **config
        )


def launch_cross_entropy_gradient(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None,
    log_sum_exp: torch.Tensor, divisor: torch.Tensor,
    ignore_index: int, reduction: str, label_smoothing: float, dx: torch.Tensor,
) -> None:  # fmt: skip
    _launch(
        "cross_entropy_gradient", _cross_entropy_gradient_kernel, input, target, weight,
        (grad.contiguous(), log_sum_exp, divisor, dx), ignore_index, label_smoothing, REDUCTION=reduction,
    )  # fmt: skip


def _output(input, target, weight, ignore_index, reduction, label_smoothing):
    M = input.shape[0]
    empty = lambda *shape: torch.empty(shape, dtype=torch.float32, device=input.device)
    reduced = reduction != "none"
    return input.new_empty(() if reduced else M), empty(2, M), empty() if reduced else empty(0)


_gradient = runtime.register(
    "cross_entropy_gradient", launch_cross_entropy_gradient,
    lambda grad, input, *_: torch.empty_like(input, memory_format=torch.contiguous_format),
)  # fmt: skip
_cross_entropy = runtime.register(
    "cross_entropy", launch_cross_entropy, _output,
    *runtime.gradient_of_input(_gradient, lambda inputs, results: (*inputs[:3], *results[1:], *inputs[3:])),
)  # fmt: skip


def _check_target(input: torch.Tensor, target: torch.Tensor, classes: torch.Size) -> None:
    """Classes must be of shape ``classes``, probabilities of ``input``'s."""
    if isinstance(target, torch.Tensor) and not target.is_floating_point():
        check(target.dtype == torch.int64, f"cross_entropy: target must be int64 classes, got {target.dtype}")
        device = input.device
        check(target.device == device, f"cross_entropy: target must be on {device} as input is, got {target.device}")
    else:
        check_tensor("cross_entropy", "target", target, like=input)
        check(not gradient_wanted(target), "cross_entropy: target must not require a gradient: it gets none")
    shape, what = (input.shape, "probabilities") if target.is_floating_point() else (classes, "classes")
    given = f"got target of shape {tuple(target.shape)}"
    check(target.shape == shape, f"cross_entropy: {what} must be of shape {tuple(shape)}, {given}")


def cross_entropy(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, size_average: None = None,
    ignore_index: int = -100, reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Cross entropy of logits, as :func:`torch.nn.functional.cross_entropy`, in one pass with its softmax.

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, ...); float32, float16 or bfloat16. Under torch.autocast they are
            cast to float32.
        target: classes, int64, in ``input``'s shape without C; or probabilities, in ``input``'s shape and dtype.
            Probabilities get no gradient.
        weight: (C,), one per class, in ``input``'s dtype. It gets no gradient.
        size_average, reduce: PyTorch's arguments from before ``reduction``; only None is accepted.
        ignore_index: a class that counts neither in the loss nor in the mean's divisor; negative with probabilities.
        reduction: ``"mean"`` over the weights of the targets, ``"sum"`` or ``"none"``.
        label_smoothing: from 0 to 1: how much of each target is spread over all classes.

    Returns:
        A scalar, or the losses in the targets' shape; summed in float32. A class of probability or weight 0 adds
        nothing, even if its logit is -inf. PyTorch returns NaN there.

    Raises:
        TypeError, ArgumentError: what ``torch.nn.functional.cross_entropy`` refuses, other dtypes, and probabilities
            and weights that require a gradient.
        IndexError: a class is not in 0 ... C - 1, if the kernels are interpreted. A GPU does not wait to find out:
            there the loss and its gradient are NaN.

    Example:
        Four classes with equal logits: log 4.

        >>> kernels.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        check(value is None, f"cross_entropy: {name} is not accepted, got {value!r}; use reduction")
    input, target, weight = runtime.autocast(input, target, weight, dtype=torch.float32)
    check_tensor("cross_entropy", "input", input)
    dim = min(input.dim() - 1, 1)  # the classes' dimension
    fits, shape = input.dim() >= 1 and input.shape[dim] >= 1, tuple(input.shape)
    check(fits, f"cross_entropy: input must be (C,), (N, C) or (N, C, ...) with classes, got shape {shape}")
    C = input.shape[dim]
    classes = input.shape[:dim] + input.shape[dim + 1 :]  # the losses' shape, too
    _check_target(input, target, classes)
    probabilities = target.is_floating_point()
    if weight is not None:
        check_tensor("cross_entropy", "weight", weight, like=input)
        check(weight.shape == (C,), f"cross_entropy: weight must be of shape ({C},), got {tuple(weight.shape)}")
        check(not gradient_wanted(weight), "cross_entropy: weight must not require a gradient: it gets none")
    ignore_index = integer("cross_entropy", "ignore_index", ignore_index)
    fits = ignore_index < 0 or not probabilities
    check(fits, f"cross_entropy: ignore_index must be negative with probabilities as targets, got {ignore_index}")
    label_smoothing = number("cross_entropy", "label_smoothing", label_smoothing)
    check(0.0 <= label_smoothing <= 1.0, f"cross_entropy: label_smoothing must be from 0 to 1, got {label_smoothing}")
    if not isinstance(reduction, str):
        raise TypeError(f"cross_entropy: reduction must be a str, got {reduction!r}")
    known = reduction in ("none", "mean", "sum")
    check(known, f"cross_entropy: reduction must be 'none', 'mean' or 'sum', got {reduction!r}")

    rows = input.movedim(dim, -1).reshape(-1, C)
    target = target.movedim(dim, -1).reshape(-1, C) if probabilities else target.reshape(-1)
    loss, _, _ = _cross_entropy(rows, target, weight, ignore_index, reduction, label_smoothing)
    return loss.reshape(classes) if reduction == "none" else loss


def cost(input: Shape, *, itemsize: int = 4) -> Cost:
    """For shape (N, C), and classes as targets, 8 bytes each. Each row's loss is in float32."""
    N, C = input
    return Cost((N,), 0, 5 * N * C, N * C * itemsize + N * (8 + 4))
