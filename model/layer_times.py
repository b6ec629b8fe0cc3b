"""Times each layer of a network: what ``alexnet infer --layers`` prints."""

import functools
import time

import torch

from kernels import runtime
from kernels.tools.columns import align
from kernels.tools.measurements import Roofs, roofs_for
from model import checkout
from model.alexnet import AlexNet
from model.device import device_name, synchronize


class LayerTimes:
    """Forward hooks that time each layer of ``net``, which computes in ``dtype``, from now on.

    A first pass over ``batch`` photos compiles the kernels, which is not a layer's time.
    """

    def __init__(self, net: AlexNet, dtype: str, batch: int):
        self.net, self.device = net, net.fc8.weight.device
        self.roofs: Roofs | None = None  # of the device, if they have been measured
        if runtime.mode() == "compiled":
            with torch.inference_mode():
                net(net.fc8.weight.new_zeros(batch, 3, net.size, net.size))
            if checkout.MEASUREMENTS:
                self.roofs = roofs_for(device_name(self.device), dtype, checkout.MEASUREMENTS)
        self.started = 0.0
        self.ms: dict[str, float] = {}  # of the newest forward pass
        for name, layer in net.named_children():
            layer.register_forward_pre_hook(lambda *_: self._start())
            layer.register_forward_hook(functools.partial(self._stop, name))

    def _start(self) -> None:
        synchronize(self.device)
        self.started = time.perf_counter()

    def _stop(self, name: str, *_: object) -> None:
        synchronize(self.device)
        self.ms[name] = (time.perf_counter() - self.started) * 1e3

    def records(self, batch: int) -> list[dict]:
        """Returns each layer's shape, cost and time in the newest forward pass, which had ``batch`` photos."""
        records = []
        for row in self.net.layers(batch):
            ms = self.ms[row.name]
            share = self.roofs.floor_ms(row.flops, row.bytes) / ms if self.roofs else None
            times = {"ms": ms, "gflops": row.flops / (ms * 1e6), "roofline": share}
            records.append({**row._asdict(), "output": list(row.output), **times})
        return records


def layer_table(records: list[dict], batch: int) -> str:
    """Returns the layers as a table for the terminal, with a line of totals."""
    total = {key: sum(record[key] for record in records) for key in ("parameters", "macs", "flops", "ms")}
    floors = [record["ms"] * record["roofline"] for record in records if record["roofline"] is not None]
    share = sum(floors) / total["ms"] if floors else None
    total |= {"name": "total", "output": [], "gflops": total["flops"] / (total["ms"] * 1e6), "roofline": share}
    rows: list[tuple[str, ...]] = [("layer", "output", "parameters", "MMACs", "ms", "GFLOP/s", "of roof")]
    for row in [*records, total]:
        counts = f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.1f}", f"{row['ms']:,.2f}", f"{row['gflops']:,.1f}"
        roof = "-" if row["roofline"] is None else f"{row['roofline']:.0%}"
        rows.append((row["name"], " x ".join(map(str, row["output"])), *counts, roof))
    header, *lines = align(rows, left=(0, 1))
    rule = "-" * len(header)
    title = f"layers, {batch} photo{'s' * (batch > 1)} in one pass:"
    return "\n".join([title, "", header, rule, *lines[:-1], rule, lines[-1]])
