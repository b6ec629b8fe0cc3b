"""Fixtures: every output poisoned and guarded, inputs on demand, and small tiles.

The same tests run interpreted on a CPU and compiled where there is a GPU.
"""

import pytest
import torch

from kernels import runtime, tiles
from tests.guards import Guards, poison_allocations


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
def small_tiles(monkeypatch):
    """Tiles far smaller than the interpreter's, so that small shapes have several, in every direction."""

    tile = {
        "conv2d": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "SPLIT_K": 2},
        "conv2d_input_gradient": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
        "conv2d_weight_gradient": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "SPLIT_K": 3},
        "depth_to_space": {"BLOCK_M": 64},
        "linear": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
        "linear_input_gradient": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
        "linear_weight_gradient": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2},
        "linear_row": {"BLOCK_N": 4, "BLOCK_K": 16},
        "add_shares": {"BLOCK_M": 64},
        "bias_relu": {"BLOCK_M": 64},
        "bias_relu_gradient": {"BLOCK_M": 4, "BLOCK_N": 16, "STEPS": 2},
        "column_sums": {"BLOCK_M": 4, "BLOCK_N": 16, "STEPS": 2},
        "dropout": {"BLOCK_M": 64},
        "reduce_losses": {"BLOCK_M": 4},
        "local_response_norm": {"BLOCK_M": 4},
        "max_pool2d": {"BLOCK_M": 4},
        "lrn_max_pool2d": {"BLOCK_M": 4, "BLOCK_P": 2, "BLOCK_Q": 2},
    }
    other = {"BLOCK_M": 4, "BLOCK_N": 16}
    monkeypatch.setattr(tiles, "lookup", lambda operator, *_: tile.get(operator, other))


@pytest.fixture
def fp32_precision():
    """Sets ``torch.backends.cuda.matmul.fp32_precision`` for one test."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield lambda value: setattr(matmul, "fp32_precision", value)
    matmul.fp32_precision = before
