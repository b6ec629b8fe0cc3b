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
from kernels.tiles.families import ELEMENTWISE, ROWS_OF_CLASSES

REDUCTIONS = ("none", "mean", "sum")


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
    grad_ptr,  # [] if the losses were reduced, else [M]
    x_ptr, target_ptr, weight_ptr,  # [M, C]; [M] classes, or [M, C] probabilities; [C]
    log_sum_exp_ptr, divisor_ptr,  # [2, M]; []
    dx_ptr,  # [M, C]
    M, ignored, smoothing,
    C: tl.constexpr, HAS_WEIGHT: tl.constexpr, PROBABILITIES: tl.constexpr,
    REDUCED: tl.constexpr, MEAN: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    if REDUCED:
        grad = tl.load(grad_ptr).to(tl.float32) + tl.zeros((BLOCK_M,), dtype=tl.float32)
        if MEAN:
            grad /= tl.load(divisor_ptr)
    else:
        grad = tl.load(grad_ptr + offs_m, mask=mask_m, other=0.0).to(tl.float32)
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


def launch_cross_entropy(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None,
    ignore_index: int, reduction: str, label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """For [M, C] logits; returns (loss, log_sum_exp, divisor).

    These are [], [2, M] and []; without a reduction [M], [2, M] and empty.
    """
    loss, log_sum_exp, divisor = _output(input, target, weight, ignore_index, reduction, label_smoothing)
    M, C = input.shape
    # Checked here, not in the public function: there, torch.compile and torch.export would have to know the numbers.
    if runtime.INTERPRETED and not runtime.is_recording() and not target.is_floating_point():
        wrong = target[(target != ignore_index) & ((target < 0) | (target >= C))]
        if len(wrong):
            raise IndexError(f"cross_entropy: target must be from 0 to {C - 1}, got {wrong[0].item()}")
    x, target = input.contiguous(), target.contiguous()
    losses = loss if reduction == "none" else torch.empty(M, dtype=torch.float32, device=x.device)
    divisors = torch.empty(M, dtype=torch.float32, device=x.device)
    if M > 0:
        config = tiles.lookup("cross_entropy", x, M, C, 1)
        grid = lambda META: (triton.cdiv(M, META["BLOCK_M"]),)
        runtime.launch(
            _cross_entropy_kernel, grid,
            x, target, x if weight is None else weight.contiguous(),  # the kernel does not read it without a weight
            losses, divisors, log_sum_exp, M, ignore_index, label_smoothing,
            **_constants(x, target, weight), **config,
        )  # fmt: skip
    if reduction != "none":
        config = tiles.lookup("reduce_losses", losses, M, 1, 1)
        grid = lambda META: (1,)
        mean = reduction == "mean"
        runtime.launch(_reduce_losses_kernel, grid, losses, divisors, loss, divisor, M, MEAN=mean, **config)
    return loss, log_sum_exp, divisor


def launch_cross_entropy_gradient(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None,
    log_sum_exp: torch.Tensor, divisor: torch.Tensor,
    ignore_index: int, reduction: str, label_smoothing: float,
) -> torch.Tensor:  # fmt: skip
    dx = _gradient_output(grad, input)
    M, C = input.shape
    if M == 0:
        return dx
    grad, x, target = grad.contiguous(), input.contiguous(), target.contiguous()
    config = tiles.lookup("cross_entropy_gradient", x, M, C, 1)
    grid = lambda META: (triton.cdiv(M, META["BLOCK_M"]),)
    runtime.launch(
        _cross_entropy_gradient_kernel, grid,
        grad, x, target, x if weight is None else weight.contiguous(), log_sum_exp, divisor, dx,
        M, ignore_index, label_smoothing,
        **_constants(x, target, weight), REDUCED=reduction != "none", MEAN=reduction == "mean", **config,
    )  # fmt: skip
    return dx


def _constants(x, target, weight):
    """What both kernels are compiled for."""
    return {
        "C": x.shape[1],
        "HAS_WEIGHT": weight is not None,
        "PROBABILITIES": target.is_floating_point(),
        "INDEX": runtime.index_type(x),
    }


def _output(input, target, weight, ignore_index, reduction, label_smoothing):
    M = input.shape[0]
    empty = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=input.device)
    loss = empty(M, dtype=input.dtype) if reduction == "none" else empty(dtype=input.dtype)
    return loss, empty(2, M), empty(0) if reduction == "none" else empty()


def _gradient_output(grad, input, *_):
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    input, target, weight, *ctx.options = inputs
    _, log_sum_exp, divisor = output
    ctx.mark_non_differentiable(log_sum_exp, divisor)
    ctx.save_for_backward(input, target, weight, log_sum_exp, divisor)


def _gradients(ctx, grad, *_):
    return _gradient(grad, *ctx.saved_tensors, *ctx.options), *[None] * 5


_gradient = runtime.register("cross_entropy_gradient", launch_cross_entropy_gradient, _gradient_output)
_cross_entropy = runtime.register("cross_entropy", launch_cross_entropy, _output, _save, _gradients)


def _check_target(input: torch.Tensor, target: object, shape: torch.Size) -> None:
    """Classes must have ``shape``; probabilities ``input``'s."""
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"cross_entropy: target must be a torch.Tensor, got {type(target).__name__}")
    if target.is_floating_point():
        check_tensor("cross_entropy", "target", target, like=input)
        check(
            target.shape == input.shape,
            f"cross_entropy: probabilities must be of input's shape {tuple(input.shape)}, got {tuple(target.shape)}",
        )
        check(not gradient_wanted(target), "cross_entropy: target must not require a gradient: it gets none")
        return
    check(target.dtype == torch.int64, f"cross_entropy: target must be int64 classes, got {target.dtype}")
    check(
        target.device == input.device,
        f"cross_entropy: target must be on {input.device} as input is, got {target.device}",
    )
    check(
        target.shape == shape,
        f"cross_entropy: target for input of shape {tuple(input.shape)} must be of shape {tuple(shape)}, "
        f"got {tuple(target.shape)}",
    )


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
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
        TypeError: an argument has the wrong type.
        IndexError: a class is not in 0 ... C - 1, if the kernels are interpreted. A GPU does not wait to find out:
            there the loss and its gradient are NaN.
        ArgumentError: anything else that ``torch.nn.functional.cross_entropy`` refuses, other dtypes, and probabilities
            and weights that require a gradient.

    Example:
        Four classes with equal logits: log 4.

        >>> kernels.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        check(value is None, f"cross_entropy: {name} is not accepted, got {value!r}; use reduction")
    if isinstance(input, torch.Tensor):
        device = input.device.type
        input, weight = runtime.autocast(device, input, weight, dtype=torch.float32)
        if isinstance(target, torch.Tensor) and target.is_floating_point():
            (target,) = runtime.autocast(device, target, dtype=torch.float32)
    check_tensor("cross_entropy", "input", input)
    dim = min(input.dim() - 1, 1)  # the classes' dimension
    check(
        input.dim() >= 1 and input.shape[dim] >= 1,
        f"cross_entropy: input must be (C,), (N, C) or (N, C, ...) with classes, got shape {tuple(input.shape)}",
    )
    C = input.shape[dim]
    shape = input.shape[:dim] + input.shape[dim + 1 :]  # the losses'
    _check_target(input, target, shape)
    if weight is not None:
        check_tensor("cross_entropy", "weight", weight, like=input)
        check(weight.shape == (C,), f"cross_entropy: weight must be of shape ({C},), got {tuple(weight.shape)}")
        check(not gradient_wanted(weight), "cross_entropy: weight must not require a gradient: it gets none")
    ignore_index = integer("cross_entropy", "ignore_index", ignore_index)
    check(
        ignore_index < 0 or not target.is_floating_point(),
        f"cross_entropy: ignore_index must be negative if targets are probabilities, got {ignore_index}",
    )
    label_smoothing = number("cross_entropy", "label_smoothing", label_smoothing)
    check(0.0 <= label_smoothing <= 1.0, f"cross_entropy: label_smoothing must be from 0 to 1, got {label_smoothing}")
    if not isinstance(reduction, str):
        raise TypeError(f"cross_entropy: reduction must be a str, got {reduction!r}")
    check(
        reduction in REDUCTIONS, f"cross_entropy: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
    )

    rows = input.movedim(dim, -1).reshape(-1, C)
    target = target.movedim(dim, -1).reshape(-1, C) if target.is_floating_point() else target.reshape(-1)
    loss, _, _ = _cross_entropy(rows, target, weight, ignore_index, reduction, label_smoothing)
    return loss.reshape(shape) if reduction == "none" else loss


def cost(input: Shape, *, itemsize: int = 4) -> Cost:
    """For shape (N, C), and classes as targets, 8 bytes each. Each row's loss is in float32."""
    N, C = input
    return Cost((N,), 0, 5 * N * C, N * C * itemsize + N * (8 + 4))
