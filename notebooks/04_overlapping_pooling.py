# %% [markdown]
# # 04 · Overlapping pooling: 55, 27, 13, 6
#
# Three times AlexNet makes its maps smaller. It keeps the largest response in a window. Then the window moves on by
# less than its own width. You will
#
# - see which windows share which pixels, and what this costs,
# - write a pooling kernel, and step through its nine taps,
# - join LRN and pooling into one pass over memory, as the network does,
# - see the price, arithmetic done twice, and how the kernel reduces it.

# %%
from lesson import features, machine, maps, passes, roof, source, stepping, style
from lesson.check import nb04

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels import conv2d, lrn_max_pool2d, max_pool2d, runtime, tiles
from kernels.ops.lrn_max_pool2d import _lrn_max_pool2d_kernel
from kernels.ops.max_pool2d import _max_pool2d_kernel
from kernels.tools import cost
from kernels.tools.trace import trace
from kernels.tools.workloads import WORKLOADS
from model.alexnet import LRN

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## The idea
#
# A window is 3 x 3, at stride 2. An output pixel is the largest of nine numbers. The next output pixel's window begins
# two pixels further on, so the two windows share a column. Along an axis of H pixels there are (H - 3) // 2 + 1
# windows.

# %%
sizes = [55]
while sizes[-1] > 6:
    sizes.append((sizes[-1] - 3) // 2 + 1)
    if sizes[-1] in (27, 13):
        assert (sizes[-1] - 1) * 2 + 3 == sizes[-2]  # the last window ends where the map ends
assert sizes == [55, 27, 13, 6]
maps.windows((13, 13), 3, 2, outputs=((0, 0), (0, 1), (1, 1), (5, 5)))

# %% [markdown]
# Inside the map, a pixel with an even row and an even column lies in four windows. A pixel with an odd row and an odd
# column lies in only one. At 55, the nine taps of all 27 x 27 windows are 6,561 reads of 3,025 pixels: 2.17 reads per
# pixel.
#
# Windows of 2 x 2 at stride 2 would also give 27, with no overlap and fewer reads. The authors of 2012 found that
# overlap lowers the error by 0.4 % (top-1: the first guess is wrong) and 0.3 % (top-5: the first five guesses are
# wrong), and kept it (Krizhevsky et al., section 3.4).

# %%
assert 9 * 27 * 27 == 6561 and 55 * 55 == 3025 and round(6561 / 3025, 2) == 2.17
assert (55 - 2) // 2 + 1 == 27

photo, weight, bias = features.conv1()
x = conv2d(photo, weight, bias, stride=4, relu=True)
channel = int(x[0].amax((1, 2)).argmax())

figure, axes = style.figure(1, 4, height=2.9)
figure.suptitle(f"conv1's channel {channel}, pooled once, twice, three times", x=0.01, ha="left")
small = x
for place, size in zip(axes, sizes, strict=True):
    assert small.shape == (1, 96, size, size)
    place.imshow(small[0, channel].cpu(), vmin=0, vmax=x[0, channel].max().item())
    place.set_title(f"{size} x {size}")
    place.set_axis_off()
    small = max_pool2d(small, 3, 2)

# %% [markdown]
# (In the network there are convolutions between the poolings. The pictures show pooling alone. Strong responses stay.
# Their exact positions are lost, a little more each time.)
#
# ## Pointer arithmetic
#
# There is one lane for each output element, in the order of memory, (N, P, Q, C), where neighbouring channels are
# neighbours in memory:
#
# ```
# c = offs % C        q = offs // C % Q        p = offs // (C * Q) % P        n = offs // (C * Q * P)
# corner of its window:  x_ptr + ((n * H + 2 * p) * W + 2 * q) * C + c
# tap (r, s):            r * W * C + s * C further on
# ```
#
# The loop over taps keeps a running result, like the mean of a row in notebook 00. It starts at minus infinity. Masked
# lanes also get minus infinity, because nothing is smaller.


# %%
@triton.jit
def pool_kernel(
    x_ptr,  # [N, H, W, C]
    y_ptr,  # [N, P, Q, C]
    elements,  # N * P * Q * C
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    c = offs % C
    q = offs // C % Q
    p = offs // (C * Q) % P
    n = offs // (C * Q * P)
    x_ptrs = x_ptr + ((n * H + p * STRIDE) * W + q * STRIDE) * C + c
    best = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    for r in tl.static_range(SIZE):
        for s in tl.static_range(SIZE):
            x = tl.load(x_ptrs + (r * W + s) * C, mask=mask, other=float("-inf"))
            best = tl.maximum(best, x)
    tl.store(y_ptr + offs, best, mask=mask)


# %%
pooled = torch.empty(1, 96, 27, 27, device=device).contiguous(memory_format=torch.channels_last)
geometry = {"C": 96, "H": 55, "W": 55, "P": 27, "Q": 27, "SIZE": 3, "STRIDE": 2}
grid = (triton.cdiv(pooled.numel(), 32768),)
pool_kernel[grid](x, pooled, pooled.numel(), **geometry, BLOCK_M=32768)
assert torch.equal(pooled, F.max_pool2d(x, 3, 2))

# %% [markdown]
# ## Step through it
#
# One channel of 7 x 7 pixels gives nine windows. Nine lanes of a tile of 16 are active. Every tap is one load. The
# upper row shows the nine pixels that the lanes load for a tap, one per lane. The lower row shows `best` after this
# tap.

# %%
seven = torch.randint(0, 100, (1, 1, 7, 7), device=device).float()
out = torch.empty(1, 1, 3, 3, device=device)
geometry = {"C": 1, "H": 7, "W": 7, "P": 3, "Q": 3, "SIZE": 3, "STRIDE": 2}
launch = lambda: pool_kernel[(1,)](seven, out, 9, **geometry, BLOCK_M=16)
found = trace(launch, "pool_kernel")
best = found.values("best")[1:]  # the first value is all minus infinity
assert len(best) == len(found.accesses("x_ptr")) == 9

shown = (0, 1, 2, 3, 8)
figure, axes = style.figure(2, len(shown), height=4.0)
for (above, below), tap in zip(axes.T, shown, strict=True):
    r, s = divmod(tap, 3)
    above.imshow(seven[0, 0].cpu(), vmin=0, vmax=100, cmap="Greys")
    _, _, rows, columns = maps.indices(found.accesses("x_ptr")[tap], seven)
    above.plot(columns, rows, "o", color=style.ORANGE, markersize=6)
    above.set(title=f"tap ({r}, {s})", xticks=[], yticks=[])
    style.tile(below, best[tap][:9].reshape(3, 3), f"best, step {tap + 1} of 9", limit=100)
assert np.array_equal(best[-1][:9].reshape(3, 3), F.max_pool2d(seven, 3, 2)[0, 0].cpu().numpy())

# %%
stepping.slider(found, pool_kernel)

# %% [markdown]
# ## The kernel of the library
#
# It has the same loop, with three differences. A thread handles 16 bytes of channels instead of one element, as in
# notebook 03. It supports padding and dilation, so a tap can lie outside the image. Only in this case, each tap needs a
# mask (`WHOLE`). And a NaN wins every comparison, as in PyTorch. `ARGMAX` is for training: it records which tap won.

# %%
source.show(_max_pool2d_kernel, "VECTOR:", "best = maximum")

# %%
assert torch.equal(max_pool2d(x, 3, 2), F.max_pool2d(x, 3, 2))
odd = torch.randn(2, 5, 9, 8, device=device)
odd[0, 0, 4, 4] = float("nan")
for arguments in ({"stride": 1, "padding": 1}, {"ceil_mode": True}, {"stride": (2, 1), "dilation": 2}):
    assert torch.allclose(max_pool2d(odd, 3, **arguments), F.max_pool2d(odd, 3, **arguments), 0, 0, equal_nan=True)

# %% [markdown]
# ## LRN and pooling in one pass
#
# In AlexNet pooling comes right after LRN. Two kernels write the normalised map, 74 MB for 128 photos in fp16, and read
# it back, only to keep a quarter of it. With one kernel this map never exists.

# %%
N, itemsize = 128, 2
large, little = N * 96 * 55 * 55 * itemsize, N * 96 * 27 * 27 * itemsize
assert large == 74_342_400 and little == 17_915_904
plans = {
    "two kernels": [
        passes.Pass("LRN", {"x": large}, {"normalised": large}),
        passes.Pass("pooling", {"normalised": large}, {"y": little}),
    ],
    "one kernel": [passes.Pass("LRN and pooling", {"x": large}, {"y": little})],
}
passes.draw(plans, title="norm1 and pool1, 128 photos, fp16")
two, one = (sum(step.bytes for step in plan) for plan in plans.values())
assert round(two / one, 1) == 2.6

# %%
strong = 50 * x  # so that LRN has an effect: see notebook 03
expected = F.max_pool2d(F.local_response_norm(strong.double(), **LRN["bvlc"]), 3, 2)
y = lrn_max_pool2d(strong, **LRN["bvlc"], kernel_size=3, stride=2)
assert (y - expected).abs().max() < 1e-5 * expected.max()

# %% [markdown]
# The order is part of the network. Caffe's other model, CaffeNet, pools first and then normalises. This is less work,
# but it gives other numbers. Weights of one model do not fit the other.

# %%
swapped = F.local_response_norm(F.max_pool2d(strong.double(), 3, 2), **LRN["bvlc"])
difference = (swapped - expected).abs().max() / expected.max()
assert 0.1 < difference < 1
print(f"pooling first: up to {difference:.0%} of the largest response away")

# %% [markdown]
# ## The price, and how to pay less
#
# In the fused kernel each window normalises its own nine pixels. A pixel in four windows is normalised four times. That
# makes 9 normalised pixels per output, where 3,025 / 729 = 4.15 would be enough. LRN is 14 FLOPs per element, so this
# matters. Therefore the kernel gives each thread a **block** of output pixels. Rows and columns that windows share
# inside a block are normalised only once.


# %%
def normalised_per_output(block_p, block_q):
    """Returns the number of pixels under a block of windows, per output."""
    return (2 * block_p + 1) * (2 * block_q + 1) / (block_p * block_q)


assert normalised_per_output(1, 1) == 9 and round(3025 / 729, 2) == 4.15
assert round(normalised_per_output(3, 3), 2) == 5.44 and round(normalised_per_output(27, 27), 2) == 4.15

table = np.array([[normalised_per_output(p, q) for q in range(1, 6)] for p in range(1, 6)])
figure, axes = style.figure(height=3.2)
image = axes.imshow(table, cmap="YlOrBr", vmin=4.15, vmax=11)
for (p, q), value in np.ndenumerate(table):
    axes.text(q, p, f"{value:.2f}", ha="center", va="center")
axes.set(xticks=range(5), yticks=range(5), xlabel="BLOCK_Q", ylabel="BLOCK_P")
axes.set_xticklabels(range(1, 6))
axes.set_yticklabels(range(1, 6))
axes.set_title("pixels normalised per output (at least 4.15)")
bar = figure.colorbar(image, ax=axes, shrink=0.8)

# %% [markdown]
# Larger blocks save arithmetic. But they hold more rows in registers, and they leave fewer threads to fill the GPU. For
# large batches the default is 3 x 3. Traces of the kernel show the difference, on 7 x 7 pixels with four channels:

# %%
four = torch.rand(1, 4, 7, 7, device=device).contiguous(memory_format=torch.channels_last)
launch = lambda: lrn_max_pool2d(four, **LRN["bvlc"], kernel_size=3, stride=2)
figure, axes = style.figure(1, 2, height=3.2)
totals = []
for place, (block, lanes) in zip(axes, ((1, 16), (3, 1)), strict=True):
    with tiles.use("lrn_max_pool2d", {"BLOCK_M": lanes, "BLOCK_P": block, "BLOCK_Q": block}):
        found = trace(launch, "_lrn_max_pool2d_kernel")
    times = maps.counts(found, "x_ptr")[0, 0]
    totals.append(int(times.sum()))
    style.tile(place, times, f"blocks of {block} x {block}: {times.sum()} pixels normalised", limit=4)
assert totals == [81, 49]

# %% [markdown]
# The loop goes down the block's rows. `carry` holds the maxima of the row that the next window shares, so this row is
# not normalised again.

# %%
source.show(_lrn_max_pool2d_kernel, "for p in range(BLOCK_P)", "carry_argmax = new_carry_argmax")

# %% [markdown]
# There is one more trick in these lines. If x is the largest of nine numbers, then x|x|, its square with its sign, is
# also the largest. So in fp16 the kernel compares x|x| / d^1.5, which needs only one root. It computes the second root
# once per output, not once per pixel. (Only fp16's squares always fit into fp32.)

# %%
half = strong.half()
expected = F.max_pool2d(F.local_response_norm(half.double(), **LRN["bvlc"]), 3, 2)
y = lrn_max_pool2d(half, **LRN["bvlc"], kernel_size=3, stride=2)
assert (y.double() - expected).abs().max() < 2e-3 * expected.max()

# %% [markdown]
# ## What it costs
#
# Bytes decide, for all three. If each pixel counts as normalised once, the fused kernel does as many FLOPs as the two
# others together. But it waits for memory less than half as long.

# %%
pool = cost.max_pool2d((N, 96, 55, 55), (3, 3), (2, 2), itemsize=itemsize)
costs = {
    "norm1 alone": WORKLOADS["norm1"].cost(N, itemsize),
    "pooling alone": pool,
    "pool1: both": WORKLOADS["pool1"].cost(N, itemsize),
}
assert costs["pool1: both"].flops == costs["norm1 alone"].flops + pool.flops
assert costs["pool1: both"].bytes == large + little == pool.bytes
assert costs["pool1: both"].bytes < 0.5 * (costs["norm1 alone"].bytes + pool.bytes)
ms = machine.ours(machine.measure("local_response_norm", "lrn_max_pool2d"))
measured = {"norm1 alone": ms.get("norm1"), "pool1: both": ms.get("pool1")}
roof.floors(costs, measured=measured, title="LRN and pooling after conv1, 128 photos in fp16")

# %%
roof.plot(costs, measured=measured, title="Two kernels, and one")

# %% [markdown]
# With blocks of 3 x 3 a pixel is normalised 1.3 times on average, not once. This arithmetic does not run on the tensor
# cores, so its limit is not 989 TFLOP/s. It is the limit of ordinary fp32, 67 TFLOP/s for an H100. Square roots are
# even slower. Still, the arithmetic takes less time than the bytes:

# %%
limits = machine.H100["fp32"]
again = normalised_per_output(3, 3) / normalised_per_output(27, 27)
assert round(again, 1) == 1.3 and limits.rate == 66.9e12
arithmetic_us = again * costs["pool1: both"].flops / limits.rate * 1e6
bytes_us = costs["pool1: both"].bytes / machine.H100["fp16"].bandwidth * 1e6
assert arithmetic_us < 0.5 * bytes_us
print(f"a model: {arithmetic_us:.0f} us of fp32 arithmetic, {bytes_us:.0f} us of bytes")

# %% [markdown]
# ## Exercises
#
# Solutions are in [`solutions/04_overlapping_pooling.py`](solutions/04_overlapping_pooling.py).
#
# **1.** How many windows fit along an axis? `padding` is added at both ends. With `ceil_mode`, a last window may extend
# beyond the end, if it begins inside the input or inside the padding before it.
#
# <details><summary>Hint 1</summary>The last of n windows begins at (n - 1) * stride - padding.</details>
# <details><summary>Hint 2</summary>Without <code>ceil_mode</code>, round (size + 2 * padding - kernel) / stride down
# and add one. With it, round up and add one.</details>
# <details><summary>Hint 3</summary>After rounding up, subtract one if <code>(n - 1) * stride >= size +
# padding</code>.</details>


# %%
def windows(size, kernel, stride, padding, ceil_mode):
    raise NotImplementedError  # your lines


nb04.windows(windows)

# %% [markdown]
# **2.** Write max pooling with padding, in `channels_last` memory. Padding never wins, even if all other values are
# negative. Begin with `pool_kernel`.
#
# <details><summary>Hint 1</summary>A window now begins at <code>p * STRIDE - PAD</code>. This can be
# negative.</details>
# <details><summary>Hint 2</summary>Each tap needs its own mask: is its row in 0 ... H - 1, and its column in 0 ... W -
# 1?</details>
# <details><summary>Hint 3</summary><code>h = p * STRIDE - PAD + r</code>, and <code>inside = mask & (h >= 0) & (h < H)
# & (w >= 0) & (w < W)</code></details>


# %%
@triton.jit
def padded(
    x_ptr,
    y_ptr,
    elements,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pass  # your lines


nb04.padded(padded)

# %% [markdown]
# **3.** Which tap won? For each window store `r * SIZE + s` of its largest element. If several are equal, take the
# first. After a ReLU, many are equal. Training needs this, because the gradient goes to that pixel.
#
# <details><summary>Hint 1</summary>Keep a second running result beside <code>best</code>.</details>
# <details><summary>Hint 2</summary>Update both where <code>x > best</code>, the tap first.</details>
# <details><summary>Hint 3</summary><code>tap = tl.where(x > best, r * SIZE + s, tap)</code>, and then <code>best =
# tl.maximum(best, x)</code></details>


# %%
@triton.jit
def winner(
    x_ptr,
    tap_ptr,
    elements,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pass  # your lines


nb04.winner(winner)

# %% [markdown]
# ## Where to go on
#
# In [05](05_fully_connected.ipynb), 6 x 6 pixels of 256 channels are left. They become a row of 9,216 numbers.
