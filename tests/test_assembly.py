"""``alexnet assembly``: what the compiler makes of the kernels, for GPUs that are not here."""

import os
import re
import subprocess
import sys

import pytest

from kernels import tiles
from kernels.tiles.products import SHARED_MEMORY
from kernels.tools.assembly import Assembly, Task, assemble, main
from kernels.tools.workloads import DTYPES, WORKLOADS

PRODUCTS = ("_conv2d_kernel", "_conv2d_input_gradient_kernel", "_conv2d_weight_gradient_kernel", "_linear_kernel")


def check_chosen(task: Task, assembly: Assembly) -> None:
    """No spills. A 16-bit product uses the tensor cores, and on NVIDIA its operands are copied 16 bytes at a time."""
    where = f"{task}: {assembly.kernel} {assembly.config}"
    assert assembly.spills == 0, where
    assert assembly.shared <= SHARED_MEMORY[task.architecture], where
    if assembly.kernel in PRODUCTS and task.dtype != "fp32":
        assert assembly.tensor_cores > 0, where
        if task.architecture.startswith("sm_"):
            assert set(assembly.copies) == {16}, where


@pytest.mark.full
def test_every_layer_compiles_well_for_an_h100():
    tasks = [Task(layer, "sm_90") for layer in WORKLOADS]
    tasks += [Task(layer, "sm_90", batch=1) for layer in ("conv1", "conv3", "fc6")]
    for task, assemblies in assemble(tasks):
        assert assemblies, task
        for assembly in assemblies:
            check_chosen(task, assembly)


@pytest.mark.full
def test_other_architectures_and_dtypes_compile_well():
    others = [architecture for architecture in tiles.ARCHITECTURES if architecture != "sm_90"]
    tasks = [Task(layer, architecture) for architecture in others for layer in ("conv2", "pool2", "fc7")]
    tasks += [Task("conv4", "sm_90", dtype) for dtype in ("bf16", "fp32", "tf32")]
    for task, assemblies in assemble(tasks):
        for assembly in assemblies:
            check_chosen(task, assembly)


@pytest.mark.full
def test_backward_passes_compile_well_for_an_h100():
    tasks = [
        Task(layer, "sm_90", backward=True) for layer in ("conv1", "conv2", "conv5", "pool1", "pool5", "fc7", "prob")
    ]
    names = set()
    for task, assemblies in assemble(tasks):
        for assembly in assemblies:
            names.add(assembly.kernel)
            check_chosen(task, assembly)
    assert names >= {*PRODUCTS[1:], "_bias_relu_gradient_kernel", "_lrn_max_pool2d_gradient_kernel"}


@pytest.mark.full
def test_a_single_output_of_shares_compiles():
    """The compiler sees a number that is 1 as a constant, which has no methods."""
    code = """
import torch
from kernels.tools import assembly
from kernels import runtime, tiles
from kernels.ops.split_k import launch_add_partials
with tiles.target("sm_90"), runtime.record_launches() as launches:
    launch_add_partials(torch.empty(8, 1, 1, 1, 1), torch.empty(1, 1, 1, 1))
assembly.compile_launch(launches[0], {}, True, "sm_90")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.full
def test_conv1_is_folded_and_its_loads_pipelined():
    ((_, (fold_input, fold_weight, conv)),) = assemble([Task("conv1", "sm_90")])
    assert fold_input.kernel == fold_weight.kernel == "_space_to_depth_kernel"
    assert conv.registers < 128  # without folding: all 255, with spills, and no asynchronous copies
    assert conv.copies[16] >= 24


# Triton's own launcher, with a driver that claims an H100: it binds arguments, makes keys, and compiles.
LAUNCH = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class H100:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_active_torch_device = lambda self: torch.device("cpu")

driver.set_active(H100())
from kernels.tools.assembly import Task, launches
from kernels.tools.workloads import WORKLOADS
for task in [Task(layer, "sm_90", batch=batch) for batch in (1, 128) for layer in WORKLOADS]:
    for launch, config, _ in launches(task):
        compiled = launch.kernel.warmup(*launch.args, grid=(1,), **launch.constants)
        assert compiled.metadata.num_warps == config["num_warps"]
        assert len(launch.grid(launch.constants)) <= 3
        print(task.layer, compiled.metadata.name, compiled.metadata.shared)
"""


@pytest.mark.full
def test_launches_are_what_triton_takes_on_a_gpu():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", LAUNCH], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()} == set(WORKLOADS)


@pytest.mark.full
def test_normalisation_and_pooling_load_16_bytes_and_stay_in_registers():
    tasks = [
        Task(layer, "sm_90", dtype) for layer in ("norm1", "pool1", "pool2", "pool5") for dtype in ("fp16", "bf16")
    ]
    for task, (assembly,) in assemble(tasks):
        loads = set(re.findall(r"\bLDG\.\S+", assembly.text["sass"]))
        assert any(".128" in load for load in loads), task
        assert not any(".U16" in load for load in loads), task  # at least two neighbouring channels at once
        assert assembly.shared == 0 and not re.search(r"\bSHFL", assembly.text["sass"]), task


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_layer_dtype_and_batch_compiles_well(architecture):
    tasks = [Task(layer, architecture, dtype) for layer in WORKLOADS for dtype in DTYPES]
    tasks += [Task(layer, architecture, dtype, batch=1) for layer in WORKLOADS for dtype in ("fp16", "fp32")]
    for task, assemblies in assemble(tasks):
        for assembly in assemblies:
            check_chosen(task, assembly)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_backward_passes_compile_well(architecture):
    layers = ("conv4", "fc6", "norm2", "pool2", "pool5")
    tasks = [Task(layer, architecture, dtype, backward=True) for layer in layers for dtype in ("fp16", "fp32")]
    for task, assemblies in assemble(tasks):
        for assembly in assemblies:
            check_chosen(task, assembly)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_config_compiles(architecture):
    tasks = [
        Task(layer, architecture, every_config=True) for layer in ("conv1", "conv3", "fc7", "pool2", "pool5", "relu1")
    ]
    tasks += [Task("fc7", architecture, batch=1, every_config=True)]
    for task, assemblies in assemble(tasks):
        assert len(assemblies) > len([a for a in assemblies if a.chosen]), task
        for assembly in assemblies:
            assert assembly.shared <= SHARED_MEMORY[architecture], (task, assembly.config)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "model.cli", "assembly", *arguments], capture_output=True, text=True)


def test_command_prints_a_table():
    result = run("max_pool2d", "--arch", "sm_80")
    assert result.returncode == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split()[:3] == ["layer", "kernel", "config"]
    assert rows and all(row.split()[0] == "pool5" for row in rows)
    assert sum("*" in row for row in rows) == 1


@pytest.mark.full
@pytest.mark.parametrize(("option", "text"), [("--ptx", ".visible .entry _max_pool2d_kernel"), ("--sass", "EXIT")])
def test_command_prints_code(option, text):
    result = run("--layer", "pool5", option)
    assert result.returncode == 0, result.stderr
    assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pooling"], "pooling"),
        (["--arch", "sm_70"], "sm_70"),
        (["--layer", "conv6"], "conv6"),
        (["linear", "--layer", "conv1"], "conv1 is a layer of conv2d"),
        (["--batch", "0"], "--batch"),
        (["--layer", "prob", "--batch", "999999999999", "--ptx"], "--batch 999999999999: prob's tensors do not fit"),
        (["--arch", "gfx942", "--sass"], "--sass"),
    ],
)
def test_command_refuses(arguments, named, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert named in err and len(err.splitlines()) == 1 and not out
