"""``.pth`` and ``.pt``: a state dict that ``torch.save`` wrote, with our layers' names or with torchvision's.

A zip archive of one folder (https://docs.pytorch.org/docs/stable/notes/serialization.html): ``data.pkl`` is a pickle of
the dictionary, and each tensor's numbers are an entry ``data/0``, ``data/1``, ..., not compressed. Files from before
PyTorch 1.6 are several pickles, then the numbers. The state dict may be an entry of a training script's checkpoint:
``state_dict``, ``model_state_dict`` or ``model``.

``torch.load(weights_only=True)`` builds tensors and plain containers only, and ``mmap=True`` reads only numbers that
lie in the file. It does not check how long the pickle makes it work, so :mod:`model.weights.pickles` reads that first,
nor whether entries are compressed, since it maps them as they are.
"""

import io
import mmap
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch

from model.weights import pickles
from model.weights.common import Probe, Weights, WeightsError, published, reason, state_dict_layers

DESCRIPTION = "a .pth file with a state dict"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # how files from before PyTorch 1.6 begin
LONGEST_PICKLE = 2**24
MOST_ENTRIES = 10_000


def matches(probe: Probe) -> bool:
    """Whether the file begins as PyTorch's do: as a zip archive whose first entry is ``data.pkl``, or as before 1.6."""
    entry = probe.head[30 : 30 + int.from_bytes(probe.head[26:28], "little")]
    return probe.head.startswith(LEGACY) or (probe.head.startswith(b"PK\x03\x04") and entry.endswith(b"/data.pkl"))


def read(path: str | os.PathLike) -> Weights:
    """Reads the file. Everything in it except AlexNet's layers is ignored."""
    try:
        sizes = _check_pickles(path)
        state = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=sizes is not None)
    except Exception as error:  # zip, pickle and tensors raise whatever damaged bytes lead to
        refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if refused:
            raise WeightsError(f"it asks to run {refused[1]}, and weights are only tensors") from error
        raise WeightsError(f"cannot be read as a state dict: {reason(error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise WeightsError(f"must hold a state dict, got {type(state).__name__}")
    named = {str(key): value for key, value in state.items()}

    def tensor(key: str) -> object:
        value = named[key]
        stored = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if stored and sizes is not None and value.untyped_storage().nbytes() not in sizes:
            raise WeightsError(f"{key} claims another size than its entry in the file has")
        return value

    return published(state_dict_layers(named, tensor))


def _check_pickles(path: str | os.PathLike) -> set[int] | None:
    """The sizes in bytes of the archive's entries; None for a file from before PyTorch 1.6."""
    size = os.stat(path).st_size
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped[: len(LEGACY)] == LEGACY:
            mapped.seek(len(LEGACY))
            for _ in ("the system that wrote it", "the state dict", "its storages"):
                pickles.check(mapped, size)
            return None
    # The reader that torch.load uses, so that both see the same entries.
    archive: Any = torch._C.PyTorchFileReader(os.fspath(path))  # its type stub lacks get_record_offset
    entries = archive.get_all_records()
    if len(entries) > MOST_ENTRIES:
        raise pickle.UnpicklingError(f"it has {len(entries):,} entries, and a state dict fewer than {MOST_ENTRIES:,}")
    spans = sorted((archive.get_record_offset(entry), archive.get_record_size(entry)) for entry in entries)
    starts = [start for start, _ in spans[1:]] + [size]
    if any(start + length > following for (start, length), following in zip(spans, starts, strict=True)):
        raise pickle.UnpicklingError("it is compressed, which PyTorch does not do")
    if archive.get_record_size("data.pkl") > LONGEST_PICKLE:
        raise pickle.UnpicklingError("its pickle is longer than a state dict needs")
    pickled = archive.get_record("data.pkl")
    pickles.check(io.BytesIO(pickled), len(pickled))
    return {length for _, length in spans}
