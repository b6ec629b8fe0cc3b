# %% [markdown]
# # 06 · AlexNet: the whole chain
#
# Notebooks 01 to 05 explained convolution, normalisation, pooling and fully connected layers one by one. Here they form
# the network, and a photo goes through it. You will
#
# - see 227 become 55, 27, 13 and 6, and know the rule behind it,
# - see what the first filters look for, and what each layer makes of the cat,
# - learn where the parameters are and where the work is, and that these are different places,
# - read the prediction, and check it against PyTorch.

# %%
from lesson import chain, machine, photo, roof, source, stepping, style
from lesson.check import nb06

import numpy as np
import torch

import kernels
from kernels import runtime
from kernels.ops.softmax import _softmax_kernel
from kernels.tools import torch_ops
from kernels.tools.trace import trace
from kernels.tools.workloads import ALEXNET
from model import weights
from model.alexnet import AlexNet
from model.photos.preprocess import open_image
from model.photos.sample import default_photo

style.use()
torch.manual_seed(0)
device = runtime.default_device()
machine.describe()

# %% [markdown]
# ## The network, in a dozen lines
#
# This is all of it. `kernels/` holds what the layers do. These lines only give their order.

# %%
source.show(AlexNet.forward, "#                      N x", "return")

# %% [markdown]
# ## The walk
#
# A window of size r slides over n pixels in steps of s, with p pixels of padding at each end. It fits this many times:
#
# $$ \Big\lfloor \frac{n + 2p - r}{s} \Big\rfloor + 1 $$
#
# This formula gives all the sizes. It is applied eight times.


# %%
def fits(n, r, s, p=0):
    return (n + 2 * p - r) // s + 1


walk = {
    "conv1": (11, 4, 0),
    "pool1": (3, 2, 0),
    "conv2": (5, 1, 2),
    "pool2": (3, 2, 0),
    "conv3": (3, 1, 1),
    "conv4": (3, 1, 1),
    "conv5": (3, 1, 1),
    "pool5": (3, 2, 0),
}
sizes = [227]
for name, (r, s, p) in walk.items():
    sizes.append(fits(sizes[-1], r, s, p))
    print(f"{name}: window {r:2} at stride {s}, padding {p}:  {sizes[-2]:3} -> {sizes[-1]}")
assert list(dict.fromkeys(sizes)) == [227, 55, 27, 13, 6]

# %% [markdown]
# At 227 every division is exact, so no pixel is left over. The paper states 224, but then conv1 would not fit evenly:
# (224 - 11) / 4 is not a whole number.

# %%
assert all((n + 2 * p - r) % s == 0 for n, (r, s, p) in zip(sizes, walk.values(), strict=False))
assert (224 - 11) % 4 != 0

blocks = [("photo", (3, 227, 227)), *((layer.name, layer.cost().output[1:]) for layer in ALEXNET)]
colours = {"photo": style.GREY, "conv": style.BLUE, "pool": style.SKY, "fc": style.ORANGE}
figure, axes = style.figure(height=3.4)
axes.set_title("Channels x height x width: fewer pixels, more channels (wider bars: more channels)")
axes.set_xticks(range(len(blocks)), [name for name, _ in blocks])
axes.set(ylim=(0, 290), ylabel="pixels per side")
for number, (name, shape) in enumerate(blocks):
    side = shape[1] if len(shape) == 3 else 1
    axes.bar(number, side, width=0.12 + 0.16 * np.log2(shape[0]) / 3, color=colours[name.rstrip("12345678")])
    axes.text(number, side + 5, " x\n".join(map(str, shape)), ha="center", va="bottom", fontsize=9)

# %% [markdown]
# ## Parameters and work
#
# A convolution's filter sees `C / groups` channels. With two groups this is half of the input. Each of the two GPUs of
# 2012 had one half. A layer has `K * C / groups * R * S` weights and K biases. It does one multiply-accumulate (MAC)
# per weight at each of its P * Q output pixels.

# %%
with torch.device("meta"):  # shapes without data
    imagenet = AlexNet(num_classes=1000)
table = imagenet.layers()
print(f"{'layer':6} {'output':>16} {'parameters':>12} {'MACs':>13}")
for found in table:
    print(f"{found.name:6} {' x '.join(map(str, found.output[1:])):>16} {found.parameters:12,} {found.macs:13,}")
parameters, macs = sum(found.parameters for found in table), sum(found.macs for found in table)
print(f"{'all':6} {'':16} {parameters:12,} {macs:13,}")
assert (parameters, macs) == (60_965_224, 724_406_816)

# %%
layers = [found for found in table if found.parameters]
figure, axes = style.figure(1, 2, height=3.2)
for place, part, title in ((axes[0], "parameters", "million parameters"), (axes[1], "macs", "million MACs, one photo")):
    values = [getattr(found, part) / 1e6 for found in layers]
    colours = [style.BLUE if found.name.startswith("conv") else style.ORANGE for found in layers]
    bars = place.barh([found.name for found in layers], values, color=colours)
    place.bar_label(
        bars, [f"{value:,.1f}" if value >= 0.1 else f"{value:.2f}" for value in values], padding=3, fontsize=9
    )
    place.invert_yaxis()
    place.margins(x=0.14)
    place.set_title(title)

convolutions = [found for found in layers if found.name.startswith("conv")]
assert round(sum(found.parameters for found in convolutions) / parameters, 3) == 0.038
assert round(sum(found.macs for found in convolutions) / macs, 3) == 0.919

# %% [markdown]
# Convolutions (blue) have 4 % of the parameters and do 92 % of the work, because each weight is used at every pixel.
# For fully connected layers (orange) it is the other way round. So the two kinds are slow for different reasons.
# Notebook [07](07_roofline.ipynb) explains the reasons.
#
# ## The photo goes in
#
# The photo must be prepared as the weights expect it: with the colours in the same order, minus the same mean, divided
# by the same numbers, and resized by the same rule as in training. All this is stored with the weights.

# %%
trained = weights.load(weights.DEFAULT)
net = AlexNet.from_weights(trained).to(device)
preprocess = trained.preprocess
x = preprocess(open_image(default_photo()))[None].to(device, memory_format=torch.channels_last)
assert x.shape == (1, 3, 227, 227)
print(f"weights:   {trained.name}, {len(trained.classes)} classes")
print(f"resized:   {preprocess.resize}")
print(f"colours:   {preprocess.order}, less {preprocess.mean}, over {preprocess.std}")

# %%
figure, (left, right) = style.figure(1, 2, height=3.4)
left.imshow(photo.square())
left.set_title("the photo's middle, 227 x 227")
seen = x[0].cpu() * torch.tensor(preprocess.std)[:, None, None] + torch.tensor(preprocess.mean)[:, None, None]
order = slice(None, None, -1 if preprocess.order == "BGR" else 1)
rgb = lambda channels: np.ascontiguousarray(channels.numpy()[order])
right.imshow(rgb(seen).transpose(1, 2, 0).clip(0, 255).astype(np.uint8))
right.set_title("what the network is given, mean added again")
for axes in (left, right):
    axes.set_axis_off()

# %% [markdown]
# ## Through all layers
#
# A **hook** is a function that PyTorch calls after a layer. Here a hook on each layer keeps the layer's output. Then
# the network runs, with every operator on our kernels.

# %%
kept = {}
hooks = [
    layer.register_forward_hook(lambda _, __, output, name=name: kept.update({name: output.cpu()}))
    for name, layer in net.named_children()
]
with torch.inference_mode():
    logits = net(x)
for hook in hooks:
    hook.remove()
for name, output in kept.items():
    print(f"{name}: {' x '.join(map(str, output.shape))}")
assert [kept[name].shape[-1] for name in walk] == sizes[1:]

# %% [markdown]
# Are they right? We compare layer by layer with PyTorch's operators in float64.

# %%
reference = AlexNet.from_weights(trained).to(device).use(torch_ops).double()
exact, worst = x.double(), {}
with torch.inference_mode():
    for name, layer in reference.named_children():
        exact = layer(exact.flatten(1) if name == "fc6" else exact)
        worst[name] = ((kept[name] - exact.cpu()).abs().max() / exact.abs().max().cpu()).item()
assert max(worst.values()) < 1e-5
print("max|ours - exact| / max|exact| is under 1e-5 in every layer")

# %% [markdown]
# ## What the first filters look for
#
# conv1's 96 filters of 11 x 11 look at colours directly, so they can be shown as pictures. In each picture the least
# weight is darkest and the greatest is brightest. Filters that were trained long, on many sharp photos, look like edges
# in all directions and like blobs of colour. Filters that look like noise still look as they did before training. Then
# training had no need to change them much.

# %%
weight = net.conv1.weight.detach().cpu()
assert weight.shape == (96, 3, 11, 11)
chain.filters(np.stack([rgb(one) for one in weight]), 16, title="conv1: 96 filters, 11 x 11 pixels, three colours")

# %% [markdown]
# The next picture shows where each of them finds what it looks for: 96 feature maps, in the same order. ReLU has set
# all negative values to zero, which is dark here.

# %%
found = kept["conv1"][0].numpy()
assert found.shape == (96, 55, 55) and (found >= 0).all()
chain.maps(found, 16, title="conv1, ReLU: 96 maps of 55 x 55, each from 0 (dark) to its greatest value")

# %% [markdown]
# Now look at a single filter, the one with the largest response anywhere: the filter, the patch of the photo that gave
# this response, and its map.

# %%
best, top, left = np.unravel_index(found.argmax(), found.shape)
patch = seen[:, 4 * top : 4 * top + 11, 4 * left : 4 * left + 11]
figure, axes = style.figure(1, 3, height=3.0)
chain.filters(rgb(weight[best])[None], 1, title=f"filter {best}", axes=axes[0])
axes[1].imshow(rgb(patch).transpose(1, 2, 0).clip(0, 255).astype(np.uint8))
axes[1].set_title(f"pixels from ({4 * top}, {4 * left}) on")
axes[2].imshow(found[best])
axes[2].plot(left, top, "s", markerfacecolor="none", markeredgecolor=style.VERMILION, markersize=10, markeredgewidth=2)
axes[2].set_title(f"map {best}, and the place of this response")
for place in axes:
    place.set_axis_off()

inside = x[0, :, 4 * top : 4 * top + 11, 4 * left : 4 * left + 11].cpu()
value = (inside.double() * weight[best].double()).sum() + net.conv1.bias[best].item()
assert abs(value - found.max()) < 1e-5 * found.max()  # the filter times the patch, summed up

# %% [markdown]
# ## What the layers make of it
#
# The maps of later layers have no colours to show. Here are the 24 maps of each layer with the strongest responses.
# There are fewer and fewer pixels, and each stands for more of the photo. In pool5, 36 are left in each map.

# %%
for name in ("pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"):
    values = kept[name][0].numpy()
    most = np.argsort(-values.sum((1, 2)), kind="stable")[:24]
    axes = style.figure(height=1.9)[1]
    shape = " x ".join(map(str, values.shape[1:]))
    chain.maps(values[np.sort(most)], 12, title=f"{name}: 24 of {len(values)} maps of {shape}", axes=axes)

# %% [markdown]
# The outputs of the fully connected layers are drawn as barcodes: 4096 numbers in four rows of 1024. ReLU sets many of
# them to zero.

# %%
figure, axes = style.figure(2, 1, height=2.6)
for place, name in zip(axes, ("fc6", "fc7"), strict=True):
    values = kept[name][0].numpy()
    place.imshow(values.reshape(4, 1024), aspect="auto")
    place.set_title(f"{name}: 4096 numbers, {(values > 0).mean():.0%} of them above zero", fontsize=10)
    place.set_axis_off()

# %% [markdown]
# ## How much of the photo does a pixel see?
#
# A pixel of conv1's map sees 11 x 11 pixels of the photo. A pixel of pool1's map sees three of those in each direction,
# 4 apart, and so on. The patch of the photo that a pixel sees is called its **receptive field**. Each layer adds
# `(window - 1)` times the distance between two neighbours in its input. Its stride multiplies that distance.

# %%
seen_by, jump, fields = 1, 1, {}
for name, (r, s, _) in walk.items():
    seen_by += (r - 1) * jump
    jump *= s
    fields[name] = seen_by
    print(f"{name}: a pixel sees {seen_by:3} x {seen_by:3}, its neighbour is {jump:2} further")
assert list(fields.values()) == [11, 19, 51, 67, 99, 131, 163, 195]

chain.fields(
    photo.square(),
    [(name, fields[name]) for name in ("conv1", "pool1", "conv2", "conv3", "conv4", "conv5", "pool5")],
    title="What the middle pixel of each layer's maps sees",
)

# %% [markdown]
# ## The prediction
#
# fc8 gives one number for each class, a **logit**. Softmax turns the logits into probabilities.

# %%
probabilities = kernels.softmax(logits)[0].cpu()
assert abs(probabilities.sum().item() - 1) < 1e-6
likeliest = probabilities.topk(min(5, len(trained.classes)))
names = [trained.classes[index] for index in likeliest.indices]

figure, (left, right) = style.figure(1, 2, height=2.9, width_ratios=(1, 1.6))
left.imshow(photo.square())
left.set_axis_off()
left.set_title("the photo")
bars = right.barh(names, likeliest.values.numpy(), color=style.BLUE)
right.bar_label(bars, [f"{value:.1%}" for value in likeliest.values.tolist()], padding=3)
right.invert_yaxis()
right.set(xlim=(0, 1.12), xlabel="probability", title=f"likeliest of {len(trained.classes)} classes ({trained.name})")
print(f"likeliest: {names[0]}, {likeliest.values[0].item():.0%}")

# %% [markdown]
# It is a cat. Whether the network says so depends on its weights: on how many photos they were trained, and on how
# sharp these were. `alexnet weights list` lists the weights that can be downloaded. Write `weights.load("bvlc")`
# instead of `weights.load(weights.DEFAULT)` above to load BVLC's, with the 1000 classes of ImageNet.
#
# ## Step through the last kernel
#
# The tracer also works on a network. It runs everything, and records one program of one kernel. Here it records
# softmax, on the logits.

# %%
traced = trace(lambda: kernels.softmax(logits), "_softmax_kernel")
stepping.slider(traced, _softmax_kernel)

# %% [markdown]
# ## What it costs
#
# These are the least times for the bytes and the FLOPs of each layer, for 128 photos in fp16, under a device's limits.
# The longer of the two bars is the floor.

# %%
work = {layer.name: layer.cost(128, itemsize=2) for layer in ALEXNET}
roof.floors(
    work, measured=machine.ours(machine.measure("conv2d", "lrn_max_pool2d", "max_pool2d", "linear")), title="128 photos"
)

# %% [markdown]
# In a pooling layer, nearly all of the time is for bytes. In conv2 to conv5, most of it is for FLOPs.
# [07](07_roofline.ipynb) continues from here.
#
# ## Exercises
#
# Solutions are in [`solutions/06_alexnet.py`](solutions/06_alexnet.py).
#
# **1.** Which pixels of the photo does output pixel `index` see, along one axis? `layers` is a list of (window, stride,
# padding), the first layer first. Return the first pixel and the last pixel. Both may lie outside the photo, in the
# padding.
#
# <details><summary>Hint 1</summary>Go backwards: begin with <code>first = last = index</code> at the last layer's
# output. For each layer, find the inputs that these came from.</details>
# <details><summary>Hint 2</summary>Output i of a layer looks at inputs from <code>i * stride - padding</code> to
# <code>i * stride - padding + window - 1</code>.</details>
# <details><summary>Hint 3</summary><code>for window, stride, padding in reversed(layers): ...</code></details>


# %%
def sees(layers, index):
    raise NotImplementedError  # your lines


nb06.sees(sees)

# %% [markdown]
# **2.** conv2 has two groups. Write it for any number of groups, with `kernels.conv2d` calls that have no groups: cut
# the input's channels and the filters into parts, and join the results.
#
# <details><summary>Hint 1</summary>Group g has the g-th part of the input's channels and the g-th part of the filters.
# It computes the g-th part of the output's channels.</details>
# <details><summary>Hint 2</summary><code>x.chunk(groups, 1)</code> cuts channels. <code>weight.chunk(groups)</code> and
# <code>bias.chunk(groups)</code> cut the filters.</details>
# <details><summary>Hint 3</summary><code>torch.cat([kernels.conv2d(...) for ... in zip(...)], 1)</code></details>


# %%
def grouped(x, weight, bias, stride, padding, groups):
    raise NotImplementedError  # your lines


nb06.grouped(grouped)

# %% [markdown]
# **3.** To subtract the mean from a photo costs a pass over it. conv1 has no padding, so its bias can do this work.
# `mean` is one number per channel. Find the bias for which conv1 of a photo gives the same result as conv1 of the photo
# minus `mean` with the old bias. You need no loops.
#
# <details><summary>Hint 1</summary>A convolution is linear: conv(x - mean) = conv(x) - conv(mean), and the mean is the
# same at every pixel.</details>
# <details><summary>Hint 2</summary>For a constant colour, a filter's output is a sum over channels: the channel's
# number times the sum of the filter's weights in this channel.</details>
# <details><summary>Hint 3</summary><code>weight.sum((2, 3))</code> is (K, C). Why would it be wrong with
# padding?</details>


# %%
def fold_mean(weight, bias, mean):
    raise NotImplementedError  # your lines


nb06.fold_mean(fold_mean)

# %% [markdown]
# ## Where to go on
#
# [07](07_roofline.ipynb) shows what limits each layer, and [09](09_training.ipynb) trains the network.
