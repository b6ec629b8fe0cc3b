# %% [markdown]
# # 00 · Start here: programs, tiles and masks
#
# A Triton kernel is a function that runs many times in parallel. Each run is called a **program** and has a number.
# From this number the program computes which **tile** (small block) of the data it works on. In ten minutes you will
#
# - read and write kernels in one and two dimensions,
# - know what a mask is for, and see which lanes it switches off,
# - step through a program line by line and see the value of every variable,
# - know how to check that a kernel is right, and how fast it can be at best.
#
# Everything runs with or without a GPU. The next cell prints which of the two it found.

# %%
from lesson import machine, maps, photo, roof, source, stepping, style  # first: it turns on Triton's interpreter
from lesson.check import nb00

import numpy as np
import torch
import triton
import triton.language as tl

from kernels import runtime, softmax
from kernels.ops.softmax import _softmax_kernel, online_softmax
from kernels.tools import cost
from kernels.tools.trace import trace

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## The photo
#
# All notebooks use the same photo: a cat, from scikit-image. The network takes a square of 227 x 227 pixels with three
# colours. Here each colour is a number from 0 to 1.

# %%
x = photo.tensor()
assert x.shape == (1, 3, 227, 227)

figure, (left, right) = style.figure(1, 2, height=3.4, width_ratios=(451, 300))
left.imshow(photo.whole())
left.set_title("as it was taken: 300 x 451 pixels")
right.imshow(photo.square())
right.set_title("as the network sees it: 227 x 227")
for axes in (left, right):
    axes.set_axis_off()

# %% [markdown]
# A kernel sees this tensor as a row of 154,587 numbers in memory, and gets a **pointer**, the address of the first of
# them. The rest is arithmetic. For example: which of these numbers is the red of the pixel at row 10, column 20?
#
# PyTorch calls the shape (N, C, H, W): image, channel, row, column. The order in memory can be different. The
# **strides** describe it: for each dimension, the stride says how far apart two neighbours are in memory, counted in
# numbers. These tensors are `channels_last`: the three colours of a pixel lie side by side.

# %%
print("shape  ", tuple(x.shape))
print("strides", x.stride())

channel, row, column = 0, 10, 20
offset = channel * x.stride(1) + row * x.stride(2) + column * x.stride(3)
memory = x.permute(0, 2, 3, 1).flatten()  # the numbers as they lie in memory
assert x.numel() == 227 * 227 * 3 == 154_587
assert memory[offset] == x[0, channel, row, column]
print("red at row 10, column 20: element", offset)

# %% [markdown]
# ## One program, one tile
#
# Take ten numbers and multiply each by one half. A program does not handle a single number. It handles a tile of
# `BLOCK` numbers, and `BLOCK` is a power of two. Each place in a tile is called a **lane**. Ten numbers in tiles of
# four need three programs, and the last program has two lanes too many. These two lanes must not read or write, because
# the memory behind the tensor belongs to other data. A **mask** switches them off.

# %%
n, BLOCK = 10, 4
programs = triton.cdiv(n, BLOCK)  # 10 / 4, rounded up
assert programs == 3

offsets = np.arange(programs * BLOCK).reshape(programs, BLOCK)
figure, axes = style.figure(1, programs, height=1.7)
figure.suptitle("Element of each lane: blue takes part, orange is masked", x=0.01, ha="left")
for pid, place in enumerate(axes):
    place.imshow((offsets[pid] < n)[None], cmap=style.MASK, vmin=0, vmax=1)
    for lane, offset in enumerate(offsets[pid]):
        place.text(lane, 0, str(offset), ha="center", va="center", color="white", fontsize=13)
    place.set(xticks=range(BLOCK), yticks=[], xlabel="lane", title=f"program {pid}")
    place.spines[:].set_visible(False)

# %% [markdown]
# In pseudocode:
#
# ```
# for every program pid, all at once:
#     offs = pid * BLOCK + [0, 1, ..., BLOCK - 1]      which elements are mine
#     mask = offs < n                                  which of them exist
#     x    = load(x_ptr + offs) where mask
#     store(y_ptr + offs, gain * x) where mask
# ```
#
# In Triton it is the same, line for line. `x_ptr + offs` is a tile of pointers, one per lane. There is no loop over
# lanes. `tl.constexpr` marks a value that must be known when the kernel is compiled. The size of a tile is such a
# value.


# %%
@triton.jit
def scale_kernel(x_ptr, y_ptr, gain, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    tl.store(y_ptr + offs, gain * x, mask=mask)


# %% [markdown]
# `kernel[grid](...)` launches the kernel. The **grid** is the number of programs.

# %%
ten = torch.arange(10.0, device=device)
half = torch.empty_like(ten)
scale_kernel[(programs,)](ten, half, 0.5, n, BLOCK=BLOCK)
assert torch.equal(half, 0.5 * ten)
print(half.tolist())

# %% [markdown]
# ## Step through it
#
# `kernels.tools.trace` runs a single program in Triton's interpreter. It records each line that sets, loads or stores
# something. Here is program 2. Its last two lanes are masked. Compare its offsets with the picture above.

# %%
launch = lambda: scale_kernel[(programs,)](ten, half, 0.5, n, BLOCK=BLOCK)
found = trace(launch, "scale_kernel", program=(2,))
print(found.listing())

assert found.values("offs")[0].tolist() == [8, 9, 10, 11]
assert found.values("mask")[0].tolist() == [True, True, False, False]

# %% [markdown]
# Here are the same values as pictures. Every notebook has such a strip for its kernel.

# %%
stepping.strip(found, "pid", "offs", "mask", "x", height=1.3)

# %% [markdown]
# And here they are with a slider. Move it to go from line to line. (A slider needs a running Python. Where you can only
# read this page, it shows one step.)

# %%
stepping.slider(found, scale_kernel)

# %% [markdown]
# On a photo the kernel works in the same way. There are more elements, more programs and a larger tile.

# %%
dark = torch.empty_like(x)
grid = lambda META: (triton.cdiv(x.numel(), META["BLOCK"]),)
scale_kernel[grid](x, dark, 0.4, x.numel(), BLOCK=32768)
assert torch.equal(dark, 0.4 * x)

figure, (left, right) = style.figure(1, 2, height=3.0)
pixels = lambda image: image[0].permute(1, 2, 0).cpu()
left.imshow(pixels(x))
left.set_title("x")
right.imshow(pixels(dark))
right.set_title("0.4 x, by five programs")
for axes in (left, right):
    axes.set_axis_off()
assert triton.cdiv(x.numel(), 32768) == 5

# %% [markdown]
# ## Tiles in two dimensions
#
# An image is cut into tiles with rows and columns. The offsets of such a tile come from two ranges. `[:, None]` turns
# the first range into a column, and `[None, :]` turns the second into a row. Their sum is a whole table, as in NumPy.
#
# This kernel turns a photo grey. Its grid has two dimensions: `program_id(0)` counts tiles downwards, and
# `program_id(1)` counts them to the right.


# %%
@triton.jit
def grey_kernel(
    x_ptr,  # [H, W, 3]
    y_ptr,  # [H, W]
    H,
    W,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    offs_w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)  # [BLOCK_W]
    mask = (offs_h < H)[:, None] & (offs_w < W)[None, :]  # [BLOCK_H, BLOCK_W]
    pixel = offs_h[:, None] * W + offs_w[None, :]  # [BLOCK_H, BLOCK_W]
    red = tl.load(x_ptr + pixel * 3, mask=mask, other=0.0)
    green = tl.load(x_ptr + pixel * 3 + 1, mask=mask, other=0.0)
    blue = tl.load(x_ptr + pixel * 3 + 2, mask=mask, other=0.0)
    tl.store(y_ptr + pixel, 0.299 * red + 0.587 * green + 0.114 * blue, mask=mask)


# %%
H = W = 227
BLOCK_H = BLOCK_W = 64
grey = torch.empty(H, W, device=device)
tiles = (triton.cdiv(H, BLOCK_H), triton.cdiv(W, BLOCK_W))
assert tiles == (4, 4)
launch = lambda: grey_kernel[tiles](x, grey, H, W, BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W)
launch()

weights = torch.tensor([0.299, 0.587, 0.114], device=device)
expected = (x * weights[:, None, None]).sum(1)[0]
assert (grey - expected).abs().max() < 1e-6

# %% [markdown]
# Four by four tiles of 64 x 64 pixels cover 256 x 256 pixels. That is more than the photo has. In program (3, 2) the
# mask switches off the rows below the photo's lower edge. 227 - 3 * 64 = 35 of the tile's 64 rows are left.

# %%
found = trace(launch, "grey_kernel", program=(3, 2))
mask = found.values("mask")[0]
assert mask[:, 0].sum() == 35 and mask.all(0).sum() == 0

figure, (left, middle, right) = style.figure(1, 3, height=3.2)
left.imshow(grey.cpu(), cmap="gray")
for edge in range(0, 257, 64):
    left.plot([0, 256], [edge, edge], color=style.SKY, linewidth=1)
    left.plot([edge, edge], [0, 256], color=style.SKY, linewidth=1)
left.set(title="grey, and the 16 tiles", xlim=(-4, 260), ylim=(260, -4))
maps.touched(found, "x_ptr", background=photo.square(), title="what program (3, 2) loads", axes=middle)
style.tile(right, mask, "its mask: 35 of 64 rows")

# %% [markdown]
# ## Loops, and a running result
#
# A row can be longer than a tile. Then a program walks along the row and keeps a running result in a variable. Here is
# the mean of each row. `acc` starts as zeros, and every step adds a block of columns. Now `other=0.0` matters: it is
# the value that masked lanes get, and zeros do not change a sum.


# %%
@triton.jit
def row_mean_kernel(
    x_ptr,  # [M, N]
    y_ptr,  # [M]
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    acc = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for n0 in range(0, N, BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        mask = mask_m[:, None] & (offs_n < N)[None, :]
        x = tl.load(x_ptr + offs_m[:, None] * N + offs_n[None, :], mask=mask, other=0.0)
        acc += tl.sum(x, 1)
    tl.store(y_ptr + offs_m, acc / N, mask=mask_m)


# %%
mean = torch.empty(H, device=device)
launch = lambda: row_mean_kernel[(triton.cdiv(H, 16),)](grey, mean, H, N=W, BLOCK_M=16, BLOCK_N=64)
launch()
assert (mean - grey.mean(1)).abs().max() < 1e-6

found = trace(launch, "row_mean_kernel", program=(14,))
assert len(found.accesses("x_ptr")) == 4  # blocks of 64 columns: 227 / 64, rounded up
stepping.strip(found, "x", "acc", columns=5, height=1.2)

# %% [markdown]
# Program 14 has the rows from 224 on. Only three of them exist. Watch how `acc` grows from block to block in these
# three rows and stays zero in the others.
#
# ## A kernel of the library
#
# All kernels in `kernels/` are made of the parts that you have just seen: program ids, offsets, masks, loads, a loop
# with a running result, a store. Here is a short one, softmax. Its first loop keeps two running results: the largest
# value so far, and a sum. Its second loop writes the output.

# %%
source.show(_softmax_kernel, "offs_m =")

# %% [markdown]
# `online_softmax` takes one block into both running results. If the maximum grows, it tells by how much to rescale the
# sum so far.

# %%
source.show(online_softmax)

# %%
logits = torch.randn(3, 10, device=device)
assert (softmax(logits) - torch.softmax(logits, 1)).abs().max() < 1e-6

stepping.slider(trace(lambda: softmax(logits), "_softmax_kernel"), _softmax_kernel)

# %% [markdown]
# ## Is it right?
#
# A kernel that reads or writes outside of its tensor often looks right, because the memory there happens to hold zeros.
# Therefore this project's tests
#
# - compare with PyTorch in float64, by the error max|out - ref| / max|ref|,
# - fill outputs with NaN first, so that an element that the kernel never writes is found,
# - put **guards** (extra elements full of NaN) around inputs and outputs, so that a forgotten mask is found,
# - use awkward sizes: 1, 7, 31, 227, not only powers of two.
#
# The checkers of the exercises do the same. The next kernel forgets a mask. Look at what happens to the guards behind
# its output.


# %%
@triton.jit
def careless_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, 0.5 * x)  # no mask


buffer = torch.full((16,), float("nan"), device=device)
careless_kernel[(3,)](ten, buffer, 10, BLOCK=4)
assert torch.equal(buffer[:10], 0.5 * ten)  # right, if you look no further
assert buffer[10:12].tolist() == [0.0, 0.0]  # but these two belonged to other data
print(buffer.tolist())

# %% [markdown]
# ## How fast can it be?
#
# `scale_kernel` reads each number once and writes it once. In fp16, floating-point numbers of 16 bits, that is 2 + 2
# bytes for one multiplication. A multiplication or addition of two numbers is a **FLOP** (floating-point operation), so
# this kernel does a quarter of a FLOP per byte. An H100, a large GPU from NVIDIA, can do hundreds of FLOPs in the time
# that it needs to load one byte. So this kernel waits for memory. Faster arithmetic does not help it. Its **floor**,
# the shortest possible time, is bytes / bandwidth.
#
# A plot of FLOP/s over FLOP per byte shows this at once. Left of the bend memory is the limit. Right of the bend
# arithmetic is the limit. The plot is called a **roofline**. Notebook 07 puts all of AlexNet under it. The convolution
# in the plot below is AlexNet's first one, the subject of notebook 01. Both points are for 128 photos.

# %%
numbers = 128 * x.numel()
work = {
    "scale": cost.Cost((numbers,), 0, numbers, 4 * numbers),
    "conv1": cost.conv2d((128, 3, 227, 227), (96, 3, 11, 11), (4, 4), itemsize=2),
}
assert work["scale"].flops / work["scale"].bytes == 0.25
roof.plot(work, dtype="fp16", title="Scaling a photo, and a convolution")

# %% [markdown]
# ## Exercises
#
# Write the kernel in the cell and run it. The checker at the end of the cell says in one line what is wrong. Solutions
# are in [`solutions/00_start_here.py`](solutions/00_start_here.py).
#
# **1.** Compute `y = a * x + y_0`, element by element, for two inputs `x` and `y`. Remember the mask: the checker tests
# it.
#
# <details><summary>Hint 1</summary>It is <code>scale_kernel</code> with a second load.</details>
# <details><summary>Hint 2</summary>Both loads and the store use the same offsets and the same mask.</details>
# <details><summary>Hint 3</summary><code>tl.store(out_ptr + offs, a * x + y, mask=mask)</code></details>


# %%
@triton.jit
def saxpy(x_ptr, y_ptr, out_ptr, a, n, BLOCK: tl.constexpr):
    pass  # your lines


nb00.saxpy(saxpy)

# %% [markdown]
# **2.** Mirror an image of (H, W), left to right: column 0 becomes the last column. Only the pointer arithmetic
# changes.
#
# <details><summary>Hint 1</summary>Begin with the offsets and the mask of <code>grey_kernel</code>.</details>
# <details><summary>Hint 2</summary>Load as usual and store to another column, or the other way round.</details>
# <details><summary>Hint 3</summary>Column <code>w</code> goes to column <code>W - 1 - w</code>.</details>


# %%
@triton.jit
def mirror(x_ptr, y_ptr, H, W, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    pass  # your lines


nb00.mirror(mirror)

# %% [markdown]
# **3.** Find the largest value of each row of (M, N), where N is longer than a tile. Which value should masked lanes
# get? All values of a row can be negative.
#
# <details><summary>Hint 1</summary>It is <code>row_mean_kernel</code> with another running result.</details>
# <details><summary>Hint 2</summary>The running result starts as minus infinity: <code>tl.full((BLOCK_M,),
# float("-inf"), dtype=tl.float32)</code>.</details>
# <details><summary>Hint 3</summary><code>other=float("-inf")</code>, and <code>largest = tl.maximum(largest, tl.max(x,
# 1))</code></details>


# %%
@triton.jit
def row_max(x_ptr, y_ptr, M, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    pass  # your lines


nb00.row_max(row_max)

# %% [markdown]
# ## Where to go on
#
# [01](01_convolution_as_gemm.ipynb) turns AlexNet's first convolution into a product of matrices, step by step.
