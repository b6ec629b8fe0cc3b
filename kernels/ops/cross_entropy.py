"""Cross entropy, fused with its softmax.

    loss[m] = sum over c of q[m, c] * (log-sum-exp of x[m] - x[m, c])
    q[m, c] = weight[c] * ((1 - smoothing) * t[m, c] + smoothing / C)

where t is 1 at the target's class and 0 elsewhere, or the probabilities that are given as targets; q is 0 in rows that
are ignored. The mean divides by the sum of the targets' weights, or by the number of rows of probabilities. Backwards,
with s[m] the sum of q[m] and g[m] what the mean or the sum leaves of the loss's gradient:

    dx[m, c] = g[m] * (s[m] * softmax(x[m])[c] - q[m, c])

The log-sum-exp is found in one sweep, as in kernels/ops/softmax.py, and kept in two parts, the largest x and the
logarithm of the sum after it was taken off: added up, they would lose the second where logits are large. Nothing of x's
size is stored but dx, which is made again from x. Label smoothing as in Szegedy et al. 2016
(https://arxiv.org/abs/1512.00567).
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, gradient_wanted, integer, number
from kernels.tiles.families import ELEMENTWISE, ROWS_OF_CLASSES

REDUCTIONS = ("none", "mean", "sum")


@triton.jit
def _targets(
    target_ptr,
    weight_ptr,
    offs_m,
    offs_c,
    mask,
    target,
    smoothing,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PROBABILITIES: tl.constexpr,
):
    """q of a tile [BLOCK_M, BLOCK_N], but for ignored rows."""
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
    x_ptr,  # [M, C]
    target_ptr,  # [M] classes, or [M, C] probabilities
    weight_ptr,  # [C]
    losses_ptr,  # [M]
    divisors_ptr,  # [M] float32, what each row adds to the mean's divisor
    normalisers_ptr,  # [2, M] float32, the log-sum-exp of each row: its largest logit, and what comes on top
    M,
    ignored,
    smoothing,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    x_ptrs = x_ptr + (offs_m * C)[:, None]  # [BLOCK_M, 1]

    # From the lowest finite value, not from -inf: see kernels/ops/softmax.py.
    LOWEST: tl.constexpr = -3.4028234663852886e38
    largest = tl.full((BLOCK_M,), LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptrs + offs_c[None, :], mask=mask_m[:, None] & (offs_c < C)[None, :], other=float("-inf"))
        x = x.to(tl.float32)
        previous = largest
        largest = tl.maximum(previous, tl.max(x, 1))
        total = total * tl.exp(previous - largest) + tl.sum(tl.exp(x - largest[:, None]), 1)
    above = tl.log(total)

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
        q = _targets(target_ptr, weight_ptr, offs_m, offs_c, mask, target, smoothing, C, HAS_WEIGHT, PROBABILITIES)
        x = tl.load(x_ptrs + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        cost = above[:, None] - (x - largest[:, None])
        loss += tl.sum(tl.where(q == 0.0, 0.0, q * cost), 1)  # 0 * inf would be NaN
    if not PROBABILITIES:
        loss = tl.where(kept & ~known, float("nan"), loss)

    tl.store(losses_ptr + offs_m, runtime.cast(loss, losses_ptr.dtype.element_ty), mask=mask_m)
    tl.store(divisors_ptr + offs_m, divisor, mask=mask_m)
    tl.store(normalisers_ptr + offs_m, largest, mask=mask_m)
    tl.store(normalisers_ptr + M + offs_m, above, mask=mask_m)


@triton.jit
def _reduce_losses_kernel(
    losses_ptr,  # [M]
    divisors_ptr,  # [M]
    loss_ptr,  # []
    divisor_ptr,  # []
    M,
    MEAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    # One program, in the same order every time; there is one number a row.
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
    grad_ptr,  # [M], or [] where the losses were reduced
    x_ptr,  # [M, C]
    target_ptr,  # [M] classes, or [M, C] probabilities
    weight_ptr,  # [C]
    normalisers_ptr,  # [2, M]
    divisor_ptr,  # []
    dx_ptr,  # [M, C]
    M,
    ignored,
    smoothing,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    REDUCED: tl.constexpr,
    MEAN: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    if REDUCED:
        grad = tl.load(grad_ptr).to(tl.float32) + tl.zeros((BLOCK_M,), dtype=tl.float32)
        if MEAN:
            grad /= tl.load(divisor_ptr)
    else:
        grad = tl.load(grad_ptr + offs_m, mask=mask_m, other=0.0).to(tl.float32)
    largest = tl.load(normalisers_ptr + offs_m, mask=mask_m, other=0.0)
    above = tl.load(normalisers_ptr + M + offs_m, mask=mask_m, other=0.0)
    if PROBABILITIES:
        target = offs_m  # not read
        kept = mask_m
    else:
        target = tl.load(target_ptr + offs_m, mask=mask_m, other=0)
        kept = mask_m & (target != ignored)
        grad = tl.where((target >= 0) & (target < C), grad, float("nan"))

    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        mask = kept[:, None] & (offs_c < C)[None, :]
        total += tl.sum(
            _targets(target_ptr, weight_ptr, offs_m, offs_c, mask, target, smoothing, C, HAS_WEIGHT, PROBABILITIES), 1
        )
    for c0 in range(0, C, BLOCK_N):
        offs_c = c0 + tl.arange(0, BLOCK_N)
        mask = kept[:, None] & (offs_c < C)[None, :]
        q = _targets(target_ptr, weight_ptr, offs_m, offs_c, mask, target, smoothing, C, HAS_WEIGHT, PROBABILITIES)
        offs = (offs_m * C)[:, None] + offs_c[None, :]  # [BLOCK_M, BLOCK_N]
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        dx = grad[:, None] * (total[:, None] * tl.exp(x - largest[:, None] - above[:, None]) - q)
        dx = runtime.cast(tl.where(mask, dx, 0.0), dx_ptr.dtype.element_ty)  # ignored rows have none, even of a NaN
        tl.store(dx_ptr + offs, dx, mask=mask_m[:, None] & (offs_c < C)[None, :])


tiles.register("cross_entropy", ROWS_OF_CLASSES)
tiles.register("reduce_losses", ELEMENTWISE)
tiles.register("cross_entropy_gradient", ROWS_OF_CLASSES)


def launch_cross_entropy(
    input: torch.Tensor,  # [M, C]
    target: torch.Tensor,  # [M] or [M, C]
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss or the losses, each row's log-sum-exp in two parts, and the mean's divisor (empty of losses alone)."""
    loss, normalisers, divisor = _cross_entropy_output(input, target, weight, ignore_index, reduction, label_smoothing)
    M, C = input.shape
    # Here and not in the public function, where torch.compile and torch.export would have to know the numbers.
    if runtime.INTERPRETED and not runtime.is_recording() and not target.is_floating_point():
        wrong = target[(target != ignore_index) & ((target < 0) | (target >= C))]
        if len(wrong):
            raise IndexError(f"cross_entropy: target must be from 0 to {C - 1}, got {wrong[0].item()}")
    x = input.contiguous()
    alone = reduction == "none"
    losses = loss if alone else torch.empty(M, dtype=torch.float32, device=x.device)
    divisors = torch.empty(M, dtype=torch.float32, device=x.device)
    if M > 0:
        tile = tiles.lookup("cross_entropy", x, M, C, 1)
        runtime.launch(
            _cross_entropy_kernel,
            lambda META: (triton.cdiv(M, META["BLOCK_M"]),),
            x,
            target.contiguous(),
            x if weight is None else weight.contiguous(),  # not read without one
            losses,
            divisors,
            normalisers,
            M,
            ignore_index,
            label_smoothing,
            C=C,
            HAS_WEIGHT=weight is not None,
            PROBABILITIES=target.is_floating_point(),
            INDEX=runtime.index_type(x),
            **tile,
        )
    if not alone:
        tile = tiles.lookup("reduce_losses", losses, M, 1, 1)
        runtime.launch(
            _reduce_losses_kernel,
            lambda META: (1,),
            losses,
            divisors,
            loss,
            divisor,
            M,
            MEAN=reduction == "mean",
            **tile,
        )
    return loss, normalisers, divisor


def launch_cross_entropy_gradient(
    grad: torch.Tensor,  # [] or, where nothing was reduced, [M]
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    normalisers: torch.Tensor,
    divisor: torch.Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> torch.Tensor:
    output = torch.empty_like(input, memory_format=torch.contiguous_format)
    M, C = input.shape
    if M == 0:
        return output
    x = input.contiguous()
    tile = tiles.lookup("cross_entropy_gradient", x, M, C, 1)
    runtime.launch(
        _cross_entropy_gradient_kernel,
        lambda META: (triton.cdiv(M, META["BLOCK_M"]),),
        grad.contiguous(),
        x,
        target.contiguous(),
        x if weight is None else weight.contiguous(),
        normalisers,
        divisor,
        output,
        M,
        ignore_index,
        label_smoothing,
        C=C,
        HAS_WEIGHT=weight is not None,
        PROBABILITIES=target.is_floating_point(),
        REDUCED=reduction != "none",
        MEAN=reduction == "mean",
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def _cross_entropy_output(input, target, weight, ignore_index, reduction, label_smoothing):
    M = input.shape[0]
    empty = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=input.device)
    loss = empty(M, dtype=input.dtype) if reduction == "none" else empty(dtype=input.dtype)
    return loss, empty(2, M), empty(0) if reduction == "none" else empty()


def _gradient_output(grad, input, target, weight, normalisers, divisor, ignore_index, reduction, label_smoothing):
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    input, target, weight, *ctx.options = inputs
    _, normalisers, divisor = output
    ctx.mark_non_differentiable(normalisers, divisor)
    ctx.save_for_backward(input, target, weight, normalisers, divisor)


def _gradients(ctx, grad, *_):
    return _gradient(grad, *ctx.saved_tensors, *ctx.options), *[None] * 5


_gradient = runtime.register("cross_entropy_gradient", launch_cross_entropy_gradient, _gradient_output)
_cross_entropy = runtime.register("cross_entropy", launch_cross_entropy, _cross_entropy_output, _save, _gradients)


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
        input: logits, (C,), (N, C) or (N, C, d1, ...); float32, float16 or bfloat16; float32 under torch.autocast.
        target: classes, int64, of ``input``'s shape without C; or probabilities, of its shape and dtype, which get
            no gradient.
        weight: (C,), of each class, ``input``'s dtype; gets no gradient.
        size_average, reduce: what PyTorch had before ``reduction``; only None is taken.
        ignore_index: a class that does not count, nor in the mean's divisor; of probabilities, none can be ignored.
        reduction: ``"mean"`` over the weights of the targets, ``"sum"`` or ``"none"``.
        label_smoothing: from 0 to 1, how much of each target is spread over all classes.

    Returns:
        A scalar, or the losses in the targets' shape; summed in float32. What has probability or weight 0 adds
        nothing, even where its logit is -inf, of which PyTorch makes NaN.

    Raises:
        TypeError: an argument of the wrong type.
        IndexError: a class outside 0 ... C - 1, where kernels are interpreted; on a GPU, which would have to be waited
            for, the loss and its gradient are NaN instead.
        ArgumentError: whatever else ``torch.nn.functional.cross_entropy`` refuses; also other dtypes, and
            probabilities and weights that require a gradient.

    Example:
        Four classes between which the logits do not choose: log 4.

        >>> kernels.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    operator = "cross_entropy"
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        check(value is None, f"{operator}: {name} is not taken, got {value!r}; use reduction")
    if isinstance(input, torch.Tensor):
        device = input.device.type
        probabilities = isinstance(target, torch.Tensor) and target.is_floating_point()
        input, weight = runtime.autocast(device, input, weight, dtype=torch.float32)
        target = runtime.autocast(device, target, dtype=torch.float32)[0] if probabilities else target
    check_tensor(operator, "input", input)
    check(
        input.dim() >= 1 and input.shape[min(input.dim() - 1, 1)] >= 1,
        f"{operator}: input must be (C,), (N, C) or (N, C, ...) with classes, got shape {tuple(input.shape)}",
    )
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"{operator}: target must be a torch.Tensor, got {type(target).__name__}")
    dim = min(input.dim() - 1, 1)  # of the classes
    C = input.shape[dim]
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    if target.is_floating_point():
        check_tensor(operator, "target", target, like=input)
        check(
            target.shape == input.shape,
            f"{operator}: probabilities must be of input's shape {tuple(input.shape)}, got {tuple(target.shape)}",
        )
        check(not gradient_wanted(target), f"{operator}: target must not require a gradient, for it gets none")
    else:
        check(target.dtype == torch.int64, f"{operator}: target must be int64 classes, got {target.dtype}")
        check(
            target.device == input.device,
            f"{operator}: target must be on {input.device} as input is, got {target.device}",
        )
        check(
            target.shape == shape,
            f"{operator}: target for input of shape {tuple(input.shape)} must be of shape {tuple(shape)}, "
            f"got {tuple(target.shape)}",
        )
    if weight is not None:
        check_tensor(operator, "weight", weight, like=input)
        check(weight.shape == (C,), f"{operator}: weight must be of shape ({C},), got {tuple(weight.shape)}")
        check(not gradient_wanted(weight), f"{operator}: weight must not require a gradient, for it gets none")
    ignore_index = integer(operator, "ignore_index", ignore_index)
    check(
        ignore_index < 0 or not target.is_floating_point(),
        f"{operator}: ignore_index must be negative where targets are probabilities, got {ignore_index}",
    )
    label_smoothing = number(operator, "label_smoothing", label_smoothing)
    check(0.0 <= label_smoothing <= 1.0, f"{operator}: label_smoothing must be from 0 to 1, got {label_smoothing}")
    if not isinstance(reduction, str):
        raise TypeError(f"{operator}: reduction must be a str, got {reduction!r}")
    check(reduction in REDUCTIONS, f"{operator}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")

    rows = input.movedim(dim, -1).reshape(-1, C)
    target = target.movedim(dim, -1).reshape(-1, C) if target.is_floating_point() else target.reshape(-1)
    loss, _, _ = _cross_entropy(rows, target, weight, ignore_index, reduction, label_smoothing)
    return loss.reshape(shape) if reduction == "none" else loss
