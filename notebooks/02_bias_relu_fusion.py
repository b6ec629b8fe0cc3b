# %% [markdown]
# # 02 · Bias and ReLU: why one pass beats three
#
# After each convolution AlexNet adds a bias to every channel and sets negative values to zero. That is little
# arithmetic. But if it is done carelessly, it takes longer than the convolution itself. You will
#
# - count the bytes that a plan moves, before you write any kernel,
# - write the kernels of the careless plan, and read the library's single kernel,
# - find the bias of an element from its offset, for any order in memory,
# - put bias and ReLU where they cost nothing: into the convolution's **epilogue**.

# %%
from lesson import features, machine, passes, roof, source, stepping, style
from lesson.check import nb02

import torch
import triton
import triton.language as tl
from matplotlib.colors import ListedColormap

from kernels import bias_relu, conv2d, runtime, tiles
from kernels.ops.bias_relu import _bias_relu_kernel
from kernels.ops.conv2d import _conv2d_kernel
from kernels.tools import cost
from kernels.tools.trace import trace

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## What the two do
#
# `z` is conv1's output for the photo, with the bundled weights, before the bias is added: 96 **feature maps** of 55 x
# 55, one per channel. The bias moves a whole map up or down. ReLU, max(0, x), keeps what is above zero.

# %%
photo, weight, bias = features.conv1()
z = conv2d(photo, weight, stride=4)
assert z.shape == (1, 96, 55, 55) and z.numel() == 290_400

summed = z + bias[:, None, None]
y = torch.relu(summed)
channel = int(bias.abs().argmax())

figure, axes = style.figure(1, 3, height=3.1)
limit = summed[0, channel].abs().max().item()
for place, tensor, title in zip(axes, (z, summed, y), ("z", "z + bias", "max(0, z + bias)"), strict=True):
    image = place.imshow(tensor[0, channel].cpu(), cmap=style.DIVERGING, vmin=-limit, vmax=limit)
    place.set_title(f"{title}, channel {channel}")
    place.set_axis_off()
bar = figure.colorbar(image, ax=axes, shrink=0.8, label="response; white is zero")

# %% [markdown]
# ## The idea: count passes
#
# A kernel reads its inputs from memory and writes its output to memory. Nothing stays on the chip between two kernels.
# So count how often a tensor moves between memory and chip. Each such move of a whole tensor is called a **pass**.
#
# Here are three plans for conv1 with 128 photos in fp16. All of them compute the same result.

# %%
N, itemsize = 128, 2
x_bytes = N * 3 * 227 * 227 * itemsize
z_bytes = N * z.numel() * itemsize
assert x_bytes == 39_574_272 and z_bytes == 74_342_400

plans = {
    "three kernels": [
        passes.Pass("convolution", {"x": x_bytes}, {"z": z_bytes}),
        passes.Pass("add the bias", {"z": z_bytes}, {"t": z_bytes}),
        passes.Pass("ReLU", {"t": z_bytes}, {"y": z_bytes}),
    ],
    "two kernels": [
        passes.Pass("convolution", {"x": x_bytes}, {"z": z_bytes}),
        passes.Pass("bias and ReLU", {"z": z_bytes}, {"y": z_bytes}),
    ],
    "one kernel": [passes.Pass("convolution, bias, ReLU", {"x": x_bytes}, {"y": z_bytes})],
}
passes.draw(plans, title="conv1, 128 photos, fp16 (weights and biases are 0.07 MB: not drawn)")

moved = {name: sum(one.bytes for one in plan) for name, plan in plans.items()}
assert moved["three kernels"] - moved["two kernels"] == moved["two kernels"] - moved["one kernel"] == 2 * z_bytes
assert round(moved["three kernels"] / moved["one kernel"], 1) == 3.6

# %% [markdown]
# Every kernel that we remove saves one write and one read of the whole tensor, here 149 MB. Joining kernels for this
# reason is called **fusion**. The arithmetic stays the same: one sum and one comparison per element.
#
# For `relu(x + bias)` PyTorch runs exactly what is written: two operators, with two passes each. The next cell lists
# what it runs, on the single photo in fp32:

# %%
asked = passes.of_pytorch(lambda: torch.relu(z + bias[:, None, None]))
for one in asked:
    print(f"{one.kernel:5} reads {sum(one.reads.values()):9,} bytes, writes {sum(one.writes.values()):9,}")
assert [one.kernel for one in asked] == ["add", "relu"]
assert sum(one.bytes for one in asked) == 4 * z.nbytes + bias.nbytes

# %% [markdown]
# ## Which bias is mine?
#
# In pseudocode the fused kernel is short:
#
# ```
# for every program pid, all at once:
#     offs = pid * BLOCK + [0 ... BLOCK - 1]           elements, in the order of memory
#     c    = the channel of each element
#     store(y_ptr + offs, max(0, load(x_ptr + offs) + load(bias_ptr + c)))
# ```
#
# The only open question is `c`. The kernel never sees a shape (N, C, H, W). It only sees offsets. But channels repeat
# in a pattern, and two numbers describe it. `STEP` is how many neighbours in memory share a channel before the next
# channel begins. `LENGTH` is the number of channels. Then `c = offs // STEP % LENGTH`.

# %%
shape = (2, 3, 2, 2)  # two images, three channels, 2 x 2 pixels
channels = torch.arange(3.0).view(1, 3, 1, 1).expand(shape)
orders = {
    "channels_last: the channels of a pixel side by side, STEP = 1": (channels.permute(0, 2, 3, 1).flatten(), 1),
    "contiguous: a whole map, then the next, STEP = H * W = 4": (channels.flatten(), 4),
}
figure, axes = style.figure(2, 1, height=2.3)
for place, (title, (memory, STEP)) in zip(axes, orders.items(), strict=True):
    offs = torch.arange(24)
    assert torch.equal(memory.long(), offs // STEP % 3)
    place.imshow(memory[None], cmap=ListedColormap([style.BLUE, style.ORANGE, style.GREEN]))
    for offset, c in enumerate(memory.long().tolist()):
        place.text(offset, 0, f"c {c}", ha="center", va="center", color="white", fontsize=9)
    place.set(yticks=[], xticks=range(0, 24, 4), title=title)
    place.set_xlabel("offset in memory" if STEP > 1 else "")
    place.spines[:].set_visible(False)

# %% [markdown]
# ## The careless plan, as kernels
#
# Here are two kernels. Each is right. Each has one pass to read and one pass to write.


# %%
@triton.jit
def add_kernel(x_ptr, bias_ptr, y_ptr, n, LENGTH: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    bias = tl.load(bias_ptr + offs // STEP % LENGTH, mask=mask, other=0.0)
    tl.store(y_ptr + offs, x + bias, mask=mask)


@triton.jit
def relu_kernel(x_ptr, y_ptr, n, BLOCK_M: tl.constexpr):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    tl.store(y_ptr + offs, tl.maximum(x, 0.0), mask=mask)


# %%
BLOCK = 65536
grid = (triton.cdiv(z.numel(), BLOCK),)
t, careless = torch.empty_like(z), torch.empty_like(z)
add_kernel[grid](z, bias, t, z.numel(), LENGTH=96, STEP=1, BLOCK_M=BLOCK)
relu_kernel[grid](t, careless, z.numel(), BLOCK_M=BLOCK)
assert torch.equal(careless, y)

# %% [markdown]
# ## The kernel of the library
#
# It keeps the sum in registers. Note three more things. It computes in fp32, whatever dtype the tensor has. It rounds
# to the output's dtype in one place. And a NaN stays NaN, as in PyTorch. A plain maximum might lose it.

# %%
source.show(_bias_relu_kernel)

# %%
fused = bias_relu(z, bias[:, None, None])
assert torch.equal(fused, y)

for dtype, bound in ((torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
    z_low, bias_low = z.to(dtype), bias.to(dtype)
    expected = torch.relu(z_low.double() + bias_low.double()[:, None, None])
    assert (bias_relu(z_low, bias_low[:, None, None]).double() - expected).abs().max() < bound * expected.max()

# %% [markdown]
# ## Step through it
#
# Three channels and eight pixels in `channels_last` are 24 elements. The tiles have 16. Program 1 has elements 16 to 23
# and eight masked lanes. Its first element is of channel 1, since 16 % 3 = 1. Watch how `bias` repeats.

# %%
small = torch.randn(1, 3, 2, 4, device=device).contiguous(memory_format=torch.channels_last)
small_bias = torch.tensor([10.0, 0.0, -10.0], device=device)[:, None, None]
with tiles.use("bias_relu", {"BLOCK_M": 16}):
    found = trace(lambda: bias_relu(small, small_bias), "_bias_relu_kernel", program=(1,))
assert found.grid == (2, 1, 1) and found.values("mask")[0].sum() == 8
assert found.accesses("bias_ptr")[0].offsets[:4].tolist() == [1, 2, 0, 1]
print(found.listing())

# %%
for names in (("x", "bias"), ("mask", "y")):
    stepping.strip(found, *names, height=0.9)

# %%
stepping.slider(found, _bias_relu_kernel)

# %% [markdown]
# And the bytes? The trace knows every load and store. So we can count them: how many elements of the large tensors does
# each plan load and store, over all programs?

# %%
image = torch.randn(1, 96, 7, 7, device=device).contiguous(memory_format=torch.channels_last)
image_bias, n = torch.randn(96, device=device), image.numel()
a, b = torch.empty_like(image), torch.empty_like(image)
grid = (triton.cdiv(n, 2048),)
assert grid == (3,)


def touched(launch, kernel):
    """Returns how many elements of x and y all programs load and store."""
    traces = [trace(launch, kernel, (pid,)) for pid in range(grid[0])]
    found = [access for one in traces for name in ("x_ptr", "y_ptr") for access in one.accesses(name)]
    return sum(int(access.mask.sum()) for access in found)


add = lambda: add_kernel[grid](image, image_bias, a, n, LENGTH=96, STEP=1, BLOCK_M=2048)
relu = lambda: relu_kernel[grid](a, b, n, BLOCK_M=2048)
two = touched(add, "add_kernel") + touched(relu, "relu_kernel")
with tiles.use("bias_relu", {"BLOCK_M": 2048}):
    one = touched(lambda: bias_relu(image, image_bias[:, None, None]), "_bias_relu_kernel")
assert n == 4704 and (two, one) == (4 * n, 2 * n)
print(f"two kernels: {two:,} elements, fused: {one:,}, of a tensor of {n:,}")

# %% [markdown]
# Each lane also loads a bias. These are the same 96 numbers again and again. They stay in the caches near the
# arithmetic units, so they are read from memory only once.
#
# ## No pass at all: the epilogue
#
# A convolution holds its sums in registers, in `acc`, until it stores them. Work on `acc` just before the store moves
# no extra bytes. The lines after a product's loop are called its **epilogue**. This is conv2d's epilogue. (`SPLIT_K` is
# for small batches. Then several programs share the sum for one tile. Bias and ReLU wait until these partial sums are
# added.)

# %%
source.show(_conv2d_kernel, "if SPLIT_K > 1:", "tl.store")

# %%
assert (conv2d(photo, weight, bias, stride=4, relu=True) - y).abs().max() < 1e-5 * y.max()

# %% [markdown]
# This is one program of a small convolution: 3 x 3 over an image of 5 x 5, with eight filters. The 9 output pixels lie
# in a tile of 16 x 16. One row of `acc` is a pixel, one column is a filter. `acc` is first zero, then the sums, then
# the sums plus the bias, and last the result of ReLU. Only the last one is stored, and only the 9 x 8 elements that the
# store's mask lets through.

# %%
filters = torch.randn(8, 3, 3, 3, device=device) / 5
small = torch.randn(1, 3, 5, 5, device=device)
tile = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "GROUP_M": 1, "SPLIT_K": 1}
with tiles.use("conv2d", tile):
    launch = lambda: conv2d(small, filters, torch.linspace(-1, 1, 8, device=device), relu=True)
    found = trace(launch, "_conv2d_kernel")
stepping.strip(found, "acc", height=3.0)
assert len(found.values("acc")) == 4 and found.values("acc")[-1].min() == 0

# %% [markdown]
# ## What it costs
#
# `bias_relu` does two FLOPs for four bytes of fp16, half a FLOP per byte. That is far left of the roofline's bend. The
# two careless kernels do half of that. No change inside such a kernel can move it to the right. Fusion can: the
# convolution that also does this work lies more than two orders of magnitude further to the right.

# %%
shape = (N, 96, 55, 55)
elements = N * 290_400
costs = {
    "add, or ReLU": cost.Cost(shape, 0, elements, 4 * elements),
    "bias_relu": cost.bias_relu(shape, (96, 1, 1), itemsize=itemsize),
    "conv1, fused": cost.conv2d((N, 3, 227, 227), (96, 3, 11, 11), (4, 4), itemsize=itemsize),
}
assert costs["add, or ReLU"].flops / costs["add, or ReLU"].bytes == 0.25
assert round(costs["bias_relu"].flops / costs["bias_relu"].bytes, 2) == 0.5
assert 230 < costs["conv1, fused"].flops / costs["conv1, fused"].bytes < 240

rows = machine.measure("bias_relu", "conv2d", batch=N)
ms = machine.ours(rows)
roof.plot(
    costs,
    measured={"bias_relu": ms.get("relu1"), "conv1, fused": ms.get("conv1")},
    title="Elementwise kernels, and a convolution that does their work",
)

# %% [markdown]
# Under an H100's limits even conv1 waits for memory, but only just. So each plan takes at least the time of its bytes.
# This floor is 3.6 times as high for the careless plan as for the fused one.

# %%
h100 = machine.H100["fp16"]
fused = costs["conv1, fused"]
assert 0.7 < (fused.flops / h100.rate) / (fused.bytes / h100.bandwidth) < 1

limits, _, label = machine.limits()
bare = cost.conv2d((N, 3, 227, 227), (96, 3, 11, 11), (4, 4), bias=False, itemsize=itemsize)
ways = {
    "three kernels": {"convolution": bare, "add": costs["add, or ReLU"], "ReLU": costs["add, or ReLU"]},
    "two kernels": {"convolution": bare, "bias_relu": costs["bias_relu"]},
    "one kernel": {"convolution": costs["conv1, fused"]},
}
colours = {"convolution": style.BLUE, "add": style.ORANGE, "ReLU": style.VERMILION, "bias_relu": style.GREEN}
figure, axes = style.figure(height=2.6)
for place, plan in enumerate(ways.values()):
    left = 0.0
    for kernel, what in plan.items():
        us = 1e3 * limits.floor_ms(what.flops, what.bytes)
        axes.barh(place, us, left=left, color=colours[kernel], edgecolor="white", height=0.6)
        axes.text(left + us / 2, place, f"{kernel} {us:.0f}", ha="center", va="center", color="white", fontsize=9)
        left += us
axes.set_yticks(range(len(ways)), list(ways))
axes.set_xlabel("microseconds, at least, for 128 photos in fp16")
axes.set_title(f"conv1 with bias and ReLU, three ways\n({label})")
axes.invert_yaxis()

# %% [markdown]
# The network never calls `bias_relu`: all its convolutions, and fc6 and fc7, use `relu=True`. It is still timed. If
# there are measurements, the next cell shows it beside PyTorch's two operators and the code that `torch.compile` makes
# from them.

# %%
timed = [row for row in rows if row.layer == "relu1"]
if timed:
    figure, axes = style.figure(height=2.2)
    bars = axes.barh([row.provider for row in timed], [row.p50_ms * 1e3 for row in timed], color=style.BLUE)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="microseconds, median", title=f"bias and ReLU of conv1's output, measured on {timed[0].gpu}")

# %% [markdown]
# ## Exercises
#
# Solutions are in [`solutions/02_bias_relu_fusion.py`](solutions/02_bias_relu_fusion.py).
#
# **1.** A leaky ReLU keeps a small part of negative values: `y = v if v > 0 else slope * v`, with `v = x + bias`. Use
# one pass, for either order of memory. `LENGTH` and `STEP` are as above.
#
# <details><summary>Hint 1</summary>It is the fused kernel with another last step.</details>
# <details><summary>Hint 2</summary><code>tl.where(condition, a, b)</code> chooses lane by lane.</details>
# <details><summary>Hint 3</summary><code>y = tl.where(v > 0.0, v, slope * v)</code></details>


# %%
@triton.jit
def leaky(x_ptr, bias_ptr, y_ptr, elements, slope, LENGTH: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr):
    pass  # your lines


nb02.leaky(leaky)

# %% [markdown]
# **2.** Later networks add an earlier output: `y = relu(x + bias + before)`, where `before` has x's shape. PyTorch's
# three operators make seven passes. How many do you need? The checker counts them.
#
# <details><summary>Hint 1</summary>Read x, read <code>before</code>, write y: three.</details>
# <details><summary>Hint 2</summary><code>before</code> has one element for each element of x: its offsets are
# <code>offs</code>.</details>
# <details><summary>Hint 3</summary>Add both to x before <code>tl.maximum(v, 0.0)</code>, and store once.</details>


# %%
@triton.jit
def residual(
    x_ptr, bias_ptr, before_ptr, y_ptr, elements, LENGTH: tl.constexpr, STEP: tl.constexpr, BLOCK_M: tl.constexpr
):
    pass  # your lines


nb02.residual(residual)

# %% [markdown]
# **3.** Write an epilogue. This kernel multiplies x of (M, K) with w of (K, N). A tile holds all of K at once. Make the
# kernel store `relu(x @ w + bias)`, with one bias per column.
#
# <details><summary>Hint 1</summary>Work on <code>acc</code>, between the product and the store.</details>
# <details><summary>Hint 2</summary>Load the biases of the tile's columns with <code>offs_n</code> and its mask. They
# are a tile of shape [BLOCK_N].</details>
# <details><summary>Hint 3</summary><code>acc += bias[None, :]</code> adds it to each row.</details>


# %%
@triton.jit
def epilogue(x_ptr, w_ptr, bias_ptr, y_ptr, M, N, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, K)
    mask_m, mask_n = offs_m < M, offs_n < N
    x = tl.load(x_ptr + offs_m[:, None] * K + offs_k[None, :], mask=mask_m[:, None], other=0.0)
    w = tl.load(w_ptr + offs_k[:, None] * N + offs_n[None, :], mask=mask_n[None, :], other=0.0)
    acc = tl.dot(x, w, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
    # your lines
    y_ptrs = y_ptr + offs_m[:, None] * N + offs_n[None, :]
    tl.store(y_ptrs, acc, mask=mask_m[:, None] & mask_n[None, :])


nb02.epilogue(epilogue)

# %% [markdown]
# ## Where to go on
#
# [03](03_local_response_norm.ipynb) is about the next step in AlexNet, a normalisation. It is harder to put into an
# epilogue, because each channel needs its neighbours.
