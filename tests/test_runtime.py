"""kernels.runtime: how the mode is chosen, and what the kernels share."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

import kernels
from kernels import runtime
from kernels.ops.conv2d import launch_conv2d
from tests.reference import DTYPES, assert_close, exact, name, randn

ROOT = Path(__file__).parents[1]


def ones(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=x.dtype, device=x.device)


CALLS = {  # on (2, 4, 6, 6)
    "bias_relu": lambda x: kernels.bias_relu(x, ones(x, 4, 1, 1)),
    "conv2d": lambda x: kernels.conv2d(x, ones(x, 3, 4, 2, 2), relu=True),
    "cross_entropy": lambda x: kernels.cross_entropy(x, torch.ones(2, 6, 6, dtype=torch.int64, device=x.device)),
    "dropout": lambda x: kernels.dropout(x, 0.5, seed=1),
    "linear": lambda x: kernels.linear(x, ones(x, 3, 6), relu=True),
    "local_response_norm": lambda x: kernels.local_response_norm(x, 3),
    "lrn_max_pool2d": lambda x: kernels.lrn_max_pool2d(x, 3, 0.5, 0.75, 1.0, 3, 2),
    "max_pool2d": lambda x: kernels.max_pool2d(x, 3, 2),
    "softmax": lambda x: kernels.softmax(x, 1),
}

CHECK = """
import torch, torch.nn.functional as F
import kernels
from kernels import runtime
x, w = torch.randn(2, 3, 7, 7), torch.randn(5, 3, 3, 3)
y = kernels.softmax(kernels.conv2d(x, w, padding=1))
assert torch.allclose(y, F.softmax(F.conv2d(x, w, padding=1), -1), atol=1e-5), "wrong"
print(runtime.mode(), runtime.default_device(), runtime.architecture())
"""


def python(code: str, **environment: str | None) -> str:
    """What a fresh interpreter prints, without a GPU."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **environment}
    env = {key: value for key, value in env.items() if value is not None}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("first", ["", "import triton", "import torchvision"])
def test_interpreted_without_a_gpu_whatever_was_imported_first(first):
    assert python(f"{first}\n{CHECK}", TRITON_INTERPRET=None) == "interpreted cpu interpreter"


FIRST = """
import importlib, os, sys
import torch

found = 0
for file in {files}:
    child = os.fork()
    if child == 0:
        names = vars(importlib.import_module("kernels.ops." + file))
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import KernelInterface
        decorated = [value for value in names.values() if isinstance(value, KernelInterface)]
        os._exit(9 if not all(isinstance(value, InterpretedFunction) for value in decorated) else len(decorated) > 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1), file
    found += status
print(found)
"""


def test_interpreted_whichever_file_is_imported_first():
    files = sorted(path.stem for path in Path(kernels.__file__).parent.joinpath("ops").glob("[a-z]*.py"))
    decorating = sum("\n@triton.jit" in (ROOT / "kernels" / "ops" / f"{file}.py").read_text() for file in files)
    assert int(python(FIRST.format(files=files), TRITON_INTERPRET=None)) >= decorating > 10


PACKAGE = """
import sys, types
import kernels
assert "torch" not in sys.modules
kernels.softmax = mine = object()  # is kept
import kernels.ops.conv2d
assert isinstance(kernels.conv2d, types.FunctionType)  # and no module
from kernels import linear
assert linear is kernels.linear is sys.modules["kernels.ops.linear"].linear
import kernels.ops.softmax
assert kernels.softmax is mine
assert dir(kernels) == kernels.__all__
from kernels import *
assert conv2d is kernels.conv2d and issubclass(ArgumentError, ValueError)
from kernels import runtime
assert isinstance(runtime, types.ModuleType)
try:
    kernels.conv3d
except AttributeError as error:
    print(error)
"""


def test_the_package_is_its_operators():
    assert python(PACKAGE) == "module 'kernels' has no attribute 'conv3d'"


def test_users_choice_to_interpret_is_kept():
    assert python(CHECK, TRITON_INTERPRET="1") == "interpreted cpu interpreter"


def test_users_choice_to_compile_is_kept():
    code = "from kernels import runtime; print(runtime.mode(), runtime.default_device())"
    assert python(code, TRITON_INTERPRET="0") == "compiled cuda"


def test_cpu_tensors_are_refused_where_kernels_are_compiled():
    code = """
import torch, kernels
try:
    kernels.softmax(torch.ones(3))
except kernels.ArgumentError as error:
    print(error)
"""
    printed = python(code, TRITON_INTERPRET="0")
    assert "softmax: input is on cpu" in printed and "TRITON_INTERPRET=1" in printed


def test_mode_is_that_of_the_machine():
    assert (os.environ["TRITON_INTERPRET"] == "1") == runtime.INTERPRETED
    assert runtime.mode() == ("interpreted" if runtime.INTERPRETED else "compiled")
    assert runtime.default_device().type == ("cpu" if runtime.INTERPRETED else "cuda")


@triton.jit
def _order_kernel(order_ptr, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    pid = tl.program_id(0)
    pid_m, pid_n = runtime.tile_order(pid, tiles_m, tiles_n, GROUP_M)
    tl.store(order_ptr + 2 * pid, pid_m)
    tl.store(order_ptr + 2 * pid + 1, pid_n)


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("tiles", [(1, 1), (1, 5), (7, 1), (4, 4), (7, 5), (5, 3), (9, 2)], ids=str)
def test_tile_order_covers_every_tile_once(tiles, group, guards, device):
    m, n = tiles
    order = guards.empty((m * n, 2), (2, 1), torch.int64, device)
    runtime.launch(_order_kernel, lambda META: (m * n,), order, m, n, GROUP_M=group)
    pairs = [tuple(pair) for pair in order.tolist()]
    assert sorted(pairs) == [(i, j) for i in range(m) for j in range(n)]
    # Within a group of rows, column by column.
    assert pairs == sorted(pairs, key=lambda t: (t[0] // group, t[1], t[0]))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, c_ptr, PRECISION: tl.constexpr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    acc = tl.full((SIZE, SIZE), 1.0, dtype=tl.float32)
    tl.store(c_ptr + offs, runtime.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs), acc, PRECISION))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_dot(dtype, guarded, guards, device):
    """Triton's interpreter multiplies the bit patterns of bfloat16."""
    a, b = randn(32, 32, dtype=dtype), randn(32, 32, dtype=dtype)
    c = guards.empty((32, 32), (32, 1), torch.float32, device)
    precision = runtime.dot_precision(dtype)
    runtime.launch(_dot_kernel, lambda META: (1,), guarded(a), guarded(b), c, PRECISION=precision, SIZE=32)
    assert_close(c, exact(a) @ exact(b) + 1)


@pytest.mark.parametrize("value, precision", [("ieee", "ieee"), ("tf32", "tf32"), ("none", "ieee")])
def test_dot_precision_follows_fp32_precision(value, precision, fp32_precision):
    fp32_precision(value)
    assert runtime.dot_precision(torch.float32) == precision
    assert runtime.dot_precision(torch.float16) == runtime.dot_precision(torch.bfloat16) == "ieee"


def test_dot_precision_follows_the_older_switches():
    """In a process of its own: torch does not mix the older switches with fp32_precision."""
    code = """
import torch
from kernels import runtime
for allow in (True, False):
    torch.backends.cuda.matmul.allow_tf32 = allow
    print(runtime.dot_precision(torch.float32), runtime.dot_precision(torch.float16))
for word in ("high", "highest"):
    torch.set_float32_matmul_precision(word)
    print(runtime.dot_precision(torch.float32))
"""
    assert python(code).split("\n") == ["tf32 ieee", "ieee ieee", "tf32", "ieee"]


@pytest.mark.parametrize("elements, index", [(2**31 - 1, tl.int32), (2**31, tl.int64), (2**31 + 1, tl.int64)])
def test_index_type(elements, index):
    small = torch.empty(1, device="meta")
    large = torch.empty(elements, device="meta")
    assert runtime.index_type(small) is tl.int32
    assert runtime.index_type(large) is index
    assert runtime.index_type(small, large) is runtime.index_type(large, small) is index


def test_launches_are_recorded_and_not_run(guarded):
    x = guarded(torch.ones(3, 5))
    with runtime.record_launches() as launches:
        y = kernels.softmax(x)
    assert [launch.kernel.__name__ for launch in launches] == ["_softmax_kernel"]
    assert launches[0].grid(launches[0].constants) == (1,)
    assert y.isnan().all()  # as it was allocated
    assert not kernels.softmax(x).isnan().any()
    assert len(launches) == 1


def test_recording_takes_tensors_without_memory():
    x, w = torch.empty(256, 3, 227, 227, device="meta"), torch.empty(96, 3, 11, 11, device="meta")
    given = x, w, None, [4, 4], [0] * 4, [1, 1], 1, True
    y = torch.ops.alexnet.conv2d(*given)
    assert y.shape == (256, 96, 55, 55)
    with runtime.record_launches() as launches:
        launch_conv2d(*given, y)
    assert launches[-1].constants["RELU"] is True


def test_recording_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), runtime.record_launches():
        raise ZeroDivisionError
    assert not runtime.is_recording()


def test_the_innermost_recording_gets_a_launch(device):
    x = torch.ones(3, 5, device=device)
    with runtime.record_launches() as outer:
        kernels.softmax(x)
        with runtime.record_launches() as inner:
            kernels.bias_relu(x, x)
        kernels.dropout(x)
    names = [[launch.kernel.__name__ for launch in launches] for launches in (outer, inner)]
    assert names == [["_softmax_kernel", "_dropout_kernel"], ["_bias_relu_kernel"]]


def test_other_threads_run_what_one_records(device):
    x = torch.randn(3, 5, device=device)
    with ThreadPoolExecutor(1) as threads, runtime.record_launches() as launches:
        y = threads.submit(kernels.softmax, x).result()
        assert not threads.submit(runtime.is_recording).result() and not launches
    torch.testing.assert_close(y, x.softmax(-1))


def test_backward_passes_run_in_the_thread_that_records(device):
    """On a GPU, autograd has threads of its own, which would run them. Without a GPU only the switch shows it."""
    x = torch.randn(3, 5, device=device, requires_grad=True)
    with runtime.record_launches() as launches:
        assert not torch._C._is_multithreading_enabled()
        torch.autograd.grad(kernels.softmax(x), x, torch.ones_like(x))
    assert torch._C._is_multithreading_enabled()
    assert [launch.kernel.__name__ for launch in launches] == ["_softmax_kernel", "_softmax_gradient_kernel"]


@pytest.mark.unguarded  # a guarded tensor is a view, and its fake counterpart is not
def test_operators_are_registered_with_pytorch():
    """PyTorch's own check of each operator: schema, shapes for torch.compile, and autograd."""
    x, w, b = torch.randn(2, 4, 9, 9), torch.randn(6, 2, 3, 3), torch.randn(6)
    for operator in kernels.__all__:
        getattr(kernels, operator)  # is registered when it is first used
    calls = {
        "bias_relu": (x, torch.randn(4, 1, 1)),
        "cross_entropy": (torch.randn(3, 5), torch.tensor([0, 4, 1]), torch.rand(5), -100, "mean", 0.1),
        "conv2d": (x, w, b, [1, 1], [1, 1, 1, 1], [1, 1], 2, True),
        "dropout": (x, 0.5, 3),
        "linear": (torch.randn(3, 5), torch.randn(7, 5), torch.randn(7), False),
        "local_response_norm": (x, 5, 1e-4, 0.75, 1.0),
        "lrn_max_pool2d": (x, 5, 1e-4, 0.75, 1.0, [3, 3], [2, 2], False),
        "max_pool2d": (x, [3, 3], [2, 2], [1, 1], [1, 1], False, "none"),
        "softmax": (torch.randn(3, 5),),
    }
    device = runtime.default_device()
    for operator, arguments in calls.items():
        arguments = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
        overload = getattr(torch.ops.alexnet, operator).default
        torch.library.opcheck(overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # in PyTorch's own code
@pytest.mark.parametrize("operator", CALLS)
def test_forward_mode_is_refused_in_words(operator, device):
    x = torch.rand(2, 4, 6, 6, device=device)
    with pytest.raises(kernels.ArgumentError, match=f"{operator}: input has a tangent, but .* reverse mode only"):
        torch.func.jvp(CALLS[operator], (x,), (x,))


@pytest.mark.parametrize("operator", CALLS)
def test_tensors_that_are_not_dense_are_refused(operator, device):
    x = torch.rand(2, 4, 6, 6, device=device)
    with pytest.raises(
        kernels.ArgumentError, match=f"{operator}: input must be a dense tensor, got a torch.sparse_coo"
    ):
        CALLS[operator](x.to_sparse())
    with pytest.raises(kernels.ArgumentError, match=f"{operator}: input must be a dense tensor, got a nested one"):
        CALLS[operator](torch.nested.nested_tensor([x, x], layout=torch.jagged))


@pytest.mark.parametrize("operator", ["conv2d", "cross_entropy", "linear", "softmax"])
def test_autocast_leaves_float64_to_be_refused(operator, device):
    x = torch.rand(2, 4, 6, 6, dtype=torch.float64, device=device)
    with (
        torch.autocast(device.type, torch.bfloat16),
        pytest.raises(kernels.ArgumentError, match=f"{operator}: input must be float32, .*, got torch.float64"),
    ):
        CALLS[operator](x)


@pytest.mark.skipif(not runtime.INTERPRETED, reason="compiled kernels run on a GPU only")
@pytest.mark.parametrize("operator", CALLS)
def test_tensors_without_memory_have_shapes_alone(operator):
    x = torch.rand(2, 4, 6, 6, requires_grad=True)
    given, expected = x.detach().to("meta").requires_grad_(), CALLS[operator](x)
    y = CALLS[operator](given)
    assert y.is_meta and y.shape == expected.shape and y.stride() == expected.stride()
    assert torch.autograd.grad(y.sum(), given)[0].shape == x.shape


@pytest.mark.unguarded  # guards belong to a test, not to a thread
@pytest.mark.parametrize("operator", CALLS)
def test_threads_do_not_disturb_one_another(operator, device):
    inputs = [torch.randn(2, 4, 6, 6, device=device) for _ in range(4)]
    expected = [CALLS[operator](x) for x in inputs]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(inputs)) as pool:
            for _ in range(5):
                for y, z in zip(pool.map(CALLS[operator], inputs), expected, strict=True):
                    assert torch.equal(y, z)
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.unguarded  # a guarded tensor is a view, which must not be modified in place
@pytest.mark.parametrize("operator", CALLS)
def test_outputs_can_be_modified_in_place(operator, device):
    x = torch.rand(2, 4, 6, 6, device=device, requires_grad=True)
    y = CALLS[operator](x * 1)
    if operator in ("bias_relu", "conv2d", "linear"):  # their ReLU's gradient reads the output
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        return
    (expected,) = torch.autograd.grad(CALLS[operator](x).sum() * 2, x)
    assert torch.equal(torch.autograd.grad(y.mul_(2).sum(), x)[0], expected)


def test_a_second_derivative_is_refused_in_words(device):
    x = torch.randn(3, 5, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(kernels.softmax(x)[0, 0], x, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="softmax_gradient has no gradient: the kernels are differentiated once"
    ):
        gradient.sum().backward()
