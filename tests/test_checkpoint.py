"""Checkpoints: whole or not there, equal for equal runs, and clear words for a file that is none."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from kernels.errors import AlexNetError
from model.training import checkpoint

META = {"classes": ["a"], "training": {"step": 3}}


def test_round_trip(tmp_path):
    filters = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    tensors = {"conv1.weight": filters.requires_grad_(), "optimizer.conv1.weight.step": torch.tensor(5.0)}
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, tensors, META)
    found, meta = checkpoint.read(path)
    assert meta == META and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    first = path.read_bytes()
    checkpoint.write(path, dict(reversed(tensors.items())), META)
    assert path.read_bytes() == first and os.listdir(tmp_path) == ["a.safetensors"]
    mask = os.umask(0o22)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, "as any other file"


def test_what_cannot_be_written_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, {"a": torch.zeros(3)}, META)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AlexNetError, match=r"a\.safetensors: cannot be written: No space left on device"):
        checkpoint.write(path, {"a": torch.ones(3)}, META)
    assert not checkpoint.read(path)[0]["a"].any()


def test_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"junk")
    with pytest.raises(AlexNetError, match=r"a\.safetensors: cannot be read: "):
        checkpoint.read(path)
    for metadata in (None, {"meta": json.dumps({"classes": ["a"]})}):
        save_file({"a": torch.zeros(3)}, path, metadata)
        with pytest.raises(AlexNetError, match="holds weights but no run to resume; a new run can start from them"):
            checkpoint.read(path)
