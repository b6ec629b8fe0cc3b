"""Files of weights come back in PyTorch's layout, and damaged or hostile files are refused with a clear message."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model import weights
from model.photos.preprocess import BVLC
from model.weights import WeightsError
from tests import weight_files as files

SHAPES = {"conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256), "fc7": (4096, 8), "fc8": (4096, 10)}  # TensorFlow's


@pytest.fixture(scope="module")
def bundled():
    return weights.load()


def small(dtype=np.float32, **replaced):
    """A dictionary of a few layers as in bvlc_alexnet.npy."""
    rng = np.random.default_rng(0)
    layers = {
        n: [rng.standard_normal(s).astype(dtype), rng.standard_normal(s[-1]).astype(dtype)] for n, s in SHAPES.items()
    }
    return {**layers, **replaced}


def write(path, content, protocol=2):
    """``content`` in a 0-d object array, as numpy.save pickles it."""
    array = np.empty((), dtype=object)
    array[()] = content
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, file, protocol=protocol)
    return path


def write_python2(path, layers):
    """The same in the opcodes of Python 2's pickle, whose strings are bytes."""

    def string(raw):
        return b"T" + struct.pack("<i", len(raw)) + raw  # BINSTRING

    def integer(value):
        return b"J" + struct.pack("<i", value)

    def array(shape, code, order, data):
        reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b")
        dtype = b"cnumpy\ndtype\n" + string(code) + integer(0) + integer(1) + b"\x87R"
        dtype += (
            b"(" + integer(3) + string(order) + b"NNN" + 2 * integer(-1) + integer(63 if code == b"O8" else 0) + b"tb"
        )
        dims = b"(" + b"".join(map(integer, shape)) + b"t"
        return reconstruct + b"\x87R(" + integer(1) + dims + dtype + b"\x89" + data + b"tb"

    entries = b"".join(
        string(name.encode()) + b"](" + b"".join(array(a.shape, b"f4", b"<", string(a.tobytes())) for a in pair) + b"e"
        for name, pair in layers.items()
    )
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(b"\x80\x02" + array((), b"O8", b"|", b"](}(" + entries + b"ue") + b".")
    return path


def check_small(loaded, layers):
    for name, (weight, bias) in layers.items():
        expected = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        assert np.array_equal(loaded.layers[name][0].numpy(), expected), name
        assert np.array_equal(loaded.layers[name][1].numpy(), bias), name
        assert loaded.layers[name][0].dtype == torch.float32


def test_bundled(bundled):
    assert bundled.name == weights.DEFAULT == "cifar10"
    assert list(bundled.layers) == list(weights.LAYER_NAMES)
    assert bundled.classes[3] == "cat" and len(bundled.classes) == 10
    assert bundled.lrn == "bvlc"
    data = weights.NAMED["cifar10"].bundled.read_bytes()
    assert len(data) <= 8_000_000
    # The first layer and the last, encoded again by a simple loop over the weights.
    entries = struct.unpack("<8I", data[:32])
    end = len(data) - len(b"AlexNet\n") - 4 - int.from_bytes(data[-12:-8], "little")
    for name, stored, values, start in (
        ("conv1", entries[0], 256, 32),
        ("fc8", entries[7], 16, end - 4 * 16 - 4 * 10 - 2 * ((entries[7] + 1) // 2)),
    ):
        weight, bias = (tensor.numpy() for tensor in bundled.layers[name])
        codebook = np.frombuffer(data, "<f4", values, start)
        count, encoded = files.deep_compression_layer(weight, bias, codebook)
        assert (count, encoded) == (stored, data[start : start + len(encoded)]), name


def test_round_trip_through_bvlc_layout(bundled, tmp_path):
    """All eight layers, written in TensorFlow's layout into a file of another name, come back as the same tensors."""
    layers = {}
    for name, (weight, bias) in bundled.layers.items():
        if weight.dim() == 4:
            weight = weight.permute(2, 3, 1, 0)
        elif name == "fc6":
            weight = weight.view(4096, 256, 6, 6).permute(2, 3, 1, 0).reshape(9216, 4096)  # H, W, C rows
        else:
            weight = weight.T
        layers[name.encode()] = [weight.numpy(), bias.numpy()]
    loaded = weights.load(write(tmp_path / "weights.bin", layers, protocol=4))
    assert list(loaded.layers) == list(weights.LAYER_NAMES)
    for name, (weight, bias) in bundled.layers.items():
        assert torch.equal(loaded.layers[name][0], weight), name
        assert torch.equal(loaded.layers[name][1], bias), name
    assert loaded.classes == tuple(f"class {i}" for i in range(10))
    assert loaded.lrn == "bvlc" and loaded.preprocess == BVLC


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_pickles_of_python_3(tmp_path, protocol, dtype):
    layers = small(dtype)
    check_small(
        weights.load(write(tmp_path / "a.npy", layers, protocol)),
        {n: (w.astype("f4"), b.astype("f4")) for n, (w, b) in layers.items()},
    )


def test_pickle_of_python_2(tmp_path):
    layers = small()
    path = write_python2(tmp_path / "a.npy", layers)
    assert np.load(path, allow_pickle=True, encoding="latin1")[()].keys() == layers.keys(), "not what NumPy reads"
    check_small(weights.load(path), layers)


def test_what_else_a_file_may_hold(tmp_path):
    layers = small()
    layers["fc7"][0] = np.asfortranarray(layers["fc7"][0])
    extra = {
        "data": np.arange(3),
        "note": "x",
        "step": np.float64(3),
        4: None,
        "pairs": np.array([1, "a"], dtype=object),
    }
    check_small(weights.load(write(tmp_path / "a.npy", {**layers, **extra})), layers)


def test_labels_of_imagenet(tmp_path):
    fc8 = [np.zeros((4096, 1000), np.float32), np.zeros(1000, np.float32)]
    classes = weights.load(write(tmp_path / "a.npy", {"fc8": fc8})).classes
    assert len(classes) == 1000 and classes[0] == "tench" and classes[281] == "tabby"


class Hostile:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_do_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    for bomb in (
        Hostile(os.system, f"touch {mark}"),
        Hostile(eval, f"open({str(mark)!r}, 'w')"),
        Hostile(getattr, "", "join"),
    ):
        path = write(tmp_path / "a.npy", small(conv1=bomb), protocol)
        with pytest.raises(
            WeightsError, match=r"a\.npy: cannot be read: it asks to run (posix|builtins|__builtin__)\."
        ) as error:
            weights.load(path)
        assert "\n" not in str(error.value)
    assert not mark.exists()


def test_shapes_that_lie_allocate_nothing(tmp_path):
    path = write(tmp_path / "a.npy", {"fc8": [np.zeros((7, 3), np.float32), np.zeros(3, np.float32)]})
    raw = path.read_bytes()
    lie = raw.replace(b"K\x07K\x03\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")
    assert lie != raw
    path.write_bytes(lie)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        weights.load(path)


BAD = {
    "a list": ([1, 2], "must hold a dictionary of layers, got list"),
    "nothing known": ({"a": 1, "b": 2}, "must hold conv1, .*, fc8, got 'a', 'b'"),
    "one entry": (small(conv2=[np.zeros((5, 5, 48, 256))]), r"conv2 must have a weight and a bias, got 1 of them"),
    "no list": (small(conv2=3), r"conv2 must be \[W, b\], got int"),
    "not arrays": (small(conv2=["w", "b"]), "conv2's weight must be a dense array, got (str|bytes)"),
    "integers": (small(conv2=[np.zeros((5, 5, 48, 256), int), np.zeros(256)]), "floating point, got int64"),
    "two dimensions": (small(conv2=[np.zeros((5, 256)), np.zeros(256)]), r"4 dimensions, got shape \(5, 256\)"),
    "a square bias": (small(fc8=[np.zeros((4096, 9)), np.zeros((3, 3))]), "bias must have 1 dimension, got shape"),
    "short bias": (small(fc8=[np.zeros((4096, 9)), np.zeros(8)]), "fc8 must have one bias per output, got 8 for 9"),
    "NaN": (small(fc8=[np.full((4, 2), np.nan), np.zeros(2)]), "fc8's weight holds NaN or infinity"),
    "beyond float32": (small(fc8=[np.zeros((4, 2)), np.full(2, 1e300)]), "fc8's bias holds NaN or infinity"),
    "empty": (small(fc8=[np.zeros((4, 0)), np.zeros(0)]), "fc8's weight is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_dictionaries(tmp_path, content, message):
    with pytest.raises(WeightsError, match=r"a\.npy: .*" + message) as error:
        weights.load(write(tmp_path / "a.npy", content))
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    """Every cut and many flipped bytes give a WeightsError. If the flip hits a number, they may give weights."""
    good = write(tmp_path / "good.npy", {"fc8": [np.ones((5, 2), np.float32), np.ones(2, np.float32)]}).read_bytes()
    path, refused = tmp_path / "a.npy", 0
    for cut in range(len(good)):
        path.write_bytes(good[:cut])
        with pytest.raises(WeightsError, match=r"a\.npy: "):
            weights.load(path)
    for place in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
            try:
                weights.load(path)
            except WeightsError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > len(good)
    path.write_bytes(good + b"junk")
    with pytest.raises(WeightsError, match=r"a\.npy: 4 bytes follow the end"):
        weights.load(path)


def test_no_such_file_and_other_formats(tmp_path):
    with pytest.raises(
        WeightsError,
        match=r"^nowhere: no such file, and no weights of that name \(cifar10, bvlc, deep-compression, torchvision\)$",
    ):
        weights.load("nowhere")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        weights.load(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"GIF89a")
    with pytest.raises(
        WeightsError, match=r"not weights in a known format: the file begins with b'GIF89a'; accepted: "
    ):
        weights.load(tmp_path / "a.npz")
    for head in (b"", b"\n", b"\x0a\x07Alex", b"2012 a text", b" text", b"(text)", b"BM\x36", b"\x08", b"{}", b"PK"):
        (tmp_path / "a").write_bytes(head)
        with pytest.raises(WeightsError, match="not weights in a known format"):
            weights.load(tmp_path / "a")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(WeightsError, match=r"must hold a dictionary of layers, got an array \(3,\) of float64"):
        weights.load(tmp_path / "a.npy")


META = {"classes": ["a", "b"], "mean": [1, 2, 3], "lrn": "bvlc", "resize": BVLC.resize}


def write_safetensors(path, meta=META, **tensors):
    """``fc8`` of two classes as in a checkpoint. ``tensors`` replaces entries; None removes one."""
    content = {"fc8.weight": torch.ones(2, 4), "fc8.bias": torch.zeros(2), "optimizer.fc8.bias.step": torch.zeros(())}
    content = {name: tensor for name, tensor in {**content, **tensors}.items() if tensor is not None}
    save_file(content, path, None if meta is None else {"meta": meta if isinstance(meta, str) else json.dumps(meta)})
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_safetensors(tmp_path, dtype):
    weight = torch.arange(8.0).view(2, 4)
    path = write_safetensors(tmp_path / "a.bin", **{"fc8.weight": weight.to(dtype)})
    loaded = weights.load(path)
    assert list(loaded.layers) == ["fc8"] and torch.equal(loaded.layers["fc8"][0], weight)
    assert loaded.classes == ("a", "b") and loaded.preprocess.mean == (1, 2, 3) and loaded.lrn == "bvlc"
    path.write_bytes(bytes(len(path.read_bytes())))
    assert torch.equal(loaded.layers["fc8"][0], weight), "the numbers are still in the file, which training may replace"


@pytest.mark.parametrize(
    ("meta", "tensors", "message"),
    [
        ("{", {}, "meta must be JSON"),
        ({**META, "classes": ["a"]}, {}, "fc8 must have an output for each of its 1 classes, got 2"),
        ({**META, "mean": [1, 2, float("nan")]}, {}, "mean must be three numbers"),
        ({**META, "mean": [1, 2]}, {}, r"mean must be three numbers, one per colour, got \[1, 2\]"),
        ({"classes": []}, {}, "meta must be JSON with classes, mean, lrn and resize: 'mean'"),
        ({**META, "classes": "ab"}, {}, "classes must be a list of strings, got 'ab'"),
        ({**META, "resize": "any"}, {}, "resize must be one of .*, got 'any'"),
        (META, {"fc8.weight": None, "a": torch.zeros(1)}, "fc8 must have a weight and a bias, got 1 of them"),
        (META, {"fc8.bias": None}, "fc8 must have a weight and a bias, got 1 of them"),
        (
            META,
            {"fc8.weight": torch.ones(2, 4, dtype=torch.int8)},
            "fc8's weight must be of floating point, got torch.int",
        ),
        (META, {"fc8.weight": torch.ones(8)}, r"fc8's weight must have 2 dimensions, got shape \(8,\)"),
        (META, {"fc8.bias": torch.zeros(3)}, "fc8 must have one bias per output, got 3 for 2"),
        (META, {"fc8.bias": torch.tensor([0.0, torch.nan])}, "fc8's bias holds NaN or infinity"),
        (META, {"fc8.bias": torch.full((2,), 1e300, dtype=torch.float64)}, "fc8's bias holds NaN or infinity"),
    ],
)
def test_bad_safetensors(tmp_path, meta, tensors, message):
    with pytest.raises(WeightsError, match=r"a\.safetensors: .*" + message) as error:
        weights.load(write_safetensors(tmp_path / "a.safetensors", meta, **tensors))
    assert "\n" not in str(error.value)


def test_damaged_safetensors(tmp_path):
    """Every cut and every changed byte gives a WeightsError. If the change hits a number, it may give weights."""
    path = tmp_path / "a.safetensors"
    good = write_safetensors(path).read_bytes()
    for cut in range(9, len(good)):
        path.write_bytes(good[:cut])
        with pytest.raises(WeightsError, match=r"a\.safetensors: truncated or damaged"):
            weights.load(path)
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            weights.load(path)
        except WeightsError as error:
            assert "\n" not in str(error)
    header = b'{"fc8.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        weights.load(path)


def test_a_files_name_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights.NAMED["cifar10"].bundled, tmp_path / "photo.npy")
    assert weights.load(Path("photo.npy")).classes[0] == "airplane"
