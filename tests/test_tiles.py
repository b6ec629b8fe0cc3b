"""Configs: each that can be chosen gives right results, and look-ups choose as documented."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import kernels
from kernels import runtime, tiles
from kernels.tiles import Problem, choices, products
from kernels.tools import tune
from kernels.tools.workloads import ALEXNET, UNFUSED
from tests import reference
from tests.reference import assert_close, randn

ROOT = Path(__file__).parents[1]

for operator in kernels.__all__:  # an operator registers its configs when it is imported
    getattr(kernels, operator)

# By an operator's name in look-ups: a call that is small enough for the smallest tile and awkward for the largest.
CALLS = {
    "conv2d": lambda device, tile: call("conv2d", device, (1, 32, 5, 7), (6, 16, 3, 3), (6,), padding=1, groups=2),
    "linear": lambda device, tile: call("linear", device, (19, 150), (70, 150), (70,)),
    "linear_row": lambda device, tile: call("linear", device, (1, 150), (70, 150), (70,)),
    "local_response_norm": lambda device, tile: call("local_response_norm", device, (2, 13, 5, 7), size=5, alpha=0.5),
    "lrn_max_pool2d": lambda device, tile: call(
        "lrn_max_pool2d", device, (2, 13, 9, 11), size=5, alpha=0.5, beta=0.75, k=1.0, kernel_size=3, stride=2
    ),
    "max_pool2d": lambda device, tile: call("max_pool2d", device, (2, 13, 9, 11), kernel_size=3, stride=2),
    "softmax": lambda device, tile: call("softmax", device, (5, 1100), dim=1),
    "bias_relu": lambda device, tile: call("bias_relu", device, (2, 13, 5, 7), (13, 1, 1)),
    "linear_input_gradient": lambda device, tile: gradient("linear", 0, device, (19, 70), (150, 70)),
    "linear_weight_gradient": lambda device, tile: gradient("linear", 1, device, (150, 70), (19, 70)),
    "bias_relu_gradient": lambda device, tile: gradient("bias_relu", 1, device, (rows(tile), 130), (130,)),
    "column_sums": lambda device, tile: gradient("linear", 2, device, (rows(tile), 5), (130, 5), (130,)),
}


def rows(tile):
    """Rows for two programs and a part of a third. With more, the smallest tiles would take minutes."""
    return 2 * tile["BLOCK_M"] * tile["STEPS"] + 1


def call(operator, device, *shapes, **arguments):
    operands = [randn(*shape).to(device) for shape in shapes]
    return getattr(kernels, operator)(*operands, **arguments), getattr(reference, operator)(*operands, **arguments)


def gradient(operator, position, device, *shapes, **arguments):
    """The gradient of the operand at ``position``, for one gradient of the output."""
    operands = [randn(*shape).to(device) for shape in shapes]
    operands[position].requires_grad_()
    found = []
    for module in (kernels, reference):
        output = getattr(module, operator)(*operands, **arguments)
        weights = torch.linspace(-1.0, 2.0, output.numel()).reshape(output.shape).to(output)
        found.append(torch.autograd.grad(output, operands[position], weights)[0])
    return found[0], reference.exact(found[1])


def every_tile() -> list:
    """What the defaults and the tuner may choose for AlexNet's layers anywhere, and what the tables have.

    On a GPU its own, of float32, which these operands are: others may not fit. The tuner checks whatever it times.
    """
    found = {}
    here = [runtime.architecture()]
    for architecture in tiles.ARCHITECTURES if runtime.INTERPRETED else here:
        for dtype in choices.ITEMSIZE if runtime.INTERPRETED else ["float32"]:
            for M, N, K in ((169, 384, 2304), (93312, 96, 432), (16, 4096, 9216), (128, 1000, 4096), (1, 1000, 4096)):
                for operator in CALLS:
                    problem = Problem(operator, dtype, M, N, K)
                    for tile in choices.candidates(architecture, problem):
                        found[operator, json.dumps(tile)] = tile
            for problem, tile in tiles.table(architecture).items():
                if problem.dtype == dtype:
                    found[problem.operator, json.dumps(tile)] = tile
    # The interpreter has no warps and stages: configs that differ only in these are the same there.
    kept = {}
    for (operator, _), tile in found.items():
        shape = (
            {name: size for name, size in tile.items() if not name.startswith("num_")} if runtime.INTERPRETED else tile
        )
        kept[operator, json.dumps(shape)] = tile
    # The quick set of tests takes the first config of each operator.
    first = {operator: key for key in reversed(kept) for operator in key[:1]}
    return [
        pytest.param(key[0], config, marks=() if first[key[0]] == key else pytest.mark.full)
        for key, config in kept.items()
        if key[0] in CALLS
    ]


def default(architecture, problem):
    return choices.CHOICES[problem.operator].default(architecture, problem)


def describe(value) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value.values()))


@pytest.mark.parametrize(("operator", "tile"), every_tile(), ids=describe)
def test_every_tile_is_right(operator, tile, device):
    with tiles.use(operator, tile):
        actual, expected = CALLS[operator](device, tile)
    assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("layer", ALEXNET + UNFUSED, ids=lambda layer: layer.name)
@pytest.mark.parametrize("batch", [1, 128])
def test_default_comes_first_among_the_candidates(layer, batch):
    for architecture in tiles.ARCHITECTURES:
        with runtime.record_launches(), tiles.record_configs() as recorded, tiles.target(architecture):
            layer.run(*layer.operands(batch, torch.float16, "cpu"))
        assert recorded
        for problem, tile in recorded:
            found = choices.candidates(architecture, problem)
            assert found[0] == default(architecture, problem)
            assert len(found) == len({json.dumps(candidate) for candidate in found})
            assert tile in (found[0], tiles.tuned(architecture, problem))
            for candidate in found:
                if "num_stages" in candidate:
                    assert (
                        products.shared_memory(architecture, candidate, problem.dtype)
                        <= products.SHARED_MEMORY[architecture]
                    )


def test_interpreter_tiles_hold_at_most_2_to_the_20():
    for layer in ALEXNET + UNFUSED:
        for batch in (1, 64):
            with runtime.record_launches(), tiles.record_configs() as recorded, tiles.target("interpreter"):
                layer.run(*layer.operands(batch, torch.float32, "cpu"))
            for problem, tile in recorded:
                m, n, k = (tile.get(f"BLOCK_{axis}", 1) for axis in "MNK")
                assert max(m * n, m * k, n * k) <= 2**20, (problem, tile)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for this test's own tables."""
    monkeypatch.setattr(tiles, "path", lambda architecture: tmp_path / f"{architecture}.json")
    tiles.forget()
    yield tmp_path
    tiles.forget()


def test_a_table_is_written_and_looked_up(folder):
    tile = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 1, "SPLIT_K": 1, "num_warps": 2, "num_stages": 2}
    problem = Problem("conv2d", "float32", 1000, 20, 27)
    tune.write(tiles.path("sm_90"), "a GPU", {problem: tile})
    assert tiles.table("sm_90") == {problem: tile}
    written = json.loads((folder / "sm_90.json").read_text())
    assert written["device"] == "a GPU" and written["triton"]
    assert [path.name for path in folder.iterdir()] == ["sm_90.json"]

    x = torch.empty(1)
    with tiles.target("sm_90"):
        for M, found in ((1000, True), (300, True), (4000, True), (200, False), (5000, False)):
            assert (tiles.lookup("conv2d", x, M, 20, 27) == tile) == found, M
        assert tiles.lookup("conv2d", x, 1000, 21, 27) != tile
        assert tiles.lookup("conv2d", x.half(), 1000, 20, 27) != tile
    with tiles.target("sm_80"):
        assert tiles.lookup("conv2d", x, 1000, 20, 27) != tile


STAND_IN = """
import pathlib, triton
from kernels import runtime, tiles
from kernels.tools.bench import check, device

class Gpu(device.Interpreter):
    interpreted, name = False, "a GPU"

folder, launch = pathlib.Path(__file__).parent, runtime.launch
device.Gpu, check.deviation = Gpu, lambda *_: 0.0
runtime.architecture = lambda *_: "sm_90"
runtime.runs_on = lambda *_: True
runtime.launch = lambda *args, **constants: runtime.is_recording() and launch(*args, **constants)
tiles.path = lambda architecture: folder / f"{architecture}.json"
triton.JITFunction.warmup = lambda *_, **constants: (folder / f"{constants['num_warps']} warps").touch()
"""


@pytest.mark.parametrize("out", [None, pytest.param("new", marks=pytest.mark.full)])
def test_tuning_with_all_but_a_gpu(tmp_path, out):
    """The command as users type it, with its own processes that compile ahead."""
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)  # every Python imports it first
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "model.cli", "tune", "softmax", "--batch", "3", *(["--out", out] if out else [])]
    there = Problem("dropout", "float16", 1, 1, 1)
    (tmp_path / (out or ".")).mkdir(exist_ok=True)
    tune.write(tmp_path / (out or ".") / "sm_90.json", "a GPU", {there: {"BLOCK_M": 1}})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    assert (tmp_path / "sm_90.json").exists() == (out is None)
    kept, problem = json.loads((tmp_path / (out or ".") / "sm_90.json").read_text())["tiles"]
    assert kept == {**there._asdict(), "tile": {"BLOCK_M": 1}}
    assert (problem["operator"], problem["dtype"], problem["M"], problem["N"]) == ("softmax", "float16", 3, 1000)
    tried = choices.candidates("sm_90", Problem(*(problem[field] for field in Problem._fields)))
    assert problem["tile"] in tried
    assert {path.name for path in tmp_path.glob("* warps")} == {f"{tile['num_warps']} warps" for tile in tried}


def test_the_nearest_problem_counts(folder):
    near, far = {"BLOCK_M": 1, "num_warps": 4}, {"BLOCK_M": 2, "num_warps": 4}
    tuned = {Problem("dropout", "float32", 100, 1, 1): far, Problem("dropout", "float32", 300, 1, 1): near}
    tune.write(tiles.path("sm_90"), "a GPU", tuned)
    with tiles.target("sm_90"):
        assert tiles.lookup("dropout", torch.empty(1), 200, 1, 1) == near
        assert tiles.lookup("dropout", torch.empty(1), 120, 1, 1) == far


def test_tf32_has_tiles_of_its_own(fp32_precision):
    with tiles.record_configs() as recorded, tiles.target("sm_90"):
        for precision in ("ieee", "tf32"):
            fp32_precision(precision)
            tiles.lookup("linear", torch.empty(1), 1024, 4096, 4096)
            tiles.lookup("max_pool2d", torch.empty(1), 1024, 4096, 9)
    assert [problem.dtype for problem, _ in recorded] == ["float32", "float32", "tf32", "float32"]


def test_nested_configs_and_targets():
    """The last one counts, and after it the one around it again."""
    x = torch.empty(1)
    config = lambda: tiles.lookup("dropout", x, 100, 1, 1)
    with tiles.target("sm_90"), tiles.use("softmax", {"BLOCK_M": 3}):
        default = config()
        with tiles.use("dropout", {"BLOCK_M": 1}):
            with tiles.use("dropout", {"BLOCK_M": 2}), tiles.target("interpreter"):
                assert config() == {"BLOCK_M": 2}
                assert tiles.lookup("softmax", x, 100, 1, 1) == {"BLOCK_M": 3}
            assert config() == {"BLOCK_M": 1}
        with tiles.target("interpreter"):
            assert config() == {"BLOCK_M": 128}
        assert config() == default == {"BLOCK_M": 1024, "num_warps": 4}


def test_the_innermost_recording_gets_a_config():
    config = lambda M: tiles.lookup("dropout", torch.empty(1), M, 1, 1)
    with tiles.record_configs() as outer:
        config(1)
        with tiles.record_configs() as inner:
            config(2)
        config(3)
    assert [[problem.M for problem, _ in recorded] for recorded in (outer, inner)] == [[1, 3], [2]]


def test_other_threads_look_up_as_before():
    config = lambda: tiles.lookup("dropout", torch.empty(1), 100, 1, 1)
    before = config()
    with ThreadPoolExecutor(1) as threads, tiles.target("gfx942"), tiles.use("dropout", {"BLOCK_M": 1}):
        with tiles.record_configs() as recorded:
            assert threads.submit(config).result() == before
        assert not recorded


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["pooling"], "pooling"), (["--batch", "0"], "--batch"), (["--dtype", "fp8"], "fp8"), ([], "no GPU is here")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.skipif(not runtime.INTERPRETED, reason="with a GPU it would tune")
def test_tuner_refuses(arguments, named, capsys):
    assert tune.main(arguments) == 2
    out, err = capsys.readouterr()
    assert named in err and len(err.splitlines()) == 1 and not out


def test_an_unknown_gpu_has_tiles():
    problem = Problem("conv2d", "float16", 21632, 384, 2304)
    found = choices.candidates("sm_120", problem)
    assert found[0] == default("sm_120", problem) and len(found) > 5
