# %% [markdown]
# # 05 · Fully connected: one product, two limits
#
# After the last pooling, AlexNet no longer keeps the shape of an image. 256 maps of 6 x 6 become a row of 9216 numbers.
# Three **fully connected** layers turn it into 4096, 4096 and 1000 numbers. They hold 96 % of the network's parameters.
# You will
#
# - write such a layer as a product of matrices, first with one program per output, then in tiles,
# - count what a tile reads, and see why a large tile reads less,
# - step through a program of `kernels/ops/linear.py`, as Python and as the instructions of a GPU,
# - see that memory limits this layer for one photo, and arithmetic for many photos.

# %%
from lesson import instructions, machine, maps, product, roof, source, stepping, style
from lesson.check import nb05

import numpy as np
import torch
import triton
import triton.language as tl

import kernels
from kernels import runtime, tiles
from kernels.ops.linear import _linear_kernel, _linear_row_kernel
from kernels.tools import cost, torch_ops
from kernels.tools.ptx_counts import count
from kernels.tools.ptx_trace import trace_ptx
from kernels.tools.trace import trace
from kernels.tools.workloads import WORKLOADS
from model import weights
from model.alexnet import AlexNet
from model.photos.preprocess import open_image
from model.photos.sample import default_photo

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## From maps to a row
#
# First the layer's input: the cat, as it comes out of pool5. (Here the layers before run on PyTorch's operators, which
# are faster than the interpreter. Notebook [06](06_alexnet.ipynb) runs all layers on our kernels.)

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
# `flatten` puts the maps one after another: number 100 * 36 + 2 * 6 + 5 of the row is map 100 at (2, 5). The order
# matters, because the weights were trained for it. The order in memory is different: in `channels_last`, a pixel's
# channels lie side by side. So the network must copy here, one of the few places where it does. It copies 37 kB.

# %%
assert not row.is_contiguous() or row.data_ptr() != maps5.data_ptr()  # a copy, not a view
assert row.numel() * row.element_size() == 36_864

# %% [markdown]
# ## The idea
#
# A layer has one row of weights for each output: `w` has shape (N, K), as in `torch.nn.Linear`. The input is a batch of
# M rows, `x` of shape (M, K):
#
# $$ y[m, n] = \mathrm{ReLU}\Big(b[n] + \sum_k x[m, k]\; w[n, k]\Big) $$
#
# This is a product of matrices, with the second matrix transposed. A tile of `y` needs a band of rows of `x` and a band
# of columns of transposed `w`, nothing else. A program walks along both bands, one block of K at a time.

# %%
product.picture(
    ("M photos", "N = 4096 outputs", "K = 9216 inputs"),
    tile=(0.35, 0.6, 0.4, 0.6),
    step=(0.25, 0.4),
    title="fc6: a tile of y (red), the bands that it needs (light), and the blocks of one step (blue)",
)

# %% [markdown]
# ## Rung 1: one program per output
#
# The simplest kernel has one program for each number of `y`. It multiplies a row of `x` by a row of `w` and sums up the
# products.


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
# It is right. What does it read? The trace of a program tells us.

# %%
found = trace(launch, "output_kernel", program=(2, 5))
loaded = lambda found, *names: sum(int(access.mask.sum()) for name in names for access in found.accesses(name))
assert loaded(found, "x_ptr", "w_ptr") == 2 * 200  # K multiply-accumulates
print(f"{loaded(found, 'x_ptr', 'w_ptr')} numbers read for {200} multiply-accumulates")

# %% [markdown]
# It reads two numbers for every multiply-accumulate. For all of fc6 and 256 photos that is 19 billion numbers, but `x`
# and `w` have only 40 million. Every row of `w` is read 256 times, and every row of `x` 4096 times. Caches make this
# less bad, but do not solve the problem.

# %%
M, N, K = 256, 4096, 9216
assert 2 * M * N * K == 19_327_352_832
assert M * K + N * K == 40_108_032

# %% [markdown]
# ## Rung 2: tiles
#
# A program that computes a tile of BLOCK_M x BLOCK_N outputs reads BLOCK_M + BLOCK_N numbers for each k, and multiplies
# BLOCK_M * BLOCK_N pairs of them. If both sides of the tile are twice as long, all programs together read half as much.

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
# `x[m, k]` is element m * K + k, and `w[n, k]` is element n * K + k. The kernel calls its operands `a` [M, K] and `b`
# [K, N]. Its arguments say by how many elements each index moves: `STRIDE_AM` = K, `STRIDE_AK` = 1, `STRIDE_BK` = 1 and
# `STRIDE_BN` = K. So "transposed" moves no data. It only swaps two strides. Training needs `g @ w` and `g.T @ x` for
# its gradients, and gets both from the same kernel.

# %%
source.show(_linear_kernel, "rows = batch", "acc = runtime.dot")

# %% [markdown]
# After the loop the tile is still in registers. Bias and ReLU are applied there, at no cost. Notebook
# [02](02_bias_relu_fusion.ipynb) is about that.

# %%
source.show(_linear_kernel, "if HAS_BIAS", "tl.store")

# %% [markdown]
# ## Step through a program
#
# This is a small layer with awkward sizes: 7 rows, 200 inputs and 100 outputs, in tiles of 16 x 64 and blocks of 64.
# The last program has 36 columns left, and the last block has 8 of 64 numbers.

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
assert len(found.values("acc")) == 7  # the strip shows every second one

# %% [markdown]
# Rows of `a` and of `acc` from 7 on stay empty, and so do columns of `b` from 36 on. In the last block, 8 numbers are
# left. The strip shows `acc` at the start, after two blocks, after all four, and at the end. Between the last two, the
# bias was added to all rows, also to masked rows, and then ReLU was applied. The store's mask leaves these rows out.

# %%
stepping.slider(found, _linear_kernel)

# %% [markdown]
# Which elements does it load? In the picture, `w` is drawn as `b` sees it, with K downwards. The program loads the last
# 36 columns, one block at a time.

# %%
figure, axes = style.figure(1, 2, height=3.2)
figure.suptitle("What program 1 loads of w transposed", x=0.01, ha="left")
for place, which, title in ((axes[0], 1, "in its second step"), (axes[1], None, "in all of its steps")):
    maps.touched(found, "b_ptr", which, title=title, axes=place)
assert loaded(found, "a_ptr", "b_ptr") == (7 + 36) * 200

# %% [markdown]
# ## What the GPU runs
#
# A GPU does not run this Python. Triton compiles it to PTX, NVIDIA's assembly, for 128 threads per program here. 32
# threads are a **warp**: they execute an instruction together, each on its own registers. What is one tile in Python is
# spread over the registers of all threads.
#
# A CPU can execute this PTX, too, and watch it: `trace_ptx` runs one program. The layer is now 64 x 128 times 128 x 64
# in fp16, compiled for an A100 (sm_80). The slider begins where the first warp takes its part of `x` from shared
# memory.

# %%
halves = torch.randn(64, 128).half(), torch.randn(64, 128).half()
TILE_64 = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 1, "num_warps": 4, "num_stages": 3}


def product_of_halves():
    with tiles.use("linear", TILE_64):
        return kernels.linear(*halves)


found = trace_ptx(product_of_halves, "_linear_kernel", arch="sm_80")
instructions.slider(found, found.find("ldmatrix")[0], warp=0, lane=5)

# %% [markdown]
# `ldmatrix` loads four matrices of 8 x 8. Each thread gives the address of one row; thread 5 that of row 5, in the red
# frame. Each thread gets two neighbours of each matrix; thread 5 gets row 1, columns 2 and 3.
#
# In shared memory, a row of `x`'s tile fills all 32 **banks**. A bank gives 4 bytes at a time. So eight rows of a
# matrix that lie one under another would have to wait for each other. Therefore the copy from `x` has **swizzled** the
# tile: it has exchanged the 16-byte pieces of each row, in another way in each of eight rows. Now no two rows of the
# matrix are in the same banks.
#
# Then `mma` multiplies. In the pictures, the number is the thread that holds the element:

# %%
number = found.find("mma")[0]
operands = found.fragments(number)
left, right, made = (held.values for held in operands)
assert (left == halves[0][:16, :16].float().numpy()).all()
assert (right == halves[1][:8, :16].T.float().numpy()).all()
assert np.allclose(made, left @ right, atol=1e-4)
assert operands[2].held(5) == [(1, 2), (1, 3), (9, 2), (9, 3)]
figure, axes = style.figure(1, 3, height=2.8, width_ratios=(2, 1, 1))
figure.suptitle("D = A x B, 16 x 16 times 16 x 8, held by one warp", x=0.01, ha="left")
for place, held in zip(axes, operands, strict=True):
    instructions.fragment(held, 5, axes=place)

# %% [markdown]
# An H100 (sm_90) multiplies 64 rows with one `wgmma`, which four warps execute together. It reads both operands from
# shared memory, and adds to an accumulator of 64 x 64 in the registers of 128 threads. Eight of them add 16 terms each,
# and so make the whole product:

# %%
found = trace_ptx(product_of_halves, "_linear_kernel", arch="sm_90")
filled = [found.fragments(number)[0].values for number in found.find("wgmma.mma_async")]
expected = (halves[0].double() @ halves[1].double().T).numpy()
assert len(filled) == 128 // 16 and np.abs(filled[-1] - expected).max() < 1e-4
figure, axes = style.figure(1, 4, height=2.4)
figure.suptitle("The accumulator after 1, 3, 5 and 8 wgmma", x=0.01, ha="left")
for place, terms in zip(axes, (1, 3, 5, 8), strict=True):
    style.tile(place, filled[terms - 1], f"{16 * terms} of 128 terms", limit=np.abs(expected).max(), signed=True)

# %% [markdown]
# `count` runs all programs and counts. Each load of a warp asks for **sectors** of 32 bytes, and each access to shared
# memory takes **wavefronts**. If there were no swizzle, there would be bank conflicts: more wavefronts for the same
# bytes.

# %%
kinds = count(product_of_halves, "sm_80").kinds()
print("              requests  bytes  sectors  wavefronts  conflicts")
for kind in ("cp.async", "ldmatrix", "st.global"):
    t = kinds[kind]
    print(f"{kind:12}  {t.requests:8}  {t.loaded + t.stored:5}  {t.sectors:7}  {t.wavefronts:10}  {t.conflicts:9}")
assert kinds["cp.async"].loaded == 2 * 64 * 128 * 2 and kinds["cp.async"].sectors * 32 == kinds["cp.async"].loaded
assert all(tally.conflicts == 0 for tally in kinds.values())
assert kinds["mma"].instructions == 64 * 64 * 128 // (16 * 8 * 16)

# %% [markdown]
# In the terminal, `alexnet trace conv2d --ptx --dtype fp16` steps through a layer of AlexNet, and `--counts` counts.
#
# ## One photo
#
# Tensor cores multiply at least 16 rows. With a batch of 1, 15 of these rows are empty. Tensor cores do not help here
# anyway: most of the time goes into reading the weights, and each weight is used for a single multiply-accumulate.
# Therefore a single row has its own kernel. It multiplies a block of `w` by a block of `x`, element by element. Each
# thread sums up its own columns, and the sums of the threads are added once, at the end.

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
# The last program has 4 of 32 outputs left. On a GPU, tiles are smaller, so that hundreds of programs read at the same
# time.
#
# ## The photo, through all three
#
# Now at full size, on the kernels and in float64. (The last layer has one output for each class that the weights know.)

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
# `cost` in `kernels/ops/linear.py` counts two FLOPs per multiply-accumulate. It counts each input, also the weights, as
# read once, and each output as written once.

# %%
source.show(cost.linear)

# %%
FC = [WORKLOADS[name] for name in ("fc6", "fc7", "fc8")]
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
assert round(parameters / 60_965_224, 2) == 0.96  # of the network's parameters
assert round(FC[0].cost(1, 2).flops / FC[0].cost(1, 2).bytes, 1) == 1.0
assert round(FC[0].cost(256, 2).flops / FC[0].cost(256, 2).bytes) == 235

# %% [markdown]
# With one photo, the kernel reads a weight, 2 bytes, and uses it for a single multiply-accumulate, 2 FLOPs. That is one
# FLOP per byte. With 256 photos it uses each weight 256 times, and the number is 235.
#
# What does this number tell us? NVIDIA states that an H100 does 989 TFLOP/s in fp16 and moves 3.35 TB/s. That is 295
# FLOPs in the time of one byte. Below this number memory is the limit. Above it arithmetic is the limit. For fc6 the
# two limits meet at 330 photos.

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
left.set(xscale="log", yscale="log", xlabel="batch (photos)", ylabel="FLOP per byte", title="work per byte")
left.legend()
together = [[sum(layer.cost(int(batch), itemsize=2)[part] for layer in FC) for batch in batches] for part in (2, 3)]
right.plot(batches, np.array(together[1]) / limits.bandwidth / batches * 1e6, color=style.BLUE, label="bytes")
right.plot(batches, np.array(together[0]) / limits.rate / batches * 1e6, color=style.ORANGE, label="FLOPs")
right.set(xscale="log", yscale="log", xlabel="batch (photos)", ylabel="microseconds per photo, at least")
right.set_title("which part takes this time")
right.legend()
for axes in (left, right):
    axes.grid()

# %% [markdown]
# The blue line shows why it helps to collect a batch. With twice as many photos, each photo takes half as long, because
# the weights are read once for all of them. This helps until the blue line crosses the orange line. From there on, the
# orange line is the limit. The crossing depends on the two limits and on the bytes of a number. It does not depend on
# the kernel:

# %%
print("where fc6 turns from memory to arithmetic, on an H100 as its maker states it")
for dtype, itemsize in (("fp16", 2), ("tf32", 4), ("fp32", 4)):
    roofs = machine.H100[dtype]
    costs = ((batch, FC[0].cost(batch, itemsize)) for batch in range(1, 1000))
    batch = next(batch for batch, found in costs if found.flops / roofs.rate >= found.bytes / roofs.bandwidth)
    print(f"{dtype}: {batch} photos")

# %% [markdown]
# (TF32 numbers take 4 bytes, twice as many as fp16, and the tensor cores multiply half as many of them per second. So
# the batch is the same.)
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
# For one photo, no kernel can be faster than memory. Only fewer bytes help: fp16 instead of fp32, or one byte per
# weight, as in exercise 3. For 256 photos both limits are near, so loads and products must overlap. This is the purpose
# of a deep **pipeline** (`num_stages`): it loads the next blocks while it multiplies the current ones.
#
# ## Exercises
#
# Solutions are in [`solutions/05_fully_connected.py`](solutions/05_fully_connected.py).
#
# **1.** A layer has K inputs, N outputs and a bias. From which batch on do its FLOPs take at least as long as its
# bytes? `rate` is in FLOP per second, `bandwidth` in bytes per second. For some layers there is no such batch: return
# None.
#
# <details><summary>Hint 1</summary>FLOPs are 2 M N K. Bytes are itemsize (M K + N K + N + M N). Both are linear in
# M.</details>
# <details><summary>Hint 2</summary>With each further photo, the FLOPs take 2 N K / rate longer, and the bytes take
# itemsize (K + N) / bandwidth longer. If the first is not larger, they never meet.</details>
# <details><summary>Hint 3</summary>Take the time without any photo, itemsize (N K + N) / bandwidth. Divide it by the
# difference of the two, and round up.</details>


# %%
def meeting_batch(N, K, itemsize, rate, bandwidth):
    raise NotImplementedError  # your lines


nb05.meeting_batch(meeting_batch)

# %% [markdown]
# **2.** Some files store `w` the other way round, as (K, N). `bvlc_alexnet.npy` is one of them. Write y = ReLU(x @ w +
# b) for these. `x` is (M, K), and all are in fp32. A program (pid_m, pid_n) computes a tile.
#
# <details><summary>Hint 1</summary>Take <code>output_kernel</code>'s loop, and tiles with two ranges instead of one:
# rows as a column with <code>[:, None]</code>, columns as a row with <code>[None, :]</code>.</details>
# <details><summary>Hint 2</summary>The tile of <code>w</code> is [BLOCK_K, BLOCK_N], at element <code>offs_k[:, None] *
# N + offs_n[None, :]</code>. Its mask has a part for k and a part for n.</details>
# <details><summary>Hint 3</summary><code>acc = tl.dot(x, w, acc, input_precision="ieee")</code>, where <code>acc</code>
# begins as <code>tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)</code>.</details>


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
# **3.** For one photo, the time is the time to read the weights. Read them as int8, with one scale per output: y[n] =
# scale[n] * (sum over k of w[n, k] x[k]), where `w` is int8 and the rest fp32. There is no bias and no ReLU.
#
# <details><summary>Hint 1</summary>It is <code>_linear_row_kernel</code> with one more conversion.</details>
# <details><summary>Hint 2</summary>Convert what you load, <code>w.to(tl.float32)</code>, and multiply by the scale
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
# How many bytes would this save?

# %%
numbers = sum(n * k for layer in FC for n, k in layer.parameters[:1])
assert numbers == 58_621_952
print(f"the weights of fc6, fc7 and fc8: {2 * numbers:,} bytes in fp16, {numbers:,} in int8")

# %% [markdown]
# ## Where to go on
#
# [06](06_alexnet.ipynb) puts all layers in a row, and shows what the cat becomes on the way.
