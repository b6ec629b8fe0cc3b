# %% [markdown]
# # 09 · Training: every operator backwards
#
# A network learns by changing its weights so that its **loss**, the measure of its error, becomes smaller. For this,
# each operator must say how the loss changes with its inputs. These changes are called **gradients**. Autograd chains
# them from operator to operator, but somebody must write the gradient of each operator. You will
#
# - derive and see the gradient of each of AlexNet's operators,
# - learn what each operator keeps from the forward pass, and how little is enough,
# - see a dropout mask that is never stored, but computed a second time,
# - fine-tune fc8 on classes that the network has never seen,
# - understand what the two GPUs of 2012 left in the network: its groups.

# %%
from lesson import features, halves, machine, roof, source, stepping, style
from lesson.check import nb09

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from matplotlib.patches import Rectangle
from PIL import Image

import kernels
from kernels import runtime, tiles
from kernels.ops.conv2d_backward import _conv2d_weight_gradient_kernel
from kernels.ops.dropout import _dropout_kernel
from kernels.ops.epilogue import _bias_relu_gradient_kernel
from kernels.ops.local_response_norm import normalise_gradient
from kernels.ops.max_pool2d import gather
from kernels.tools import torch_ops
from kernels.tools.trace import trace
from kernels.tools.workloads import ALEXNET, WORKLOADS
from model import weights
from model.alexnet import AlexNet
from model.halves import table
from model.photos.preprocess import open_image
from model.photos.sample import default_photo

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## One rule
#
# Call the loss L. dy is the change of L with y, element by element: a tensor of y's shape. An operator y = f(x) gets dy
# and returns dx. Everything in this notebook follows from one rule:
#
# > Each x collects a term from every y that it went into: this y's dy times how strongly x went in.
#
# The chain begins at the loss. Cross entropy is -log of the probability that softmax gives to the right class. Its
# gradient is very simple: the probabilities, minus 1 at the right class. It pushes down what is too likely, and pulls
# up what is not likely enough.

# %%
logits = torch.tensor([[1.0, 3.0, 0.5, 2.0]], device=device, requires_grad=True)
target = torch.tensor([3], device=device)
kernels.cross_entropy(logits, target).backward()

probabilities = kernels.softmax(logits.detach())[0]
onehot = F.one_hot(target, 4)[0]
assert (logits.grad[0] - (probabilities - onehot)).abs().max() < 1e-6

figure, (left, right) = style.figure(1, 2, height=2.3)
left.bar(range(4), probabilities.cpu(), color=style.BLUE)
left.set(title="softmax(logits)", xlabel="class (3 is right)", xticks=range(4))
right.bar(range(4), logits.grad[0].cpu(), color=style.ORANGE)
right.axhline(0, color=style.BLACK, linewidth=0.8)
right.set(title="gradient of the logits", xlabel="class", xticks=range(4))
assert abs(logits.grad.sum()) < 1e-6  # it moves probability, the sum stays the same

# %% [markdown]
# ## ReLU: a mask from the output
#
# y = max(0, z). Where z was positive, y changed as z did: dz = dy. Elsewhere y did not change: dz = 0. The forward pass
# could keep a mask for this. But y already shows it: y is positive at exactly these places. And y is kept anyway,
# because the next layer needs it as its input.

# %%
operands = features.conv1()
z = F.conv2d(operands.x, operands.weight, operands.bias, stride=4)[:, 15:16, 8:28, 8:28].contiguous()
z.requires_grad_()
nothing = torch.zeros(1, 1, 1, device=device)
y = kernels.bias_relu(z, nothing)
dy = torch.randn_like(y)
y.backward(dy)
assert torch.equal(z.grad, torch.where(y > 0, dy, 0.0))

figure, axes = style.figure(1, 3, height=2.9)
for place, tensor, title in zip(
    axes, (y, dy, z.grad), ("y, from the forward pass", "dy", "dz = dy where y > 0"), strict=True
):
    style.tile(place, tensor[0, 0].detach().cpu().numpy(), title, signed=True)

# %% [markdown]
# The bias went into every pixel of its channel, so it collects all of them: db is the sum of dz over images and pixels.
# One kernel does both, mask and sums, on the way from dy to dz. Convolutions and fully connected layers share it.

# %%
source.show(_bias_relu_gradient_kernel, "acc = ", "acc += grad")

# %% [markdown]
# ## Convolution: two products more
#
# A convolution is linear: y is a matrix times x. Take one channel of 7 x 7 pixels and a filter of 3 x 3 at stride 2.
# Then the matrix has 9 rows, one for each output, and 49 columns. Each row holds the nine weights. Nobody stores this
# matrix, but it shows what the gradient is. If y = A x, each x collects its column: dx = A^T dy.

# %%
w = torch.arange(1.0, 10.0, device=device).view(1, 1, 3, 3) / 9
basis = torch.eye(49, device=device).view(49, 1, 7, 7)
A = F.conv2d(basis, w, stride=2).view(49, 9).T  # column j is the output for pixel j alone

x = torch.randn(1, 1, 7, 7, device=device, requires_grad=True)
dy = torch.randn(1, 1, 3, 3, device=device)
kernels.conv2d(x, w, stride=2).backward(dy)
assert (A.T @ dy.flatten() - x.grad.flatten()).abs().max() < 1e-5

figure, (left, right) = style.figure(1, 2, height=3.6, width_ratios=(3, 1))
for place, matrix, title in ((left, A, "A: y = A x"), (right, A.T, "A^T: dx = A^T dy")):
    shown = torch.where(matrix > 0, matrix, torch.nan).cpu()
    place.imshow(shown, aspect="auto", vmin=0)
    place.set_title(f"{title}, {matrix.shape[0]} x {matrix.shape[1]}")
    place.set_facecolor(style.LIGHT)
left.set(xlabel="pixel of x", ylabel="pixel of y")
right.set(xlabel="pixel of y", ylabel="pixel of x")
assert A.shape == (9, 49) and (A > 0).sum() == 81

# %% [markdown]
# All rows of A have nine weights, one for each tap. The rows of A^T do not: at stride 2, a pixel's row and column
# decide which taps can reach it. Inside the map, four taps reach a pixel with an even row and an even column. Only one
# tap reaches a pixel with an odd row and an odd column. These groups of pixels are called **phases**. Each phase is
# computed as a dense product of its own, so no multiplication is wasted on zeros.

# %%
figure, axes = style.figure(height=3.7)
reach = [[r for r in range(3) if (h - r) % 2 == 0 and 0 <= (h - r) // 2 <= 2] for h in range(7)]
counts = np.array([[len(rows) * len(columns) for columns in reach] for rows in reach])
phase = np.add.outer(np.arange(7) % 2 * 2, np.arange(7) % 2)
colours = np.array([style.BLUE, style.SKY, style.GREEN, style.ORANGE])
for (h, w_), count in np.ndenumerate(counts):
    axes.add_patch(Rectangle((w_ - 0.48, h - 0.48), 0.96, 0.96, color=colours[phase[h, w_]]))
    axes.text(w_, h, str(count), ha="center", va="center", color="white", fontsize=11)
for number, name in enumerate(("even row, even column", "even, odd", "odd, even", "odd, odd: tap (1, 1) alone")):
    axes.plot([], [], "s", color=colours[number], markersize=9, label=name)
axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="phase of the pixel")
axes.set(xlim=(-0.6, 6.6), ylim=(6.6, -0.6), aspect="equal", title="taps that reach a pixel: 7 x 7, 3 x 3 at stride 2")
assert np.array_equal(counts.flatten(), (A > 0).sum(0).cpu().numpy())

# %% [markdown]
# At stride 1 there is one phase, and dx is itself a convolution of dz. Its filters are turned by 180 degrees, and
# inputs and outputs are swapped. Only conv1 has a larger stride. Its dx is the gradient of the photo, and nobody needs
# that.

# %%
x = torch.randn(1, 8, 6, 6, device=device, requires_grad=True)
w = torch.randn(4, 8, 3, 3, device=device, requires_grad=True)
dz = torch.randn(1, 4, 6, 6, device=device)
kernels.conv2d(x, w, padding=1).backward(dz)
turned = w.detach().flip(2, 3).transpose(0, 1)
assert (F.conv2d(dz, turned, padding=1) - x.grad).abs().max() < 1e-4

# %% [markdown]
# ### The weights
#
# A weight went into all pixels of its output map. The rule says what it collects. For tap (r, s), it is the sum over
# pixels of dz times the pixel of x that was under the tap.

# %%
figure, axes = style.figure(1, 5, height=2.4, width_ratios=(1, 1, 1, 1, 0.8))
maps_ = F.relu(F.conv2d(operands.x, operands.weight, operands.bias, stride=4))
large = maps_[:, 15:16, 8:28, 8:28].contiguous()
seen = torch.randn(1, 1, 18, 18, device=device)
for place, (r, s) in zip(axes[1:4], ((0, 0), (1, 1), (2, 2)), strict=True):
    under = large[0, 0, r : r + 18, s : s + 18]
    total = (under * seen[0, 0]).sum().item()
    place.imshow(under.cpu())
    place.set(title=f"x under tap ({r}, {s})", xlabel=f"sum of dz * x = {total:.3g}", xticks=[], yticks=[])
axes[0].imshow(seen[0, 0].cpu(), cmap=style.DIVERGING)
axes[0].set(title="dz", xticks=[], yticks=[])

weight = torch.zeros(1, 1, 3, 3, device=device, requires_grad=True)
kernels.conv2d(large, weight).backward(seen)
style.tile(axes[4], weight.grad[0, 0].cpu().numpy(), "dw")
assert abs(weight.grad[0, 0, 2, 2].item() - total) < 1e-3 * weight.grad.abs().max()

# %% [markdown]
# All three passes are products of matrices with the same three sizes, in different roles. So each gradient costs as
# many multiplications as the forward pass: training is about three times the work. Here are the sizes for conv3 with
# 128 photos:

# %%
N, K, C, pixels, taps = 128, 384, 256, 13 * 13, 3 * 3
products = {
    "forward: y": (N * pixels, K, C * taps),
    "input gradient: dx": (N * pixels, C, K * taps),
    "weight gradient: dw": (K, C * taps, N * pixels),
}
print(f"{'':22}{'M':>8}{'N':>8}{'K':>8}")
for name, (m, n, k) in products.items():
    print(f"{name:22}{m:8,}{n:8,}{k:8,}")
    assert m * n * k == WORKLOADS["conv3"].cost(N).macs == 128 * 149_520_384
assert WORKLOADS["conv3"].cost(N, backward=True).macs == 2 * WORKLOADS["conv3"].cost(N).macs

# %% [markdown]
# dw is different: its result is small, and its sums have 21,632 terms. With one program per tile, most of a GPU would
# have nothing to do. Therefore the pixels are divided among several programs (`SPLIT_K`), and a second kernel adds up
# their partial sums. The forward loop goes over taps. This loop goes over pixels:

# %%
source.show(_conv2d_weight_gradient_kernel, "acc = tl.zeros", "acc = runtime.dot")

# %% [markdown]
# Step through one program: four filters of 3 x 3 over 7 x 7 pixels, so 25 pixels of dz, in blocks of 16. One row of
# `acc` is a filter, one column a tap. After the first block the sums are not complete. The second block adds the last
# nine pixels.

# %%
x = torch.randn(1, 1, 7, 7, device=device)
w = torch.randn(4, 1, 3, 3, device=device, requires_grad=True)
dz = torch.randn(1, 4, 5, 5, device=device)
tile = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 1, "SPLIT_K": 1}
with tiles.use("conv2d_weight_gradient", tile):
    found = trace(lambda: kernels.conv2d(x, w).backward(dz), "_conv2d_weight_gradient_kernel")
stepping.strip(found, "acc", height=2.9)
expected = torch.nn.grad.conv2d_weight(x, w.shape, dz).view(4, 9).cpu().numpy()
assert np.abs(found.values("acc")[-1][:4, :9] - expected).max() < 1e-4
assert found.values("mask_k")[-1].sum() == 9

# %%
stepping.slider(found, _conv2d_weight_gradient_kernel)

# %% [markdown]
# ## Pooling: the winner takes it
#
# Only the largest pixel of a window went into y, so only this pixel collects dy. Windows overlap: a strong pixel can
# win four windows, and then collects from all four. The forward pass keeps which tap won, in one byte per window.

# %%
x = torch.randint(0, 50, (1, 1, 7, 7), device=device).float()
x[0, 0, 2, 4] = 99.0  # lies in four windows
x.requires_grad_()
y = kernels.max_pool2d(x, 3, 2)
dy = torch.arange(1.0, 10.0, device=device).view(1, 1, 3, 3)
y.backward(dy)
reference = torch.autograd.grad(F.max_pool2d(x, 3, 2), x, dy)[0]
assert torch.equal(x.grad, reference) and x.grad.sum() == dy.sum()
assert x.grad[0, 0, 2, 4] == dy[0, 0, :2, 1:].sum() == 2 + 3 + 5 + 6

figure, axes = style.figure(1, 3, height=3.2, width_ratios=(1.2, 0.8, 1.2))
for place, tensor, title in zip(axes, (x, dy, x.grad), ("x", "dy", "dx"), strict=True):
    style.tile(place, tensor[0, 0].detach().cpu().numpy(), title)

# %% [markdown]
# A kernel that goes from windows to pixels would have a problem: two programs may add to the same dx at once.
# **Atomics** (additions that cannot interrupt each other) solve this, but they run in any order, and each order rounds
# differently. Therefore this kernel goes the other way. A pixel **gathers** from the few windows that hold it, if their
# winning tap points at it. Every dx is written once, by one thread.

# %%
source.show(gather, "for r in", "cell = updated")

# %% [markdown]
# One byte for a tap is small. PyTorch keeps an index of 8 bytes instead. For pool1 and 128 photos this makes:

# %%
windows = 128 * 96 * 27 * 27
assert windows == 8_957_952
print(f"taps: {windows / 1e6:.0f} MB, indices of int64: {8 * windows / 1e6:.0f} MB")

# %% [markdown]
# ## LRN: a window and its mirror image
#
# y = x / d^beta, and d holds the squares of the neighbours. So x goes into its own y directly. Through d it also goes
# into each y whose window contains it, and makes that y smaller:
#
# ```
# dx[c] = dy[c] / d[c]^beta - 2 * alpha / size * beta * x[c] * sum of dy[c'] x[c'] / d[c']^(beta + 1)
# ```
#
# The sum is over the windows that hold c. This set is the mirror image of c's own window. For odd sizes the two are the
# same. The **Jacobian** of one pixel shows how every y changes with every x. It has a strong diagonal and weak negative
# bands.


# %%
def jacobian(size):
    """Returns how each of 12 channels of y changes with each channel of x, at one pixel: (12, 12)."""
    x = torch.linspace(0.5, 1.5, 12, device=device).view(1, 12, 1)
    run = lambda f: torch.autograd.functional.jacobian(lambda v: f(v, size, 5.0, 0.75, 1.0), x).view(12, 12)
    ours, theirs = run(kernels.local_response_norm), run(F.local_response_norm)
    assert (ours - theirs).abs().max() < 1e-5
    return ours.cpu().numpy()


figure, axes = style.figure(1, 2, height=3.4)
for place, size in zip(axes, (5, 4), strict=True):
    J = jacobian(size)
    place.imshow(J, cmap=style.DIVERGING, vmin=-0.25, vmax=0.25)
    place.set(title=f"Jacobian of LRN, size {size}", xlabel="channel of x", ylabel="channel of y")
    assert (np.diag(J) > 0).all() and J[6, 8 if size == 5 else 7] < 0 and J[6, 9 if size == 5 else 8] == 0

# %% [markdown]
# Row 6 shows what y[6] depends on: its window. Column 6 shows what x[6] collects from. With size 4 a window reaches two
# channels down and one up. So a column reaches one down and two up.
#
# The forward pass keeps only x. d is computed a second time, also for the neighbours, because arithmetic is cheaper
# than bytes.

# %%
source.show(normalise_gradient, "for c in tl.static_range(-HIGH", "dx +=")

# %% [markdown]
# ## Dropout: the same mask, twice
#
# In training, fc6 and fc7 lose a random half of their outputs, and the other half is doubled. Backwards, dx is dy,
# doubled, where x was kept. So the backward pass needs the same mask. It could be stored. But this is not necessary if
# the same random numbers can be computed again.
#
# Philox is a random generator without a state. It is a function of a seed and a counter. The random number of element i
# is Philox(seed, i), in any order, in any tile, at any time. So the backward pass runs the forward kernel on dy with
# the same seed. The forward pass keeps only this seed, 8 bytes.

# %%
source.show(_dropout_kernel, "offs =")

# %%
ones = torch.ones(24, 48, device=device, requires_grad=True)
y = kernels.dropout(ones, p=0.5, seed=2012)
y.backward(torch.ones_like(y))
assert torch.equal(ones.grad, y) and set(y.unique().tolist()) == {0.0, 2.0}

with tiles.use("dropout", {"BLOCK_M": 16}):  # 72 programs instead of one
    assert torch.equal(kernels.dropout(ones, p=0.5, seed=2012), y)
assert not torch.equal(kernels.dropout(ones, p=0.5, seed=2013), y)

figure, axes = style.figure(1, 3, height=2.2)
other = kernels.dropout(ones.detach(), p=0.5, seed=2013)
for place, tensor, title in zip(axes, (y, ones.grad, other), ("forward", "backward", "another seed"), strict=True):
    place.imshow(tensor.detach().cpu() > 0, cmap=style.MASK, vmin=0, vmax=1)
    place.set(title=f"{title}: {(tensor > 0).float().mean():.0%} kept", xticks=[], yticks=[])

# %% [markdown]
# ## What it costs
#
# This is the least time for the bytes and FLOPs of each layer, forwards and backwards, for 128 photos in fp16. The
# backward pass of a product is two products, but only one for conv1. fc6 reads its 37.7 million weights and writes the
# same number of gradients, for every batch size.

# %%
forward = {layer.name: layer.cost(128, 2) for layer in ALEXNET}
backward = {layer.name: layer.cost(128, 2, backward=True) for layer in ALEXNET}
for name, what in forward.items():
    assert backward[name].macs == (1 if name == "conv1" else 2) * what.macs
macs = [sum(what.macs for what in costs.values()) for costs in (forward, backward)]
assert round(macs[1] / macs[0], 2) == 1.85

limits, _, label = machine.limits("fp16")
timed = [
    machine.ours(machine.measure("conv2d", "lrn_max_pool2d", "max_pool2d", "linear", pass_=p))
    for p in ("forward", "backward")
]
figure, axes = style.figure(height=3.4)
places = np.arange(len(ALEXNET))
for shift, costs, ms, colour, what in (
    (-0.2, forward, timed[0], style.BLUE, "forward"),
    (0.2, backward, timed[1], style.ORANGE, "backward"),
):
    floors = [1e3 * limits.floor_ms(c.flops, c.bytes) for c in costs.values()]
    axes.bar(places + shift, floors, 0.38, color=colour, label=f"{what}, at least")
    known = [(place + shift, 1e3 * ms[name]) for place, name in enumerate(costs) if name in ms]
    if known:
        axes.plot(*zip(*known, strict=True), "D", color=style.BLACK, markersize=4, label=f"{what}, measured")
axes.set(ylabel="microseconds", title=f"A step of training, 128 photos\n({label})")
axes.set_xticks(places, [layer.name for layer in ALEXNET])
_ = axes.legend(loc="upper right")

# %%
some = {name: backward[name] for name in ("conv1", "conv3", "pool1", "fc6")}
roof.plot(some, measured=timed[1], title="Backwards, 128 photos")

# %% [markdown]
# ## Fine-tuning fc8 on new classes
#
# A trained network knows more than its classes. Up to fc7 it turns a photo into 4,096 numbers, called **features**.
# They are useful for other questions, too. So for new classes, keep these layers and train only a new fc8.
#
# The bundled network knows the ten classes of CIFAR-10. Here are four classes that it does not know. We have a single
# photo of each, from scikit-image. Each photo is cropped and mirrored at random. This gives six images to train with
# and three to test.

# %%
names = {
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "astronaut": "astronaut.png",
    "motorcycle": "motorcycle_left.png",
}
folder = default_photo().parent
random = np.random.default_rng(0)


def crop(image):
    """Cuts a random square, 60 to 95 % of the shorter side, and mirrors it half of the time."""
    side = int(min(image.size) * random.uniform(0.6, 0.95))
    left, top = (int(random.integers(extent - side + 1)) for extent in image.size)
    square = image.crop((left, top, left + side, top + side))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else square


crops = [[crop(open_image(folder / file)) for _ in range(9)] for file in names.values()]
figure, axes = style.figure(4, 9, height=4.3)
for number, row in enumerate(axes.T):
    row[0].set_title("train" if number < 6 else "test", color=style.BLUE if number < 6 else style.VERMILION)
    for place, images in zip(row, crops, strict=True):
        place.imshow(images[number].resize((96, 96)))
        place.set_axis_off()

# %% [markdown]
# The features do not change while fc8 learns, so they are computed once. (PyTorch's operators compute them, because on
# a CPU they are faster than the interpreter. `net.use` exchanges the operators. The tests check that both compute the
# same.)

# %% tags=["varies"]
loaded = weights.load("cifar10")
net = AlexNet.from_weights(loaded).use(torch_ops)
batch = torch.stack([loaded.preprocess(image) for images in crops for image in images])
caught = {}
net.fc7.register_forward_hook(lambda _, __, output: caught.update(fc7=output))
with torch.no_grad():
    old = net(batch).argmax(1)
fc7 = caught["fc7"].view(4, 9, 4096).to(device)
assert batch.shape == (36, 3, 227, 227) and fc7.shape == (4, 9, 4096)
for name, answers in zip(names, old.view(4, 9).tolist(), strict=True):
    counts = {loaded.classes[c]: answers.count(c) for c in sorted(set(answers), key=answers.count, reverse=True)}
    print(f"the old fc8 takes {name:10} for", ", ".join(f"{label} ({count})" for label, count in counts.items()))

# %% [markdown]
# Now the training, on the kernels: dropout, a new fc8 of 4 x 4,096 weights, cross entropy, their gradients, and SGD
# with momentum.

# %% tags=["varies"]
labels = torch.arange(4, device=device)[:, None].expand(4, 9)
train_x, train_y = fc7[:, :6].reshape(24, 4096), labels[:, :6].reshape(24)

weight = (0.01 * torch.randn(4, 4096, device=device)).requires_grad_()
bias = torch.zeros(4, device=device, requires_grad=True)
optimizer = torch.optim.SGD([weight, bias], lr=0.02, momentum=0.9)
history = []  # (loss, right share of train, right share of test)
for step in range(20):
    kept = kernels.dropout(train_x, 0.5, seed=step)
    loss = kernels.cross_entropy(kernels.linear(kept, weight, bias), train_y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        answers = kernels.linear(fc7.view(36, 4096), weight, bias).argmax(1).view(4, 9)
    right = [(answers == labels)[:, part].float().mean().item() for part in (slice(6), slice(6, 9))]
    history.append((loss.item(), *right))
print(f"loss {history[0][0]:.2f} -> {history[-1][0]:.3f}, right: {right[0]:.0%} of train, {right[1]:.0%} of test")
assert history[-1][0] < 0.3 * history[0][0] and right[0] == 1.0 and right[1] >= 0.9

# %%
figure, (left, right_) = style.figure(1, 2, height=2.7)
left.plot([step[0] for step in history], color=style.BLUE)
left.set(xlabel="step", ylabel="cross entropy", title="loss, with dropout")
right_.plot([step[1] for step in history], color=style.BLUE, label="24 to train with")
right_.plot([step[2] for step in history], "--", color=style.ORANGE, label="12 to test")
right_.set(xlabel="step", ylabel="right share", ylim=(0, 1.05), title="accuracy")
_ = right_.legend(loc="lower right")

# %% [markdown]
# Be careful about what this shows. It shows that the gradients work, and that fc7's features can tell these photos
# apart. It does not show that the network knows coffee, because train and test images are crops of the same photo. If
# you have a folder of your own photos, with one sub-folder per class, one command does the same:
#
# ```
# alexnet train photos/ --weights bvlc_alexnet.npy --skip-layer fc8 --freeze conv1 conv2 conv3 --out run
# ```
#
# ## What two GPUs had to do with groups
#
# In 2012 the network and everything that training keeps did not fit into the 3 GB of a GTX 580. So the authors cut it
# into two halves: each GPU had half of the filters of every layer. A filter of conv2 would have to read all 96 maps of
# conv1, and half of them were on the other GPU. To avoid this, conv2, conv4 and conv5 read only the maps of their own
# GPU. conv3 and the fully connected layers read all maps. Only there did the two GPUs exchange data.
#
# A convolution with `groups=2` is exactly this, two convolutions side by side:

# %%
x = torch.randn(1, 96, 9, 9, device=device)
w = torch.randn(256, 48, 5, 5, device=device) / 35
both = kernels.conv2d(x, w, padding=2, groups=2)
first = kernels.conv2d(x[:, :48], w[:128], padding=2)
second = kernels.conv2d(x[:, 48:], w[128:], padding=2)
assert (both - torch.cat([first, second], 1)).abs().max() < 1e-5 * both.abs().max()
assert w.numel() == 307_200  # with all 96 maps it would be 614,400

# %% [markdown]
# `model.halves` has this network in two halves, for two processes. Here they run as two threads, for the photo of the
# cat. They count the bytes that each half receives from the other. (fc8 has five outputs in each half, for the ten
# classes.)

# %%
x = loaded.preprocess(open_image(default_photo()))[None]
logits, rows = halves.run(loaded, x)
with torch.no_grad():
    whole = net(x)
assert all((half - whole).abs().max() < 1e-4 * whole.abs().max() for half in logits)
print(table(rows[0]))

received = {row.layer: row.received for row in rows[0]}
assert received["conv2"] == received["conv4"] == received["conv5"] == 0
assert received["conv3"] == 128 * 13 * 13 * 4 == 86_528

# %%
layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
figure, axes = style.figure(height=3.0)
for number, name in enumerate(layers):
    for gpu in (0, 1):
        colour = style.BLUE if gpu == 0 else style.GREEN
        axes.add_patch(Rectangle((number - 0.3, gpu - 0.17), 0.6, 0.34, color=colour))
        half = next(row for row in rows[gpu] if row.layer == name)
        axes.text(number, gpu, f"{name}\n{half.shape[0]}", color="white", ha="center", va="center", fontsize=8.5)
        if number:
            axes.annotate("", (number - 0.32, gpu), (number - 0.7, gpu), arrowprops={"arrowstyle": "->", "lw": 1.5})
            if received[name]:
                axes.annotate(
                    "",
                    (number - 0.32, gpu - 0.06 + 0.12 * (1 - gpu)),
                    (number - 0.7, 1 - gpu),
                    arrowprops={"arrowstyle": "->", "color": style.VERMILION, "lw": 1.5},
                )
    if number and received[name]:
        axes.text(number - 0.5, 1.45, f"{received[name] / 1e3:.1f} kB", color=style.VERMILION, ha="center", fontsize=9)
axes.set(xlim=(-0.5, 7.5), ylim=(1.7, -0.35), yticks=[0, 1], yticklabels=["GPU 0", "GPU 1"], xticks=[])
axes.set_title("Maps and units of each half; red: what is exchanged, each way, for one photo in fp32")
axes.spines[:].set_visible(False)

# %% [markdown]
# The table shows two more small exchanges, for pool1 and pool2. There, windows of LRN cross the border between the
# halves. The authors' GPUs did not do this exchange. BVLC's weights were trained on one GPU, with windows across the
# border. Its groups were kept, because they are part of the network. With groups, conv2, conv4 and conv5 have half of
# the weights and half of the multiplications that they would have without.
#
# ## Exercises
#
# Solutions are in [`solutions/09_training.py`](solutions/09_training.py).
#
# **1.** Compute the gradient of cross entropy's mean: softmax minus one-hot, divided by the number of rows. `BLOCK_C`
# is a power of two, at least C. Logits may be as large as 1000.
#
# <details><summary>Hint 1</summary>A tile of [BLOCK_M, BLOCK_C] holds whole rows.</details>
# <details><summary>Hint 2</summary>Subtract each row's maximum before <code>tl.exp</code>. Masked lanes get minus
# infinity, which becomes 0.</details>
# <details><summary>Hint 3</summary>One-hot: <code>(offs_c[None, :] == target[:, None]).to(tl.float32)</code></details>


# %%
@triton.jit
def loss_gradient(x_ptr, target_ptr, dx_ptr, M, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    pass  # your lines


nb09.loss_gradient(loss_gradient)

# %% [markdown]
# **2.** A ReLU and dropout follow fc6: y = relu(z), out = dropout(y). Go back through both in one pass: compute `dz`
# from `dout`, `y` and the seed.
#
# <details><summary>Hint 1</summary>There are two masks. Read one off y. Compute the other again with
# <code>tl.rand(seed, offs) >= p</code>.</details>
# <details><summary>Hint 2</summary>On the way forward, kept values were divided by 1 - p. So their gradients are
# divided by it, too.</details>
# <details><summary>Hint 3</summary><code>tl.where((y > 0.0) & (tl.rand(seed, offs) >= p), dout / (1.0 - p),
# 0.0)</code></details>


# %%
@triton.jit
def relu_dropout_gradient(dout_ptr, y_ptr, dz_ptr, elements, p, seed, BLOCK_M: tl.constexpr):
    pass  # your lines


nb09.relu_dropout_gradient(relu_dropout_gradient)

# %% [markdown]
# **3.** In plain PyTorch, write a convolution's weight gradient as one product of matrices. x is (N, C, H, W), dz is
# (N, K, P, Q), and `size` is the filter's side. Return (K, C, size, size).
#
# <details><summary>Hint 1</summary><code>F.unfold(x, size, padding=padding, stride=stride)</code> is the matrix of the
# pixels under the taps: (N, C * size * size, P * Q).</details>
# <details><summary>Hint 2</summary>Take dz as (N, K, P * Q), multiply it by that matrix transposed, and sum over
# N.</details>
# <details><summary>Hint 3</summary><code>torch.einsum("nkm,ntm->kt", dz.flatten(2), columns)</code></details>


# %%
def weight_gradient(x, dz, size, stride, padding):
    raise NotImplementedError  # your lines


nb09.weight_gradient(weight_gradient)

# %% [markdown]
# ## The end, and a beginning
#
# You have seen every operator of AlexNet, forwards and backwards. `alexnet train` puts them together. `kernels/` has
# all of them, one file per operator.
