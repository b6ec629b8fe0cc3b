# %% [markdown]
# # 01 · Convolution as a product of matrices: 227 -> 55
#
# AlexNet's first layer slides 96 filters of 11 x 11 pixels over the photo, four pixels at a time. Here you will
#
# - see that this is one large product of matrices, and why its left matrix is never stored,
# - climb a ladder of five kernels, with one idea per rung, each checked and each with its cost,
# - watch how a tile is computed: which pixels it reads, what its mask does at the padding, how its accumulator fills,
# - learn why this layer, with only three input channels, is different from the others, and what the library does about
#   it.

# %%
from lesson import compiler, machine, maps, photo, roof, source, stepping, style
from lesson.check import nb01

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from PIL import Image

from kernels import conv2d, runtime, tiles
from kernels.ops.conv2d import _conv2d_kernel
from kernels.ops.space_to_depth import fold_input, fold_weight
from kernels.tools import cost
from kernels.tools.trace import trace
from kernels.tools.workloads import ALEXNET
from model import weights

style.use()
machine.describe()

# %% [markdown]
# ## What the layer does
#
# Each output pixel is computed from a window of the input. A window of 11 x 11 pixels with three colours holds 363
# numbers. The layer multiplies them with a filter's 363 weights and adds up the products. Then the window moves by the
# **stride**, four pixels. The corner of an image shows how windows overlap.

# %%
maps.windows((31, 31), kernel=11, stride=4, outputs=[(0, 0), (0, 1), (2, 3)])

# %% [markdown]
# A row of 227 pixels has room for (227 - 11) / 4 + 1 = 55 windows. So a photo becomes 55 x 55 pixels with 96 channels,
# one channel per filter. The filters here come from the model that is part of this project. The photo is prepared as in
# that model's training: with the colours of its training set, and a little blurred.

# %%
model = weights.load(weights.DEFAULT)
x = model.preprocess(Image.fromarray(photo.whole()))[None].contiguous(memory_format=torch.channels_last)
w, bias = model.layers["conv1"]
y = conv2d(x, w, bias, stride=4)

assert (227 - 11) // 4 + 1 == 55
assert w.shape == (96, 3, 11, 11) and y.shape == (1, 96, 55, 55)

chosen = F.relu(y[0]).std((1, 2)).topk(5).indices.tolist()  # the filters whose outputs vary the most
figure, axes = style.figure(2, 5, height=3.9, height_ratios=(1, 2))
for column, k in enumerate(chosen):
    filter_ = w[k].permute(1, 2, 0)
    axes[0, column].imshow((filter_ - filter_.min()) / (filter_.max() - filter_.min()))
    axes[0, column].set_title(f"filter {k}", fontsize=10)
    axes[1, column].imshow(F.relu(y[0, k]))
    axes[1, column].set_title(f"55 x 55, up to {y[0, k].max():.1f}", fontsize=10)
for place in axes.flat:
    place.set_axis_off()

# %% [markdown]
# How much work is that? Each of the 55 x 55 x 96 outputs needs 363 multiply-accumulates (**MACs**). A MAC is one
# multiplication and one addition, so it is two FLOPs.

# %%
least = cost.conv2d((1, 3, 227, 227), (96, 3, 11, 11), stride=(4, 4))
assert least.macs == 55 * 55 * 96 * 363 == 105_415_200
print(f"{least.macs:,} MACs, {least.flops:,} FLOPs, {least.bytes:,} bytes at the least in fp32")

# %% [markdown]
# ## The idea in a picture
#
# Take an image of 5 x 5 numbered pixels and a filter of 3 x 3. Write the nine pixels of each window into a row. The
# nine windows give a matrix A. Write the filter's weights into a column B. Then the convolution is the product A B.
# More filters give B more columns. Watch how the outlined middle window becomes row 4.

# %%
image = torch.arange(25.0).reshape(1, 1, 5, 5)
rows = F.unfold(image, 3)[0].T  # (9 windows, 9 taps)
assert rows[4].tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]

figure, (left, right) = style.figure(1, 2, height=3.6)
style.tile(left, image[0, 0].int().numpy(), "image: pixel numbers")
style.tile(right, rows.int().numpy(), "A: one row per window, one column per tap")
for axes, frame in ((left, (0.5, 0.5, 3, 3)), (right, (-0.5, 3.5, 9, 1))):
    axes.add_patch(style.outline(*frame))

# %% [markdown]
# For conv1, A has M = 55 * 55 = 3,025 rows, one row per output pixel. It has K = 3 * 11 * 11 = 363 columns, one column
# per **tap**. (A tap is one weight's place in the filter: channel, row, column.) B has N = 96 columns. PyTorch's
# `unfold` makes A. Then the product of A and B is the convolution.

# %%
A = F.unfold(x, 11, stride=4)[0].T  # [M, K]
B = w.reshape(96, -1).T  # [K, N]
assert A.shape == (3025, 363) and B.shape == (363, 96)

product = (A.double() @ B.double()).float()
exact = F.conv2d(x.double(), w.double(), stride=4)[0].flatten(1).T
error = lambda out, ref: ((out.double() - ref).abs().max() / ref.abs().max()).item()
assert error(product, exact) < 1e-6

# %% [markdown]
# But A holds each pixel up to nine times, once for each window that contains it. So A is 7.1 times as large as the
# input. To write A and read it again would cost far more than all the other bytes that the layer moves.
#
# A product of matrices is also called a **GEMM**, a general matrix multiplication. **Implicit GEMM** does not store A.
# When a program needs a tile of A, it computes where each element of the tile lies in the input, and loads it from
# there. This notebook is about this arithmetic.

# %%
assert round(A.numel() / x.numel(), 1) == 7.1
mega = lambda elements: f"{elements * 4 / 1e6:.1f} MB"
print(f"input {mega(x.numel())}, A {mega(A.numel())}, output {mega(y.numel())}")

# %% [markdown]
# ## Pointer arithmetic
#
# Row m of A is an output pixel, and column k is a tap. Where is A[m, k] in the input?
#
# ```
# m -> image n, output row p, output column q       n = m // (P * Q),  p = m // Q % P,  q = m % Q
# k -> channel c, filter row r, filter column s     c = k // (R * S),  r = k // S % R,  s = k % S
# input row    h = p * stride - padding + r
# input column w = q * stride - padding + s
# address = ((n * C + c) * H + h) * W + w           in PyTorch's usual memory order, NCHW
# ```
#
# Rows and columns of A are counted row by row. Divisions and remainders turn such a count back into its parts. `P` and
# `Q` are the output's height and width, `R` and `S` are the filter's. These names are cuDNN's.


# %%
def address(m: int, k: int, C=3, H=227, W=227, P=55, Q=55, R=11, S=11, stride=4) -> int:
    n, p, q = m // (P * Q), m // Q % P, m % Q
    c, r, s = k // (R * S), k // S % R, k % S
    return ((n * C + c) * H + p * stride + r) * W + q * stride + s


memory = x.contiguous().flatten()  # NCHW
assert all(memory[address(m, k)] == A[m, k] for m in range(0, 3025, 271) for k in range(0, 363, 13))

# %% [markdown]
# ## Rung 0: one program, one number
#
# This kernel follows the definition. A program computes a single output. It loops over channels and filter rows. In
# each step it loads one row of the window and one row of the filter. The whole layer would need 290,400 programs.
# Therefore this rung and its check use only a corner of the photo and two filters.


# %%
@triton.jit
def naive_kernel(
    x_ptr,  # [C, H, W]
    w_ptr,  # [K, C, R, S]
    y_ptr,  # [K, P, Q]
    H,
    W,
    P,
    Q,
    STRIDE: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    BLOCK_S: tl.constexpr,  # a power of two, at least S
):
    pixel, k = tl.program_id(0), tl.program_id(1)
    p, q = pixel // Q, pixel % Q
    s = tl.arange(0, BLOCK_S)
    acc = tl.zeros((BLOCK_S,), dtype=tl.float32)
    for c in range(C):
        for r in range(R):
            x = tl.load(x_ptr + (c * H + p * STRIDE + r) * W + q * STRIDE + s, mask=s < S, other=0.0)
            w = tl.load(w_ptr + ((k * C + c) * R + r) * S + s, mask=s < S, other=0.0)
            acc += x * w
    tl.store(y_ptr + (k * P + p) * Q + q, tl.sum(acc, 0))


# %%
corner = x[:, :, :19, :19].contiguous()
few = w[:2].contiguous()
out = torch.empty(2, 3, 3)
launch = lambda: naive_kernel[(9, 2)](corner, few, out, 19, 19, 3, 3, STRIDE=4, C=3, R=11, S=11, BLOCK_S=16)
launch()
assert error(out, F.conv2d(corner.double(), few.double(), stride=4)[0]) < 1e-6

found = trace(launch, "naive_kernel", program=(0, 0))
loaded = sum(access.mask.sum() for step in found.steps for access in step.accesses if access.kind == "load")
assert loaded == 2 * 363
assert 290_400 * loaded == 210_830_400 and x.numel() + w.numel() == 189_435
print(f"one program loads {loaded} numbers for 363 MACs")

# %% [markdown]
# This kernel needs two loads for each MAC. Neighbouring programs load almost the same window, and 3,025 programs load
# the same filter, but they share nothing. In total the layer would load 211 million numbers. Only 0.19 million of them
# are different.
#
# ## Rung 1: tiles
#
# A program that computes a tile of M x N outputs loads M + N numbers for each tap, and does M * N MACs with them. So a
# larger tile needs fewer loads per MAC. That is the purpose of tiles. `tl.dot` multiplies two tiles. On a GPU it uses
# the **tensor cores**, units that multiply small matrices. They do not compute in full fp32, so `"ieee"` asks for fp32
# without them.
#
# In pseudocode:
#
# ```
# for every tile of BLOCK_M pixels and BLOCK_N filters, all at once:
#     acc = zeros [BLOCK_M, BLOCK_N]
#     for k0 in 0, BLOCK_K, 2 * BLOCK_K, ...:
#         a = A[pixels, k0 : k0 + BLOCK_K]      loaded from where the arithmetic says
#         b = B[k0 : k0 + BLOCK_K, filters]
#         acc += a @ b
#     store acc
# ```


# %%
@triton.jit
def tiled_kernel(
    x_ptr,  # [N, C, H, W]
    w_ptr,  # [K, C, R, S]
    y_ptr,  # [N, K, P, Q]
    M,  # N * P * Q
    C,
    H,
    W,
    K,
    P,
    Q,
    R,
    S,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, p, q = offs_m // (P * Q), offs_m // Q % P, offs_m % Q  # [BLOCK_M]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(runtime.trips(tl.cdiv(C * R * S, BLOCK_K))):
        offs_k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        c, r, s = offs_k // (R * S), offs_k // S % R, offs_k % S  # [BLOCK_K]
        taps = (offs_k < C * R * S)[None, :]
        x_row = ((n * C * H) + p * stride) * W + q * stride  # [BLOCK_M], where each window begins
        x_tap = (c * H + r) * W + s  # [BLOCK_K], where each tap lies in it
        a = tl.load(x_ptr + x_row[:, None] + x_tap[None, :], mask=(offs_m < M)[:, None] & taps, other=0.0)
        b = tl.load(
            w_ptr + (offs_n * (C * R * S))[:, None] + offs_k[None, :], mask=(offs_n < K)[:, None] & taps, other=0.0
        )
        acc = runtime.dot(a, tl.trans(b), acc, "ieee")
    y_ptrs = y_ptr + ((n * K * P + p) * Q + q)[:, None] + (offs_n * (P * Q))[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & (offs_n < K)[None, :])


# %% [markdown]
# The address is now a sum of two parts. The first part says where a window begins, and depends only on the row. The
# second part says where a tap lies in the window, and depends only on the column. Without padding every window lies
# inside the image. So the mask only cuts off what is beyond the ends of M, N and K.

# %%
geometry = (3025, 3, 227, 227, 96, 55, 55, 11, 11, 4)
nchw = x.contiguous()
out = torch.empty(1, 96, 55, 55)
block = {"BLOCK_M": 1024, "BLOCK_N": 128, "BLOCK_K": 64}  # large tiles are fast in the interpreter
tiled_kernel[(3, 1)](nchw, w.contiguous(), out, *geometry, **block)
assert error(out[0].flatten(1).T, exact) < 1e-6

# %% [markdown]
# Which pixels does a tile read? Take a tile of 128 pixels, as on a GPU, and program (3, 0). It computes the output
# pixels 384 to 511, a little more than two rows of 55.

# %%
maps.footprint((227, 227), 11, 4, 0, range(384, 512), title="Tile (3, 0) of conv1, 128 output pixels")

# %%
small = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64}
launch = lambda: tiled_kernel[(24, 2)](nchw, w.contiguous(), out, *geometry, **small)
tiled = trace(launch, "tiled_kernel", program=(3, 0))

pixels = maps.counts(tiled, "x_ptr").sum((0, 1)) > 0
assert pixels.sum() == 3749
figure, (left, right) = style.figure(1, 2, height=3.8)
maps.touched(tiled, "x_ptr", background=photo.square(), title="all that program (3, 0) loads", axes=left)
maps.touched(tiled, "x_ptr", 0, background=photo.square(), title="of that, the first 64 taps", axes=right)

# %% [markdown]
# How many numbers does it load now? The masks tell us.

# %%
loaded = sum(access.mask.sum() for step in tiled.steps for access in step.accesses if access.kind == "load")
macs = 128 * 64 * 363
assert loaded == (128 + 64) * 363
print(f"{macs / loaded:.1f} MACs for each number loaded; one program, one number made {363 / 726}")

# %% [markdown]
# ## Rung 2: channels last
#
# A GPU can load 16 bytes at a time, eight numbers of fp16, if they lie side by side. Do they? Look along a row of the
# tile, from tap to tap. In NCHW order the filter's columns are neighbours. So there are runs of eleven numbers side by
# side. Then there is a jump to the next row of the image.
#
# In `channels_last` order, NHWC, the colours of a pixel are neighbours, too. If taps are counted in the order (r, s,
# c), runs are 11 * 3 = 33 numbers long. Only three lines of the kernel change, and the place where the output is
# stored:
#
# ```
# r, s, c = offs_k // (S * C), offs_k // C % S, offs_k % C
# x_row = ((n * H + p * stride) * W + q * stride) * C
# x_tap = (r * W + s) * C + c
# ```


# %%
@triton.jit
def channels_last_kernel(
    x_ptr,  # [N, H, W, C]
    w_ptr,  # [K, R, S, C]
    y_ptr,  # [N, P, Q, K]
    M,  # N * P * Q
    C,
    H,
    W,
    K,
    P,
    Q,
    R,
    S,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n, p, q = offs_m // (P * Q), offs_m // Q % P, offs_m % Q
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(runtime.trips(tl.cdiv(C * R * S, BLOCK_K))):
        offs_k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        r, s, c = offs_k // (S * C), offs_k // C % S, offs_k % C
        taps = (offs_k < C * R * S)[None, :]
        x_row = ((n * H + p * stride) * W + q * stride) * C
        x_tap = (r * W + s) * C + c
        a = tl.load(x_ptr + x_row[:, None] + x_tap[None, :], mask=(offs_m < M)[:, None] & taps, other=0.0)
        b = tl.load(
            w_ptr + (offs_n * (C * R * S))[:, None] + offs_k[None, :], mask=(offs_n < K)[:, None] & taps, other=0.0
        )
        acc = runtime.dot(a, tl.trans(b), acc, "ieee")
    y_ptrs = y_ptr + (offs_m * K)[:, None] + offs_n[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & (offs_n < K)[None, :])


# %%
w_last = w.contiguous(memory_format=torch.channels_last)
out_last = torch.empty(1, 96, 55, 55).contiguous(memory_format=torch.channels_last)
channels_last_kernel[(3, 1)](x, w_last, out_last, *geometry, **block)
assert error(out_last[0].flatten(1).T, exact) < 1e-6

launch = lambda: channels_last_kernel[(24, 2)](x, w_last, out_last, *geometry, **small)
last = trace(launch, "channels_last_kernel", program=(3, 0))

# %% [markdown]
# ## Rung 3: a geometry that the compiler knows
#
# Until now the sizes were ordinary arguments. The compiler sees `offs_k // C` but does not know C. So the GPU must
# divide at run time, and the compiler cannot see that neighbouring taps have neighbouring addresses. If every size is a
# `tl.constexpr`, it can. The price is one compilation per geometry. AlexNet has five.
#
# This is the reason for the long list of arguments in the library's kernel. That kernel also has groups, padding and
# dilation, and bias and ReLU at its end. The loop is the one that you know.

# %%
source.show(_conv2d_kernel, "# Each program makes", "acc = runtime.dot")

# %% [markdown]
# ## Rung 4: space to depth
#
# One problem is left, and only conv1 has it: it has three channels. A pixel in fp16 is 6 bytes, and a stride of four
# pixels moves a window by 24 bytes. So few windows begin at a multiple of 16 bytes, and no load can be 16 bytes wide.
#
# The solution is to fold blocks of 4 x 4 pixels into channels. The photo becomes 57 x 57 pixels with 48 channels, and
# the filter becomes 3 x 3 with 48 channels. The stride was 4, so the new stride is 1. The filter's 11 rows do not fill
# three blocks of four, and zeros fill the rest. That makes 432 taps instead of 363.

# %%
folded_x = fold_input(x, w.shape, 4, (0, 0, 0, 0), 55, 55)
folded_w = fold_weight(w, 4)
assert folded_x.shape == (1, 48, 57, 57) and folded_w.shape == (96, 48, 3, 3)
assert 48 * 3 * 3 == 432
assert error(F.conv2d(folded_x.double(), folded_w.double()), F.conv2d(x.double(), w.double(), stride=4)) < 1e-12

figure, (left, right) = style.figure(1, 2, height=3.6)
padded = F.pad(w[chosen[0]], (0, 1, 0, 1)).mean(0)
for axes, title in ((left, "a filter: 11 x 11, and zeros"), (right, "folded: 3 x 3 blocks, 16 x 3 channels each")):
    limit = padded.abs().max()
    axes.imshow(padded, cmap=style.DIVERGING, vmin=-limit, vmax=limit)
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)
for edge in range(1, 12):
    left.plot([-0.5, 11.5], [edge - 0.5] * 2, color="white", linewidth=0.5)
    left.plot([edge - 0.5] * 2, [-0.5, 11.5], color="white", linewidth=0.5)
left.add_patch(style.outline(-0.5, -0.5, 11, 11))
for r in range(3):
    for s in range(3):
        right.add_patch(style.outline(4 * s - 0.5, 4 * r - 0.5, 4, 4))

# %% [markdown]
# The library does this folding itself where it makes the layer faster: `conv2d` with three channels and stride 4 runs
# like this.
#
# ## What the rungs did to memory
#
# The plots show the addresses of one row of a tile, tap after tap, at the same place in each kernel. A gentle slope is
# a run of neighbours. A step is a jump.

# %%
with tiles.use("conv2d", {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 1, "SPLIT_K": 1}):
    folded = trace(lambda: conv2d(x, w, bias, stride=4), "_conv2d_kernel", program=(3,))

rungs = {"rung 1: NCHW": tiled, "rung 2: channels last": last, "rung 4: space to depth": folded}
figure, axes = style.figure(1, 3, height=2.8)
longest = {}
for place, (name, found) in zip(axes, rungs.items(), strict=True):
    access = found.accesses("x_ptr")[0]
    place.plot(access.offsets[0] - access.offsets[0, 0], ".", markersize=3)
    longest[name] = maps.runs(access).max()
    place.set(title=name, xlabel="tap", ylabel="elements from the first")
    place.text(0.05, 0.88, f"runs of {longest[name]}", transform=place.transAxes, color=style.GREY)
assert list(longest.values()) == [11, 33, 64]  # 64 is the whole tile; folded, 3 * 48 = 144 lie side by side

# %% [markdown]
# The compiled code shows what this means. It is compiled here for an H100, fp16 and 128 photos. This needs no GPU. (The
# numbers depend on Triton's version.)

# %% tags=["varies"]
half = lambda *shape: torch.empty(shape, dtype=torch.float16)
args = (half(0), half(0), half(0), 128 * 3025, *geometry[1:])
options = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
with runtime.record_launches() as recorded, tiles.target("sm_90"):
    conv2d(half(128, 3, 227, 227), half(96, 3, 11, 11), half(96), stride=4, relu=True)
library = recorded[-1]
compiled = compiler.compile(
    {
        "rung 2: sizes at run time": compiler.Launch(channels_last_kernel, args, options),
        "rungs 3 and 4: the library": compiler.Launch(library.kernel, library.args, library.constants),
    }
)
compiler.table(compiled)
assert set(compiled["rungs 3 and 4: the library"].copies) == {16}
assert compiled["rungs 3 and 4: the library"].spills == 0

# %% [markdown]
# A GPU runs each program on many threads. A thread has at most 255 **registers**, in which it holds its numbers. If
# they are not enough, it **spills**: it keeps some numbers in memory instead. The accumulator takes 64 registers. With
# sizes at run time, the addresses take all the others. **Asynchronous copies** bring the next tiles to **shared
# memory**, which all threads of a program can reach, while the tensor cores multiply the current tiles. Each copy moves
# at most 16 bytes. The library's kernel uses only copies of 16 bytes. The other kernel has no such copies.
#
# ## Step through it: padding
#
# conv2 has padding: two rows and columns of zeros around the image. They do not exist in memory. A tap that lies there
# is masked and gives zero. The pictures show the first tile of 64 pixels of the library's kernel, at three of its 25
# taps. The shape is conv2's, with fewer channels. Blue lanes load, orange lanes are switched off.

# %%
torch.manual_seed(0)
maps_in, filters = torch.randn(1, 32, 27, 27), torch.randn(32, 16, 5, 5)
with tiles.use("conv2d", {"BLOCK_M": 64, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 1, "SPLIT_K": 1}):
    padded = trace(lambda: conv2d(maps_in, filters, padding=2, groups=2), "_conv2d_kernel")

h, w_, mask = padded.values("h"), padded.values("w"), [access.mask for access in padded.accesses("x_ptr")]
assert len(mask) == 25
figure, axes = style.figure(1, 3, height=3.4)
for place, tap in zip(axes, (0, 12, 24), strict=True):
    maps.lanes(h[tap], w_[tap], mask[tap], (27, 27), 2, title=f"tap ({tap // 5}, {tap % 5})", axes=place)
    place.get_legend().set_visible(tap == 12)
assert not mask[0][:27].any() and mask[12].all()  # tap (0, 0) of row 0 is above the image; tap (2, 2) is always inside

# %% [markdown]
# The accumulator fills tap by tap. (Program 0 computes 64 pixels, drawn downwards, of 16 filters, drawn to the right.)

# %%
stepping.strip(padded, "acc", columns=6, height=2.6)

# %% [markdown]
# Here is the whole program line by line. Move the slider.

# %%
stepping.slider(padded, _conv2d_kernel)

# %% [markdown]
# ## A check against PyTorch
#
# This compares all five convolutions of AlexNet, on random numbers, with PyTorch in float64. The error is max|out -
# ref| / max|ref|. In fp32 the project's tests allow 1e-5, for these and for awkward shapes.

# %%
for layer in ALEXNET:
    if layer.operator == "conv2d":
        operands = layer.random_operands(1, torch.float32, "cpu")
        arguments = {name: value for name, value in layer.arguments.items() if name != "relu"}
        ref = F.relu(F.conv2d(*(operand.double() for operand in operands), **arguments))
        assert error(layer.run(*operands), ref) < 1e-5
        print(f"{layer.name}: {' x '.join(map(str, ref.shape[1:]))}, under 1e-5")

# %% [markdown]
# ## Cost, and the place on the roofline
#
# Each layer must do its FLOPs, and it must move its input, weights and output at least once. Each of the two takes a
# certain time. The longer time is the layer's floor. Here are the floors for a batch of 128 photos in fp16:

# %%
layers = [layer for layer in ALEXNET if layer.operator == "conv2d"]
costs = {layer.name: layer.cost(128, itemsize=2) for layer in layers}
measured = machine.ours(machine.measure("conv2d", batch=128, dtype="fp16"))
assert costs["conv1"].macs == 128 * 105_415_200
roof.plot(costs, dtype="fp16", measured=measured, title="AlexNet's convolutions, batch 128")

# %%
roof.floors(costs, dtype="fp16", measured=measured, title="AlexNet's convolutions, batch 128")

# %% [markdown]
# conv1 is the only one left of the bend. With three channels in and 96 out it moves much memory for its arithmetic,
# mostly its output. The others are on the right, bound by arithmetic. These are limits, not measured speeds. Notebook
# 08 shows how near a kernel comes to its limit.
#
# ## Exercises
#
# Solutions are in [`solutions/01_convolution_as_gemm.py`](solutions/01_convolution_as_gemm.py).
#
# **1.** How many output pixels are there along one axis? `padding` is added at each end. `dilation` is the distance
# between neighbouring taps, so a filter of `kernel` taps spans more pixels. Return an int.
#
# <details><summary>Hint 1</summary>Without dilation it is <code>(size + 2 * padding - kernel) // stride +
# 1</code>.</details>
# <details><summary>Hint 2</summary>How many pixels does a filter of 3 taps at dilation 2 span? 5.</details>
# <details><summary>Hint 3</summary>It spans <code>dilation * (kernel - 1) + 1</code>.</details>


# %%
def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    raise NotImplementedError


nb01.output_size(output_size)

# %% [markdown]
# **2.** Now store A after all. Write a kernel that fills A [M, K] from an image in NHWC order, **with padding**. Taps
# are counted (r, s, c). Elements in the padding are zero and must not be loaded.
#
# <details><summary>Hint 1</summary>The offsets are those of <code>channels_last_kernel</code>. There is no loop,
# because program_id(1) counts blocks of taps.</details>
# <details><summary>Hint 2</summary><code>h = (p * stride - padding)[:, None] + r[None, :]</code>, and w in the same
# way, both [BLOCK_M, BLOCK_K].</details>
# <details><summary>Hint 3</summary>Load where m &lt; M, k &lt; K, 0 &lt;= h &lt; H and 0 &lt;= w &lt; W, with
# <code>other=0.0</code>. Store where m &lt; M and k &lt; K.</details>


# %%
@triton.jit
def im2col(
    x_ptr,  # [N, H, W, C]
    a_ptr,  # [N * P * Q, R * S * C]
    M,  # N * P * Q
    C,
    H,
    W,
    P,
    Q,
    R,
    S,
    stride,
    padding,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pass  # your lines


nb01.im2col(im2col)

# %% [markdown]
# **3.** Fold a filter, in PyTorch: (K, C, R, S) becomes (K, block * block * C, ceil(R / block), ceil(S / block)). The
# image was folded in the same way: channel `(dr * block + ds) * C + c` is pixel (dr, ds) of a block.
#
# <details><summary>Hint 1</summary>First pad the filter at its lower and right end with <code>F.pad</code>, to a
# multiple of <code>block</code>.</details>
# <details><summary>Hint 2</summary><code>reshape</code> to (K, C, R', block, S', block), and then
# <code>permute</code>.</details>
# <details><summary>Hint 3</summary>The order is K, dr, ds, C, R', S'. Then <code>reshape</code> once more.</details>


# %%
def fold_filter(weight: torch.Tensor, block: int) -> torch.Tensor:
    raise NotImplementedError


nb01.fold_filter(fold_filter)
