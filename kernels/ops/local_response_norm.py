"""Local response normalisation across channels.

    y[n, c] = x[n, c] / d[n, c] ^ beta
    d[n, c] = k + alpha / size * sum over c' of x[n, c']^2,   c - size // 2 <= c' <= c + (size - 1) // 2

at every pixel; channels outside the tensor count as zero, and the divisor is ``size`` at the edges too. This is the
formula of Caffe, PyTorch and ONNX. Krizhevsky et al. 2012, section 3.3
(https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks), and TensorFlow
have alpha itself before the sum: multiply alpha by ``size`` to get theirs.

A channel is in the windows of its neighbours too, so that its gradient has a sum of its own, over the window's mirror
image:

    dx[n, c] = dy[n, c] / d[n, c] ^ beta - 2 * alpha / size * beta * x[n, c] * sum over c' of t[n, c']
    t[n, c] = dy[n, c] * x[n, c] / d[n, c] ^ (beta + 1),   c - (size - 1) // 2 <= c' <= c + size // 2

Nothing but x is kept for that: the divisors are computed again, for size - 1 neighbours as well.
"""

import math

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, integer, number
from kernels.ops.cost import Cost, Shape
from kernels.tiles.families import VECTORISED


@triton.jit
def lanes(x):
    """[M, N] as a tuple of N tensors [M]; no data moves, for a thread holds a whole row."""
    if x.shape[1] == 1:
        return (tl.reshape(x, (x.shape[0],)),)
    else:
        halves = tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1))
        first, second = tl.split(halves)
        return lanes(first) + lanes(second)


@triton.jit
def rows(lanes, START: tl.constexpr, N: tl.constexpr):
    """The way back: ``lanes[START]`` ... ``lanes[START + N - 1]`` as [M, N]."""
    if N == 1:
        return tl.reshape(lanes[START], (lanes[START].shape[0], 1))
    else:
        halves = tl.join(rows(lanes, START, N // 2), rows(lanes, START + N // 2, N // 2))
        return tl.reshape(tl.permute(halves, (0, 2, 1)), (halves.shape[0], N))


@triton.jit
def _sums(terms, START: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr):
    """The N sums of SIZE terms side by side, the first of them from ``terms[START]`` on."""
    # Two windows side by side share all channels but one each: the rest is summed once for both.
    sums = ()
    for i in tl.static_range(START, START + N, 2):
        if SIZE == 1:
            sums += (terms[i],)
            if i + 1 < START + N:
                sums += (terms[i + 1],)
        else:
            shared = terms[i + 1]
            for j in tl.static_range(i + 2, i + SIZE):
                shared += terms[j]
            sums += (terms[i] + shared,)
            if i + 1 < START + N:
                sums += (shared + terms[i + SIZE],)
    return sums


@triton.jit
def divisor(x_ptrs, offs_c, mask, scale, k, C: tl.constexpr, SIZE: tl.constexpr):
    """x and k + scale * sum of x^2 over each window, in fp32, both [M, VECTOR].

    A row of ``x_ptrs`` are 16 bytes, channels ``offs_c``, which one thread loads at once. ``scale`` is alpha / SIZE.
    """
    VECTOR: tl.constexpr = x_ptrs.shape[1]
    BELOW: tl.constexpr = (SIZE // 2 + VECTOR - 1) // VECTOR  # rows of neighbours needed on either side
    ABOVE: tl.constexpr = ((SIZE - 1) // 2 + VECTOR - 1) // VECTOR
    x = tl.load(x_ptrs, mask=mask & (offs_c < C), other=0.0).to(tl.float32)
    squares = ()
    for j in tl.static_range(-BELOW, ABOVE + 1):
        if j == 0:
            squares += lanes(x * x)
        else:  # just read by the next thread, so in L1; only the lanes that are used are loaded
            c = offs_c + j * VECTOR
            neighbours = tl.load(x_ptrs + j * VECTOR, mask=mask & (c >= 0) & (c < C), other=0.0).to(tl.float32)
            squares += lanes(neighbours * neighbours)

    sums = _sums(squares, BELOW * VECTOR - SIZE // 2, VECTOR, SIZE)
    return x, k + scale * rows(sums, 0, VECTOR)


@triton.jit
def normalise(x, d, beta, ROOTS: tl.constexpr):
    """x / d ^ beta; with ``ROOTS`` beta is 3/4, and two square roots, one instruction each, do for the power."""
    if ROOTS:
        r = tl.rsqrt(d)
        y = x * r * tl.sqrt(r)
    else:
        y = x * tl.exp2(-beta * tl.log2(d))
    return y


@triton.jit
def load_lanes(ptrs, offs_c, mask, BELOW: tl.constexpr, ABOVE: tl.constexpr, C: tl.constexpr):
    """The channels, each [M] in fp32, of the row [M, VECTOR] at ``ptrs``, and of as many rows before and after it as
    hold BELOW and ABOVE more."""
    VECTOR: tl.constexpr = ptrs.shape[1]
    FIRST: tl.constexpr = (BELOW + VECTOR - 1) // VECTOR
    LAST: tl.constexpr = (ABOVE + VECTOR - 1) // VECTOR
    channels = ()
    for j in tl.static_range(-FIRST, LAST + 1):
        c = offs_c + j * VECTOR
        channels += lanes(tl.load(ptrs + j * VECTOR, mask=mask & (c >= 0) & (c < C), other=0.0).to(tl.float32))
    return channels


@triton.jit
def normalise_gradient(
    x,  # channels [M] in fp32: OWN from c0 on, whole rows of the SIZE - 1 before them and of those after
    dy,  # likewise, of the (SIZE - 1) // 2 before them and the SIZE // 2 after
    c0,  # [M]
    scale,  # alpha / SIZE
    factor,  # 2 * scale * beta
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    VECTOR: tl.constexpr,
    OWN: tl.constexpr,
    ROOTS: tl.constexpr,
):
    """dx of OWN channels, each [M] in fp32."""
    LOW: tl.constexpr = SIZE // 2
    HIGH: tl.constexpr = (SIZE - 1) // 2
    FIRST_X: tl.constexpr = (LOW + HIGH + VECTOR - 1) // VECTOR * VECTOR  # where channel c0 is in x, and in dy
    FIRST_DY: tl.constexpr = (HIGH + VECTOR - 1) // VECTOR * VECTOR
    squares = ()
    for i in tl.static_range(FIRST_X - LOW - HIGH, FIRST_X + OWN + LOW + HIGH):
        squares += (x[i] * x[i],)
    sums = _sums(squares, 0, OWN + LOW + HIGH, SIZE)
    scaled = ()  # dy / d^beta
    terms = ()  # t
    for c in tl.static_range(-HIGH, OWN + LOW):
        d = k + scale * sums[c + HIGH]
        root = tl.rsqrt(d)
        y = normalise(dy[FIRST_DY + c], d, beta, ROOTS)
        # x / sqrt(d) is moderate, whatever x is: no product is far larger or smaller than t.
        t = y * (x[FIRST_X + c] * root) * root
        if C % OWN != 0 or c < 0 or c >= OWN:
            t = tl.where((c0 + c >= 0) & (c0 + c < C), t, 0.0)  # with k = 0, d may be 0 outside the tensor
        scaled += (y,)
        terms += (t,)
    sums = _sums(terms, 0, OWN, SIZE)
    dx = ()
    for c in tl.static_range(OWN):
        dx += (scaled[HIGH + c] - factor * x[FIRST_X + c] * sums[c],)
    return dx


@triton.jit
def _local_response_norm_kernel(
    x_ptr,  # [M, C]: pixels x channels
    y_ptr,  # [M, C]
    M,
    scale,  # alpha / SIZE
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    ROOTS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # of a pixel
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] vectors of 16 bytes
    offs_c = (v % VECTORS * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    offs_m = v // VECTORS
    mask = (offs_m < M)[:, None]
    offs = (offs_m * C)[:, None] + offs_c
    x, d = divisor(x_ptr + offs, offs_c, mask, scale, k, C, SIZE)
    y = normalise(x, d, beta, ROOTS)
    tl.store(y_ptr + offs, runtime.cast(y, y_ptr.dtype.element_ty), mask=mask & (offs_c < C))


@triton.jit
def _local_response_norm_gradient_kernel(
    x_ptr,  # [M, C]: pixels x channels
    dy_ptr,  # [M, C]
    dx_ptr,  # [M, C]
    M,
    scale,  # alpha / SIZE
    factor,  # 2 * scale * beta
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    ROOTS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # of a pixel
    v = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] vectors of 16 bytes
    c0 = v % VECTORS * VECTOR
    offs_c = c0[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK_M, VECTOR]
    offs_m = v // VECTORS
    mask = (offs_m < M)[:, None]
    offs = (offs_m * C)[:, None] + offs_c
    x = load_lanes(x_ptr + offs, offs_c, mask, SIZE - 1, SIZE - 1, C)
    dy = load_lanes(dy_ptr + offs, offs_c, mask, (SIZE - 1) // 2, SIZE // 2, C)
    dx = rows(normalise_gradient(x, dy, c0, scale, factor, beta, k, C, SIZE, VECTOR, VECTOR, ROOTS), 0, VECTOR)
    tl.store(dx_ptr + offs, runtime.cast(dx, dx_ptr.dtype.element_ty), mask=mask & (offs_c < C))


tiles.register("local_response_norm", VECTORISED)
tiles.register("local_response_norm_gradient", VECTORISED)


def launch_local_response_norm(input: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> torch.Tensor:
    output = _local_response_norm_output(input, size, alpha, beta, k)
    if output.numel() == 0:
        return output
    C = input.shape[1]
    x = input.movedim(1, -1).contiguous()
    M = x.numel() // C
    tile = tiles.lookup("local_response_norm", x, M, C, size)
    vectors = triton.cdiv(C, 16 // x.element_size())  # of a pixel
    grid = lambda META: (triton.cdiv(M * vectors, META["BLOCK_M"]),)
    runtime.launch(
        _local_response_norm_kernel,
        grid,
        x,
        output,
        M,
        alpha / size,
        beta,
        k,
        C=C,
        SIZE=min(size, 2 * C),  # reaches all channels from any
        ROOTS=beta == 0.75,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def launch_local_response_norm_gradient(
    gradient: torch.Tensor, input: torch.Tensor, size: int, alpha: float, beta: float, k: float
) -> torch.Tensor:
    output = _local_response_norm_gradient_output(gradient, input, size, alpha, beta, k)
    if output.numel() == 0:
        return output
    C = input.shape[1]
    x = input.movedim(1, -1).contiguous()
    dy = gradient.movedim(1, -1).contiguous()
    M = x.numel() // C
    tile = tiles.lookup("local_response_norm_gradient", x, M, C, size)
    vectors = triton.cdiv(C, 16 // x.element_size())  # of a pixel
    grid = lambda META: (triton.cdiv(M * vectors, META["BLOCK_M"]),)
    scale = alpha / size
    runtime.launch(
        _local_response_norm_gradient_kernel,
        grid,
        x,
        dy,
        output,
        M,
        scale,
        2 * scale * beta,
        beta,
        k,
        C=C,
        SIZE=min(size, 2 * C),  # reaches all channels from any
        ROOTS=beta == 0.75,
        INDEX=runtime.index_type(x),
        **tile,
    )
    return output


def _local_response_norm_output(input, size, alpha, beta, k):
    N, C, *spatial = input.shape
    # Not a view, which PyTorch would not let a user modify in place.
    order = torch.empty((N, *spatial, C), dtype=input.dtype, device="meta").movedim(-1, 1)
    return torch.empty_like(order, device=input.device)


def _local_response_norm_gradient_output(gradient, input, size, alpha, beta, k):
    return _local_response_norm_output(input, size, alpha, beta, k)


_local_response_norm_gradient = runtime.register(
    "local_response_norm_gradient", launch_local_response_norm_gradient, _local_response_norm_gradient_output
)


def _save(ctx, inputs, output):
    x, *ctx.arguments = inputs
    ctx.save_for_backward(x)


def _gradient(ctx, dy):
    return _local_response_norm_gradient(dy, *ctx.saved_tensors, *ctx.arguments), None, None, None, None


_local_response_norm = runtime.register(
    "local_response_norm", launch_local_response_norm, _local_response_norm_output, _save, _gradient
)


def local_response_norm(
    input: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """Local response normalisation, as :func:`torch.nn.functional.local_response_norm`.

    Args:
        input: (N, C, ...), at least three dimensions; float32, float16 or bfloat16. Channels-last memory
            (NHWC) is not copied.
        size: channels in the window; an even window reaches one channel further down than up.
        alpha, beta, k: the formula's factor, exponent and constant; alpha is divided by ``size``.

    Returns:
        A tensor of ``input``'s shape in channels-last memory; computed in float32.

    Raises:
        TypeError: an argument of the wrong type.
        ArgumentError: fewer than three dimensions, ``size`` under 1, another dtype.

    Example:
        AlexNet's: BVLC's weights take ``alpha=1e-4``, which is divided by the 5 channels of the window.

        >>> kernels.local_response_norm(torch.full((1, 5, 1, 1), 100.0), size=5).flatten()
        tensor([70.2927, 64.3496, 59.4604, 64.3496, 70.2927])
    """
    check_tensor("local_response_norm", "input", input)
    check(
        input.dim() >= 3,
        f"local_response_norm: input must be (N, C, ...), at least 3 dimensions, got shape {tuple(input.shape)}",
    )
    size = integer("local_response_norm", "size", size)
    check(size >= 1 or input.numel() == 0, f"local_response_norm: size must be at least 1, got {size}")
    alpha, beta, k = (number("local_response_norm", *given) for given in (("alpha", alpha), ("beta", beta), ("k", k)))
    return _local_response_norm(input, size, alpha, beta, k)


def cost(input: Shape, size: int, *, itemsize: int = 4) -> Cost:
    """For shape (N, C, ...)."""
    elements = math.prod(input)
    return Cost(input, 0, elements * (2 * size + 4), 2 * elements * itemsize)


def gradient_cost(input: Shape, size: int, *, itemsize: int = 4) -> Cost:
    """For shape (N, C, ...): two sums over the window, of squares and of gradients, and 10 FLOPs more per element."""
    elements = math.prod(input)
    return Cost(input, 0, elements * (4 * size + 10), 3 * elements * itemsize)
