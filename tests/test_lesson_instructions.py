"""lesson.instructions: the pictures of one program as compiled code."""

from lesson import instructions, stepping, style

import ipywidgets
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

import kernels
from kernels import tiles
from kernels.tools.ptx_counts import kind
from kernels.tools.ptx_trace import Fragment, trace_ptx

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 1, "num_warps": 4, "num_stages": 3}


pytestmark = pytest.mark.usefixtures("figures")


def linear(arch: str):
    """64 x 128 times 128 x 64 in fp16: one program."""
    torch.manual_seed(0)
    x, w = torch.randn(64, 128).half(), torch.randn(64, 128).half()
    with tiles.use("linear", TILE):
        return trace_ptx(lambda: kernels.linear(x, w), "_linear_kernel", arch=arch)


@pytest.fixture(scope="module")
def sm_80():
    return linear("sm_80")


@pytest.fixture(scope="module")
def sm_90():
    return linear("sm_90")


def frames(axes, colour=style.VERMILION) -> list[tuple[float, ...]]:
    """(left, top, width, height) of the frames of a colour."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    return [patch.get_bbox().bounds for patch in found if patch.get_edgecolor() == to_rgba(colour)]


def test_fragment():
    """A matrix of 2 x 4 that two threads hold: thread 32 the first column and the last, 33 the others."""
    held = Fragment("A", 32, np.array([[0, 4, 3, 7], [1, 2, 5, 6]]), np.zeros((2, 4)))
    instructions.fragment(held, 33)
    axes = plt.gca()
    (image,) = axes.images
    assert image.get_array().tolist() == [[0, 1, 1, 0]] * 2
    assert frames(axes) == [(0.5, -0.5, 1, 1), (1.5, -0.5, 1, 1), (0.5, 0.5, 1, 1), (1.5, 0.5, 1, 1)]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "1", "0"] * 2


def test_matrices(sm_80):
    """Four matrices of 8 x 8, one column apart. Thread 5 holds row 1, columns 2 and 3, of each."""
    number = sm_80.find("ldmatrix")[0]
    instructions.matrices(sm_80.fragments(number, warp=1), 32 + 5)
    axes = plt.gca()
    image = axes.images[0].get_array()
    assert image.shape == (8, 4 * 9 - 1) and np.ma.getmaskarray(image)[:, 8::9].all()
    assert (image[:, :8] == 4 * np.arange(8)[:, None] + np.arange(8) // 2).all()
    assert frames(axes) == [(9 * i + column - 0.5, 0.5, 1, 1) for i in range(4) for column in (2, 3)]


def test_shared_shows_the_swizzle(sm_80):
    """Row m of x's block is exchanged by m % 8, so that the eight rows of a matrix are in eight different pieces."""
    number = sm_80.find("ldmatrix")[0]
    instructions.shared(sm_80, number, warp=0, lane=5)
    axes = plt.gca()
    pieces = axes.images[0].get_array()[:, ::4]
    assert (pieces == np.arange(8) ^ np.arange(24)[:, None] % 8).all()
    rows = [int(top + 0.5) for _, top, _, _ in frames(axes, style.BLACK)]
    lefts = [int(left + 0.5) // 4 for left, top, _, _ in frames(axes, style.BLACK) if top < 7]
    assert set(rows) == set(range(16)) and len(set(lefts)) == 8
    assert frames(axes) == [(4 * (0 ^ 5) - 0.5, 4.5, 4, 1)]  # thread 5 gives row 5 of matrix 0
    assert axes.texts[8].get_text() == str(128 + 8)
    assert axes.get_title(loc="left") == "shared memory: elements of a_ptr"


def test_shared_shows_the_writers(sm_80):
    """Each instruction copies 16 rows: four warps copy four rows each."""
    instructions.shared(sm_80, sm_80.find("cp.async.cg")[0], warp=1, writers=True)
    axes = plt.gca()
    image = axes.images[0]
    assert (image.get_array()[:12] == np.repeat([2, 3, 4], 4)[:, None]).all()  # from warp 1's rows on; 0 is nobody
    assert (image.get_array()[12:] == 0).all()
    assert (np.asarray(image.get_alpha())[:12] < 1).all()  # still on their way
    assert len(frames(axes, style.BLACK)) == 31 and len(frames(axes)) == 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["warp 1", "warp 2", "warp 3"]


def test_sectors(sm_80):
    """A warp copies four rows of 128 bytes; thread 9 is the second of the second row."""
    instructions.sectors(sm_80, sm_80.find("cp.async.cg")[0], warp=0, lane=9)
    axes = plt.gca()
    assert axes.get_title(loc="left") == "16 sectors; 16 would do"
    table = axes.images[0].get_array()
    assert sorted(set(table.compressed())) == list(range(32)) and table.count() == 32 * 16
    assert len(frames(axes)) == 1 and frames(axes)[0][2] == 4


def test_registers(sm_80):
    number = next(number for number, step in enumerate(sm_80.steps) if "%tid.x" in step.instruction.text)
    instructions.registers(sm_80, number, warp=2, lane=3)
    axes = plt.gca()
    assert np.allclose(axes.images[0].get_array()[0], np.arange(32) / 31)
    assert [text.get_text() for text in axes.texts] == [str(64 + lane) for lane in range(32)]
    assert frames(axes) == [(2.5, -0.5, 1, 1)]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_frame_of_every_kind_can_be_drawn(arch, request):
    found = request.getfixturevalue(arch)
    kinds = {kind(step.instruction): number for number, step in enumerate(found.steps)}
    for number in kinds.values():
        figure = plt.figure()
        instructions.draw(figure, found, number, warp=3, lane=31)
        python, ptx = (axes.texts for axes in figure.subfigs[0].axes)
        assert any(found.source(number)[:40] in text.get_text() for text in python)
        opcode = found.steps[number].instruction.opcode
        assert any(opcode in text.get_text() for text in ptx)
        plt.close("all")


def test_slider(sm_90, monkeypatch):
    """It begins where it is told, and moves over steps, warps and threads."""
    shown = []
    monkeypatch.setattr(stepping, "display", lambda bundle, raw: shown.append(bundle))
    start = sm_90.find("wgmma.mma_async")[0]
    instructions.slider(sm_90, start, warp=1, lane=5)
    (bundle,) = shown
    model = bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    *sliders, image = ipywidgets.widgets.widget._instances[model].children
    assert [(slider.description, slider.value, slider.max) for slider in sliders] == [
        ("step", start, len(sm_90.steps) - 1),
        ("warp", 1, 3),
        ("thread", 5, 31),
    ]
    first = bytes(image.value)
    assert bundle["image/png"] == first and first.startswith(b"\x89PNG")
    for slider in sliders:
        before = slider.value
        slider.value = 0
        assert image.value != first
        slider.value = before
        assert image.value == first
