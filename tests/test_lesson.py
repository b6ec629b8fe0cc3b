"""The notebooks' shared code: maps, sources, steps, measurements, rooflines, compiled kernels."""

import inspect
import subprocess
from pathlib import Path

from lesson import compiler, machine, maps, roof, source, stepping, style

import ipywidgets
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from matplotlib import pyplot as plt

from kernels import runtime, softmax
from kernels.ops.softmax import _softmax_kernel
from kernels.tools import cost
from kernels.tools.measurements import COLUMNS, Roofs
from kernels.tools.trace import Access, short, trace

interpreted = pytest.mark.skipif(not runtime.INTERPRETED, reason="only interpreted kernels can be traced")

pytestmark = pytest.mark.usefixtures("figures")


@triton.jit
def _window_kernel(x_ptr, y_ptr, W: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < 3
    for row in range(2):
        x = tl.load(x_ptr + (row + 1) * W + offs + 2, mask=mask, other=0.0)
        tl.store(y_ptr + row * BLOCK + offs, x, mask=mask)


@pytest.fixture
def window():
    """A trace of a program that loads rows 1 and 2, columns 2 to 4, of 5 x 6."""
    x, y = torch.arange(30.0).reshape(5, 6), torch.zeros(2, 4)
    return trace(lambda: _window_kernel[(1,)](x, y, W=6, BLOCK=4), "_window_kernel")


@interpreted
class TestMaps:
    def test_counts(self, window):
        expected = np.zeros((5, 6), dtype=int)
        expected[1:3, 2:5] = 1
        assert (maps.counts(window, "x_ptr") == expected).all()
        assert maps.counts(window, "x_ptr", 1).sum(1).tolist() == [0, 0, 3, 0, 0]
        assert maps.counts(window, "x_ptr", slice(0, 1)).sum(1).tolist() == [0, 3, 0, 0, 0]

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_indices(self, memory_format):
        """Indices are in PyTorch's order for any order in memory. Masked lanes are left out."""
        x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).contiguous(memory_format=memory_format)
        offsets = np.array([7, 0, 119, 64])
        mask = np.array([True, False, True, True])
        found = maps.indices(Access("load", "x_ptr", offsets, mask), x)
        in_memory = x.as_strided((x.numel(),), (1,))
        assert [x[tuple(index)] for index in zip(*found, strict=True)] == in_memory[[7, 119, 64]].tolist()

    def test_runs(self):
        offsets = np.array([[0, 1, 2, 7, 8, 9], [5, 4, 3, 10, 11, 12]])
        mask = np.array([[True] * 6, [True, True, True, True, True, False]])
        assert maps.runs(Access("load", "x_ptr", offsets, mask)).tolist() == [3, 3, 1, 1, 1, 2]
        assert maps.runs(Access("load", "x_ptr", offsets, np.zeros_like(mask))).size == 0

    def test_touched(self, window):
        maps.touched(window, "x_ptr")
        (image,) = plt.gcf().axes[0].images
        shown = image.get_array().filled(0)
        assert (shown == maps.counts(window, "x_ptr")).all()

    def test_windows(self):
        """3 x 3 at stride 2: pixels in two windows count twice, pixels in four windows count four times."""
        maps.windows((5, 5), 3, 2)
        (image,) = plt.gcf().axes[0].images
        assert image.get_array().tolist() == [
            [1, 1, 2, 1, 1],
            [1, 1, 2, 1, 1],
            [2, 2, 4, 2, 2],
            [1, 1, 2, 1, 1],
            [1, 1, 2, 1, 1],
        ]
        assert plt.gcf().axes[0].get_title(loc="left") == "3 x 3 at stride 2: 5 x 5 -> 2 x 2"

    def test_footprint(self):
        maps.footprint((5, 5), 3, 1, 1, range(3, 9))  # output pixels (0, 3) to (1, 3), which read padding, too
        made, read = plt.gcf().axes
        assert made.get_title(loc="left") == "makes 6 of 5 x 5 output pixels"
        assert read.get_title(loc="left") == "reads 15 of 5 x 5 input pixels"

    def test_lanes(self):
        h, w = np.array([[-1], [0], [1]]), np.array([[0, 1]])
        maps.lanes(h, w, h >= 0, (3, 3), 1)
        (image,) = plt.gcf().axes[0].images
        colours = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)): c for c in (style.LIGHT, style.ON, style.OFF)}
        shown = [[colours[tuple(pixel)] for pixel in row] for row in image.get_array().tolist()]
        assert shown[0] == [style.LIGHT, style.OFF, style.OFF, style.LIGHT, style.LIGHT]
        assert shown[1] == shown[2] == [style.LIGHT, style.ON, style.ON, style.LIGHT, style.LIGHT]
        assert {colour for row in shown[3:] for colour in row} == {style.LIGHT}


class TestSource:
    def test_whole(self):
        assert source.part(softmax) == inspect.getsource(softmax).rstrip("\n")
        assert source.part(_softmax_kernel).startswith("@triton.jit\ndef _softmax_kernel(")

    def test_part(self):
        found = source.part(_softmax_kernel, "for n0 in", "largest, rescale").splitlines()
        assert found[0] == "for n0 in range(0, N, BLOCK_N):"
        assert found[-1] == "    largest, rescale, powers = online_softmax(x, largest)"
        assert len(found) == 4

    @pytest.mark.parametrize("ends", [("no such line",), ("for n0 in", "no such line"), ("tl.store", "offs_m =")])
    def test_drifted(self, ends):
        with pytest.raises(ValueError, match="_softmax_kernel has no line with"):
            source.part(_softmax_kernel, *ends)

    def test_show(self, monkeypatch):
        shown = []
        monkeypatch.setattr(source, "display", shown.append)
        source.show(_softmax_kernel, "mask_m =", "mask_m =")
        assert (
            shown[0].data
            == "`_softmax_kernel` in `kernels/ops/softmax.py`:\n\n```python\nmask_m = (offs_m < M)[:, None]\n```"
        )


@interpreted
class TestStepping:
    def test_listing(self, window):
        lines = window.listing().splitlines()
        assert lines[0] == "_window_kernel, program (0, 0, 0) of (1, 1, 1)"
        assert [int(line[:3]) for line in lines[1:] if line[:3].strip()] == list(range(len(window.steps)))
        start = next(number for number, line in enumerate(lines) if line.startswith("  2  "))
        _, first = inspect.getsourcelines(_window_kernel.fn)
        assert lines[start : start + 5] == [
            f"  2  line {first + 4}: for row in range(2):",
            "       row = 0",
            f"  3  line {first + 5}: x = tl.load(x_ptr + (row + 1) * W + offs + 2, mask=mask, other=0.0)",
            "       loads elements 8 ... 10 of x_ptr, 3 of 4 lanes",
            "       x = [4], 0 ... 10",
        ]

    def test_strip(self, window):
        """One row per variable, one picture per value."""
        stepping.strip(window, "x", "mask")
        titles = [axes.get_title(loc="left") for axes in plt.gcf().axes]
        assert titles == ["step 3: x", "step 6: x", "step 1: mask", ""]
        with pytest.raises(ValueError, match="_window_kernel has set no acc"):
            stepping.strip(window, "acc")

    def test_strip_of_many(self):
        x = torch.randn(4, 100)
        found = trace(lambda: _window_kernel[(1,)](x, x, W=1, BLOCK=4), "_window_kernel")
        stepping.strip(found, "row", columns=2)
        assert [axes.get_title(loc="left") for axes in plt.gcf().axes] == [
            "step 2: row",
            "step 5: row",
        ]

    def test_slider(self, window, monkeypatch):
        """It begins with the first load. Moving it changes the picture, and moving it back restores it."""
        shown = []
        monkeypatch.setattr(stepping, "display", lambda bundle, raw: shown.append(bundle))
        stepping.slider(window, _window_kernel)
        (bundle,) = shown
        model = bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
        number, image = ipywidgets.widgets.widget._instances[model].children
        assert (number.min, number.value, number.max) == (0, 3, len(window.steps) - 1)
        first = bytes(image.value)
        assert bundle["image/png"] == first and first.startswith(b"\x89PNG")
        number.value = 4
        assert image.value != first
        number.value = 3
        assert image.value == first

    def test_every_frame_can_be_drawn(self, window):
        for number in range(len(window.steps)):
            figure = plt.figure()
            stepping.draw(figure, window, _window_kernel, number)
            text = [found.get_text() for axes in figure.subfigs[0].axes for found in axes.texts]
            assert any(window.steps[number].source in line for line in text)
            plt.close("all")


def test_tile_draws_every_kind():
    values = [np.array(3), np.array([True, False]), np.arange(6).reshape(2, 3), np.full((2, 2), np.nan)]
    values += [np.array([[-np.inf, 1.0]]), np.zeros((3, 4, 5), np.float32), np.ones((300, 2))]
    for value in values:
        style.tile(style.figure()[1], value, "title")
        plt.gcf().canvas.draw()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array(2.5), "2.5"),
        (np.array(7), "7"),
        (np.array([True, False, False, False]), "[4], 25% true"),
        (np.array([[1.0, np.inf], [2.0, np.nan]]), "[2 x 2], 1 ... 2"),
        (np.array([np.nan]), "[1], nothing finite"),
        (np.zeros((2, 3)), "[2 x 3], all 0"),
    ],
)
def test_short(value, text):
    assert short(value) == text


TABLE = """{columns}
2026-01-01T00:00:00Z,abc,Some GPU,2.14,3.8,roof_copy,,forward,fp16,1,torch,1,1.0,1,0,2000000000,0
2026-01-01T00:00:00Z,abc,Some GPU,2.14,3.8,roof_matmul,,forward,fp16,1,torch,1,1.0,1,500000000000,0,0
2026-01-01T00:00:00Z,abc,Some GPU,2.14,3.8,conv2d,conv1,forward,fp16,128,triton,0.4,0.5,0.6,27000000000,114000000,1e-4
2026-01-01T00:00:00Z,abc,Some GPU,2.14,3.8,conv2d,conv1,forward,fp16,128,torch,0.4,0.7,0.8,27000000000,114000000,1e-4
2026-01-01T00:00:00Z,abc,Some GPU,2.14,3.8,conv2d,conv1,forward,fp16,1,triton,0.4,0.1,0.6,210000000,900000,1e-4
2026-01-01T00:00:00Z,abc,Some GPU,2.14,3.8,linear,fc6,forward,fp16,128,triton,0.4,0.2,0.6,9700000000,79000000,1e-4
""".format(columns=",".join(COLUMNS))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A table of another GPU, and no GPU here."""
    (tmp_path / "some-gpu.csv").write_text(TABLE)
    monkeypatch.setattr(machine, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(machine, "gpu", lambda: None)
    return tmp_path


@pytest.fixture
def unmeasured(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(machine, "gpu", lambda: None)


class TestMachine:
    def test_from_the_table(self, measured, capsys):
        assert machine.ours(machine.measure("conv2d")) == {"conv1": 0.5}
        assert machine.ours(machine.measure("conv2d", "linear")) == {"conv1": 0.5, "fc6": 0.2}
        assert machine.ours(machine.measure("conv2d", batch=1)) == {"conv1": 0.1}
        assert machine.measure("conv2d", dtype="fp32") == machine.measure() == []
        limits = machine.limits("fp16")
        assert limits.measured and limits.roofs == Roofs(2e12, 5e14) and "Some GPU" in limits.label
        assert not machine.limits("fp32").measured
        machine.describe()
        assert "Some GPU" in capsys.readouterr().out

    def test_nothing_measured(self, unmeasured, capsys):
        assert machine.rows() == machine.measure("conv2d") == []
        limits = machine.limits("fp16")
        assert not limits.measured and "not measured" in limits.label
        machine.describe()
        assert "nothing has been measured" in capsys.readouterr().out

    @pytest.mark.parametrize("status", [0, 1, 2], ids=["all", "all but some", "none"])
    def test_live(self, measured, monkeypatch, status):
        """With a GPU, ``alexnet bench`` measures, in a process that compiles."""
        monkeypatch.setattr(machine, "gpu", lambda: "My GPU")
        asked = {}

        def run(command, *, cwd, env):
            asked.update(command=command, env=env)
            folder = command[command.index("--out") + 1]
            (Path(folder) / "my-gpu.csv").write_text(TABLE.replace("Some GPU", "My GPU"))
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(subprocess, "run", run)
        if status == 2:
            with pytest.raises(subprocess.CalledProcessError):
                machine.measure("conv2d", batch=128)
        else:
            assert {row.gpu for row in machine.measure("conv2d", batch=128)} == {"My GPU"}
        assert asked["command"][1:5] == ["-m", "model.cli", "bench", "conv2d"]
        assert asked["env"]["TRITON_INTERPRET"] == "0"


CONV1 = cost.conv2d((128, 3, 227, 227), (96, 3, 11, 11), (4, 4), itemsize=2)


class TestRoof:
    def test_says_that_nothing_is_measured(self, unmeasured):
        for draw in (roof.plot, roof.floors):
            draw({"conv1": CONV1}, title="A title")
            assert "A title" in plt.gca().get_title(loc="left") and "not measured" in plt.gca().get_title(loc="left")

    def test_measured(self, measured):
        roof.plot({"conv1": CONV1}, measured={"conv1": 0.5, "other": 1.0})
        points = {marks.get_label(): marks.get_offsets()[0].tolist() for marks in plt.gca().collections}
        assert points["the floor, not measured"] == pytest.approx(
            [CONV1.flops / CONV1.bytes, CONV1.flops / CONV1.bytes * 2]
        )
        assert points["ours (Triton)"] == pytest.approx([CONV1.flops / CONV1.bytes, CONV1.flops / 0.5e-3 * 1e-12])
        assert "conv1" in {text.get_text() for text in plt.gca().texts}

    def test_floors(self, measured):
        roof.floors({"conv1": CONV1}, measured={"conv1": 0.5})
        memory, compute = (bars[0].get_width() for bars in plt.gca().containers)
        assert (memory, compute) == pytest.approx((CONV1.bytes / 2e12 * 1e6, CONV1.flops / 5e14 * 1e6))
        assert plt.gca().lines[0].get_xdata() == pytest.approx([500])


def test_compiler():
    """Compiles a kernel of the library. 01_convolution_as_gemm compiles a kernel of its own."""
    half = torch.empty(0, dtype=torch.float16)
    constants = {"N": 1000, "INDEX": tl.int32, "BLOCK_M": 1, "BLOCK_N": 1024, "num_warps": 4}
    (found,) = compiler.compile({"softmax": compiler.Launch(_softmax_kernel, (half, half, 64), constants)}).values()
    assert 0 < found.registers < 255
    assert (found.spills, found.tensor_cores) == (0, 0)
