"""The examples in the docstrings, as they stand there."""

import doctest
import importlib

import pytest
import torch

import kernels
from kernels.runtime import default_device

MODULES = [
    *(f"kernels.{name}" for name in kernels.__all__ if name != "ArgumentError"),
    "model.alexnet",
    "model.preprocess",
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    module = importlib.import_module(module)
    torch.set_default_device(default_device())
    try:
        result = doctest.testmod(module, extraglobs={"torch": torch, "kernels": kernels})
    finally:
        torch.set_default_device(None)
    assert result.attempted and not result.failed
