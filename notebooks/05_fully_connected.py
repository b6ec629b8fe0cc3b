# %% [markdown]
# # 05 · Fully connected: one product, two limits
#
# After the last pooling, AlexNet forgets that there was a picture: 256 maps of 6 x 6 become a row of 9216 numbers, and
# three **fully connected** layers make 4096, 4096 and 1000 of it. They hold 96 % of the network's parameters. You will
#
# - write such a layer as a product of matrices, first with a program an output, then in tiles,
# - count what a tile reads, and see why a large one reads less,
# - step through a program of `kernels/ops/linear.py`,
# - see the same layer bound by memory for one photo, and by arithmetic for many.

# %%
from lesson import machine, maps, product, roof, source, stepping, style
from lesson.check import nb05

import numpy as np
import torch
import triton
import triton.language as tl

import kernels
from kernels import runtime, tiles
from kernels.ops.linear import _linear_kernel, _linear_row_kernel
from kernels.tools import cost, torch_ops
from kernels.tools.trace import trace
from kernels.tools.workloads import LAYERS
from model import weights
from model.alexnet import AlexNet
from model.infer import default_photo
from model.photos.preprocess import open_image

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## From maps to a row
#
# First what comes in: the cat, as pool5 leaves it. (The layers up to there run on PyTorch's operators here, which is
# quicker than the interpreter. Notebook [06](06_alexnet.ipynb) runs all of it on ours.)

# %%
trained = weights.load(weights.DEFAULT)
net = AlexNet.from_weights(trained).to(device)
image = trained.preprocess(open_image(default_photo()))[None].to(device, memory_format=torch.channels_last)

maps5 = image
with torch.no_grad():
    for name, layer in net.use(torch_ops).named_children():
        maps5 = layer(maps5)
        if name == "pool5":
            break
row = maps5.flatten(1)  # in the order C, H, W
assert maps5.shape == (1, 256, 6, 6)
assert row.shape == (1, 9216)

channel, h, w = 100, 2, 5
assert row[0, channel * 36 + h * 6 + w] == maps5[0, channel, h, w]

figure, axes = style.figure(2, 8, height=2.6)
figure.suptitle("16 of pool5's 256 maps: 6 x 6 numbers each", x=0.01, ha="left")
limit = maps5.max().item()
for number, place in enumerate(axes.flat):
    place.imshow(maps5[0, 16 * number].cpu(), vmin=0, vmax=limit)
    place.set_title(f"map {16 * number}", fontsize=9)
    place.set_axis_off()

# %% [markdown]
# `flatten` lays the maps one behind the other: number 100 * 36 + 2 * 6 + 5 of the row is map 100's at (2, 5). The
# order matters, because the weights were trained for it. Memory has another one, `channels_last`, with a pixel's
# channels side by side; so this is one of the few places where the network copies. It copies 37 kB.

# %%
assert not row.is_contiguous() or row.data_ptr() != maps5.data_ptr()  # a copy, not a view
assert row.numel() * row.element_size() == 36_864

# %% [markdown]
# ## The idea
#
# A layer has a row of weights for each output, `w` of shape (N, K), as `torch.nn.Linear` keeps it. For a batch of M
# rows that come in, `x` of shape (M, K):
#
# $$ y[m, n] = \mathrm{ReLU}\Big(b[n] + \sum_k x[m, k]\; w[n, k]\Big) $$
#
# That is a product of matrices, with the second one transposed. A tile of `y` needs a band of rows of `x` and a band
# of columns of `w` transposed, and nothing else. A program walks along both, a block of K at a time.

# %%
product.picture(
    ("M photos", "N = 4096 outputs", "K = 9216 inputs"),
    tile=(0.35, 0.6, 0.4, 0.6),
    step=(0.25, 0.4),
    title="fc6: a tile of y (red), the bands that it needs (light), and the blocks of one step (blue)",
)

# %% [markdown]
# ## Rung 1: a program an output
#
# The simplest kernel has a program for each number of `y`. It multiplies a row of `x` by a row of `w`, and sums.


# %%
@triton.jit
def output_kernel(x_ptr, w_ptr, b_ptr, y_ptr, N, K: tl.constexpr, BLOCK_K: tl.constexpr):
    m, n = tl.program_id(0), tl.program_id(1)
    acc = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        mask = offs_k < K
        x = tl.load(x_ptr + m * K + offs_k, mask=mask, other=0.0)
        w = tl.load(w_ptr + n * K + offs_k, mask=mask, other=0.0)
        acc += x * w
    y = tl.sum(acc, 0) + tl.load(b_ptr + n)
    tl.store(y_ptr + m * N + n, tl.maximum(y, 0.0))


# %%
some = torch.randn(4, 200, device=device)
few = torch.randn(24, 200, device=device)
bias = torch.randn(24, device=device)
y = torch.empty(4, 24, device=device)
launch = lambda: output_kernel[(4, 24)](some, few, bias, y, 24, K=200, BLOCK_K=64)
launch()

expected = torch.relu(torch.nn.functional.linear(some.double(), few.double(), bias.double()))
error = lambda out, ref: ((out - ref).abs().max() / ref.abs().max()).item()
assert error(y, expected) < 1e-5

# %% [markdown]
# It is right. What does it read? The trace of a program knows.

# %%
found = trace(launch, "output_kernel", program=(2, 5))
loaded = lambda found, *names: sum(int(access.mask.sum()) for name in names for access in found.accesses(name))
assert loaded(found, "x_ptr", "w_ptr") == 2 * 200  # K multiply-accumulates
print(f"{loaded(found, 'x_ptr', 'w_ptr')} numbers read for {200} multiply-accumulates")

# %% [markdown]
# Two numbers for every multiply-accumulate. For all of fc6 and 256 photos, 19 billion numbers, where `x` and `w` have
# 40 million. Every row of `w` is read 256 times, every row of `x` 4096 times. Caches soften this, and cannot cure it.

# %%
M, N, K = 256, 4096, 9216
assert 2 * M * N * K == 19_327_352_832
assert M * K + N * K == 40_108_032

# %% [markdown]
# ## Rung 2: tiles
#
# A program that makes a tile of BLOCK_M x BLOCK_N outputs reads BLOCK_M + BLOCK_N numbers for each k, and multiplies
# BLOCK_M * BLOCK_N pairs of them. Twice as large a tile reads half as much in all.

# %%
reads = lambda m, n: M * N * K // (m * n) * (m + n)
print("tile         numbers read    FLOP per byte read (fp16)")
for m, n in ((1, 1), (16, 16), (64, 64), (128, 128)):
    print(f"{m:3} x {n:3}  {reads(m, n):15,}  {2 * m * n / ((m + n) * 2):10.1f}")
assert reads(1, 1) == 2 * M * N * K
assert reads(128, 128) * 128 == reads(1, 1)

# %% [markdown]
# In pseudocode, for program (pid_m, pid_n):
#
# ```
# offs_m = pid_m * BLOCK_M + [0 ... BLOCK_M)          my rows of x
# offs_n = pid_n * BLOCK_N + [0 ... BLOCK_N)          my rows of w
# acc = zeros [BLOCK_M, BLOCK_N]
# for k0 = 0, BLOCK_K, 2 * BLOCK_K, ... < K:
#     x   = load x[offs_m, k0 ... k0 + BLOCK_K)       [BLOCK_M, BLOCK_K]
#     w   = load w[offs_n, k0 ... k0 + BLOCK_K)       [BLOCK_N, BLOCK_K]
#     acc = acc + x @ w transposed                    the tensor cores do this
# store relu(acc + bias[offs_n])
# ```
#
# ### Pointer arithmetic
#
# `x[m, k]` is element m * K + k, and `w[n, k]` element n * K + k. The kernel calls its operands `a` [M, K] and `b`
# [K, N], and is told by how many elements each index moves: `STRIDE_AM` = K, `STRIDE_AK` = 1, `STRIDE_BK` = 1 and
# `STRIDE_BN` = K. That is all there is to "transposed": nothing is moved, two strides change places. Training needs
# `g @ w` and `g.T @ x` for its gradients, and gets both from the same kernel.

# %%
source.show(_linear_kernel, "rows = batch", "acc = runtime.dot")

# %% [markdown]
# After the loop, while the tile is still in registers, come bias and ReLU, for nothing. Notebook
# [02](02_bias_relu_fusion.ipynb) is about that.

# %%
source.show(_linear_kernel, "if HAS_BIAS", "tl.store")

# %% [markdown]
# ## Step through a program
#
# A small layer with awkward sizes: 7 rows, 200 inputs, 100 outputs, in tiles of 16 x 64 and blocks of 64. The last
# program has 36 columns left, and the last block 8 of 64.

# %%
x = torch.randn(7, 200, device=device)
w = torch.randn(100, 200, device=device)
b = torch.randn(100, device=device)
TILE = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8}


def small():
    with tiles.use("linear", TILE):
        return kernels.linear(x, w, b, relu=True)


assert error(small(), torch.relu(torch.nn.functional.linear(x.double(), w.double(), b.double()))) < 1e-5

found = trace(small, "_linear_kernel", program=(1,))
assert found.values("mask_n")[0].sum() == 100 - 64 == 36
assert found.values("mask_m")[0].sum() == 7
assert len(found.accesses("a_ptr")) == 4 and 200 - 3 * 64 == 8
stepping.strip(found, "a", "b", "acc", columns=4, height=1.6)
assert len(found.values("acc")) == 7  # of which the strip shows every other one

# %% [markdown]
# Rows of `a` and of `acc` from 7 on stay empty, and so do columns of `b` from 36 on. In the last block, 8 numbers are
# left. `acc` is shown as it begins, after two blocks, after all four, and at the end. In between the bias came to all
# its rows, masked ones too, and ReLU after it. The store's mask leaves out what should not be there.

# %%
stepping.slider(found, _linear_kernel)

# %% [markdown]
# What does it touch? Of `w`, as `b` sees it with K downwards, the last 36 columns, a block at a time.

# %%
figure, axes = style.figure(1, 2, height=3.2)
figure.suptitle("What program 1 loads of w transposed", x=0.01, ha="left")
for place, which, title in ((axes[0], 1, "in its second step"), (axes[1], None, "in all of its steps")):
    maps.touched(found, "b_ptr", which, title=title, axes=place)
assert loaded(found, "a_ptr", "b_ptr") == (7 + 36) * 200

# %% [markdown]
# ## One photo
#
# With a batch of 1, a tile of 16 rows, the least that tensor cores multiply, has 15 rows of nothing. They have no part
# in this, either: what takes long is to read the weights, each for a single multiply-accumulate. So a single row has a
# kernel of its own: a block of `w` times a block of `x`, element by element. Each thread adds up its own columns, and
# the threads' sums meet once, at the end.

# %%
source.show(_linear_row_kernel, "acc = tl.zeros", "y = tl.sum")

# %%
one = x[:1]


def single():
    with tiles.use("linear_row", {"BLOCK_N": 32, "BLOCK_K": 64}):
        return kernels.linear(one, w, b, relu=True)


assert error(single(), torch.relu(torch.nn.functional.linear(one.double(), w.double(), b.double()))) < 1e-5
found = trace(single, "_linear_row_kernel", program=(3,))
assert found.values("mask_n")[0].sum() == 100 - 3 * 32 == 4
stepping.strip(found, "w", "acc", columns=4, height=1.6)

# %% [markdown]
# The last program has 4 of 32 outputs left. On a GPU, tiles are smaller, so that hundreds of programs read at once.
#
# ## The photo, through all three
#
# Now at full size, on the kernels and in float64. (The last layer has an output for each class that the weights know.)

# %%
inputs = row
exact = row.double()
with torch.no_grad():
    for name in ("fc6", "fc7", "fc8"):
        layer = getattr(net, name)
        inputs = kernels.linear(inputs, layer.weight, layer.bias, relu=name != "fc8")
        exact = torch.nn.functional.linear(exact, layer.weight.double(), layer.bias.double())
        exact = exact if name == "fc8" else torch.relu(exact)
        assert error(inputs, exact) < 1e-5
        print(f"{name}: {tuple(layer.weight.shape)[1]:5} -> {inputs.shape[1]}")

# %% [markdown]
# ## Its cost
#
# `kernels/tools/cost.py` counts: two FLOPs a multiply-accumulate; each input, the weights among them, read once, and
# each output written once.

# %%
source.show(cost.linear)

# %%
FC = [LAYERS[name] for name in ("fc6", "fc7", "fc8")]
print("fp16    batch        MACs         bytes   of these weights   FLOP per byte")
for layer in FC:
    for batch in (1, 256):
        found = layer.cost(batch, itemsize=2)
        held = 2 * layer.parameters[0][0] * layer.parameters[0][1]
        print(
            f"{layer.name}  {batch:7}  {found.macs:13,}  {found.bytes:11,}  {held / found.bytes:10.1%}"
            f"  {found.flops / found.bytes:15.1f}"
        )

assert sum(layer.cost(1).macs for layer in FC) == 58_621_952
parameters = sum(n * k + n for layer in FC for n, k in layer.parameters[:1])
assert parameters == 58_631_144
assert round(parameters / 60_965_224, 2) == 0.96  # of the network's
assert round(FC[0].cost(1, 2).flops / FC[0].cost(1, 2).bytes, 1) == 1.0
assert round(FC[0].cost(256, 2).flops / FC[0].cost(256, 2).bytes) == 235

# %% [markdown]
# One photo: a weight is read, 2 bytes, used for a single multiply-accumulate, 2 FLOPs, and never again. One FLOP per
# byte. With 256 photos each weight that was read serves 256 times, and it is 235.
#
# What is that good for? An H100, as its maker states it, does 989 TFLOP/s in fp16 and moves 3.35 TB/s: 295 FLOPs in
# the time of a byte. Up to there memory is the limit, and beyond it arithmetic. For fc6 the two meet at 330 photos.

# %%
H100 = machine.H100["fp16"]
assert round(H100.rate / H100.bandwidth) == 295
meets = next(m for m in range(1, 1000) if FC[0].cost(m, 2).flops / FC[0].cost(m, 2).bytes >= H100.rate / H100.bandwidth)
assert meets == 330

batches = 2 ** np.arange(11)
limits, _, label = machine.limits("fp16")
figure, (left, right) = style.figure(1, 2, height=3.8)
figure.suptitle(f"AlexNet's fully connected layers ({label})", x=0.01, ha="left", fontsize=10)
for layer, marker in zip(FC, "osD", strict=True):
    costs = [layer.cost(int(batch), itemsize=2) for batch in batches]
    left.plot(batches, [found.flops / found.bytes for found in costs], f"-{marker}", label=layer.name, markersize=5)
left.axhline(limits.rate / limits.bandwidth, color=style.GREY, linestyle="--", label="where the limits meet")
left.set(xscale="log", yscale="log", xlabel="batch (photos)", ylabel="FLOP per byte", title="what it does for a byte")
left.legend()
together = [[sum(layer.cost(int(batch), itemsize=2)[part] for layer in FC) for batch in batches] for part in (2, 3)]
right.plot(batches, np.array(together[1]) / limits.bandwidth / batches * 1e6, color=style.BLUE, label="bytes")
right.plot(batches, np.array(together[0]) / limits.rate / batches * 1e6, color=style.ORANGE, label="FLOPs")
right.set(xscale="log", yscale="log", xlabel="batch (photos)", ylabel="microseconds a photo, at the least")
right.set_title("what takes that long")
right.legend()
for axes in (left, right):
    axes.grid()

# %% [markdown]
# The blue line is why one waits for a batch: twice as many photos, half as long for each, because the weights are read
# once for all of them. That helps until it crosses the orange one, which then is the limit. Where it does is a matter
# of the two limits and of the bytes of a number, and not of the kernel:

# %%
print("where fc6 turns from memory to arithmetic, on an H100 as its maker states it")
for dtype, itemsize in (("fp16", 2), ("tf32", 4), ("fp32", 4)):
    roofs = machine.H100[dtype]
    costs = ((batch, FC[0].cost(batch, itemsize)) for batch in range(1, 1000))
    batch = next(batch for batch, found in costs if found.flops / roofs.rate >= found.bytes / roofs.bandwidth)
    print(f"{dtype}: {batch} photos")

# %% [markdown]
# (TF32 numbers are stored in 4 bytes, twice as many, and the tensor cores multiply half as many of them in a second. So
# it is the same batch.)
#
# ## Under the roofline

# %%
work, timed = {}, {}
for batch in (1, 16, 256):
    measured = machine.ours(machine.measure("linear", batch=batch))
    for layer in FC[::2]:
        work[f"{layer.name}, batch {batch}"] = layer.cost(batch, itemsize=2)
        timed[f"{layer.name}, batch {batch}"] = measured.get(layer.name)
roof.plot(work, dtype="fp16", measured=timed, title="fc6 and fc8 for 1, 16 and 256 photos")

# %% [markdown]
# For one photo, no kernel can be faster than memory. What remains is to have fewer bytes: fp16 instead of fp32, or a
# byte for each weight, as in exercise 3. For 256 photos both limits are near, so loads and products have to overlap.
# That is what a deep pipeline (`num_stages`) is for.
#
# ## Exercises
#
# Solutions are in [`solutions/05_fully_connected.py`](solutions/05_fully_connected.py).
#
# **1.** From which batch on do the FLOPs of a layer (K inputs, N outputs, with a bias) take at least as long as its
# bytes? `rate` is in FLOP per second, `bandwidth` in bytes per second. Some layers never get there: return None.
#
# <details><summary>Hint 1</summary>FLOPs are 2 M N K. Bytes are itemsize (M K + N K + N + M N). Both are linear in
# M.</details>
# <details><summary>Hint 2</summary>With each photo more, the FLOPs take 2 N K / rate longer, and the bytes
# itemsize (K + N) / bandwidth. Unless the first is more, they never meet.</details>
# <details><summary>Hint 3</summary>What is there without any photo, itemsize (N K + N) / bandwidth, divided by the
# difference of the two, and rounded up.</details>


# %%
def meeting_batch(N, K, itemsize, rate, bandwidth):
    raise NotImplementedError  # your lines


nb05.meeting_batch(meeting_batch)

# %% [markdown]
# **2.** Some files keep `w` the other way round, as (K, N): `bvlc_alexnet.npy` does. Write y = ReLU(x @ w + b) for
# those. `x` is (M, K), all are in fp32, and a program (pid_m, pid_n) makes a tile.
#
# <details><summary>Hint 1</summary>Take <code>output_kernel</code>'s loop, and tiles with two ranges instead of one:
# rows upright with <code>[:, None]</code>, columns flat with <code>[None, :]</code>.</details>
# <details><summary>Hint 2</summary>The tile of <code>w</code> is [BLOCK_K, BLOCK_N], at element
# <code>offs_k[:, None] * N + offs_n[None, :]</code>. Its mask has a part for k and a part for n.</details>
# <details><summary>Hint 3</summary><code>acc = tl.dot(x, w, acc, input_precision="ieee")</code>, where
# <code>acc</code> begins as <code>tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)</code>.</details>


# %%
@triton.jit
def linear_kn(
    x_ptr,  # [M, K]
    w_ptr,  # [K, N]
    b_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pass  # your lines; program_id(0) counts tiles of rows, program_id(1) of columns


nb05.linear_kn(linear_kn)

# %% [markdown]
# **3.** For one photo the weights' bytes are the time. Read them as int8, with a scale for each output:
# y[n] = scale[n] * (sum over k of w[n, k] x[k]), where `w` is int8 and the rest fp32. No bias, no ReLU.
#
# <details><summary>Hint 1</summary>It is <code>_linear_row_kernel</code> with one more conversion.</details>
# <details><summary>Hint 2</summary>Convert what is loaded, <code>w.to(tl.float32)</code>, and multiply by the scale
# once, after the sum.</details>
# <details><summary>Hint 3</summary><code>tl.store(y_ptr + offs_n, tl.sum(acc, 1) * scale, mask=mask_n)</code></details>


# %%
@triton.jit
def row_int8(
    x_ptr,  # [K]
    w_ptr,  # [N, K], int8
    scale_ptr,  # [N]
    y_ptr,  # [N]
    N,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pass  # your lines


nb05.row_int8(row_int8)

# %% [markdown]
# How much would that save?

# %%
numbers = sum(n * k for layer in FC for n, k in layer.parameters[:1])
assert numbers == 58_621_952
print(f"the weights of fc6, fc7 and fc8: {2 * numbers:,} bytes in fp16, {numbers:,} in int8")

# %% [markdown]
# ## Where to go on
#
# [06](06_alexnet.ipynb) puts all layers in a row, and looks at what the cat becomes on the way.
