"""The examples in the docstrings, as they stand there."""

import doctest
import importlib

import pytest
import torch

import kernels
from kernels import runtime

MODULES = [
    *(f"kernels.ops.{name}" for name in kernels.__all__ if name != "ArgumentError"),
    "model.alexnet",
    "model.photos.preprocess",
]


@pytest.mark.skipif(not runtime.INTERPRETED, reason="printed tensors name the GPU that they are on")
@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    module = importlib.import_module(module)
    result = doctest.testmod(module, extraglobs={"torch": torch, "kernels": kernels})
    assert result.attempted and not result.failed
