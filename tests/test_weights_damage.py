"""Damaged and hostile files of every format give one clear line, or weights of the right shapes.

They never take much memory or time.

Damage is drawn by hypothesis, the same every time (``derandomize``).
"""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import weights
from model.photos.preprocess import BVLC
from model.weights import WeightsError, deep_compression
from model.weights.common import describe
from tests import weight_files as files

DAMAGE = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MEGABYTES = 64
META = json.dumps(describe("abc", "bvlc", BVLC))


def npy(layers):
    buffer = io.BytesIO()
    content = {name: [w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T, b] for name, (w, b) in layers.items()}
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


LAYERS = files.small_layers()
STATE = files.state_dict(LAYERS)
FILES = {
    "npy": npy(LAYERS),
    "caffemodel": files.caffemodel(LAYERS),
    "old caffemodel": files.caffemodel(LAYERS, legacy=True),
    "onnx": files.onnx_model(LAYERS).SerializeToString(),
    "pth": files.pth(STATE),
    "old pth": files.pth(STATE, zipped=False),
    "safetensors": files.safetensors_file(STATE),
    "checkpoint": files.safetensors_file(STATE, describe("abc", "bvlc", BVLC)),
}


@contextlib.contextmanager
def bounded():
    """Fails if its block takes more than some megabytes or some seconds."""

    def late(*_):
        pytest.fail("hangs")  # not an Exception: readers would take it for damage

    usual = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < MEGABYTES * 2**20, f"{peak / 2**20:.0f} MB of Python's and NumPy's"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        assert grown < 4 * MEGABYTES, f"{grown:.0f} MB"
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


def check_refusal(error):
    line = str(error.value if hasattr(error, "value") else error)
    assert line.isprintable() and len(line) <= 600, line


def survives(path, data):
    """Whether the file is read."""
    path.write_bytes(data)
    try:
        loaded = weights.load(path)
    except WeightsError as error:
        check_refusal(error)
        return False
    assert loaded.layers and set(loaded.layers) <= set(weights.LAYER_NAMES)
    for name, (weight, bias) in loaded.layers.items():
        assert weight.dim() == (4 if name.startswith("conv") else 2) and bias.shape == weight.shape[:1]
        assert weight.dtype == bias.dtype == torch.float32
        assert weight.isfinite().all() and bias.isfinite().all()
    assert len(loaded.classes) == (len(loaded.layers["fc8"][1]) if "fc8" in loaded.layers else 0)
    return True


@st.composite
def damage(draw, size):
    """A function that damages a file: cuts it, flips bits, overwrites, drops or doubles a piece, or appends one."""
    place = draw(st.integers(0, size - 1))
    kind = draw(st.sampled_from(["cut", "bits", "bits", "bits", "overwrite", "overwrite", "drop", "double", "append"]))
    if kind == "cut":
        return lambda data: data[:place]
    if kind == "bits":
        places = [place, *draw(st.lists(st.integers(0, size - 1), max_size=3))]
        bits = draw(st.lists(st.integers(0, 7), min_size=len(places), max_size=len(places)))

        def flip(data):
            data = bytearray(data)
            for where, bit in zip(places, bits, strict=True):
                data[where] ^= 1 << bit
            return bytes(data)

        return flip
    piece = draw(
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\x7f" * 8, struct.pack("<Q", 2**60)]),
        )
    )
    length = draw(st.integers(1, 64))
    return {
        "overwrite": lambda data: data[:place] + piece + data[place + len(piece) :],
        "drop": lambda data: data[:place] + data[place + length :],
        "double": lambda data: data[: place + length] + data[place:],
        "append": lambda data: data + piece * length,
    }[kind]


@pytest.mark.parametrize("good", FILES.values(), ids=FILES)
def test_damaged_files(tmp_path, good):
    path, read = tmp_path / "a.bin", []
    assert survives(path, good)

    @DAMAGE
    @given(damage(len(good)))
    def run(damaged):
        read.append(survives(path, damaged(good)))

    with bounded():
        run()
    assert not all(read), "no damage was noticed"


@DAMAGE
@given(st.data())
def test_damaged_deep_compression(data):
    """With small layers, since a whole file of the true shapes takes seconds."""
    shapes = {"conv": (4, 3, 5, 5), "fc": (7, 101)}
    rng, parts = np.random.default_rng(0), []
    for shape in shapes.values():
        codebook = np.append(0, rng.random(255 if len(shape) == 4 else 15)).astype("<f4")
        weight = codebook[rng.integers(0, len(codebook), shape)] * (rng.random(shape) < 0.1)
        parts.append(files.deep_compression_layer(weight, rng.random(shape[0]), codebook))
    good = files.deep_compression(parts)
    try:
        decoded = deep_compression.decode(data.draw(damage(len(good)))(good), shapes)
    except WeightsError as error:
        check_refusal(error)
        return
    assert {name: weight.shape for name, (weight, _) in decoded.items()} == shapes


# Files that no accident makes: built to take all memory or all time, or to run something.

NPY = FILES["npy"][: FILES["npy"].index(b"\n") + 1]
TREE = b")" + b"q\x00h\x00\x86" * 60  # a tuple of twice the same tuple, 60 levels deep: hashing it takes 2^60 steps


def pickled_npy(instructions):
    return NPY + b"\x80\x02" + instructions + b"."


def pickled_pth(instructions, zipped):
    if not zipped:
        good = files.pth({}, zipped=False)
        return good.replace(pickle.dumps({}, 2), b"\x80\x02" + instructions + b".")
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files.pth(STATE))) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02" + instructions + b"." if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


PICKLES = {
    "a key that takes 2^60 steps to hash": b"}" + TREE + b"Ns",
    "the same in a dictionary of pairs": b"(" + TREE + b"Nd",
    "the same, several at once": b"}(" + TREE + b"Nu",
    "the same, as an argument": b"ccollections\nOrderedDict\n]" + TREE + b"N\x86a\x85R",
    "the same, as the name of a tensor's numbers": (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + TREE + b"X\x03\0\0\0cpuK\x01tQ"
    ),
    "the same, called, which writes it into an error": TREE + b")R",
    "the same, in a set": b"cbuiltins\nset\n]" + TREE + b"a\x85R",
    "a call that fills as much memory as a number says": b"cbuiltins\nbytearray\nJ\0\0\0\x20\x85R",
    "millions of empty lists": b"(" + b"]" * 3_000_000 + b"l",
    "bytes that are allocated before they are read": b"\x96" + struct.pack("<Q", 2**36),
    "bytes of 2^60": b"\x8e" + struct.pack("<Q", 2**60),
    "a text of 2^60": b"\x8d" + struct.pack("<Q", 2**60),
    "an integer of 2^31 bytes": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a memo of 2^32": b"Nr" + b"\xff" * 4,
    "attributes of a function": b"cnumpy.core.multiarray\n_reconstruct\nN}U\x08__name__Ns\x86b",
    "extension": b"\x82\x01",
}


WRITERS = [pickled_npy, lambda p: pickled_pth(p, True), lambda p: pickled_pth(p, False)]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("instructions", PICKLES.values(), ids=PICKLES)
def test_hostile_pickles(tmp_path, instructions, write):
    with bounded():
        assert not survives(tmp_path / "a.bin", write(instructions))


@pytest.mark.parametrize("first, second", [("a/data.pkl", "data.pkl"), ("data.pkl", "DATA.PKL")])
def test_a_second_pickle(tmp_path, first, second):
    """PyTorch reads archive/data.pkl in upper or lower case. The check must not read a harmless one instead."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files.pth(STATE))) as old, zipfile.ZipFile(buffer, "w") as new:
        new.writestr(f"archive/{first}", old.read("archive/data.pkl"))
        new.writestr(f"archive/{second}", b"\x80\x02" + PICKLES["a key that takes 2^60 steps to hash"] + b".")
        for name in old.namelist()[1:]:
            new.writestr(name, old.read(name))
    with bounded():
        assert not survives(tmp_path / "a.bin", buffer.getvalue())


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("function", [b"c_codecs\nencode\n", b"cnumpy\ndtype\n"])
def test_copies_of_one_text(tmp_path, function, write):
    """Python 3 writes bytes as a text and a call. Each call makes a copy: here of a megabyte, hundreds of times."""
    calls = function + b"q\x02X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x01\x85"
    calls = b"](" + calls + b"R" + b"h\x02h\x01\x85R" * 500 + b"e"
    with bounded():
        assert not survives(tmp_path / "a.bin", write(calls))


def repacked(extra, packing=zipfile.ZIP_STORED):
    """PyTorch's archive with ``extra`` entries, which may replace its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files.pth(STATE))) as old, zipfile.ZipFile(buffer, "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, extra.pop(name) if name in extra else old.read(name))
        for name, content in extra.items():
            new.writestr(name, content)
    return buffer.getvalue()


def test_archives_that_claim(tmp_path):
    path = tmp_path / "a.pth"
    assert survives(path, repacked({"archive/more": b""}))
    for name in ("archive/data.pkl", "archive/byteorder", "archive/more"):
        bomb = repacked({name: bytes(2**27)}, zipfile.ZIP_DEFLATED)
        with bounded():
            assert not survives(path, bomb), "134 MB of zeros"
        # The directory says 228 bytes, and more come out.
        lie = bomb.replace(struct.pack("<I", 2**27), struct.pack("<I", 228))
        assert lie != bomb
        with bounded():
            assert not survives(path, lie)
    long = repacked({"archive/data.pkl": b"N" * 2**25 + b"."})
    with bounded():
        assert not survives(path, long), "a pickle of 34 MB"
    path.write_bytes(repacked({f"archive/{index}": b"" for index in range(10_000)}))
    with pytest.raises(WeightsError, match=r"it has 10,[0-9]+ entries, and a state dict fewer than 10,000"):
        weights.load(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_packed_otherwise(tmp_path, packing):
    assert not survives(tmp_path / "a.pth", repacked({}, packing))


def test_protocol_buffers_that_claim(tmp_path):
    for head in (files.field(1, "AlexNet") + files.varint(100 << 3 | 2), b"\x08\x07" + files.varint(7 << 3 | 2)):
        for length in (2**31 - 1, 2**31, 2**60, 2**63):
            with bounded():
                assert not survives(tmp_path / "a", head + files.varint(length))
    deep = b""
    for _ in range(2000):
        deep = files.field(100, deep)  # an unknown group in a group, 2000 levels deep
    with bounded():
        assert not survives(tmp_path / "a", files.field(1, "AlexNet") + deep)


def test_headers_of_safetensors_that_claim(tmp_path):
    for length in (2**60, 2**31, 100_000_000, 2**24):
        with bounded():
            assert not survives(tmp_path / "a", struct.pack("<Q", length) + b'{"a":1}')
    nested = b'{"__metadata__":{"meta":"' + b"[" * 100_000 + b'"},"fc8.bias":{"dtype":"F32","shape":[0],'
    nested += b'"data_offsets":[0,0]},"fc8.weight":{"dtype":"F32","shape":[0,0],"data_offsets":[0,0]}}'
    with bounded():
        assert not survives(tmp_path / "a", struct.pack("<Q", len(nested)) + nested)


def test_counts_of_deep_compression_that_claim(tmp_path):
    with bounded():
        head = struct.pack("<8I", *(2**32 - 1,) * 8)
        assert not survives(tmp_path / "a", head + describe_ending(b"{}"))
        assert not survives(tmp_path / "a", describe_ending(b"{}", 2**32 - 1))
        assert not survives(tmp_path / "a", describe_ending(META.encode()))


def describe_ending(text, length=None):
    return text + struct.pack("<I", len(text) if length is None else length) + deep_compression.MAGIC


def test_large_files_are_not_read(tmp_path):
    """Sparse files of four terabytes."""
    for head in (b"\x93NUMPY", b"\x08\x07", files.field(1, "AlexNet") + b"\x12", pth_head(), b"PK\x03\x04"):
        path = tmp_path / "a"
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(2**42)
        with bounded(), pytest.raises(WeightsError) as error:
            weights.load(path)
        check_refusal(error)


def pth_head():
    return FILES["old pth"][:100]


def test_names_of_megabytes(tmp_path):
    """A message with a file's odd names is still one line."""
    odd = "\x1b[31m\n" + "x" * 10**6
    for data in (files.safetensors_file({odd: torch.zeros(1)}), files.pth({odd: torch.zeros(1)})):
        assert not survives(tmp_path / "a", data)
    assert not survives(tmp_path / "a", files.caffemodel({odd: LAYERS["fc8"]}))
    assert not survives(tmp_path / "a", files.pth(OrderedDict({odd: 1}), zipped=False))


def test_pipes_do_not_wait(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(WeightsError, match="a: cannot be read: a pipe, not a file"):
        weights.load(tmp_path / "a")
