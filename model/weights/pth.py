"""``.pth`` and ``.pt``: a state dict saved by PyTorch, with our layers' names or with torchvision's.

``torch.load(weights_only=True)`` builds tensors and plain containers, and refuses to run anything. It still does what
a pickle says for as long as it says, and allocates what it claims, so :class:`_Rehearsal` goes through the pickle
first, with stand-ins for all that it builds.

A training script's checkpoint may hold the state dict as ``state_dict``, ``model_state_dict`` or ``model``.
"""

import io
import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Mapping

import torch

from model.weights.common import (
    LAYERS,
    Probe,
    Weights,
    WeightsError,
    check_any,
    check_bias,
    check_shape,
    check_size,
    check_tensors,
    published,
    reason,
    rename,
)
from model.weights.pickles import Unpickler
from model.weights.zips import open_zip, unpack

DESCRIPTION = "a .pth file with a state dict"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # what files of before PyTorch 1.6 begin with
LONGEST_PICKLE = 2**24


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format: a zip archive with PyTorch's first entry."""
    return probe.head.startswith(LEGACY) or (probe.entry or "").endswith("/data.pkl")


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    check_size(path, name)
    try:
        _rehearse(path, name)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # zip, pickle and tensors raise whatever damaged bytes run into
        refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if refused:
            raise WeightsError(f"{name}: it asks to run {refused[1]}, and weights are only tensors") from error
        raise WeightsError(f"{name}: cannot be read as a state dict: {reason(error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name}: must hold a state dict, got {type(state).__name__}")
    found = {rename(str(key)): value for key, value in state.items()}
    layers = {layer: _layer(name, layer, found) for layer in LAYERS if f"{layer}.weight" in found}
    check_any(name, list(map(str, state)), layers)
    return published(name, layers)


def _layer(name: str, layer: str, found: Mapping) -> tuple[torch.Tensor, torch.Tensor]:
    check_bias(name, layer, found)
    tensors = []
    for part in ("weight", "bias"):
        value = found[f"{layer}.{part}"]
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise WeightsError(f"{name}: {layer}'s {part} must be a dense tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise WeightsError(f"{name}: {layer}'s {part} must be of floating point, got {value.dtype}")
        check_shape(name, layer, part, value.shape)  # strides of 0 make any shape of a few numbers
        tensors.append(value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format))
    return check_tensors(name, layer, *tensors)


def _rehearse(path: str | os.PathLike, name: str) -> None:
    """Raises where the file's pickle does more than a state dict needs, or claims more bytes than the file has."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped[: len(LEGACY)] == LEGACY:
            mapped.seek(len(LEGACY))
            rehearsals = [_Rehearsal(mapped) for _ in ("the system that wrote it", "the state dict", "its storages")]
            for rehearsal in rehearsals:
                rehearsal.load()
            if sum(rehearsals[1].storages.values()) > len(mapped):
                raise pickle.UnpicklingError("its tensors are larger than the file")
            return
    with open_zip(path, name) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise pickle.UnpicklingError("it is compressed, which PyTorch does not do")
        pickles = [entry for entry in entries if entry.orig_filename.lower().endswith("/data.pkl")]
        if len(pickles) != 1:  # PyTorch, to which upper and lower case are one, might read another than is rehearsed
            raise pickle.UnpicklingError(f"it has {len(pickles)} entries data.pkl, and a state dict has one")
        rehearsal = _Rehearsal(io.BytesIO(unpack(archive, pickles[0], name, LONGEST_PICKLE)))
        rehearsal.load()
        sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in entries}
    for key, size in rehearsal.storages.items():
        if size > sizes.get(f"data/{key}", 0):
            raise pickle.UnpicklingError(f"it claims {size:,} bytes for a tensor whose numbers take fewer")


class _StandIn:
    """For whatever the pickle names or builds."""

    def __init__(self, name: str = ""):
        self.name = name

    def __call__(self, *_) -> "_StandIn":
        return _StandIn()

    def __setitem__(self, *_) -> None:
        pass

    def __setstate__(self, _) -> None:
        pass

    append = extend = __setstate__


class _Rehearsal(Unpickler):
    """Goes through a pickle of PyTorch's; ``storages`` are the bytes that it says its tensors' numbers have."""

    def __init__(self, file):
        super().__init__(file)
        self.dispatch[pickle.NEWOBJ[0]] = Unpickler.load_reduce  # whole modules, for torch.load to name and refuse
        self.storages = {}

    def find_class(self, module: str, name: str) -> _StandIn:
        return _StandIn(name)

    def persistent_load(self, saved: tuple) -> _StandIn:
        if saved[0] != "storage":
            return _StandIn()
        _, kind, key, _, count = saved[:5]
        dtype = getattr(torch, kind.name.removesuffix("Storage").lower(), None)  # FloatStorage: torch.float
        size = int(count) * (dtype.itemsize if isinstance(dtype, torch.dtype) else 1)
        self.storages[key] = max(size, self.storages.get(key, 0))
        return _StandIn()
