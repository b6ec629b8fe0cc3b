"""Passes over memory: draws what each kernel of a plan reads and writes, and counts it for PyTorch's operators."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lesson import style

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Pass(NamedTuple):
    """One kernel: the tensors that it reads and the tensors that it writes, each with its bytes."""

    kernel: str
    reads: dict[str, int]
    writes: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


def draw(plans: Mapping[str, Sequence[Pass]], *, title: str = "") -> None:
    """Draws plans that compute the same, one below the other.

    Kernels are above, memory is below. Each tensor that moves between them is an arrow. Its width shows the bytes.

    Args:
        plans: by name.
        title: above all of them.
    """
    figure, places = style.figure(len(plans), 1, height=1.75 * len(plans) + 0.3, squeeze=False)
    figure.suptitle(title, x=0.01, ha="left")
    longest = max(map(len, plans.values()))
    largest = max(size for plan in plans.values() for one in plan for size in (one.reads | one.writes).values())
    for axes, (name, plan) in zip(places.flat, plans.items(), strict=True):
        total = sum(one.bytes for one in plan)
        axes.set_title(f"{name}: {_size(total)}", fontsize=10)
        axes.set(xlim=(0, 4 * longest), ylim=(0, 3.1))
        axes.set_axis_off()
        axes.add_patch(Rectangle((0.05, 0), 4 * longest - 0.1, 0.5, color=style.LIGHT))
        axes.text(0.2, 0.24, "memory", va="center", color=style.GREY, fontsize=9)
        for number, one in enumerate(plan):
            _kernel(axes, 4 * number, one, largest)


def _kernel(axes: Axes, left: float, one: Pass, largest: int) -> None:
    axes.add_patch(FancyBboxPatch((left + 0.35, 2.25), 3.3, 0.6, boxstyle="round,pad=0.08", color=style.SKY))
    axes.text(left + 2, 2.55, one.kernel, ha="center", va="center", fontsize=10)
    arrows = [(name, size, True) for name, size in one.reads.items()]
    arrows += [(name, size, False) for name, size in one.writes.items()]
    for number, (name, size, reads) in enumerate(arrows):
        x = left + (number + 0.5) * 4 / len(arrows)
        foot, head = (0.5, 2.1) if reads else (2.1, 0.5)
        width = 0.08 + 0.3 * size / largest
        colour = style.BLUE if reads else style.ORANGE
        axes.arrow(
            x - 0.45,
            foot,
            0,
            head - foot,
            width=width,
            head_width=width + 0.25,
            head_length=0.4,
            length_includes_head=True,
            color=colour,
            linewidth=0,
        )
        axes.text(x - 0.1, 1.3, f"{name}\n{_size(size)}", va="center", fontsize=9)


def _size(size: float) -> str:
    return f"{size / 1e6:,.4g} MB"


class Counter(TorchDispatchMode):
    """Records the operators that PyTorch dispatches, and the bytes that they read and write. Views move no bytes."""

    def __init__(self):
        super().__init__()
        self.passes: list[Pass] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        schema = function._schema
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)
        if not view:
            tensors = lambda tree: {id(x): x.nbytes for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}
            size = lambda tree: sum(tensors(tree).values())  # x * x reads x once
            name = schema.name.removeprefix("aten::")
            self.passes.append(Pass(name, {"reads": size(args)}, {"writes": size(outputs)}))
        return outputs


def of_pytorch(call: Callable[[], object]) -> list[Pass]:
    """Returns the operators that PyTorch runs inside ``call``, in order, with the bytes of each.

    Views are left out, because they move no bytes.
    """
    with torch.no_grad(), Counter() as counter:
        call()
    return counter.passes
