"""kernels.tools.files and kernels.tools.columns: files that are never half written, tables with straight columns."""

import os
import re
import resource
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from kernels.errors import AlexNetError
from kernels.tools.columns import align
from kernels.tools.files import check_writable, write_bytes, write_figure


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_figure(tmp_path / name, Figure(figsize=(1, 1)))
    first, second = ((tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second and first.startswith(b"\x89PNG") and b"atplotlib" not in first


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.json"
    write_bytes(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))  # like a disk with room for four more bytes
    try:
        with pytest.raises(AlexNetError, match=r"table\.json: cannot be written: File too large"):
            write_bytes(path, b"longer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [found.name for found in tmp_path.iterdir()] == ["table.json"] and path.read_text() == "old"
    write_bytes(path, b"longer")
    assert path.read_text() == "longer"


def test_what_can_be_written_is_told_before(tmp_path):
    path = tmp_path / "plot.png"
    check_writable(path)
    assert not list(tmp_path.iterdir())
    write_bytes(path, b"old")
    check_writable(path)
    assert [found.name for found in tmp_path.iterdir()] == ["plot.png"] and path.read_text() == "old"
    for bad, why in {
        tmp_path: "is a folder",
        Path(os.devnull): "is not a file",
        tmp_path / "none/plot.png": "No such file or directory",
        path / "plot.png": "Not a directory",
    }.items():
        with pytest.raises(AlexNetError, match=re.escape(f"{bad}: cannot be written: {why}")):
            check_writable(bad)


def test_columns():
    rows = [("layer", "ms", "kernel"), ("conv1", 1.5, "conv2d"), ("fc", 10.25, "-")]
    assert align(rows, left=(0, 2)) == ["layer     ms  kernel", "conv1    1.5  conv2d", "fc     10.25  -"]
    assert align([("fc", 1)], widths=(5, 3)) == ["fc       1"]
    assert align([("longer", 1)], widths=(5, 3)) == ["longer    1"]
