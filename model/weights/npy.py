"""``bvlc_alexnet.npy``: BVLC's AlexNet as a dictionary (https://www.cs.toronto.edu/~guerzhoy/tf_alexnet/).

A 0-d object array that holds {"conv1": [W, b], ... "fc8": [W, b]}, pickled by Python 2. The layout is TensorFlow's: W
of a convolution is (kh, kw, in / groups, out), and of a fully connected layer (in, out), with fc6's rows in the order
H, W, C.

Unpickling calls what the file names, so a pickle from the internet can run anything. This reader knows only the few
functions that build arrays, and replaces them by its own, which view the file's bytes.
"""

import mmap
import os
import pickle
import re

import numpy as np

from model.weights import pickles
from model.weights.common import Probe, Weights, WeightsError, find_layers, published, reason

DESCRIPTION = "a .npy file with a dictionary of layers, as bvlc_alexnet.npy"


def matches(probe: Probe) -> bool:
    """Whether the file begins as NumPy's do."""
    return probe.head.startswith(b"\x93NUMPY")


def read(path: str | os.PathLike) -> Weights:
    """Reads the file. Everything in it except AlexNet's layers is ignored."""
    try:
        content = _unpickle(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"must hold a dictionary of layers, got {type(content).__name__}")
    found = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}

    def arrays(layer: str) -> list[object]:
        entry = _value(found[layer])
        if not isinstance(entry, (list, tuple)):
            raise WeightsError(f"{layer} must be [W, b], got {type(entry).__name__}")
        return list(map(_value, entry))

    return published(find_layers(found, arrays, _layout))


def _layout(layer: str, weight: np.ndarray) -> np.ndarray:
    """A weight in TensorFlow's layout -> in PyTorch's."""
    if layer.startswith("conv"):
        return weight.transpose(3, 2, 0, 1)
    if layer == "fc6" and weight.shape[0] == 6 * 6 * 256:
        weight = weight.reshape(6, 6, 256, -1).transpose(3, 2, 0, 1)  # H, W, C, out -> out, C, H, W
        return weight.reshape(-1, 256 * 6 * 6)
    return weight.T


def _unpickle(path: str | os.PathLike) -> object:
    """The object in the 0-d array."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        version = np.lib.format.read_magic(mapped)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = headers[version](mapped)
        if dtype.kind != "O" or shape != ():
            raise WeightsError(f"must hold a dictionary of layers, got an array {shape} of {dtype}")
        start = mapped.tell()
        pickles.check(mapped, len(mapped))
        left = len(mapped) - mapped.tell()
        if left:
            raise WeightsError(f"{left} bytes follow the end of the dictionary")
        mapped.seek(start)
        return _value(_Unpickler(mapped, encoding="bytes").load())  # bytes: Python 2's str, as arrays need


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, text and arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        """The stand-in for a function or class. Functions are new each time: a pickle may change their attributes."""
        known = {
            "numpy.dtype": _DType,
            "numpy.ndarray": None,  # only ever an argument of _reconstruct
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.core.multiarray.scalar": lambda dtype, raw: np.frombuffer(raw, dtype.resolve())[0],
            "builtins.bytes": lambda: b"",  # how Python 3 writes b"" for Python 2
            "_codecs.encode": lambda text, *_: text.encode("latin1"),  # and other bytes
        }
        key = f"{module.replace('_core', 'core').replace('__builtin__', 'builtins')}.{name}"
        if key not in known:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, and weights are only arrays")
        return known[key]


class _DType:
    """Stands for ``numpy.dtype`` while unpickling."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = _text(state[1])

    def resolve(self) -> np.dtype:
        if not re.fullmatch(r"O8?|[biufSU]\d{1,4}", self.code) or self.order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"weights do not hold arrays of {self.code!r}")
        return np.dtype(self.order + self.code) if self.code[0] != "O" else np.dtype(object)


class _Array:
    """Stands for ``numpy.ndarray`` while unpickling; ``value`` is the array, or an object array's list of items."""

    value: object = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.resolve().kind == "O":
            self.value = raw[0] if shape == () else raw
        else:  # a shape that the bytes do not fill is a ValueError
            self.value = np.frombuffer(raw, dtype.resolve()).reshape(shape, order="F" if fortran else "C")


def _value(item: object) -> object:
    return item.value if isinstance(item, _Array) else item


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
