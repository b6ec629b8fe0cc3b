"""Fixtures: every output poisoned and guarded, inputs on demand, and small tiles.

The same tests run interpreted on a CPU and compiled where there is a GPU.
"""

import pytest
import torch

import kernels
from kernels import runtime, tiles
from tests.guards import Guards, poison_allocations
from tests.small_tiles import small_tile

for operator in kernels.__all__:
    getattr(kernels, operator)  # registers it: tests ask for torch.ops.alexnet


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return runtime.default_device()


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def guards(request, monkeypatch):
    """Guards around what the operators allocate, checked after the test; not for tests marked ``unguarded``."""
    guards = Guards()
    if not request.node.get_closest_marker("unguarded"):
        poison_allocations(monkeypatch, guards)
    yield guards
    guards.check()


@pytest.fixture
def guarded(guards, device):
    """A function that puts a tensor on the device, in the middle of a buffer full of NaN; None stays None."""
    return lambda tensor: None if tensor is None else guards.guarded(tensor.to(device))


@pytest.fixture
def one_thread():
    """PyTorch on one thread: of little work, more spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles far smaller than the interpreter's, so that small shapes have several, in every direction."""
    monkeypatch.setattr(tiles, "lookup", small_tile)


@pytest.fixture
def fp32_precision():
    """Sets ``torch.backends.cuda.matmul.fp32_precision`` for one test."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield lambda value: setattr(matmul, "fp32_precision", value)
    matmul.fp32_precision = before


@pytest.fixture
def figures():
    """Pictures in the lessons' style: no window opens, and no figure stays."""
    from lesson import style

    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    with plt.rc_context():
        style.use()
        yield
    plt.close("all")
