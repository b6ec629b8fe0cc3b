# %% [markdown]
# # 09 · Training: every operator backwards
#
# A network learns by following its loss downhill, and for that each operator must say how the loss changes with its
# inputs. Autograd chains these answers; somebody has to write them. You will
#
# - derive and see the gradient of each of AlexNet's operators,
# - learn what each keeps from the forward pass, and how little that can be,
# - see a dropout mask that is never stored, but made a second time,
# - fine-tune fc8 on classes that the network has never seen,
# - understand what two GPUs of 2012 left behind in the network: its groups.

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
from kernels.ops.bias_relu import _bias_relu_gradient_kernel
from kernels.ops.conv2d_backward import _conv2d_weight_gradient_kernel
from kernels.ops.dropout import _dropout_kernel
from kernels.ops.local_response_norm import normalise_gradient
from kernels.ops.max_pool2d import gather
from kernels.tools import torch_ops
from kernels.tools.trace import trace
from kernels.tools.workloads import ALEXNET, LAYERS
from model import weights
from model.alexnet import AlexNet
from model.infer import default_photo
from model.photos.preprocess import open_image
from model.two_gpus import table

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## One rule
#
# Call the loss L, and write dy for the change of L with y, element by element: a tensor of y's shape. An operator
# y = f(x) is given dy, and returns dx. Everything in this notebook follows from one rule:
#
# > Each x collects, from every y that it went into, that y's dy times how strongly it went in.
#
# The chain begins at the loss. Cross entropy is -log of the probability that softmax gives to the right class, and
# its gradient is as simple as it could be: the probabilities, minus 1 at the right class. What is too likely is pushed
# down, what is not likely enough is pulled up.

# %%
logits = torch.tensor([[1.0, 3.0, 0.5, 2.0]], device=device, requires_grad=True)
target = torch.tensor([3], device=device)
kernels.cross_entropy(logits, target).backward()

probabilities = kernels.softmax(logits.detach())[0]
onehot = F.one_hot(target, 4)[0]
assert (logits.grad[0] - (probabilities - onehot)).abs().max() < 1e-6

figure, (left, right) = style.figure(1, 2, height=2.3)
left.bar(range(4), probabilities.cpu(), color=style.BLUE)
left.set(title="softmax(logits)", xlabel="class, of which 3 is right", xticks=range(4))
right.bar(range(4), logits.grad[0].cpu(), color=style.ORANGE)
right.axhline(0, color=style.BLACK, linewidth=0.8)
right.set(title="gradient of the logits", xlabel="class", xticks=range(4))
assert abs(logits.grad.sum()) < 1e-6  # it moves probability, and makes none

# %% [markdown]
# ## ReLU: a mask from the output
#
# y = max(0, z). Where z was positive, y went up and down with it: dz = dy. Elsewhere, nothing changed: dz = 0.
# The forward pass could keep a mask for this. It need not, for y tells: it is positive in just those places. And y is
# kept anyhow, since the next layer needs it as its input.

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
# One kernel does both, mask and sums, on the way from dy to dz; convolutions and fully connected layers share it.

# %%
source.show(_bias_relu_gradient_kernel, "acc = ", "acc += grad")

# %% [markdown]
# ## Convolution: two products more
#
# A convolution is linear: y is a matrix times x. For one channel of 7 x 7 pixels and a filter of 3 x 3 at stride 2,
# the matrix has 9 rows, one for each output, and 49 columns, and in each row stand the nine weights. Nobody stores it;
# but it shows what the gradient is. If y = A x, an x collects its column: dx = A^T dy.

# %%
w = torch.arange(1.0, 10.0, device=device).view(1, 1, 3, 3) / 9
basis = torch.eye(49, device=device).view(49, 1, 7, 7)
A = F.conv2d(basis, w, stride=2).view(49, 9).T  # column j is what pixel j alone makes

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
# The rows of A all have nine weights, one for each tap. The rows of A^T do not: at stride 2, a pixel's row and column
# decide which taps ever reach it. Even and even: four, inside the map. Odd and odd: one. These **phases** each make a
# dense product of their own, so that no multiplication is wasted on zeros.

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
# At stride 1 there is one phase, and dx is itself a convolution: of dz, with the filters turned by 180 degrees, and
# inputs and outputs swapped. Only conv1 has a stride, and its dx is the gradient of the photo, which nobody wants.

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
# A weight went into all pixels of its output map. The rule says what it collects: for tap (r, s), the sum over pixels
# of dz times the pixel of x that lay under the tap.

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
# Read as products of matrices, all three passes have the same three extents, in different roles. So each gradient costs
# as many multiplications as the forward pass: training is about three times the work. Here for conv3 with 128 photos:

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
    assert m * n * k == LAYERS["conv3"].cost(N).macs == 128 * 149_520_384
assert LAYERS["conv3"].cost(N, backward=True).macs == 2 * LAYERS["conv3"].cost(N).macs

# %% [markdown]
# dw is the odd one: a small result, and sums of 21,632 terms. One program a tile would leave most of a GPU idle, so the
# pixels are shared out among programs (`SPLIT_K`), and their sums added up in a second kernel. The loop walks over
# pixels, where the forward loop walked over taps:

# %%
source.show(_conv2d_weight_gradient_kernel, "acc = tl.zeros", "acc = runtime.dot")

# %% [markdown]
# Step through one program: four filters of 3 x 3 over 7 x 7 pixels, so 25 pixels of dz, in blocks of 16. A row of `acc`
# is a filter, a column a tap. After the first block the sums are unfinished; the second brings the last nine pixels.

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
# Only the largest pixel of a window went into y, so it alone collects dy. Windows overlap: a strong pixel can win four
# windows, and collects from all four. Which tap won is kept from the forward pass, in one byte a window.

# %%
x = torch.randint(0, 50, (1, 1, 7, 7), device=device).float()
x[0, 0, 2, 4] = 99.0  # in four windows
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
# A kernel that goes from windows to pixels would have two programs add to the same dx at once: atomics, in whatever
# order they come, rounding differently each time. This one turns it round: a pixel **gathers** from the few windows
# that hold it, those whose winning tap points at it. Every dx is written once, by one thread.

# %%
source.show(gather, "for r in", "cell = updated")

# %% [markdown]
# A tap in a byte is small. As PyTorch keeps it, an index in 8 bytes, pool1 would hold for 128 photos:

# %%
windows = 128 * 96 * 27 * 27
assert windows == 8_957_952
print(f"taps: {windows / 1e6:.0f} MB, indices of int64: {8 * windows / 1e6:.0f} MB")

# %% [markdown]
# ## LRN: a window and its mirror image
#
# y = x / d^beta, and d holds the squares of the neighbours. So x goes into its own y directly, and into each y whose
# window it is in, through d, weakening it:
#
# ```
# dx[c] = dy[c] / d[c]^beta - 2 * alpha / size * beta * x[c] * sum of dy[c'] x[c'] / d[c']^(beta + 1)
# ```
#
# The sum is over the windows that hold c, the mirror image of c's own window; for odd sizes the two are the same.
# The Jacobian of one pixel, every y's change with every x, shows both: a strong diagonal, and weak negative bands.


# %%
def jacobian(size):
    """How each of 12 channels of y changes with each of x, at one pixel."""
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
# Row 6 is what y[6] depends on: its window. Column 6 is what x[6] collects from. With size 4 a window reaches two
# channels down and one up; so a column reaches one down and two up.
#
# Nothing but x is kept. d is computed a second time, for the neighbours as well: arithmetic is cheaper than bytes.

# %%
source.show(normalise_gradient, "for c in tl.static_range(-HIGH", "dx +=")

# %% [markdown]
# ## Dropout: the same mask, twice
#
# In training, fc6 and fc7 lose a random half of their outputs, and the rest is doubled. Backwards, dx is dy where x was
# kept, doubled: the same mask. It could be stored. It need not be, if the random numbers can be made again.
#
# Philox is a generator without a state: a function of a seed and a counter. The number of element i is
# Philox(seed, i), in any order, in any tile, at any time. So backwards is the forward kernel, run on dy with the same
# seed, and 8 bytes are all that is kept.

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
# The time that the bytes and FLOPs of each layer take at the least, forwards and backwards, for 128 photos in fp16. A
# product's backward pass is two products, but conv1's only one. fc6 reads its 37.7 million weights and writes as many
# gradients, whatever the batch.

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
    axes.bar(places + shift, floors, 0.38, color=colour, label=f"{what}, at the least")
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
# A trained network is more than its classes: up to fc7 it turns a photo into 4,096 numbers, **features**, that are of
# use for other questions. So for new classes keep all of it, and train a new fc8 alone.
#
# The bundled network knows ten classes of CIFAR-10. Here are four that it does not know, of which we have a single
# photo each, from scikit-image. Cropped and mirrored at random, each makes six images to train with and three to test.

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
    """A random square of 60 to 95 % of the shorter side, mirrored half of the time."""
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
# The features do not change while fc8 learns, so they are computed once. (By PyTorch's operators, which on a CPU are
# faster than an interpreter; `net.use` exchanges them, and the tests see to it that both compute the same.)

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
optimizer = torch.optim.SGD([weight, bias], lr=0.01, momentum=0.9)
history = []  # loss, and the share of train and test that is right
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
right_.set(xlabel="step", ylabel="share that is right", ylim=(0, 1.05), title="accuracy")
_ = right_.legend(loc="lower right")

# %% [markdown]
# Mind what this shows: that the gradients work, and that fc7's features tell these photos apart. It does not show that
# the network knows coffee: train and test are crops of the same photo. For a folder of photos of your own, a
# sub-folder a class, the same is one command:
#
# ```
# alexnet train photos/ --weights bvlc_alexnet.npy --skip-layer fc8 --freeze conv1 conv2 conv3 --out run
# ```
#
# ## What two GPUs had to do with groups
#
# In 2012 the network, with all that training keeps, did not fit into the 3 GB of a GTX 580. So it was cut in two: each
# GPU had half of the filters of every layer. A filter of conv2 would have to read all 96 maps of conv1, half of them on
# the other GPU. To spare that, conv2, conv4 and conv5 read the maps of their own GPU only. conv3 and the fully
# connected layers read all, and only there did the two exchange anything.
#
# A convolution with `groups=2` is just that, two convolutions side by side:

# %%
x = torch.randn(1, 96, 9, 9, device=device)
w = torch.randn(256, 48, 5, 5, device=device) / 35
both = kernels.conv2d(x, w, padding=2, groups=2)
first = kernels.conv2d(x[:, :48], w[:128], padding=2)
second = kernels.conv2d(x[:, 48:], w[128:], padding=2)
assert (both - torch.cat([first, second], 1)).abs().max() < 1e-5 * both.abs().max()
assert w.numel() == 307_200  # with all 96 maps it would be 614,400

# %% [markdown]
# `model.two_gpus` has this network in two halves, for two processes. Here they run as two threads, and note what each
# is sent by the other for the photo of the cat. (fc8 has five outputs in each half, for the ten classes.)

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
axes.set_title("Maps and units of each half; in red what crosses, each way, for one photo in fp32")
axes.spines[:].set_visible(False)

# %% [markdown]
# The table counts two small exchanges more, for pool1 and pool2: windows of LRN across the border between the halves.
# The authors' GPUs did without them. BVLC's weights were trained on one GPU, with windows across the border, and the
# groups kept all the same, because they are part of the network. With them conv2, conv4 and conv5 have half of the
# weights and half of the multiplications that they would have without.
#
# ## Exercises
#
# Solutions are in [`solutions/09_training.py`](solutions/09_training.py).
#
# **1.** The gradient of cross entropy's mean: softmax minus one-hot, divided by the number of rows. `BLOCK_C` is a
# power of two, at least C. Logits may be as large as 1000.
#
# <details><summary>Hint 1</summary>A tile of [BLOCK_M, BLOCK_C] holds whole rows.</details>
# <details><summary>Hint 2</summary>Subtract each row's maximum before <code>tl.exp</code>; masked lanes hold minus
# infinity, which becomes 0.</details>
# <details><summary>Hint 3</summary>One-hot: <code>(offs_c[None, :] == target[:, None]).to(tl.float32)</code></details>


# %%
@triton.jit
def loss_gradient(x_ptr, target_ptr, dx_ptr, M, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    pass  # your lines


nb09.loss_gradient(loss_gradient)

# %% [markdown]
# **2.** fc6 is followed by a ReLU and by dropout: y = relu(z), out = dropout(y). Go back through both in one pass: from
# `dout` and `y`, and the seed, to `dz`.
#
# <details><summary>Hint 1</summary>Two masks: one read off y, one made again by
# <code>tl.rand(seed, offs) >= p</code>.</details>
# <details><summary>Hint 2</summary>What was kept was divided by 1 - p on the way forward, so its gradient is as
# well.</details>
# <details><summary>Hint 3</summary><code>tl.where((y > 0.0) & (tl.rand(seed, offs) >= p), dout / (1.0 - p), 0.0)</code>
# </details>


# %%
@triton.jit
def relu_dropout_gradient(dout_ptr, y_ptr, dz_ptr, elements, p, seed, BLOCK_M: tl.constexpr):
    pass  # your lines


nb09.relu_dropout_gradient(relu_dropout_gradient)

# %% [markdown]
# **3.** In plain PyTorch, write a convolution's weight gradient as one product of matrices. x is (N, C, H, W), dz
# (N, K, P, Q), `size` the filter's side; return (K, C, size, size).
#
# <details><summary>Hint 1</summary><code>F.unfold(x, size, padding=padding, stride=stride)</code> is the matrix of what
# lies under the taps: (N, C * size * size, P * Q).</details>
# <details><summary>Hint 2</summary>dz as (N, K, P * Q), times its transpose, summed over N.</details>
# <details><summary>Hint 3</summary><code>torch.einsum("nkm,ntm->kt", dz.flatten(2), columns)</code></details>


# %%
def weight_gradient(x, dz, size, stride, padding):
    raise NotImplementedError  # your lines


nb09.weight_gradient(weight_gradient)

# %% [markdown]
# ## The end, and a beginning
#
# You have seen every operator of AlexNet, forwards and backwards. `alexnet train` puts them together;
# `kernels/` has all of them, a file each.
