"""The README's picture, ``images/alexnet.png``: a photo, its feature maps, the prediction and each layer's roofline.

Run ``python notebooks/picture.py`` to draw it again, after the bundled weights or the measured tables have changed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lesson import machine, photo, roof, style

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import kernels
from kernels import runtime
from kernels.tools.workloads import ALEXNET
from model import weights
from model.alexnet import AlexNet
from model.photos.preprocess import open_image
from model.photos.sample import default_photo

PICTURE = Path(__file__).parent / "images" / "alexnet.png"


def run(trained: weights.Weights) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns each layer's output for the photo, by name, and the classes' probabilities. The kernels compute both."""
    device, kept = runtime.default_device(), {}
    net = AlexNet.from_weights(trained).to(device)
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: kept.update({name: output[0].cpu()}))
    x = trained.preprocess(open_image(default_photo()))[None].to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        return kept, kernels.softmax(net(x))[0].cpu()


def draw_walk(axes: Sequence[Axes], kept: dict[str, torch.Tensor]) -> None:
    """Draws the photo, and for each later map size the map with the strongest response."""
    axes[0].imshow(photo.square())
    axes[0].set_title("photo\n3 x 227 x 227")
    for place, name in zip(axes[1:], ("conv1", "pool1", "pool2", "pool5"), strict=True):
        maps = kept[name].numpy()
        place.imshow(maps[maps.sum((1, 2)).argmax()])
        place.set_title(f"{name}, its strongest map\nof {' x '.join(map(str, maps.shape))}")
    for place in axes:
        place.set_axis_off()


def draw_prediction(axes: Axes, trained: weights.Weights, probabilities: torch.Tensor) -> None:
    """Draws the likeliest classes as bars."""
    likeliest = probabilities.topk(min(5, len(trained.classes)))
    bars = axes.barh([trained.classes[i] for i in likeliest.indices], likeliest.values.numpy(), color=style.BLUE)
    axes.bar_label(bars, [f"{value:.1%}" for value in likeliest.values.tolist()], padding=3)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.18), xlabel="probability", title="The prediction: softmax(fc8)")
    axes.set_xticks(np.linspace(0, 1, 3))


def main() -> int:
    style.use()
    trained = weights.load()
    kept, probabilities = run(trained)
    above, below = plt.figure(figsize=(12.0, 6.6)).subfigures(2, 1, height_ratios=(1.0, 1.5))
    draw_walk(above.subplots(1, 5), kept)
    left, right = below.subplots(1, 2, width_ratios=(1.0, 1.6))
    draw_prediction(left, trained, probabilities)
    costs = {layer.name: layer.cost(128, itemsize=2) for layer in ALEXNET}
    rows = [row for row in machine.rows() if (row.batch, row.dtype, row.pass_) == (128, "fp16", "forward")]
    title = "Roofline: the limit of each layer, 128 photos in fp16"
    roof.plot(costs, measured=machine.ours(rows), title=title, axes=right)
    above.figure.savefig(PICTURE, metadata={"Software": None})
    print(f"drawn in {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
