# %% [markdown]
# # 03 · Local response normalisation: a channel and its neighbours
#
# After conv1 and conv2 AlexNet divides each response by a number that depends on the neighbouring channels at the same
# pixel. (A **response** is a value of a feature map.) Later networks dropped this, but AlexNet's weights were trained
# with it. You will
#
# - see what it does to a real feature map, and when it does nothing,
# - distinguish three formulas that share one name, and know which one your weights need,
# - see why the windows lie well in `channels_last` memory,
# - read a kernel that loads 16 bytes at a time and shares sums between windows.

# %%
from lesson import features, machine, passes, roof, source, stepping, style
from lesson.check import nb03

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from matplotlib.patches import Rectangle

from kernels import conv2d, local_response_norm, runtime, tiles
from kernels.ops.local_response_norm import _local_response_norm_kernel, _sums, divisor, normalise
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
# Take one pixel and look along its channels. Each response x is divided by d to the power 3/4. d grows with the squares
# of x itself and of two channels on either side:
#
# ```
# y[c] = x[c] / d[c] ^ beta          d[c] = k + alpha / size * (x[c-2]^2 + x[c-1]^2 + x[c]^2 + x[c+1]^2 + x[c+2]^2)
# ```
#
# BVLC's AlexNet (the one that came with Caffe) has size 5, alpha 1e-4, beta 0.75 and k 1. Channels that do not exist
# count as zero. A response with weak neighbours stays nearly the same. A response beside a strong neighbour becomes
# weaker.
#
# Here are conv1's responses to the photo. The bundled weights give small responses, 16 at most. alpha is so small that
# d is then hardly more than 1. So LRN (local response normalisation) does almost nothing in this network.

# %%
photo, weight, bias = features.conv1()
x = conv2d(photo, weight, bias, stride=4, relu=True)
assert x.shape == (1, 96, 55, 55) and 15 < x.max() < 16

gain = local_response_norm(x, **LRN["bvlc"]) / x.clamp(min=1e-9)
assert gain[x > 0].min() > 0.996
assert LRN["bvlc"] == {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}

# %% [markdown]
# d depends on the absolute size of x. alpha / size sets the scale. It is 2e-5, so squares matter from x = sqrt(1 /
# 2e-5) = 224 on. Therefore we look at the same map multiplied by 31. Then its values go up to about 480.

# %%
x = 31 * x
y = local_response_norm(x, **LRN["bvlc"])
d = (x / y.clamp(min=1e-9)) ** (4 / 3)
assert 480 < x.max() < 490 and round((1 / 2e-5) ** 0.5) == 224

row, column = divmod(int(x[0].square().sum(0).argmax()), 55)  # the pixel with the strongest responses
channel = int(x[0, :, row, column].argmax())
strongest = x[0, :, row, column].cpu()

figure, axes = style.figure(1, 3, height=3.2)
limit = x[0, channel].max().item()
for place, tensor, title in zip(axes, (x, y), ("x", "y: normalised"), strict=False):
    image = place.imshow(tensor[0, channel].cpu(), vmin=0, vmax=limit)
    place.set_title(f"{title}, channel {channel}")
    place.add_patch(Rectangle((column - 1.5, row - 1.5), 3, 3, fill=False, edgecolor="white"))
    place.set_axis_off()
figure.colorbar(image, ax=axes[1], shrink=0.7)
factor = torch.where(x > 0, y / x, torch.nan)[0, channel].cpu()
image = axes[2].imshow(factor, cmap="viridis", vmin=0.4, vmax=1)
axes[2].set_facecolor(style.LIGHT)
axes[2].set(title="y / x (grey: x is 0)", xticks=[], yticks=[])
bar = figure.colorbar(image, ax=axes[2], shrink=0.7)

# %% [markdown]
# Below are all 96 channels of the pixel in the white frame. The second plot shows the channels around the strongest one
# in detail. Look at the neighbours of a strong response.

# %%
normalised = y[0, :, row, column].cpu()
figure, (whole, part) = style.figure(1, 2, height=2.9, width_ratios=(2, 1))
first = min(max(channel - 6, 0), 96 - 13)
for axes, channels in ((whole, range(96)), (part, range(first, first + 13))):
    axes.bar(channels, strongest[list(channels)], color=style.LIGHT, label="x")
    axes.bar(channels, normalised[list(channels)], width=0.5, color=style.BLUE, label="y")
    axes.set(xlabel="channel", ylabel="response", ylim=(0, 1.5 * strongest.max().item()))  # room for the legend
whole.set_title(f"pixel ({row}, {column})")
part.axvspan(channel - 2.5, channel + 2.5, color=style.YELLOW, alpha=0.3, zorder=0, label=f"window of {channel}")
part.set(title="in detail", xticks=range(first, first + 13, 2))
for axes in (whole, part):
    axes.legend(loc="upper right")

# %% [markdown]
# ## Three formulas, one name
#
# Papers and libraries write the same symbols and mean different things:
#
# | formula | alpha | k | as PyTorch takes it |
# |---|---|---|---|
# | `"bvlc"`: Caffe, PyTorch, ONNX | on the **mean** of squares: alpha / size * sum | 1 | size 5, alpha 1e-4, k 1 |
# | `"tensorflow"`: `tf.nn.lrn(x, 2, 1, 1e-4, 0.75)` | on the **sum** of squares | 1 | size 5, alpha 5e-4, k 1 |
# | `"paper"`: Krizhevsky et al. 2012 | on the **sum** of squares | 2 | size 5, alpha 5e-4, k 2 |
#
# TensorFlow code often uses the second formula with BVLC's weights: the number 1e-4 was copied, but not its meaning.
# Then the term that is added to k is five times as large as in training. Nothing fails. But it is not the network that
# was trained.

# %%
s = torch.linspace(0, 1500, 301, device=device)
lone = torch.zeros(1, 5, 301, device=device)
lone[0, 2] = s  # one response without neighbours

figure, (curves, spread) = style.figure(1, 2, height=3.3)
for (name, arguments), line in zip(LRN.items(), ("-", "--", ":"), strict=True):
    curves.plot(s.cpu(), local_response_norm(lone, **arguments)[0, 2].cpu(), line, linewidth=2.2, label=name)
    gains = (local_response_norm(x, **arguments) / x.clamp(min=1e-9))[x > 100].cpu()
    spread.hist(gains, bins=np.linspace(0, 1, 61), histtype="step", linestyle=line, linewidth=2, label=name)
curves.set(xlabel="x", ylabel="y", title="A lone response")
spread.set(xlabel="y / x", ylabel="elements", title="The map above: all x over 100")
curves.legend(loc=(0.4, 0.3))
spread.legend(loc="upper left")

peak = float(s[local_response_norm(lone, **LRN["bvlc"])[0, 2].argmax()])
assert peak == 315 and round((2 / 2e-5) ** 0.5) == 316  # where the derivative of x / (1 + 2e-5 x^2)^0.75 is zero

# %% [markdown]
# One thing in the left plot is surprising: beyond 316 a stronger response gives a **weaker** output. The reason is that
# x^2 to the power 3/4 grows faster than x. The network was trained with this and still works.
#
# ## Windows in memory
#
# In `channels_last` memory the 96 channels of a pixel lie side by side, so a window is five numbers side by side. In
# contiguous memory each map is stored as a whole, so the five numbers are 55 * 55 = 3,025 numbers apart. A GPU moves
# memory in **sectors** of 32 bytes. The next cell counts how many sectors one window touches in fp16.


# %%
def sectors(stride, channel, itemsize=2):
    """Returns the number of sectors that hold the five channels around one channel of pixel 0."""
    offsets = (np.arange(channel - 2, channel + 3) * stride * itemsize) // 32
    return len(set(offsets.tolist()))


last = [sectors(1, c) for c in range(2, 94)]
first = [sectors(3025, c) for c in range(2, 94)]
assert max(last) == 2 and set(first) == {5}
print(f"channels_last: {np.mean(last):.2f} sectors a window, contiguous: {np.mean(first):.0f}")

# %% [markdown]
# (Contiguous memory is not hopeless. The 32 threads of a **warp** run together, and would share their sectors among 32
# windows side by side. But the convolutions want `channels_last`, so all other kernels use it, too.)
#
# ## A first kernel
#
# It has one lane per element, in the order of memory. The neighbour's address is simply `offs + shift`. But after
# channel 95 the next number belongs to the next pixel. So the mask uses the **channel**, `offs % C`, and not the
# offset.


# %%
@triton.jit
def lane_kernel(
    x_ptr,
    y_ptr,
    elements,
    scale,  # alpha / SIZE
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = offs < elements
    c = offs % C
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for j in tl.static_range(SIZE):
        shift = j - SIZE // 2
        exists = mask & (c + shift >= 0) & (c + shift < C)
        neighbour = tl.load(x_ptr + offs + shift, mask=exists, other=0.0)
        total += neighbour * neighbour
    d = k + scale * total
    tl.store(y_ptr + offs, x * tl.exp2(-beta * tl.log2(d)), mask=mask)


# %%
expected = F.local_response_norm(x.double(), **LRN["bvlc"])
mine = torch.empty_like(x)
grid = (triton.cdiv(x.numel(), 65536),)
lane_kernel[grid](x, mine, x.numel(), 1e-4 / 5, 0.75, 1.0, C=96, SIZE=5, BLOCK_M=65536)
assert (mine - expected).abs().max() < 1e-5 * expected.max()

# %% [markdown]
# It is right, and it has four weaknesses:
#
# - It has six loads for each element. The loads of neighbours do not begin at multiples of 16 bytes, so each of them
#   can take only one or two numbers at a time.
# - It squares each number five times.
# - It adds five squares again for each window, although neighbouring windows share four of them.
# - It computes the power with a logarithm and an exponential.
#
# ## The kernel of the library
#
# A thread loads 16 bytes of a pixel at once: 8 channels in fp16, 4 in fp32. This is called a **vector**. The thread
# also needs two channels on either side. It loads them from the vectors before and after. The neighbouring threads have
# just loaded those, so they come from the L1 cache.

# %%
figure, axes = style.figure(height=1.9)
for c in range(24):
    own, used = 8 <= c < 16, 6 <= c < 18
    axes.add_patch(Rectangle((c, 0), 0.94, 1, color=style.BLUE if own else style.SKY if used else style.LIGHT))
    axes.text(c + 0.47, 0.5, str(c), ha="center", va="center", color="white" if own else "black", fontsize=9)
for vector in range(3):
    axes.text(8 * vector + 4, 1.25, ("vector before", "own vector: 16 bytes", "vector after")[vector], ha="center")
    axes.axvline(8 * vector - 0.03, 0, 0.75, color=style.BLACK, linewidth=1.2)
for level, c in enumerate((8, 9, 15)):
    axes.plot([c - 2 + 0.1, c + 2.85], [-0.25 - 0.3 * level] * 2, color=style.CYCLE[1 + level], linewidth=4)
    axes.text(c + 3.1, -0.25 - 0.3 * level, f"window of {c}", va="center", fontsize=8)
axes.set(xlim=(-0.2, 24.2), ylim=(-1.1, 1.6), title="Channels of a pixel in fp16: what one thread needs")
axes.set_axis_off()

# %%
source.show(divisor)

# %% [markdown]
# The windows of channels 8 and 9 share channels 7 to 10. The kernel adds these four squares once, in three additions.
# Then each window adds one more square of its own. That makes five additions for two windows. One by one, they take
# eight.

# %%
source.show(_sums)

# %% [markdown]
# With beta = 3/4 the power needs no logarithm. If r = 1 / sqrt(d), then r * sqrt(r) is d ^ -3/4. A GPU has an
# instruction for each of the two roots.

# %%
source.show(normalise)
r = 1 / d[0, channel, row, column].sqrt()
assert abs(r * r.sqrt() - d[0, channel, row, column] ** -0.75) < 1e-6

# %%
source.show(_local_response_norm_kernel, "VECTOR:")

# %%
assert (local_response_norm(x, **LRN["bvlc"]) - expected).abs().max() < 1e-5 * expected.max()
for size in (1, 2, 4, 7):  # an even window reaches one channel further down than up, as in PyTorch
    reference = F.local_response_norm(x[:, :, :9].double(), size)
    assert (local_response_norm(x[:, :, :9], size) - reference).abs().max() < 1e-5 * reference.max()

# %% [markdown]
# ## Step through it
#
# Two pixels have six channels each, in fp32. One pixel needs two vectors of four channels, and the second vector is
# only half used. So the tile is [4, 4]: rows 0 and 1 are the first pixel, rows 2 and 3 the second.

# %%
small = torch.tensor([[1, 2, 3, 4, 5, 6], [60, 50, 40, 30, 20, 10]], dtype=torch.float32, device=device)
small = small.T.reshape(1, 6, 1, 2).contiguous(memory_format=torch.channels_last)
with tiles.use("local_response_norm", {"BLOCK_M": 4}):
    launch = lambda: local_response_norm(small, 5, alpha=5.0, beta=0.75, k=1.0)
    found = trace(launch, "_local_response_norm_kernel")
stepping.strip(found, "offs_c", "offs", "x", "d", "y", height=1.6, columns=5)
assert found.values("d")[0][0, 0] == 1 + 1 + 4 + 9  # channel 0 has channels 1 and 2 beside it, and nothing below

# %% [markdown]
# The next pictures show which lanes each of the three loads may use: the vector's own channels, those of the vector
# before, and those of the vector after. Channel 0 has nothing before it, and channel 5 has nothing after it.

# %%
figure, axes = style.figure(1, 3, height=2.2)
names = ("own vector", "vector before", "vector after")
for place, access, name in zip(axes, found.accesses("x_ptr"), names, strict=True):
    style.tile(place, access.mask, f"lanes that load: {name}")
assert [int(access.mask.sum()) for access in found.accesses("x_ptr")] == [12, 8, 4]

# %%
stepping.slider(found, _local_response_norm_kernel)

# %% [markdown]
# The kernel's mask allows all existing channels of the neighbouring vector to be loaded. Only those in a window are
# used. A compiler removes loads that nobody uses.
#
# ## Another view: a banded matrix
#
# All sums of a pixel together are one product: a row of 96 squares times a matrix of zeros and ones. The ones form a
# band around the diagonal. This wastes arithmetic, but it is arithmetic that tensor cores can do. A convolution whose
# tile holds all channels could do it in its epilogue. Remember this picture for notebook 09: the gradient uses the same
# matrix, transposed.

# %%
c = np.arange(16)
figure, axes = style.figure(1, 2, height=3.0)
for place, size in zip(axes, (5, 4), strict=True):
    shift = c[:, None] - c[None, :]  # from the window's channel to the one that counts
    band = ((shift >= -(size // 2)) & (shift <= (size - 1) // 2)).astype(np.float32)
    place.imshow(band, cmap="Blues", vmin=0, vmax=1.4)
    place.set(xlabel="window of channel", ylabel="counts channel", title=f"size {size}")

    values = torch.randn(1, 16, 1, dtype=torch.float64)
    sums = values[0, :, 0].square() @ torch.from_numpy(band).double()
    reference = ((values / F.local_response_norm(values, size, 1.0, 1.0, 0.0)) * size)[0, :, 0]
    assert torch.allclose(sums, reference)

# %% [markdown]
# ## What it costs
#
# LRN needs two passes: one to read and one to write. PyTorch has no kernel for LRN. It builds LRN from a square, a copy
# with two channels of padding on either side, a pooling along the channels, and four more operators. Here are both,
# counted in passes over the map:

# %%
composed = passes.of_pytorch(lambda: F.local_response_norm(x, **LRN["bvlc"]))
figure, axes = style.figure(height=2.0)
for place, plan in enumerate((composed, [passes.Pass("one kernel", {"x": x.nbytes}, {"y": x.nbytes})])):
    left = 0.0
    for number, one in enumerate(plan):
        wide = one.bytes / x.nbytes
        axes.barh(place, wide, left=left, color=style.CYCLE[number % 4], edgecolor="white", height=0.7)
        name = {"constant_pad_nd": "pad", "avg_pool3d": "pool"}.get(one.kernel, one.kernel)
        axes.text(left + wide / 2, place, name, ha="center", va="center", color="white", fontsize=9)
        left += wide
    axes.text(left + 0.1, place, f"{left:.1f}", va="center")
axes.set_yticks([0, 1], ["PyTorch", "kernels"])
axes.set_xlabel("passes over the feature map")
axes.invert_yaxis()
assert len(composed) == 7 and round(sum(one.bytes for one in composed) / x.nbytes, 1) == 15.1

# %% [markdown]
# In fp16 an element moves 4 bytes. It needs 14 FLOPs, as `cost` in `kernels/ops/local_response_norm.py` counts. That is
# 3.5 FLOPs per byte, so memory is the limit, whatever the formula. So LRN becomes cheaper only if the map is not
# written and read again. Notebook 04 does this.

# %%
costs = {name: WORKLOADS[name].cost(128, 2) for name in ("norm1", "norm2")}
assert all(what.flops / what.bytes == 3.5 for what in costs.values())
ms = machine.ours(machine.measure("local_response_norm"))
roof.floors(costs, measured=ms, title="LRN, 128 photos in fp16")

# %%
roof.plot(
    {"norm1": costs["norm1"], "conv2": WORKLOADS["conv2"].cost(128, 2)},
    measured=ms,
    title="LRN, and the convolution that follows (norm2 lies at the same point as norm1)",
)

# %% [markdown]
# ## Exercises
#
# Solutions are in [`solutions/03_local_response_norm.py`](solutions/03_local_response_norm.py).
#
# **1.** You get a network with `tf.nn.lrn(x, depth_radius, bias, alpha, beta)`. It divides by (bias + alpha * sum over
# the channels up to depth_radius away) ^ beta. Return the arguments for PyTorch's formula, as a dict with size, alpha,
# beta and k.
#
# <details><summary>Hint 1</summary>How many channels does a radius of 2 span, with the one in the middle?</details>
# <details><summary>Hint 2</summary>PyTorch will divide your alpha by size.</details>
# <details><summary>Hint 3</summary><code>alpha=alpha * (2 * depth_radius + 1)</code></details>


# %%
def from_tensorflow(depth_radius, bias, alpha, beta):
    raise NotImplementedError  # your lines


nb03.from_tensorflow(from_tensorflow)

# %% [markdown]
# **2.** Write LRN for contiguous memory (N, C, H, W), for odd and even sizes. `PLANE` is H * W. Begin with
# `lane_kernel`.
#
# <details><summary>Hint 1</summary>What is an element's channel? Notebook 02 computes it, with
# <code>STEP</code>.</details>
# <details><summary>Hint 2</summary>The next channel at the same pixel lies <code>PLANE</code> elements further
# on.</details>
# <details><summary>Hint 3</summary><code>c = offs // PLANE % C</code>, and <code>x_ptr + offs + shift *
# PLANE</code></details>


# %%
@triton.jit
def contiguous(
    x_ptr,
    y_ptr,
    elements,
    scale,
    beta,
    k,
    C: tl.constexpr,
    PLANE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pass  # your lines


nb03.contiguous(contiguous)

# %% [markdown]
# **3.** RMSNorm is a relative of LRN that language models use today. Let the window be all channels, with alpha 1, beta
# 1/2 and k a small eps. The result is RMSNorm without its weights, `y = x / sqrt(eps + mean(x^2))`. x is (M, C).
# `BLOCK_C` is a power of two and at least C. Some rows hold numbers as large as 1000.
#
# <details><summary>Hint 1</summary>A tile of [BLOCK_M, BLOCK_C] holds whole rows: no loop, one <code>tl.sum(...,
# 1)</code>.</details>
# <details><summary>Hint 2</summary>Which value must masked lanes get, so that they do not change the sum? And by what
# do you divide the sum?</details>
# <details><summary>Hint 3</summary><code>x * tl.rsqrt(eps + tl.sum(x * x, 1) / C)[:, None]</code></details>


# %%
@triton.jit
def rms_norm(x_ptr, y_ptr, M, eps, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    pass  # your lines


nb03.rms_norm(rms_norm)

# %% [markdown]
# ## Where to go on
#
# In [04](04_overlapping_pooling.ipynb) the map shrinks from 55 to 27, and LRN needs no pass over memory any more.
