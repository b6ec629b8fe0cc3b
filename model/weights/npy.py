"""``bvlc_alexnet.npy``: BVLC's AlexNet as a dictionary, from www.cs.toronto.edu/~guerzhoy/tf_alexnet/.

A 0-d object array that holds {"conv1": [W, b], ... "fc8": [W, b]}, pickled by Python 2. TensorFlow's layout: W of a
convolution is (kh, kw, in / groups, out), of a fully connected layer (in, out), and fc6's rows are in the order
H, W, C, because TensorFlow flattens NHWC.

Unpickling calls what the file names, so a pickle from the internet may run anything. This reader lets a file name
only the few functions that build arrays, and has its own in their place, which allocate nothing by a size alone.
"""

import mmap
import os
import pickle
import re

import numpy as np
import torch

from model.weights.common import (
    LARGEST,
    LAYERS,
    Probe,
    Weights,
    WeightsError,
    check_any,
    check_arrays,
    check_size,
    published,
    reason,
    to_tensors,
)
from model.weights.pickles import Unpickler

DESCRIPTION = "a .npy file with a dictionary of layers, as bvlc_alexnet.npy"


def matches(probe: Probe) -> bool:
    """Whether a file with this beginning and end is in this format."""
    return probe.head.startswith(b"\x93NUMPY")


def read(path: str | os.PathLike, name: str) -> Weights:
    """Reads the file; whatever it has besides AlexNet's layers is passed over."""
    check_size(path, name)
    content = _unpickle(path, name)
    if not isinstance(content, dict):
        raise WeightsError(f"{name}: must hold a dictionary of layers, got {type(content).__name__}")
    found = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    layers = {layer: _layer(name, layer, found[layer]) for layer in LAYERS if layer in found}
    check_any(name, [str(key) for key in found], layers)
    return published(name, layers)


def _layer(name: str, layer: str, entry: object) -> tuple[torch.Tensor, torch.Tensor]:
    """[W, b] in TensorFlow's layout -> weight and bias in PyTorch's."""
    entry = _value(entry)
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        got = f"{len(entry)} entries" if isinstance(entry, (list, tuple, dict)) else type(entry).__name__
        raise WeightsError(f"{name}: {layer} must be [W, b], got {got}")
    weight, bias = check_arrays(name, layer, *map(_value, entry))
    if layer.startswith("conv"):
        weight = weight.transpose(3, 2, 0, 1)
    elif layer == "fc6" and weight.shape[0] == 6 * 6 * 256:
        weight = weight.reshape(6, 6, 256, -1).transpose(3, 2, 0, 1)  # H, W, C, out -> out, C, H, W
        weight = weight.reshape(-1, 256 * 6 * 6)
    else:
        weight = weight.T
    return to_tensors(name, layer, weight, bias)


def _unpickle(path: str | os.PathLike, name: str) -> object:
    """The object in the 0-d array."""
    try:
        # Mapped rather than read: a length in the pickle that lies past the end allocates nothing.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            version = np.lib.format.read_magic(mapped)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(mapped)
            if dtype.kind != "O" or shape != ():
                raise WeightsError(f"{name}: must hold a dictionary of layers, got an array {shape} of {dtype}")
            content = _value(_Unpickler(mapped).load())
            left = len(mapped) - mapped.tell()
            if left:
                raise WeightsError(f"{name}: {left} bytes follow the end of the dictionary")
            return content
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{name}: cannot be read: {error}") from error
    except Exception as error:  # damaged bytes are opcodes too, and raise whatever they run into
        raise WeightsError(f"{name}: truncated or damaged: {reason(error)}") from error


class _DType:
    """Stands for ``numpy.dtype`` while unpickling."""

    def __init__(self, code: str | bytes, *_):
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: tuple):
        self.order = _text(state[1])

    def resolve(self) -> np.dtype:
        if not re.fullmatch(r"O8?|[biufSU]\d{1,4}", self.code) or self.order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"an array of {self.code!r} is not among what weights may hold")
        return np.dtype(self.order + self.code) if self.code[0] != "O" else np.dtype(object)


class _Array:
    """Stands for ``numpy.ndarray`` while unpickling; ``value`` is the array, or an object array's list of items."""

    value: object = None

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, raw = state
        if dtype.resolve().kind == "O":
            self.value = raw[0] if shape == () else list(raw)
        else:  # a shape that the bytes do not fill is a ValueError
            array = np.frombuffer(raw, dtype.resolve())
            self.value = array.reshape(shape, order="F" if fortran else "C")


def _value(item: object) -> object:
    return item.value if isinstance(item, _Array) else item


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _scalar(dtype: _DType, raw: bytes) -> object:
    return np.frombuffer(raw, dtype.resolve())[0]


_ALLOWED = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    **{(module, "bytes"): lambda: b"" for module in ("builtins", "__builtin__")},  # how b"" is written for Python 2
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


class _Unpickler(Unpickler):
    encoded = 0

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, and weights are only arrays")
        return _ALLOWED[module, name]

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        """How Python 3 writes bytes for Python 2. Each call makes a copy, and a text may be used again and again."""
        self.encoded += len(text)
        if self.encoded > LARGEST:
            raise pickle.UnpicklingError("it has more bytes than weights need")
        return text.encode("latin1")
