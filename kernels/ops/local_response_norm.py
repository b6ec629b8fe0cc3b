"""Local response normalisation across channels.

    y[n, c] = x[n, c] / d[n, c] ^ beta
    d[n, c] = k + alpha / size * sum over c' of x[n, c']^2,   c - size // 2 <= c' <= c + (size - 1) // 2

at every pixel. Channels outside the tensor count as zero, and the divisor is ``size`` at the edges too. This is the
formula of Caffe, PyTorch and ONNX. Krizhevsky et al. 2012, section 3.3
(https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks), and TensorFlow
have alpha itself before the sum: multiply alpha by ``size`` to get theirs.

A channel is in its neighbours' windows too. So its gradient has a sum of its own, over the window's mirror image:

    dx[n, c] = dy[n, c] / d[n, c] ^ beta - 2 * alpha / size * beta * x[n, c] * sum over c' of t[n, c']
    t[n, c] = dy[n, c] * x[n, c] / d[n, c] ^ (beta + 1),   c - (size - 1) // 2 <= c' <= c + size // 2

The forward pass saves only x. The gradient computes d again, also that of size - 1 neighbours.
"""

import torch
import triton
import triton.language as tl

from kernels import runtime, tiles
from kernels.arguments import check, check_tensor, integer, number
from kernels.ops.cost import Cost, Shape, elementwise
from kernels.tiles.choices import VECTORISED


@triton.jit
def lanes(x):
    """[M, N] as a tuple of N tensors [M]. No data moves: a thread holds a whole row."""
    if x.shape[1] == 1:
        return (tl.reshape(x, (x.shape[0],)),)
    else:
        halves = tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1))
        first, second = tl.split(halves)
        return lanes(first) + lanes(second)


@triton.jit
def rows(lanes, START: tl.constexpr, N: tl.constexpr):
    """The inverse of :func:`lanes`: ``lanes[START]`` ... ``lanes[START + N - 1]`` as [M, N]."""
    if N == 1:
        return tl.reshape(lanes[START], (lanes[START].shape[0], 1))
    else:
        halves = tl.join(rows(lanes, START, N // 2), rows(lanes, START + N // 2, N // 2))
        return tl.reshape(tl.permute(halves, (0, 2, 1)), (halves.shape[0], N))


@triton.jit
def _sums(terms, START: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr):
    """N sums of SIZE neighbouring terms; the first begins at ``terms[START]``."""
    # Two neighbouring windows share all channels except one each: the shared ones are summed once.
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
    """Returns (x, d), both [M, VECTOR] in fp32. ``scale`` is alpha / SIZE.

    A row of ``x_ptrs`` points to channels ``offs_c``, 16 bytes that one thread loads at once.
    """
    VECTOR: tl.constexpr = x_ptrs.shape[1]
    BELOW: tl.constexpr = (SIZE // 2 + VECTOR - 1) // VECTOR  # vectors of neighbours on either side
    ABOVE: tl.constexpr = ((SIZE - 1) // 2 + VECTOR - 1) // VECTOR
    x = tl.load(x_ptrs, mask=mask & (offs_c < C), other=0.0).to(tl.float32)
    squares = ()
    for j in tl.static_range(-BELOW, ABOVE + 1):
        if j == 0:
            squares += lanes(x * x)
        else:  # in L1, since the next thread has just read it; the compiler drops loads of unused lanes
            c = offs_c + j * VECTOR
            neighbours = tl.load(x_ptrs + j * VECTOR, mask=mask & (c >= 0) & (c < C), other=0.0).to(tl.float32)
            squares += lanes(neighbours * neighbours)

    sums = _sums(squares, BELOW * VECTOR - SIZE // 2, VECTOR, SIZE)
    return x, k + scale * rows(sums, 0, VECTOR)


@triton.jit
def normalise(x, d, beta, ROOTS: tl.constexpr):
    """x / d ^ beta. With ``ROOTS`` beta is 3/4: the power is two square roots, one instruction each."""
    if ROOTS:
        r = tl.rsqrt(d)
        y = x * r * tl.sqrt(r)
    else:
        y = x * tl.exp2(-beta * tl.log2(d))
    return y


@triton.jit
def load_lanes(ptrs, offs_c, mask, BELOW: tl.constexpr, ABOVE: tl.constexpr, C: tl.constexpr):
    """The channels at ``ptrs``, [M, VECTOR], and whole vectors that hold BELOW and ABOVE more, each [M] in fp32."""
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
    x,  # channels, each [M] in fp32: OWN from c0 on, with whole vectors of SIZE - 1 before and after them
    dy,  # the same with (SIZE - 1) // 2 before and SIZE // 2 after them
    c0,  # [M]
    scale, factor, beta, k,  # alpha / SIZE, 2 * scale * beta
    C: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr, OWN: tl.constexpr, ROOTS: tl.constexpr,
):  # fmt: skip
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
        # x / sqrt(d) is moderate for every x, so that no product is far larger or smaller than t.
        t = y * (x[FIRST_X + c] * root) * root
        if C % OWN != 0 or c < 0 or c >= OWN:
            t = tl.where((c0 + c >= 0) & (c0 + c < C), t, 0.0)  # with k = 0, d can be 0 outside the tensor
        scaled += (y,)
        terms += (t,)
    sums = _sums(terms, 0, OWN, SIZE)
    dx = ()
    for c in tl.static_range(OWN):
        dx += (scaled[HIGH + c] - factor * x[FIRST_X + c] * sums[c],)
    return dx


@triton.jit
def _local_response_norm_kernel(
    x_ptr, y_ptr,  # [M, C]: pixels x channels
    M, scale, beta, k,  # scale is alpha / SIZE
    C: tl.constexpr, SIZE: tl.constexpr, ROOTS: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # per pixel
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
    x_ptr, dy_ptr, dx_ptr,  # [M, C]: pixels x channels
    M, scale, factor, beta, k,  # alpha / SIZE, 2 * scale * beta
    C: tl.constexpr, SIZE: tl.constexpr, ROOTS: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = (C + VECTOR - 1) // VECTOR  # per pixel
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


def formula(size: int, alpha: float, beta: float, k: float, C: int, gradient: bool = False) -> dict[str, float]:
    """What a kernel, or a gradient's, takes of the formula."""
    reach = min(size, 2 * C)  # a window of 2 * C reaches all channels from any
    constants = {"scale": alpha / size, "beta": beta, "k": k, "C": C, "SIZE": reach, "ROOTS": beta == 0.75}
    return constants | {"factor": 2 * alpha / size * beta} if gradient else constants


def _launch(operator, kernel, tensors, output, size, constants):
    tensors = [tensor.movedim(1, -1).contiguous() for tensor in tensors]
    x, C = tensors[0], constants["C"]
    M = x.numel() // C
    vectors = triton.cdiv(C, 16 // x.element_size())  # per pixel
    runtime.launch(
        kernel, lambda META: (triton.cdiv(M * vectors, META["BLOCK_M"]),), *tensors, output, M,
        **constants, INDEX=runtime.index_type(x), **tiles.lookup(operator, x, M, C, size),
    )  # fmt: skip


def launch_local_response_norm(
    input: torch.Tensor, size: int, alpha: float, beta: float, k: float, output: torch.Tensor
) -> None:
    constants = formula(size, alpha, beta, k, input.shape[1])
    _launch("local_response_norm", _local_response_norm_kernel, [input], output, size, constants)


def launch_local_response_norm_gradient(
    gradient: torch.Tensor, input: torch.Tensor, size: int, alpha: float, beta: float, k: float, dx: torch.Tensor
) -> None:
    constants = formula(size, alpha, beta, k, input.shape[1], gradient=True)
    kernel = _local_response_norm_gradient_kernel
    _launch("local_response_norm_gradient", kernel, [input, gradient], dx, size, constants)


def _output(input, *_):
    order = (0, *range(2, input.dim()), 1)  # in memory
    return torch.empty_permuted(input.shape, order, dtype=input.dtype, device=input.device)


_gradient = runtime.register(
    "local_response_norm_gradient", launch_local_response_norm_gradient, lambda gradient, input, *_: _output(input)
)
_local_response_norm = runtime.register(
    "local_response_norm", launch_local_response_norm, _output,
    *runtime.gradient_of_input(_gradient, saves=lambda inputs, _: inputs),
)  # fmt: skip


def local_response_norm(
    input: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """Local response normalisation, as :func:`torch.nn.functional.local_response_norm`.

    Args:
        input: (N, C, ...); float32, float16 or bfloat16. Channels-last memory (NHWC) is not copied.
        size: channels in the window; an even window reaches one channel further down than up.
        alpha, beta, k: the formula's factor, exponent and constant; alpha is divided by ``size``.

    Returns:
        A tensor of ``input``'s shape in channels-last memory; computed in float32.

    Raises:
        TypeError, ArgumentError: what ``torch.nn.functional.local_response_norm`` refuses, and other dtypes.

    Example:
        As in AlexNet: BVLC's weights take ``alpha=1e-4``, which is divided by the 5 channels of the window.

        >>> kernels.local_response_norm(torch.full((1, 5, 1, 1), 100.0), size=5).flatten()
        tensor([70.2927, 64.3496, 59.4604, 64.3496, 70.2927])
    """
    check_tensor("local_response_norm", "input", input)
    shape = tuple(input.shape)
    check(len(shape) >= 3, f"local_response_norm: input must be (N, C, ...), at least 3 dimensions, got shape {shape}")
    size = integer("local_response_norm", "size", size)
    check(size >= 1 or input.numel() == 0, f"local_response_norm: size must be at least 1, got {size}")
    alpha, beta, k = (number("local_response_norm", *given) for given in (("alpha", alpha), ("beta", beta), ("k", k)))
    return _local_response_norm(input, size, alpha, beta, k)


def cost(input: Shape, size: int, *, itemsize: int = 4) -> Cost:
    return elementwise(input, 2 * size + 4, 2, itemsize)


def gradient_cost(input: Shape, size: int, *, itemsize: int = 4) -> Cost:
    """For shape (N, C, ...): two sums over the window, of squares and of gradients, and 10 FLOPs more per element."""
    return elementwise(input, 4 * size + 10, 3, itemsize)
