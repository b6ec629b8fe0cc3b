# %% [markdown]
# # 07 · The roofline: how fast could it be?
#
# A kernel takes 80 microseconds. Is that good? It may be faster than yesterday, but this says little. A number of
# TFLOP/s also says little. You need to know the shortest time that the kernel can take. You will
#
# - see where the two limits come from, with a kernel whose work can be turned up like a dial,
# - count FLOPs and bytes of every layer of AlexNet, and see which of the two limits applies to it,
# - read a roofline: what is measured in it, and what is only stated by the maker,
# - learn what moves a point in it: batch, bytes, fusion, tiles.

# %%
from lesson import machine, roof, source, stepping, style
from lesson.check import nb07

import numpy as np
import torch
import triton
import triton.language as tl

from kernels import runtime
from kernels.tools import cost, measurements
from kernels.tools.bench.check import roof_copy, roof_matmul
from kernels.tools.cost import Cost
from kernels.tools.trace import trace
from kernels.tools.workloads import ALEXNET, WORKLOADS

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## The idea: a kernel with a dial
#
# A GPU loads while it computes. So the time of a kernel is not the sum of the two times. At best it is the longer of
# them:
#
# $$ t \ge \max\Big(\frac{\text{FLOPs}}{\text{rate}},\; \frac{\text{bytes}}{\text{bandwidth}}\Big) $$
#
# This kernel reads a number, does `STEPS` multiply-adds with it, and writes it. In pseudocode:
#
# ```
# offs = pid * BLOCK + [0 ... BLOCK)
# x = load x[offs]                        4 bytes
# STEPS times: x = a * x + b              2 FLOPs each
# store y[offs] = x                       4 bytes
# ```
#
# Its bytes stay the same for every `STEPS`. Its pointer arithmetic is the same as in notebook 00.


# %%
@triton.jit
def dial_kernel(x_ptr, y_ptr, a, b, n, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    for _ in range(STEPS):
        x = x * a + b
    tl.store(y_ptr + offs, x, mask=mask)


# %%
n = 1000
x = torch.randn(n, device=device)
y = torch.empty_like(x)
launch = lambda: dial_kernel[(triton.cdiv(n, 256),)](x, y, 0.5, 1.0, n, STEPS=3, BLOCK=256)
launch()
expected = x.double()
for _ in range(3):
    expected = expected * 0.5 + 1.0
assert (y - expected).abs().max() / expected.abs().max() < 1e-6

found = trace(launch, "dial_kernel", program=(3,))
loads, stores = found.accesses("x_ptr"), found.accesses("y_ptr")
assert len(loads) == len(stores) == 1  # for any number of steps
assert loads[0].mask.sum() == stores[0].mask.sum() == 1000 - 3 * 256
stepping.strip(found, "mask", "x", columns=4, height=1.2)

# %% [markdown]
# It does one load, three steps and one store. The last program has only 232 of 256 numbers. Line by line:

# %%
stepping.slider(found, dial_kernel)

# %% [markdown]
# Now turn the dial, for a hundred million numbers. FLOPs divided by bytes is called **arithmetic intensity**. Draw it
# on the horizontal axis, and FLOPs per second on the vertical axis. Then the two limits are two straight lines.
# Together they look like a roof.

# %%
numbers = 100_000_000
dial = {f"{steps} steps": Cost((numbers,), 0, 2 * steps * numbers, 8 * numbers) for steps in (1, 4, 16, 64, 256, 1024)}
assert dial["4 steps"].flops / dial["4 steps"].bytes == 1.0
roof.plot(dial, dtype="fp32", title="The kernel with the dial, at its floor")

# %% [markdown]
# From left to right the kernel does more and more work. At first this takes no longer: the kernel waits for memory
# anyway, so the FLOPs cost nothing. This is true up to the bend. NVIDIA states limits for an H100. For fp32 outside the
# tensor cores they put the bend at 20 FLOPs per byte, which is 80 steps.

# %%
stated = machine.H100
bend = {dtype: roofs.rate / roofs.bandwidth for dtype, roofs in stated.items()}
assert round(bend["fp32"]) == 20 and round(8 * bend["fp32"] / 2) == 80
assert round(bend["fp16"]) == 295 and round(bend["tf32"]) == 148
for dtype, intensity in bend.items():
    rate, bandwidth = stated[dtype].rate * 1e-12, stated[dtype].bandwidth * 1e-12
    print(f"{dtype}: {rate:6.1f} TFLOP/s, {bandwidth} TB/s: the bend is at {intensity:5.1f} FLOP per byte")

# %% [markdown]
# ## Roofs are measured
#
# No kernel reaches the limits that a maker states. Clocks go down when the whole chip works, and memory must be
# refreshed. A kernel at 80 % of the stated limit may already be as fast as possible. Therefore
# `kernels/tools/bench/check.py` measures the roofs on the device itself, in the same run as the kernels. It times a
# copy that is much larger than any cache, and a large matrix product.

# %%
source.show(roof_copy)
source.show(roof_matmul)

# %%
limits = machine.limits("fp16")
if limits.measured:
    share = limits.roofs.bandwidth / stated["fp16"].bandwidth, limits.roofs.rate / stated["fp16"].rate
    print(f"{limits.label}: {limits.roofs.bandwidth * 1e-12:.2f} TB/s, {limits.roofs.rate * 1e-12:.0f} TFLOP/s")
    print(f"for comparison, over what NVIDIA states for an H100 SXM5: {share[0]:.0%} and {share[1]:.0%}")
else:
    print(
        "No roof has been measured yet. What follows is drawn under the limits as NVIDIA states them for an H100 SXM5."
    )

# %% [markdown]
# ## Count: every layer
#
# FLOPs follow from shapes. For bytes we count the minimum: each input and weight is read once, and each output is
# written once, as if caches were perfect. A real kernel may move more. It moves less only if a cache keeps data from
# one kernel to the next. An H100's L2 cache of 50 MB can do this for a few photos.

# %%
source.show(cost.conv2d)

# %%
BATCH = 128
work = {layer.name: layer.cost(BATCH, itemsize=2) for layer in ALEXNET}
H100 = stated["fp16"]
print(f"{BATCH} photos, fp16; bound and floor under the limits stated for an H100")
print(f"{'layer':6} {'GFLOP':>8} {'MB':>8} {'FLOP/byte':>10}  {'bound by':10} {'floor, us':>9}")
for name, found in work.items():
    bound = "arithmetic" if found.flops / H100.rate >= found.bytes / H100.bandwidth else "memory"
    print(
        f"{name:6} {found.flops * 1e-9:8.2f} {found.bytes * 1e-6:8.1f} {found.flops / found.bytes:10.1f}  {bound:10}"
        f" {1e3 * H100.floor_ms(found.flops, found.bytes):9.1f}"
    )
total = sum(H100.floor_ms(found.flops, found.bytes) for found in work.values())
print(f"all: {1e3 * total:.0f} us, {BATCH / total * 1e3:,.0f} photos a second")

arithmetic = [name for name, found in work.items() if found.flops / found.bytes >= bend["fp16"]]
assert arithmetic == ["conv2", "conv3", "conv4", "conv5"]
assert 3 * 11 * 11 == 363
assert all(found.flops / found.bytes < 10 for name, found in work.items() if name.startswith("pool"))

# %% [markdown]
# So conv2 to conv5 are bound by arithmetic. Pooling is bound by memory, far from the bend. conv1 is a surprise: it lies
# a little left of the bend. Its input has three channels, so each output needs only 363 multiply-accumulates, and each
# output must be written. Fully connected layers are bound by memory at this batch, as notebook
# [05](05_fully_connected.ipynb) has shown.
#
# ## AlexNet under the roofline

# %%
operators = ("conv2d", "lrn_max_pool2d", "max_pool2d", "linear")
measured = machine.measure(*operators, batch=BATCH)
roof.plot(work, measured=machine.ours(measured), title=f"AlexNet, {BATCH} photos, fp16")

# %% [markdown]
# Open marks lie on the roof: this is the floor of each layer. Filled marks below are measured kernels. The distance
# between the two is what can still be gained.

# %%
if measured:
    table = {row.layer: row for row in measured if row.provider == "triton"}
    roofs = measurements.roofs(measured, "fp16") or limits.roofs  # from the same run, if it has just been measured
    print(f"{'layer':6} {'ms':>8} {'of the roofline':>16}")
    for name, row in table.items():
        print(f"{name:6} {row.p50_ms:8.4f} {measurements.share(row, roofs):16.0%}")
else:
    print("Nothing has been measured yet: alexnet bench, on a GPU, adds the table that fills this in.")

# %% [markdown]
# A single photo gives another picture. The weights are read for this one photo. So everything except conv2 is bound by
# memory, and the fully connected layers have one FLOP per byte.

# %%
single = {layer.name: layer.cost(1, itemsize=2) for layer in ALEXNET}
roof.plot(single, measured=machine.ours(machine.measure(*operators, batch=1)), title="AlexNet, one photo, fp16")
assert [name for name, found in single.items() if found.flops / found.bytes >= bend["fp16"]] == ["conv2"]
assert round(single["fc6"].flops / single["fc6"].bytes, 1) == 1.0

# %% [markdown]
# ## What moves a point
#
# **To the right: a larger batch.** Weights are read once for all photos. The network's floor is the sum of its layers'
# floors, because the layers run one after another.

# %%
batches = 2 ** np.arange(11)
figure, (left, right) = style.figure(1, 2, height=3.8)
figure.suptitle(f"The whole network at its floor ({limits.label})", x=0.01, ha="left", fontsize=10)
groups = {"convolutions": "conv", "pooling": "pool", "fully connected": "fc"}
floor = lambda layer, batch: limits.roofs.floor_ms(*layer.cost(int(batch), itemsize=2)[2:]) * 1e3
parts = [[sum(floor(x, b) for x in ALEXNET if x.name.startswith(p)) / b for b in batches] for p in groups.values()]
left.stackplot(batches, parts, labels=groups, colors=(style.BLUE, style.SKY, style.ORANGE))
left.set(xscale="log", xlabel="batch (photos)", ylabel="microseconds per photo", title="what the time is spent on")
left.set(xlim=(1, 1024), ylim=(0, None))
left.legend()
right.plot(batches, 1e6 / np.sum(parts, 0), "o-", color=style.GREEN)
right.set(xscale="log", yscale="log", xlabel="batch (photos)", ylabel="photos per second, at most")
right.set_title("how many photos this makes")
right.grid(which="both")

whole = {batch: sum(H100.floor_ms(*layer.cost(batch, itemsize=2)[2:]) for layer in ALEXNET) for batch in (1, 128)}
held = 2 * sum(layer.parameters[0][0] * layer.parameters[0][1] for layer in ALEXNET if layer.operator == "linear")
assert held / H100.bandwidth * 1e3 > 0.9 * whole[1]  # one photo: nearly all of the time is for reading the fc weights

# %% [markdown]
# **Also to the right: fewer bytes.** pool1 does LRN and pooling in one pass. Two passes would write and read the
# normalised map. The same is true for ReLU as a separate pass after conv1.

# %%
norm, pool = WORKLOADS["norm1"].cost(BATCH, 2), cost.max_pool2d((BATCH, 96, 55, 55), (3, 3), (2, 2), itemsize=2)
together = lambda first, second: Cost(second.output, 0, first.flops + second.flops, first.bytes + second.bytes)
relu = WORKLOADS["relu1"].cost(BATCH, 2)
fusion = {
    "norm1, then pool1": together(norm, pool),
    "both in one pass": work["pool1"],
    "conv1, then bias and ReLU": together(work["conv1"], relu),
    "both in conv1": work["conv1"],
}
roof.floors(fusion, title="Two passes and one, 128 photos, fp16")
assert round(fusion["norm1, then pool1"].bytes / fusion["both in one pass"].bytes, 1) == 2.6
assert round(fusion["conv1, then bias and ReLU"].bytes / fusion["both in conv1"].bytes, 1) == 2.3

# %% [markdown]
# **Another roof: shorter numbers.** From fp32 (multiplied as TF32) to fp16, the bytes become half as many, and the
# tensor cores are twice as fast. A point moves to the right, the bend moves with it, and all floors become half as
# high.
#
# **Up, towards the roof: the kernel itself.** The floor assumes that the device is always full. With tiles it is not,
# for two reasons. Tiles extend beyond the edge, and programs run in rounds. For 128 photos, conv3 is a product of M =
# 21,632 pixels by N = 384 channels. In tiles of 128 x 128 that is 169 by 3 = 507 programs. An H100 has 132
# **multiprocessors**, the parts of the chip that run programs. With one program on each, three rounds are full. In the
# fourth round, 21 multiprocessors have nothing to do.

# %%
M, N = BATCH * 13 * 13, 384
programs = triton.cdiv(M, 128) * triton.cdiv(N, 128)
assert (M, programs) == (21_632, 507)
assert programs - 3 * 132 == 111 == 132 - 21

figure, (left, right) = style.figure(1, 2, height=2.9)
rounds = triton.cdiv(programs, 132)
busy = [min(132, programs - 132 * number) for number in range(rounds)]
left.barh(range(rounds), [132] * rounds, color=style.ORANGE, label="idle")
left.barh(range(rounds), busy, color=style.BLUE, label="busy")
left.set(xlabel="multiprocessors", ylabel="round", yticks=range(rounds))
left.set(
    ylim=(rounds + 0.5, -0.6), title=f"conv3: {programs} programs in {rounds} rounds: {programs / 132 / rounds:.0%}"
)
left.legend(loc="lower left", ncols=2)
channels = {"conv1": 96, "conv2": 128, "conv3": 384, "conv4": 192, "conv5": 128}  # channels per group
columns = {name: triton.cdiv(count, 128) * 128 for name, count in channels.items()}
right.barh(list(columns), list(columns.values()), color=style.ORANGE, label="masked")
right.barh(list(channels), list(channels.values()), color=style.BLUE, label="in use")
right.legend(loc="lower right")
right.set(xlabel="columns of the tiles (channels of a group)", title="Channels in tiles 128 wide")
right.invert_yaxis()

# %% [markdown]
# conv1 leaves a quarter of each tile unused, and conv4 a quarter of all its tiles together. Therefore each layer has
# its own tile sizes (`alexnet tune` finds them), and conv4 has narrower tiles in the README's table.
#
# ## Exercises
#
# Solutions are in [`solutions/07_roofline.py`](solutions/07_roofline.py).
#
# **1.** Here is another dial: a polynomial. Write y = c[0] + c[1] x + c[2] x^2 + ... + c[ORDER] x^ORDER for n numbers
# in fp32. Use ORDER multiply-adds for each number, not more. The checker counts the multiplications.
#
# <details><summary>Hint 1</summary>Horner's rule: c0 + x (c1 + x (c2 + x c3)). It begins with the last
# coefficient.</details>
# <details><summary>Hint 2</summary>A coefficient is one number for the whole tile: <code>tl.load(c_ptr +
# i)</code>.</details>
# <details><summary>Hint 3</summary><code>for i in range(ORDER): y = y * x + tl.load(c_ptr + ORDER - 1 -
# i)</code></details>


# %%
@triton.jit
def polynomial(x_ptr, c_ptr, y_ptr, n, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    pass  # your lines


nb07.polynomial(polynomial)

# %% [markdown]
# **2.** How much of a device does a product use? There are M x N outputs of K terms each, in tiles, and each
# multiprocessor runs one program at a time. Divide the multiply-accumulates that are needed by those that all
# multiprocessors could do in all rounds. Count the masked ones and the idle ones among the latter.
#
# <details><summary>Hint 1</summary>A program does BLOCK_M * BLOCK_N multiply-accumulates for each k, and K is rounded
# up to whole blocks.</details>
# <details><summary>Hint 2</summary>Programs: the product of two numbers, each rounded up. Rounds: programs /
# multiprocessors, rounded up.</details>
# <details><summary>Hint 3</summary>M N K / (rounds * multiprocessors * BLOCK_M * BLOCK_N * blocks * BLOCK_K)</details>


# %%
def tile_use(M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, multiprocessors):
    raise NotImplementedError  # your lines


nb07.tile_use(tile_use)

# %% [markdown]
# **3.** How many photos per second can a network do at most? `costs` is a list of its layers' `Cost` for the batch.
# Layers run one after another.
#
# <details><summary>Hint 1</summary>Each layer has its own limit. While one layer waits for memory, no other layer can
# use the arithmetic.</details>
# <details><summary>Hint 2</summary>So it is the sum of the floors, not the floor of the sums.</details>


# %%
def photos_a_second(costs, batch, rate, bandwidth):
    raise NotImplementedError  # your lines


nb07.photos_a_second(photos_a_second)

# %% [markdown]
# ## Where to go on
#
# A floor shows how fast a kernel could be. A rival shows how fast others are. [08](08_against_cublas.ipynb) is about
# rivals.
