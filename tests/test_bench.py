"""``alexnet bench``: what it checks, what it writes, what it refuses. No test looks at a speed."""

import csv
import errno
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import kernels
from kernels import runtime
from kernels.errors import AlexNetError
from kernels.tools import measurements
from kernels.tools.bench import check, cli, device, table, works
from kernels.tools.bench.works import Started, Work
from kernels.tools.workloads import WORKLOADS

REPOSITORY = Path(kernels.__file__).parent.parent
COLUMNS = "date,commit,gpu,torch,triton,operator,layer,pass,dtype,batch,provider,p20_ms,p50_ms,p80_ms,flops,bytes,error"


def command(*arguments: object, folder: Path) -> subprocess.CompletedProcess:
    """Runs the command as users type it, in an empty folder."""
    return subprocess.run(
        [sys.executable, "-m", "model.cli", "bench", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


class FakeGpu(device.Interpreter):
    """The interpreter, which claims to be a GPU. Its timings are 1 ms, 2 ms, 3 ms, ..."""

    interpreted = False
    name = "Fake GPU 80GB"
    copy_size = 1024
    matmul_size = 64

    def __init__(self):
        self.timed = 0

    def time(self, run):
        self.timed += 1
        return self.timed * 0.9, self.timed * 1.0, self.timed * 1.1


@pytest.fixture
def fake(monkeypatch):
    """A fake GPU, and a compiler that does nothing."""
    gpu = FakeGpu()
    monkeypatch.setattr(device, "here", lambda: gpu)
    monkeypatch.setattr(check, "compiled", lambda function: function)
    return gpu


@pytest.fixture
def interpreter(monkeypatch):
    """The interpreter, also on a machine with a GPU, with small roofs."""
    cpu = device.Interpreter()
    cpu.copy_size, cpu.matmul_size = 1024, 64
    monkeypatch.setattr(device, "here", lambda: cpu)
    return cpu


needs_interpreter = pytest.mark.skipif(not runtime.INTERPRETED, reason="runs the kernels on the CPU")


def test_without_a_gpu_the_first_line_says_so_and_no_table_is_written(tmp_path):
    before = set(REPOSITORY.glob("notebooks/measurements/*"))
    done = command("max_pool2d", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not speeds of the kernels" in done.stdout.splitlines()[0]
    assert "pool5" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert set(REPOSITORY.glob("notebooks/measurements/*")) == before


def test_out_and_plot(tmp_path):
    done = command("max_pool2d", "softmax", "--out", tmp_path / "new", "--plot", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "interpreter.csv",
        "interpreter-roofline-fp32.png",
    }
    lines = (tmp_path / "new" / "interpreter.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    rows = list(csv.DictReader(lines))
    assert {(row["operator"], row["layer"], row["provider"]) for row in rows} == {
        ("roof_copy", "roof_copy", "torch"),
        ("roof_matmul", "roof_matmul", "torch"),
        ("max_pool2d", "pool5", "triton"),
        ("max_pool2d", "pool5", "torch"),
        ("softmax", "prob", "triton"),
        ("softmax", "prob", "torch"),
    }
    for row in rows:
        assert row["gpu"] == "interpreted on a CPU"
        assert row["pass"] == "forward"
        assert row["batch"] == "1"
        assert row["torch"] == torch.__version__
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert float(row["error"]) <= 1e-5
    pool = next(row for row in rows if row["layer"] == "pool5")
    cost = WORKLOADS["pool5"].cost(1, 4)
    assert (int(pool["flops"]), int(pool["bytes"])) == (cost.flops, cost.bytes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["conv3d"], ["OPERATOR", "conv3d", "conv2d, lrn_max_pool2d"]),
        (["--batch", "0"], ["--batch", "at least 1", "'0'"]),
        (["--batch", "many"], ["--batch", "'many'"]),
        (["--dtype", "fp8"], ["--dtype", "fp8"]),
        (["--dtype", "tf32"], ["tf32", "GPU"]),
        (["--providers", "compile"], ["compile", "GPU"]),
        (["--plot"], ["--plot", "--out"]),
        (["--out", "/dev/null/folder"], ["--out", "/dev/null/folder"]),
        (["--preset", "kernelbench", "linear"], ["--preset", "OPERATOR"]),
        (["--preset", "kernelbench", "--pass", "backward"], ["--preset", "--pass"]),
        (["--pass", "step"], ["--pass", "step"]),
        (["--fast"], ["--fast"]),
    ],
    ids=lambda value: value[0].strip("-") if value[0].startswith("-") else None,
)
def test_refuses(interpreter, capsys, arguments, words):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("alexnet bench: error: ")
    for word in words:
        assert word in err


def test_refuses_a_table_that_is_no_text(interpreter, tmp_path, capsys):
    (tmp_path / "interpreter.csv").write_bytes(b"\x89PNG\xff\n")
    assert cli.main(["softmax", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "interpreter.csv: not a table: " in err and len(err.splitlines()) == 1
    assert (tmp_path / "interpreter.csv").read_bytes() == b"\x89PNG\xff\n"


def test_a_disk_without_room_for_the_table(tmp_path):
    kept = table.Table(tmp_path / "table.csv")
    kept.file.close()
    kept.file = Mock(flush=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    kept.writer = csv.writer(kept.file)
    with pytest.raises(AlexNetError, match=r"--out: cannot write .*table\.csv: No space left on device"):
        kept.append([])


def test_a_batch_that_fits_in_no_memory(interpreter, capsys):
    assert cli.main(["dropout", "--batch", "999999999999"]) == 1
    said = "alexnet bench: drop6, batch 999999999999, fp32: making its tensors FAILED: RuntimeError: "
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(said)]
    assert "allocate" in line


def test_refuses_as_a_command(tmp_path):
    done = command("conv3d", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_refuses_another_table(interpreter, tmp_path, capsys):
    (tmp_path / "interpreter.csv").write_text("a,b\n1,2\n")
    assert cli.main(["softmax", "--out", str(tmp_path)]) == 2
    assert "got a,b" in capsys.readouterr().err
    assert (tmp_path / "interpreter.csv").read_text() == "a,b\n1,2\n"


def spoil(index: tuple, value: float):
    """Returns a wrong softmax: one element of its output is ``value``."""

    def wrong(x, dim):
        output = torch.softmax(x, dim)
        output[index] = value
        return output

    return wrong


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_a_wrong_kernel_has_no_time(fake, monkeypatch, tmp_path, capsys, value):
    monkeypatch.setattr(kernels, "softmax", spoil((-1, 7), value))
    status = cli.main(["softmax", "--batch", "70", "--dtype", "fp16", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert status == 1
    line = next(line for line in out.splitlines() if line.startswith("prob"))
    assert line.split()[4] == "WRONG"
    assert "triton WRONG" in err
    rows = measurements.load(tmp_path / "fake-gpu-80gb.csv")
    assert {row.provider for row in rows if row.layer == "prob"} == {"torch", "compile"}


@needs_interpreter
def test_a_crash_does_not_stop_the_rest(fake, monkeypatch, tmp_path, capsys):
    def crash(*_, **__):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(kernels, "softmax", crash)
    assert cli.main(["softmax", "max_pool2d", "--batch", "1", "--dtype", "fp32", "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "prob, batch 1, fp32: triton FAILED: RuntimeError: no kernel image" in err
    assert [line.split()[4] for line in out.splitlines() if line.startswith("prob")] == ["FAILED"]
    assert next(line for line in out.splitlines() if line.startswith("pool5")).split()[4] not in ("FAILED", "-")


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("relu1", {"input": (96, 5, 3)}),
        ("norm2", {"input": (256, 3, 2)}),
        ("pool1", {"input": (96, 7, 5)}),
        ("pool5", {"input": (256, 5, 7)}),
        ("fc8", {"input": (100,), "parameters": ((10, 100), (10,))}),
        ("drop6", {}),
        ("prob", {}),
    ],
)
def test_deviation_sees_every_element_and_no_other_difference(name, shapes):
    work = Work(name, (WORKLOADS[name]._replace(**shapes),))
    operands = work.random_operands(check.CHUNK + 3, torch.float32, torch.device("cpu"))
    right = work.theirs(*operands)
    assert check.deviation(work, operands, [right]) <= 1e-5
    last = (-1,) * right.dim()
    for value in (math.nan, math.inf, 1e3):
        wrong = right.clone()
        wrong[last] = value
        assert check.deviation(work, operands, [wrong]) > 1e-2
    assert check.deviation(work, operands, [right[:-1]]) == math.inf
    assert check.deviation(work, operands, [right[:, :-1]]) == math.inf


BACKWARD = [
    pytest.param("conv1", {"input": (3, 23, 19)}, marks=pytest.mark.full),
    pytest.param("conv2", {"input": (96, 5, 3)}, marks=pytest.mark.full),
    ("relu1", {"input": (96, 5, 3)}),
    ("norm2", {"input": (256, 3, 2)}),
    ("pool1", {"input": (96, 7, 5)}),
    ("pool5", {"input": (256, 5, 7)}),
    ("fc7", {"input": (100,), "parameters": ((10, 100), (10,))}),
    ("fc8", {"input": (100,), "parameters": ((10, 100), (10,))}),
    ("drop6", {}),
    ("prob", {}),
]


@pytest.mark.parametrize(("name", "shapes"), BACKWARD)
def test_deviation_sees_every_element_of_every_gradient(name, shapes):
    work = Work(name, (WORKLOADS[name]._replace(**shapes),), "backward")
    operands = work.random_operands(check.CHUNK + 3, torch.float32, torch.device("cpu"))
    started = work.start(work.theirs, None, operands)
    right = started.run()
    assert len(right) == 1 + len(work.layers[0].parameters) - work.layers[0].first
    assert all(torch.equal(a, b) for a, b in zip(right, started.run(), strict=True)), "not twice the same"
    assert check.deviation(work, operands, right, started.output) <= 1e-5
    for position, gradient in enumerate(right):
        for value in (math.nan, math.inf, 1e4):
            wrong = [gradient.clone() for gradient in right]
            wrong[position][(-1,) * gradient.dim()] = value
            assert check.deviation(work, operands, wrong, started.output) > 1e-2
        wrong = [*right[:position], gradient[..., :-1], *right[position + 1 :]]
        assert check.deviation(work, operands, wrong, started.output) == math.inf


def small_network() -> tuple:
    """The end of AlexNet, with few features."""
    layers = [WORKLOADS[name] for name in ("conv5", "pool5", "fc7", "fc8")]
    layers[0] = layers[0]._replace(input=(384, 5, 5), first=True)
    layers[1] = layers[1]._replace(input=(256, 5, 5))
    layers[2] = layers[2]._replace(input=(1024,), parameters=((50, 1024), (50,)))
    layers[3] = layers[3]._replace(input=(50,), parameters=((10, 50), (10,)))
    return tuple(layers)


@pytest.mark.full
def test_a_step_gives_every_parameters_gradient_and_changes_none():
    work = Work("alexnet", small_network(), "step")
    operands = work.random_operands(check.CHUNK + 3, torch.float32, torch.device("cpu"))
    before = [operand.clone() for operand in operands]
    started = work.start(work.theirs, torch.nn.functional.cross_entropy, operands)
    right = started.run()
    assert [gradient.shape for gradient in right] == [operand.shape for operand in operands[1:-1]]
    assert all(torch.equal(a, b) for a, b in zip(right, started.run(), strict=True)), "not twice the same"
    assert all(torch.equal(a, b) for a, b in zip(operands, before, strict=True))
    assert check.deviation(work, operands, right) <= 1e-4
    for position in range(len(right)):
        wrong = [gradient * (1.1 if position == other else 1.0) for other, gradient in enumerate(right)]
        assert check.deviation(work, operands, wrong) == pytest.approx(0.1, rel=0.01)
    assert check.deviation(work, operands, [right[0] * math.nan, *right[1:]]) == math.inf


@needs_interpreter
def test_backward_and_step_on_the_kernels(fake, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(works, "STEP", Work("alexnet", small_network(), "step"))
    monkeypatch.setattr(works, "NETWORK", Work("alexnet", small_network()))
    arguments = ["max_pool2d", "softmax", "--network", "--pass", "forward", "backward", "--batch", "2"]
    assert cli.main([*arguments, "--dtype", "fp32", "--plot", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    rows = measurements.load(tmp_path / "fake-gpu-80gb.csv")
    timed = {(row.layer, row.pass_, row.provider) for row in rows if row.operator not in measurements.ROOFS}
    passes = [(layer, name) for layer in ("pool5", "prob") for name in ("forward", "backward")]
    passes += [("alexnet", "forward"), ("alexnet", "step")]
    assert timed == {(*each, provider) for each in passes for provider in ("triton", "torch", "compile")}
    pool = next(row for row in rows if (row.layer, row.pass_) == ("pool5", "backward"))
    assert (pool.flops, pool.bytes) == WORKLOADS["pool5"].cost(2, 4, backward=True)[2:]
    assert (tmp_path / "fake-gpu-80gb-roofline-fp32-backward.png").exists()


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.6, 1.0])
def test_deviation_of_dropout_counts_what_is_kept(kept):
    work = Work("drop6", (WORKLOADS["drop6"],))
    operands = work.random_operands(16, torch.float32, torch.device("cpu"))
    x = operands[0]
    assert check.deviation(work, operands, [torch.where(torch.rand_like(x) < kept, 2 * x, 0.0)]) == math.inf


@needs_interpreter
def test_the_whole_run_as_on_a_gpu(fake, tmp_path, capsys):
    """All but CUDA itself: roofs, three providers, two layouts, the table, the ratio, the plots."""
    arguments = ["max_pool2d", "softmax", "--batch", "2", "1", "--dtype", "fp32", "tf32", "--plot"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("Fake GPU 80GB, torch ")
    rows = measurements.load(tmp_path / "fake-gpu-80gb.csv")
    assert len(rows) == 3 + 2 * 2 * 2 * 3  # roofs; dtypes, batches, layers, providers
    # pool5 comes first: roofs 1 and 2, ours 3, torch in NCHW 4 and in NHWC 5 (the faster one counts), compile 6.
    first = [row for row in rows if (row.layer, row.batch, row.dtype) == ("pool5", 2, "fp32")]
    assert [(row.provider, row.p50_ms) for row in first] == [("triton", 3.0), ("torch", 4.0), ("compile", 6.0)]
    line = next(line for line in out.splitlines() if line.startswith("pool5"))
    limits = measurements.Roofs(2 * 1024 * 4 / 1.0e-3, 2 * 64**3 / 2.0e-3)
    share = limits.floor_ms(*WORKLOADS["pool5"].cost(2, 4)[2:]) / 3.0
    assert line.split() == [
        "pool5",
        "forward",
        "2",
        "fp32",
        "3",
        "4",
        "torch",
        "NCHW",
        "1.33x",
        f"{share:.1%}",
        "0.0e+00",
    ]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "fake-gpu-80gb-roofline-fp32.png",
        "fake-gpu-80gb-roofline-tf32.png",
    ]
    # A second run appends its rows under the same header, and they count.
    assert cli.main([*arguments[:2], "--batch", "2", "--dtype", "fp32", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "fake-gpu-80gb.csv").read_text().splitlines()
    assert lines.count(COLUMNS) == 1
    assert len(lines) == 1 + 28 + 8
    assert len(measurements.load(tmp_path / "fake-gpu-80gb.csv")) == 27


def test_what_is_timed_by_default(fake):
    def chosen(*arguments):
        args = cli.parse(list(arguments))
        cli.complete(args, fake.interpreted, Path())
        return [(work.name, batch) for work, batch in cli.choose(args)], args.dtype, args.providers

    forward = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"]
    everybody = ["triton", "torch", "compile"]
    assert chosen() == ([(name, batch) for batch in (1, 128) for name in forward], ["fp16"], everybody)
    assert chosen("--network", "--batch", "7")[0] == [("alexnet", 7)]
    assert chosen("local_response_norm", "--network", "--batch", "7")[0] == [
        ("norm1", 7),
        ("norm2", 7),
        ("alexnet", 7),
    ]
    problems = [("kernelbench-1-50", 256), ("kernelbench-3-5", 1024)]
    assert chosen("--preset", "kernelbench") == (problems, ["fp32", "tf32"], everybody)


def test_where_the_table_lies(fake, tmp_path):
    def folder(*arguments, measurements):
        args = cli.parse(list(arguments))
        cli.complete(args, fake.interpreted, measurements)
        return args.out

    assert folder(measurements=tmp_path) == tmp_path
    assert folder("--out", "here", measurements=tmp_path) == folder("--out", "here", measurements=None) == Path("here")
    with pytest.raises(AlexNetError, match="give --out DIR, the folder of the measured tables: no checkout"):
        folder(measurements=None)


def test_the_network_costs_what_its_layers_cost():
    floors = {1: 42e-3, 128: 314e-3, 1024: 2.327}  # ms at 800 TFLOP/s and 3 TB/s, each layer at its own floor
    limits = measurements.Roofs(3e12, 800e12)
    for batch, floor in floors.items():
        layers = [limits.floor_ms(*layer.cost(batch, 2)[2:]) for layer in works.NETWORK.layers]
        assert sum(layers) == pytest.approx(floor, rel=0.02)
        whole = works.NETWORK.cost(batch, 2)
        assert limits.floor_ms(whole.flops, whole.bytes) <= sum(layers)
    assert works.NETWORK.cost(4, 2).output == (4, 1000)


def test_kernelbenchs_problems_have_the_shapes_that_they_name():
    conv, network = (item.work for item in works.KERNELBENCH)
    assert conv.cost(256, 4).output == (256, 96, 55, 55)
    x = torch.empty(2, 3, 224, 224, device="meta")
    parameters = [torch.empty(shape, device="meta") for layer in network.layers for shape in layer.parameters]
    assert network.theirs(x, *parameters).shape == (2, 1000)
    shape = (2, 3, 224, 224)
    for layer in network.layers:
        given = (2, *layer.input)
        assert given == shape or (len(given) == 2 and given[1] == math.prod(shape[1:]))
        shape = layer.cost(2, 4).output
    assert sum(layer.cost().macs for layer in network.layers) == pytest.approx(1.135e9, rel=0.01)


@needs_interpreter
def test_the_network_matches_float64():
    small = [layer for layer in works.NETWORK.layers if layer.name in ("conv5", "pool5", "fc8")]
    small[2] = small[2]._replace(input=(9216,), parameters=((10, 9216), (10,)))
    work = Work("end of alexnet", tuple(small))
    operands = work.random_operands(2, torch.float32, torch.device("cpu"))
    assert check.deviation(work, operands, [work.ours(*operands)]) <= 1e-5
    assert check.deviation(work, operands, [work.theirs(*(tensor.contiguous() for tensor in operands))]) <= 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "tf32", "fp16"])
def test_one_precision_under_all_of_its_names(dtype):
    """PyTorch raises if its older and newer names disagree, and its compiler reads both."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.fp32_precision
    tf32 = dtype == "tf32"
    with device.precision(dtype):
        for name in (matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.fp32_precision):
            assert name == ("tf32" if tf32 else "ieee")
        assert matmul.allow_tf32 is cudnn.allow_tf32 is tf32
        assert runtime.dot_precision(torch.float32) == ("tf32" if tf32 else "ieee")
    assert (matmul.fp32_precision == "tf32") == (before == "tf32")


@pytest.mark.parametrize(("pass_", "trains"), [("forward", False), ("backward", False), ("step", True)])
def test_filters_are_folded_at_each_step_of_training(pass_, trains):
    gpu = Mock()
    gpu.prepare.side_effect = RuntimeError("enough")
    work = Work("fc8", (WORKLOADS["fc8"],), pass_)
    check.time_work(gpu, "triton", work, "fp32", work.ours, kernels.cross_entropy, [])
    assert gpu.prepare.call_args.args[1] is trains


def test_commit(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert table.commit() == "unknown"
    monkeypatch.setenv("GIT_COMMIT", "abc1234")
    assert table.commit() == "abc1234"


@pytest.mark.skipif(runtime.INTERPRETED, reason="needs a GPU")
def test_a_graphs_output_is_full_of_nan_before_the_replay_that_is_checked():
    gpu = device.Gpu()
    x = torch.randn(1024, device=gpu.device)
    run, (output,), _ = gpu.prepare(lambda: Started(lambda: (x + 1,), None), False)
    assert torch.equal(output, x + 1)
    nothing = lambda: (torch.empty_like(x),)
    run, (output,), _ = gpu.prepare(lambda: Started(nothing, None), False)
    assert output.isnan().all()
    p20, p50, p80 = gpu.time(run)
    assert 0 < p20 <= p50 <= p80
