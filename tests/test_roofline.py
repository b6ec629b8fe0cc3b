"""The measured tables, the roofline's numbers and plots, and the README's part that shows them."""

import csv
import re

import matplotlib.image
import numpy as np
import pytest

from kernels.errors import AlexNetError
from kernels.tools import measurements, readme, roofline
from kernels.tools.measurements import COLUMNS, Roofs, Row

GPU = "Imaginary GPU 1"
TEXT = f"# Title\n\nAbove.\n\n{readme.BEGIN}\nold\n{readme.END}\n\nBelow.\n"


def row(operator, layer, provider, p50, *, flops, bytes, date="2026-01-01T00:00:00+00:00", dtype="fp16", batch=4):
    """A row with given times, in ms."""
    version = "abc1234", GPU, "2.11.0", "3.6.0"
    return Row(
        date,
        *version,
        operator,
        layer,
        "forward",
        dtype,
        batch,
        provider,
        p50 * 0.9,
        p50,
        p50 * 1.2,
        flops,
        bytes,
        1e-4,
    )


# Roofs: 2 TB/s and 500 TFLOP/s. conv3 is bound by arithmetic, floor 0.1 ms; pool5 by memory, floor 0.01 ms.
TABLE = [
    row("roof_copy", "roof_copy", "torch", 1.0, flops=0, bytes=2 * 10**9, dtype="fp32", batch=1),
    row("roof_matmul", "roof_matmul", "torch", 1.0, flops=5 * 10**11, bytes=10**8, batch=1),
    row("conv2d", "conv3", "triton", 0.2, flops=5 * 10**10, bytes=10**7),
    row("conv2d", "conv3", "torch", 0.25, flops=5 * 10**10, bytes=10**7),
    row("conv2d", "conv3", "compile", 0.3, flops=5 * 10**10, bytes=10**7),
    row("max_pool2d", "pool5", "triton", 0.0125, flops=10**7, bytes=2 * 10**7),
    row("max_pool2d", "pool5", "torch", 0.03, flops=10**7, bytes=2 * 10**7),
    row("max_pool2d", "pool5", "compile", 0.025, flops=10**7, bytes=2 * 10**7),
    row("network", "alexnet", "triton", 1.0, flops=10**11, bytes=10**8),
    row("network", "alexnet", "torch", 2.0, flops=10**11, bytes=10**8),
    row("network", "alexnet", "triton", 2.0, flops=2 * 10**11, bytes=2 * 10**8, batch=8),
    row("network", "alexnet", "torch", 3.0, flops=2 * 10**11, bytes=2 * 10**8, batch=8),
]


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


@pytest.fixture
def table(tmp_path):
    """A measured table, alone in its folder."""
    folder = tmp_path / "measurements"
    folder.mkdir()
    return write(folder / f"{measurements.slug(GPU)}.csv", TABLE)


def drawn(path) -> np.ndarray:
    """Reads a plot, and checks that it is 900 pixels wide and has several colours."""
    image = (matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    assert image.shape[1] == 900
    colours = np.unique(image.reshape(-1, 3), axis=0)
    assert len(colours) > 20
    return image


def has_colour(image: np.ndarray, colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((abs(image - rgb).max(axis=-1) <= 40).any())  # not exactly: thin lines mix with the white


def test_load_gives_back_what_was_written(table):
    assert measurements.load(table) == TABLE


def test_load_takes_the_latest_of_each_timing(table):
    cost = {"flops": 5 * 10**10, "bytes": 10**7}
    later = row("conv2d", "conv3", "triton", 0.15, date="2026-01-02T00:00:00+00:00", **cost)
    same_second = row("conv2d", "conv3", "torch", 0.22, **cost)
    earlier = row("conv2d", "conv3", "compile", 0.01, date="2025-01-01T00:00:00+00:00", **cost)
    rows = measurements.load(write(table, [*TABLE, later, same_second, earlier]))
    assert len(rows) == len(TABLE)
    assert {row.provider: row.p50_ms for row in rows if row.layer == "conv3"} == {
        "triton": 0.15,
        "torch": 0.22,
        "compile": 0.3,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns must be date,commit"),
        ("layer,p50_ms\nconv1,1\n", "got layer,p50_ms"),
        (",".join(COLUMNS) + "\n1,2,3\n", "line 2"),
        (",".join(COLUMNS) + "\n" + ",".join(["x"] * 9 + ["four"] + ["1"] * 7) + "\n", "four"),
    ],
    ids=["empty", "columns", "short", "number"],
)
def test_load_refuses(tmp_path, text, words):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(AlexNetError, match=re.escape(words)):
        measurements.load(tmp_path / "table.csv")
    with pytest.raises(AlexNetError, match="No such file"):
        measurements.load(tmp_path / "none.csv")


def test_roofs():
    assert measurements.roofs(TABLE, "fp16") == Roofs(pytest.approx(2e12), pytest.approx(5e14))
    assert measurements.roofs(TABLE, "bf16") is None  # another rate
    assert measurements.roofs(TABLE[1:], "fp16") is None
    assert measurements.roofs([], "fp16") is None


def test_roofs_for(table):
    assert measurements.roofs_for(GPU, "fp16", table.parent) == measurements.roofs(TABLE, "fp16")
    assert measurements.roofs_for(GPU, "bf16", table.parent) is None
    assert measurements.roofs_for("Another GPU", "fp16", table.parent) is None


def test_slug():
    assert measurements.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_share_and_ratio():
    limits = measurements.roofs(TABLE, "fp16")
    shares = {(r.layer, r.batch, r.provider): measurements.share(r, limits) for r in TABLE[2:]}
    assert shares["conv3", 4, "triton"] == pytest.approx(0.5)
    assert shares["pool5", 4, "triton"] == pytest.approx(0.8)
    assert shares["alexnet", 8, "torch"] == pytest.approx(0.4 / 3)
    compared = measurements.compare(TABLE)
    assert list(compared) == [
        ("conv3", "forward", "fp16", 4),
        ("pool5", "forward", "fp16", 4),
        ("alexnet", "forward", "fp16", 4),
        ("alexnet", "forward", "fp16", 8),
    ]
    assert compared["conv3", "forward", "fp16", 4].best.provider == "torch"
    assert compared["conv3", "forward", "fp16", 4].ratio == pytest.approx(1.25)
    assert compared["pool5", "forward", "fp16", 4].best.provider == "compile"
    assert compared["pool5", "forward", "fp16", 4].ratio == pytest.approx(2.0)
    only_ours = measurements.compare([TABLE[2]])["conv3", "forward", "fp16", 4]
    assert (only_ours.best, only_ours.ratio) == (None, None)


@pytest.mark.full
def test_plots(table, tmp_path):
    paths = roofline.plot_all(measurements.load(table), tmp_path, "gpu")
    assert [path.name for path in paths] == ["gpu-roofline-fp16.png", "gpu-speed-fp16.png"]
    image = drawn(paths[0])
    assert all(has_colour(image, colour) for colour in roofline.COLOURS.values())
    image = drawn(paths[1])
    assert has_colour(image, roofline.COLOURS["triton"])
    assert has_colour(image, roofline.COLOURS["torch"])
    before = [path.read_bytes() for path in paths]
    roofline.plot_all(measurements.load(table), tmp_path, "gpu")
    assert [path.read_bytes() for path in paths] == before


def test_load_refuses_what_is_not_text(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"\x89PNG")
    with pytest.raises(AlexNetError, match=r"table\.csv: not a table: "):
        measurements.load(tmp_path / "table.csv")


def test_nothing_to_plot(tmp_path):
    path = tmp_path / "plot.png"
    assert roofline.plot_roofline([], path, dtype="fp16") is None
    assert roofline.plot_roofline(TABLE, path, dtype="bf16") is None
    assert roofline.plot_roofline(TABLE, path, dtype="fp16", pass_="backward") is None
    assert roofline.plot_roofline(TABLE[2:], path, dtype="fp16") is None
    assert roofline.plot_speed(TABLE, path, layer="conv1", dtype="fp16") is None
    assert not path.exists()


def test_the_command(table, tmp_path, capsys):
    assert roofline.main([str(table), "--out", str(tmp_path / "plots")]) == 0
    assert "roofline-fp16.png" in capsys.readouterr().out
    assert roofline.main(["--bandwidth", "3", "--rate", "800", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("not measured")
    image = drawn(tmp_path / "model-roofline-fp16.png")
    assert not has_colour(image, roofline.COLOURS["triton"])
    assert roofline.main(["--out", str(tmp_path)]) == 2
    assert roofline.main([str(tmp_path / "none.csv")]) == 2
    assert roofline.main([str(write(tmp_path / "roofs.csv", TABLE[:2])), "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 3
    assert "not measured" in err and "roofs.csv: nothing to draw" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "-1"], "argument --rate: must be a number from 1e-6 to 1e6, got '-1'"),
        (["--bandwidth", "nan"], "argument --bandwidth: must be a number from 1e-6 to 1e6, got 'nan'"),
        (["--batch", "0"], "argument --batch: must be a whole number, at least 1, got '0'"),
        (["--dtype", "fp8"], "argument --dtype: invalid choice: 'fp8'"),
        (["--out", "a.txt"], "a.txt: File exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert roofline.main(["--bandwidth", "3", "--rate", "800", *options]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    assert err.startswith(f"alexnet roofline: error: {words}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_readme_without_measurements(tmp_path, capsys):
    (tmp_path / "README.md").write_text(TEXT)
    empty = tmp_path / "measurements"
    empty.mkdir()
    write(tmp_path / "interpreter.csv", TABLE)  # the interpreter's rows do not count
    for folder in (empty, tmp_path):
        assert readme.main([str(tmp_path / "README.md"), "--measurements", str(folder)]) == 0
        text = (tmp_path / "README.md").read_text()
        assert "Nothing has been measured on a GPU yet" in text
        assert "`alexnet bench`" in text
        assert text.startswith(f"# Title\n\nAbove.\n\n{readme.BEGIN}\n")
        assert text.endswith(f"{readme.END}\n\nBelow.\n")
        assert "old" not in text
    assert capsys.readouterr().out.splitlines()[1].endswith("unchanged")


def test_readme_with_measurements(table, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    assert readme.rewrite(path, table.parent)
    text = path.read_text()
    assert f"**{GPU}**" in text
    assert "commit abc1234" in text
    assert "| conv3 | 0.2 | 0.25 (PyTorch) | 1.25 | 50% | 1.0e-04 |" in text
    assert "| pool5 | 0.0125 | 0.025 (torch.compile) | 2.00 | 80% | 1.0e-04 |" in text
    assert "| 4 | fp16 | 4,000 | 2,000 (PyTorch) | 2.00 | 20% | 1.0e-04 |" in text
    assert "| 8 | fp16 | 4,000 | 2,667 (PyTorch) | 1.50 | 20% | 1.0e-04 |" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link.rpartition("/")[2] for link in links] == [
        "imaginary-gpu-1-roofline-fp16.png",
        "imaginary-gpu-1-speed-fp16.png",
        "imaginary-gpu-1.csv",
    ]
    assert all((tmp_path / link).is_file() for link in links)
    assert not readme.rewrite(path, table.parent)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text",
    ["# Title\n", readme.BEGIN, f"{readme.END}\n{readme.BEGIN}\n", f"{TEXT}{TEXT}"],
    ids=["none", "no end", "reversed", "twice"],
)
def test_readme_needs_its_markers(tmp_path, capsys, text):
    (tmp_path / "README.md").write_text(text)
    assert readme.main([str(tmp_path / "README.md"), "--measurements", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "README.md").read_text() == text


def test_readme_that_is_none(tmp_path, capsys):
    path = tmp_path / "README.md"
    assert readme.main([str(path)], measurements=tmp_path) == 2
    assert capsys.readouterr().err == f"alexnet readme: error: {path}: No such file or directory\n"
    path.write_bytes(b"\x89PNG")
    assert readme.main([str(path)], measurements=tmp_path) == 2
    assert "README.md: not a README: " in capsys.readouterr().err


def test_readme_of_a_checkout(table, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    assert readme.main([], readme=path, measurements=table.parent) == 0
    assert f"**{GPU}**" in path.read_text()
    for arguments in ([], [str(path)], ["--measurements", str(tmp_path)]):
        assert readme.main(arguments) == 2
        assert "give README and --measurements DIR: no checkout of the project is here" in capsys.readouterr().err


def test_readme_keeps_its_tables_where_the_folder_is_misspelt(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    assert readme.main([str(path), "--measurements", str(tmp_path / "measurement")]) == 2
    assert capsys.readouterr().err.endswith("/measurement: no such folder\n")
    assert path.read_text() == TEXT
