# %% [markdown]
# # 08 · Against cuBLAS and cuDNN
#
# PyTorch calls cuBLAS for matrix products and cuDNN for convolutions. NVIDIA's engineers have improved both for more
# than a decade. How do a few hundred lines of Triton compare with them? You will
#
# - learn what makes a comparison fair, and how easily it becomes unfair,
# - count what each side must move through memory, before anything is timed,
# - see what a good product does besides its tiles,
# - read the comparison: where we win, where we lose, and why.

# %%
from lesson import machine, passes, rivals, source, style
from lesson.check import nb08

import numpy as np
import torch
import triton
import triton.language as tl

from kernels import runtime
from kernels.tools import measurements, torch_ops
from kernels.tools.bench.check import BOUNDS, Gap
from kernels.tools.bench.device import Gpu
from kernels.tools.bench.works import KERNELBENCH
from kernels.tools.trace import trace
from kernels.tools.workloads import ALEXNET

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## Fair, first rule: right before fast
#
# A kernel that computes nonsense can be very fast. So a time counts only if the result of the same run was right. Even
# this check can fail to see an error. Here is a result with one NaN in it. A kernel that never wrote this element
# leaves such a result:

# %%
expected = torch.randn(64, 64, dtype=torch.float64)
broken = expected.clone()
broken[3, 5] = float("nan")

largest = (broken - expected).abs().max()
careless = not (largest > 1e-3)  # "no difference is too large"
careful = bool(largest <= 1e-3)  # "every difference is small"
print(f"largest difference: {largest.item()}; careless: {careless}; careful: {careful}")
assert careless and not careful

# %% [markdown]
# A comparison with NaN is always false: NaN is not larger than a bound, and not smaller. The benchmark of this project
# fills outputs with NaN before a run, compares every element with float64, and counts NaN as an infinite error:

# %%
source.show(Gap.add)
gap = Gap()
gap.add(broken, expected)
assert gap.share == float("inf")

# %% [markdown]
# ## Second rule: one precision
#
# Both sides must be equally precise. The next cell computes one product four times. Its numbers are first rounded as
# tensor cores round them. TF32 keeps 10 of the 23 bits that follow the point in fp32.


# %%
def as_tf32(x):
    bits = x.view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


a, b = torch.randn(128, 2048), torch.randn(2048, 128)
exact = a.double() @ b.double()
rounded = {
    "fp32": lambda x: x,
    "tf32": as_tf32,
    "fp16": lambda x: x.half().float(),
    "bf16": lambda x: x.bfloat16().float(),
}
errors = {}
for dtype, cut in rounded.items():
    errors[dtype] = ((cut(a) @ cut(b) - exact).abs().max() / exact.abs().max()).item()
    assert errors[dtype] < BOUNDS[dtype]

figure, (left, right) = style.figure(1, 2, height=2.6)
figure.suptitle("One product, its numbers rounded in four ways", x=0.01, ha="left")
left.barh(list(errors), list(errors.values()), color=style.BLUE, label="error")
left.plot([BOUNDS[dtype] for dtype in errors], range(4), "D", color=style.ORANGE, label="allowed error")
left.set(xscale="log", xlim=(1e-8, 1), xlabel="max|out - ref| / max|ref|")
left.legend(fontsize=8)
rates = [machine.H100[dtype].rate * 1e-12 for dtype in errors]
right.bar_label(right.barh(list(errors), rates, color=style.GREEN), [f"{rate:g}" for rate in rates], padding=3)
right.set(xlabel="TFLOP/s that NVIDIA states for an H100 SXM5", xlim=(0, 1200))
for place in (left, right):
    place.invert_yaxis()
assert round(machine.H100["tf32"].rate / machine.H100["fp32"].rate, 1) == 7.4
assert errors["tf32"] > 100 * errors["fp32"]

# %% [markdown]
# TF32 may be 7 times as fast as fp32, but its error is more than a hundred times as large. By default, PyTorch
# multiplies fp32 as fp32 in `matmul`, but as TF32 in cuDNN's convolutions. A kernel in TF32 beside a `matmul` in fp32
# "wins" before a line of it is written. Here both sides use the same precision, and every row of a table says which.
#
# ## Third rule: a time is a distribution
#
# The next cell times the same product 300 times, on this machine's CPU. It says nothing about a GPU, but much about
# timing.

# %%
import time

times = []
for _ in range(300):
    start = time.perf_counter()
    torch.mm(a, b)
    times.append((time.perf_counter() - start) * 1e3)
p20, p50, p80 = np.quantile(times, [0.2, 0.5, 0.8])
figure, axes = style.figure(height=2.6)
axes.hist(times, bins=np.geomspace(min(times), max(times), 80), color=style.SKY)
for value, name, colour in ((times[0], "first", style.VERMILION), (p50, "median", style.BLUE)):
    axes.axvline(value, color=colour, label=name)
axes.axvspan(p20, p80, color=style.LIGHT, zorder=0, label="20th to 80th percentile")
axes.set(xscale="log", xlabel="ms, on this machine's CPU (not a GPU's time)", ylabel="runs")
axes.set_title("One product, timed 300 times")
axes.legend()
assert p20 <= p50 <= p80

# %% [markdown]
# This gives five rules for timing:
#
# - Report a median with percentiles, never the best run.
# - Leave out the first runs. They compile, choose algorithms and fill caches.
# - Before each run, remove from the cache what other runs have loaded.
# - Repeat until a second measurement gives the same result.
# - Compare with the others at their best: PyTorch in both memory orders, and `torch.compile` with all its tuning.

# %%
source.show(Gpu.time)

# %% [markdown]
# ## Before the race: what does each side have to move?
#
# PyTorch runs one operator after another. Each operator reads its inputs and writes its output. These bytes can be
# counted without a GPU and even without data: on the `meta` device, tensors have shapes but no data. Each operator that
# PyTorch dispatches (starts) goes through this function:


# %%
source.show(passes.Counter.__torch_dispatch__)

# %%
import functools
from collections import Counter

BATCH = 128
eager = {}
print(f"{BATCH} photos, fp16\n{'layer':6} {'ours, MB':>9} {'PyTorch, MB':>12} {'times':>6}  operators of PyTorch")
for layer in ALEXNET:
    operands = layer.operands(BATCH, torch.float16, "meta")
    call = functools.partial(getattr(torch_ops, layer.operator), *operands, **layer.arguments)
    eager[layer.name] = passes.of_pytorch(call)
    ours, theirs = layer.cost(BATCH, itemsize=2).bytes, sum(each.bytes for each in eager[layer.name])
    counts = Counter(each.kernel for each in eager[layer.name])
    listed = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())
    print(f"{layer.name:6} {ours * 1e-6:9.1f} {theirs * 1e-6:12.1f} {theirs / ours:6.1f}  {listed}")
    if layer.name == "pool1":
        assert len(eager[layer.name]) == 8 and round(theirs / ours) == 14

# %% [markdown]
# Look at the last column. A convolution has ReLU as a second pass. (On a GPU the bias is one more pass: PyTorch calls
# cuDNN's convolution without the bias and adds it afterwards. That happens inside `convolution`, so it is not counted
# here.) PyTorch has no single operator for local response normalisation. It uses seven operators, and each moves the
# whole feature map through memory. Pooling is the eighth. It also writes the positions of the maxima, 8 bytes each,
# because gradients may need them. `kernels/ops/lrn_max_pool2d.py` does all of it in one pass.
#
# (The L2 cache may hold some of this. But conv1's output for 128 photos is 74 MB, and an H100's L2 holds 50.)
#
# So we can say what to expect before anything is timed. The next cell computes the least time of each side, as if every
# kernel reached its roof. Ours is one pass: the longer of the times for its FLOPs and its bytes. PyTorch's is the sum
# of its passes. Only the product among them has many FLOPs.

# %%
limits, _, label = machine.limits("fp16")
floors = {
    "ours": [limits.floor_ms(*layer.cost(BATCH, itemsize=2)[2:]) * 1e3 for layer in ALEXNET],
    "PyTorch, operator by operator": [
        sum(
            limits.floor_ms(layer.cost(BATCH).flops if each.kernel in ("convolution", "addmm") else 0, each.bytes) * 1e3
            for each in eager[layer.name]
        )
        for layer in ALEXNET
    ],
}
figure, axes = style.figure(height=4.4)
places = np.arange(len(ALEXNET))
for shift, (name, values), colour in zip((-0.2, 0.2), floors.items(), (style.VERMILION, style.BLUE), strict=True):
    bars = axes.barh(places + shift, values, 0.38, color=colour, label=name)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
axes.set_yticks(places, [layer.name for layer in ALEXNET])
axes.set(xscale="log", xlabel="microseconds, at least")
axes.invert_yaxis()
axes.legend(loc="lower right")
axes.set_title(f"What each side's FLOPs and bytes take, {BATCH} photos\n({label})")

assert round(2 * BATCH * 96 * 55 * 55 * 1e-6) == 74

# %% [markdown]
# Where can we win? Where the other side must move more bytes: most of all in pooling with normalisation. There,
# `torch.compile` is the stronger rival, because it also fuses element-wise passes. Where can we hardly win? In the
# products themselves. Both sides have the same FLOPs, and the rival is a library that is made for its device. Our only
# advantage there is bias and ReLU. Each costs PyTorch's convolutions a pass, and costs us nothing.
#
# ## What a good product does besides tiles
#
# One thing can be shown without a GPU: the order of the tiles. Programs start in the order of their numbers, a hundred
# or more at a time. (CUDA does not promise this order, but in practice it is so.) What these programs load together
# should fit into L2. Row by row, they would need all columns of B. Therefore `runtime.tile_order` takes `GROUP_M` rows
# of tiles at a time, and counts column by column inside them.

# %%
source.show(runtime.tile_order)


# %% [markdown]
# This kernel only writes its number at the place of its tile:


# %%
@triton.jit
def order_kernel(out_ptr, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    pid = tl.program_id(0)
    pid_m, pid_n = runtime.tile_order(pid, tiles_m, tiles_n, GROUP_M)
    tl.store(out_ptr + pid_m * tiles_n + pid_n, pid)


def order(rows, columns, group):
    out = torch.full((rows, columns), -1, dtype=torch.int32, device=device)
    order_kernel[(rows * columns,)](out, rows, columns, GROUP_M=group)
    return out.cpu().numpy()


ROWS, COLUMNS, TOGETHER = 18, 18, 72
figure, axes = style.figure(1, 2, height=3.9)
figure.suptitle(f"18 x 18 tiles of C: the first {TOGETHER} programs (blue), and what they read", x=0.01, ha="left")
bands = {}
for place, group in zip(axes, (1, 8), strict=True):
    number = order(ROWS, COLUMNS, group)
    first = number < TOGETHER
    bands[group] = int(first.any(1).sum() + first.any(0).sum())
    place.imshow(np.where(first, number, np.nan), cmap="Blues", vmin=-TOGETHER, vmax=TOGETHER)
    place.set_facecolor(style.LIGHT)
    for (row, column), value in np.ndenumerate(number):
        place.text(column, row, value, ha="center", va="center", fontsize=6)
    place.set(xticks=[], yticks=[], xlabel="tiles of columns, from B", ylabel="tiles of rows, from A")
    place.set_title(f"GROUP_M = {group}: {first.any(1).sum()} bands of A, {first.any(0).sum()} of B")
assert bands == {1: 4 + 18, 8: 8 + 9}
assert sorted(number.flat) == list(range(ROWS * COLUMNS))  # every tile has one program

# %% [markdown]
# The same 72 tiles need 22 bands in one order and 17 in the other. Step through it: program 80 with groups of 8.

# %%
out = torch.empty(ROWS, COLUMNS, dtype=torch.int32, device=device)
launch = lambda: order_kernel[(ROWS * COLUMNS,)](out, ROWS, COLUMNS, GROUP_M=8)
found = trace(launch, "order_kernel", program=(80,))
print(found.listing())
assert (found.values("pid_m")[0], found.values("pid_n")[0]) == (80 % 8, 80 // 8)

# %% [markdown]
# What else do libraries do?
#
# - They choose among hundreds of kernels for each shape.
# - They keep programs running from tile to tile, so that one tile's stores overlap the next tile's loads.
# - They let some warps only load and others only multiply.
# - They load through Hopper's **tensor memory accelerator**, a unit that copies whole tiles.
#
# The kernels here do none of the last three. Each of them is possible in Triton, but needs more lines.
#
# ## What was measured
#
# `alexnet bench --network` writes the table. On a machine with a GPU this cell measures. Without a GPU it reads the
# table of another machine.

# %%
OPERATORS = ("conv2d", "lrn_max_pool2d", "max_pool2d", "linear")
rows = machine.measure(*OPERATORS, batch=BATCH)
compared = {layer: found for (layer, *_), found in measurements.compare(rows).items()}
both = {layer: found for layer, found in compared.items() if found.ratio}
if both:
    gpu = rows[0].gpu
    rivals.ratios(both, title=f"{gpu}, fp16, {BATCH} photos, forward; measured {max(row.date for row in rows)[:10]}")
    won = [layer for layer, found in both.items() if found.ours.p80_ms < found.best.p20_ms]
    lost = [layer for layer, found in both.items() if found.ours.p20_ms > found.best.p80_ms]
    print(f"faster: {', '.join(won) or 'none'}\nslower: {', '.join(lost) or 'none'}")
else:
    print("Nothing has been measured on a GPU yet, so nobody knows. The model above is what to expect at best.")

# %%
if both:
    print(f"{'layer':6} {'ours, ms':>9} {'best, ms':>9} {'ratio':>6} {'model':>9}  best of the others")
    for layer, found in both.items():
        place = [each.name for each in ALEXNET].index(layer)
        model = floors["PyTorch, operator by operator"][place] / floors["ours"][place]
        provider = measurements.PROVIDERS[found.best.provider]
        print(
            f"{layer:6} {found.ours.p50_ms:9.4f} {found.best.p50_ms:9.4f} {found.ratio:6.2f} {model:9.2f}  {provider}"
        )

# %% [markdown]
# How to read it: the column "model" divides the two floors above, PyTorch's operator by operator over ours. If the
# measured ratio is near it, both sides are equally close to their roofs. If it is smaller, either the rival also fuses,
# or our kernel is further from its roof. Notebook [07](07_roofline.ipynb) shows this distance for each layer. If two
# ranges from the 20th to the 80th percentile overlap, there is no difference.
#
# ## What others have published
#
# Other projects published these numbers about other Triton kernels. They are collected here for orientation. None of
# them was measured here, and not all of them are from an H100.

# %%
rivals.published()

# %% [markdown]
# With effort, products come close to cuBLAS. Convolutions reach cuDNN for some shapes and not for others. Gradients of
# convolutions are hard.
#
# KernelBench times AlexNet in PyTorch on an H100, in fp32 with PyTorch's defaults, so with TF32 in its convolutions.
# Its problem 1-50 is conv1 alone, and 3-5 is the network without normalisation and groups. We know of no other
# published times of AlexNet on such a card:

# %%
print("published by KernelBench's authors, github.com/ScalingIntelligence/KernelBench, results/timing")
for problem in KERNELBENCH:
    least = problem.work.cost(problem.batch, 4)
    floor = machine.H100["tf32"].floor_ms(least.flops, least.bytes)
    tflops = least.flops / problem.compile_ms * 1e-9
    print(
        f"{problem.work.name}, batch {problem.batch}: eager {problem.eager_ms} ms, compiled {problem.compile_ms} ms"
        f" = {tflops:.0f} TFLOP/s; all in TF32, under NVIDIA's limits, at least {floor:.2f} ms"
    )
conv1 = KERNELBENCH[0]
least = conv1.work.cost(conv1.batch, 4)
assert round(least.flops / conv1.compile_ms * 1e-9) == 31
assert round(conv1.compile_ms / machine.H100["tf32"].floor_ms(least.flops, least.bytes)) == 13

# %% [markdown]
# conv1 reaches 31 TFLOP/s in that table. Its floor is 13 times lower than its time. A product with three channels is
# hard: runs of three numbers are slow to load and to multiply. Therefore `kernels/ops/conv2d.py` first folds blocks of
# 4 x 4 pixels into channels, as notebook [01](01_convolution_as_gemm.ipynb) explains. Of all convolutions, this one has
# the most room to win. `alexnet bench --preset kernelbench` runs the same problems on our kernels.
#
# ## Exercises
#
# Solutions are in [`solutions/08_against_cublas.py`](solutions/08_against_cublas.py).
#
# **1.** Is a result right? Return True only if `out` has `ref`'s shape and max|out - ref| <= bound * max|ref|. Neither
# NaN nor infinity may pass. `out` may be fp16.
#
# <details><summary>Hint 1</summary>Compare shapes first: (3, 1) minus (1, 3) broadcasts and raises no error.</details>
# <details><summary>Hint 2</summary>Convert both to float64. Otherwise the difference is rounded to fp16.</details>
# <details><summary>Hint 3</summary>Ask whether all differences are small enough. Do not ask whether one is too
# large.</details>


# %%
def right(out, ref, bound):
    raise NotImplementedError  # your lines


nb08.right(right)

# %% [markdown]
# **2.** Who is faster? You get two lists of times in ms. The first `warmup` times of each do not count. Return "faster"
# if our 80th percentile is below their 20th, "slower" if our 20th is above their 80th, and "no difference" otherwise.
#
# <details><summary>Hint 1</summary><code>np.quantile(times, [0.2, 0.8])</code></details>
# <details><summary>Hint 2</summary><code>times[warmup:]</code>, of both.</details>


# %%
def verdict(ours, theirs, warmup):
    raise NotImplementedError  # your lines


nb08.verdict(verdict)

# %% [markdown]
# **3.** Win where a library has no kernel: write fc8 and softmax in one kernel, y = softmax(x @ w.T + b). w is (N, K),
# and a tile is wide enough for all N outputs. Which value must masked columns have before the softmax?
#
# <details><summary>Hint 1</summary>Take the loop of notebook 05's exercise 2, with w read as (N, K). There is only one
# tile of columns.</details>
# <details><summary>Hint 2</summary>Masked columns must add nothing to the sum. Minus infinity does this, since its exp
# is 0. <code>tl.where(mask, y, float("-inf"))</code></details>
# <details><summary>Hint 3</summary>Subtract each row's largest value first: <code>y - tl.max(y, 1)[:, None]</code>.
# Then <code>tl.exp</code>, and divide by <code>tl.sum(..., 1)[:, None]</code>.</details>


# %%
@triton.jit
def linear_softmax(
    x_ptr,  # [M, K]
    w_ptr,  # [N, K]
    b_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # at least N
    BLOCK_K: tl.constexpr,
):
    pass  # your lines


nb08.linear_softmax(linear_softmax)

# %% [markdown]
# ## Where to go on
#
# [09](09_training.ipynb) goes backwards: the gradients of every layer, and what they cost.
