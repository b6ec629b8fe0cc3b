"""The notebooks about speed, with a made-up measured table that nobody else sees.

test_notebooks.py executes them with the repository's own tables, or without any.
"""

import csv

import pytest

import execute
from kernels.tools.measurements import COLUMNS, Row
from kernels.tools.workloads import ALEXNET

GPU = "Made-up GPU"
RATE, BANDWIDTH = 500e12, 2e12
TIMES = {"triton": 2.0, "torch": 6.0, "compile": 3.0}  # times the floor
SLOW = {"conv2": 4.0}  # times the floor, for our kernels in this layer


def rows() -> list[Row]:
    """Returns made-up rows: roofs, and all layers for 1, 128 and 256 photos."""

    def row(operator, layer, dtype, batch, provider, ms, flops, bytes):
        times = 0.99 * ms, ms, 1.01 * ms
        what = operator, layer, "forward", dtype, batch, provider
        return Row("2031-05-17T00:00:00Z", "0000000", GPU, "3.0", "4.0", *what, *times, flops, bytes, 1e-4)

    found = [
        row("roof_copy", "roof_copy", "fp32", 1, "torch", 1.0, 0, int(BANDWIDTH * 1e-3)),
        row("roof_matmul", "roof_matmul", "fp16", 1, "torch", 1.0, int(RATE * 1e-3), 1),
    ]
    for batch in (1, 128, 256):
        for layer in ALEXNET:
            least = layer.cost(batch, 2)
            floor = 1e3 * max(least.flops / RATE, least.bytes / BANDWIDTH)
            for provider, factor in TIMES.items():
                factor = SLOW.get(layer.name, factor) if provider == "triton" else factor
                what = layer.operator, layer.name, "fp16", batch, provider, factor * floor
                found.append(row(*what, least.flops, least.bytes))
    return found


@pytest.fixture
def table(tmp_path):
    with open(tmp_path / "made-up-gpu.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows()])
    return tmp_path


def executed(name: str, folder) -> str:
    """Returns all that the notebook prints if ``folder`` holds the measured tables."""
    notebook = execute.read(name)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    patch = f"from lesson import machine\nmachine.MEASUREMENTS = machine.Path({str(folder)!r})\n"
    first.source = f"{patch}{first.source}"
    execute.execute(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.full
@pytest.mark.parametrize("name", ["07_roofline", "08_against_cublas"])
def test_a_table_is_shown(name, table):
    printed = executed(name, table)
    assert f"Measured speeds: {GPU}, PyTorch 3.0, Triton 4.0, 2031-05-17." in printed
    assert "nothing has been measured" not in printed.lower()
    if name == "07_roofline":
        assert f"{GPU}, fp16, roofs measured: 2.00 TB/s, 500 TFLOP/s" in printed
        lines = {line.split()[0]: line.split()[-1] for line in printed.splitlines() if line.endswith("%")}
        assert lines["conv1"] == lines["fc8"] == "50%"
        assert lines["conv2"] == "25%"
    else:
        assert "faster: conv1, pool1, pool2, conv3, conv4, conv5, pool5, fc6, fc7, fc8\nslower: conv2\n" in printed
        assert "1.50" in printed and "torch.compile" in printed
