"""All formats except .npy: files as their own programs write them come back in PyTorch's layout."""

import io
import json
import zipfile

import numpy as np
import onnx
import pytest
import torch
import torchvision

from model import weights
from model.alexnet import AlexNet, TorchvisionAlexNet
from model.calibration import Calibration
from model.photos.preprocess import BVLC, TORCHVISION
from model.weights import WeightsError, caffemodel, deep_compression, npy, pth, safetensors
from model.weights import onnx as onnx_format
from model.weights.common import describe
from tests import weight_files as files
from tests.reference_alexnet import reference_alexnet, relative_error


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.bin"  # the name must not matter


def load(path, data):
    path.write_bytes(data)
    return weights.load(path)


def check(loaded, layers, **tolerance):
    assert list(loaded.layers) == list(layers)
    for name, pair in layers.items():
        for tensor, array in zip(loaded.layers[name], pair, strict=True):
            assert tensor.dtype == torch.float32 and tensor.is_contiguous()
            torch.testing.assert_close(tensor, torch.from_numpy(array).float(), **tolerance or {"rtol": 0, "atol": 0})


def refused(path, data, message):
    with pytest.raises(WeightsError, match=r"a\.bin: .*" + message) as error:
        load(path, data)
    assert "\n" not in str(error.value)


# Caffe


@pytest.mark.parametrize(
    "options",
    [{}, {"legacy": True}, {"name": ""}, {"name": "", "legacy": True}, {"packed": False}, {"name": "n" * 100}],
    ids=str,
)
def test_caffemodel(path, options):
    layers = files.small_layers()
    data = files.caffemodel(layers, **options)
    loaded = load(path, data)
    assert weights.format_of(path, "") is caffemodel
    check(loaded, layers)
    assert loaded.classes == ("class 0", "class 1", "class 2") and loaded.lrn == "bvlc" and loaded.preprocess == BVLC


def test_caffemodel_of_doubles(path):
    layers = files.small_layers(np.float64)
    check(load(path, files.caffemodel(layers)), {n: (w.astype("f4"), b.astype("f4")) for n, (w, b) in layers.items()})


def test_caffemodel_of_one_output(path):
    """Leading ones of a shape are dropped until the weight's dimensions are left, no further."""
    layers = files.small_layers(outputs=1)
    check(load(path, files.caffemodel(layers, legacy=True)), layers)


def test_the_descriptor_writes_the_same_bytes():
    """The library with our descriptor, compared with bytes written by hand."""
    net = caffemodel.net_parameter()(name="AlexNet")
    layer = net.layer.add(name="fc8")
    layer.blobs.add(data=[1.0, 2.0]).shape.dim.extend([1, 2])
    blob = files.field(5, np.array([1, 2], "<f4").tobytes()) + files.field(7, files.field(1, b"\x01\x02"))
    body = files.field(1, "fc8") + files.field(7, blob)
    assert net.SerializeToString() == files.field(1, "AlexNet") + files.field(100, body)


def test_bad_caffemodels(path):
    layers = files.small_layers()
    refused(path, files.caffemodel({"ip1": layers["fc8"]}), "must hold conv1, .*, got 'ip1'")
    refused(path, files.caffemodel({"fc8": layers["fc8"][:1]}), "fc8 must have a weight and a bias, got 1 of them")
    lie = files.caffemodel({"fc8": layers["fc8"]}, shape=(2**30, 2**30))
    refused(path, lie, r"fc8 has a blob of shape \(1073741824, 1073741824\) with 36 numbers")
    minus = files.field(7, files.field(1, b"\xff" * 9 + b"\x01")) + files.field(5, b"")
    layer = files.field(1, "fc8") + files.field(7, minus) * 2
    refused(path, files.field(1, "n") + files.field(100, layer), r"fc8 has a blob of shape \(-1,\) with 0 numbers")
    name = files.field(1, b"\xff\xfe") + files.field(7, files.blob(layers["fc8"][0])) * 2
    refused(path, files.field(1, "n") + files.field(100, name), "truncated or damaged|must hold")
    refused(path, files.caffemodel(layers)[:-1], "truncated or damaged: not a protocol buffer of Caffe's")


# ONNX


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_onnx(path, transposed, raw, dtype):
    layers = files.small_layers(dtype)
    loaded = load(path, files.onnx_model(layers, transposed, raw).SerializeToString())
    assert weights.format_of(path, "") is onnx_format
    check(loaded, {n: (w.astype("f4"), b.astype("f4")) for n, (w, b) in layers.items()})
    assert loaded.lrn == "bvlc" and loaded.preprocess == BVLC


def test_bad_onnx(path, tmp_path):
    layers = files.small_layers()

    def altered(change, **options):
        model = files.onnx_model(layers, **options)
        change(model.graph)
        return model.SerializeToString()

    refused(path, altered(lambda g: g.node.pop(0)), "must be a graph of 5 Conv and 3 Gemm, got 4 and 3")
    refused(path, altered(lambda g: g.node[0].input.pop()), "conv1 must have a weight and a bias, got 1")
    refused(path, altered(lambda g: g.initializer.pop()), "conv1's tensor '90' is not stored in the file")
    refused(path, altered(lambda g: None, alpha=0.5), "fc6 has the factor alpha 0.5")
    for dims in ((2**30, 2**30), (2**62, 4), (-1, 5)):
        change = lambda g, dims=dims: (g.initializer[-1].ClearField("dims"), g.initializer[-1].dims.extend(dims))
        refused(path, altered(change), "conv1's tensor '90' is damaged|conv1's weight must have 4 dimensions")
    (tmp_path / "secret").write_bytes(bytes(999))
    model = files.onnx_model(layers)
    onnx.external_data_helper.set_external_data(model.graph.initializer[-1], "secret")
    model.graph.initializer[-1].ClearField("raw_data")
    refused(path, model.SerializeToString(), "conv1's tensor '90' is kept in another file, which is not read")
    refused(path, files.onnx_model(layers).SerializeToString()[:-1], "truncated or damaged: not a protocol buffer")


# PyTorch


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {
            "epoch": 3,
            "state_dict": state,
            "optimizer": {"lr": 0.1, "betas": (0.9, 0.99), "state": {0: 1}},
        },
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model_state_dict": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
        lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
        lambda state: {key: value.flip(0).flip(0).to(torch.float64) for key, value in state.items()},
    ],
    ids=["plain", "checkpoint", "DataParallel", "compiled", "parameters", "doubles"],
)
def test_pth(path, zipped, wrap):
    layers = files.small_layers()
    loaded = load(path, files.pth(wrap(files.state_dict(layers)), zipped))
    assert weights.format_of(path, "") is pth
    check(loaded, layers)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_of_views_and_halves(path, zipped):
    """Layers that are views of one storage, transposed or with steps, also in bfloat16."""
    layers = files.small_layers()
    pool = torch.randn(1000)
    state = {**files.state_dict(layers), "fc7.weight": pool[100:184].view(12, 7).T, "fc7.bias": pool[::2][:7]}
    layers["fc7"] = (state["fc7.weight"].numpy(), state["fc7.bias"].numpy())
    check(load(path, files.pth(state, zipped)), layers)
    halves = {key: value.bfloat16() for key, value in state.items()}
    check(load(path, files.pth(halves, zipped)), layers, rtol=2**-8, atol=0)


def test_torchvisions_names_are_its_networks(path):
    with torch.device("meta"):
        state = torchvision.models.alexnet().state_dict()
        ours = TorchvisionAlexNet().state_dict()
    assert {key: value.shape for key, value in state.items()} == {
        f"{files.TORCHVISION[layer]}.{part}": value.shape
        for layer, part, value in ((*key.split("."), value) for key, value in ours.items())
    }
    layers = files.small_layers()
    layers["conv1"] = (np.ones((64, 3, 2, 2), np.float32), np.zeros(64, np.float32))
    for data in (
        files.pth(files.state_dict(layers, files.TORCHVISION)),
        files.safetensors_file(files.state_dict(layers, files.TORCHVISION)),
    ):
        loaded = load(path, data)
        check(loaded, layers)
        assert loaded.lrn is None and loaded.preprocess == TORCHVISION


class Hostile:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pth_does_not_run(path, tmp_path, zipped):
    mark = tmp_path / "ran"
    for bomb in (Hostile(eval, f"open({str(mark)!r}, 'w')"), Hostile(getattr, "", "join"), torch.nn.Linear(2, 2)):
        refused(path, files.pth({"conv1.weight": bomb}, zipped), "it asks to run [a-z_.A-Z]+, and weights are only")
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_bad_pth(path):
    state = files.state_dict(files.small_layers())
    refused(path, files.pth([1, 2]), "must hold a state dict, got list")
    refused(path, files.pth({"a": torch.zeros(3)}), "must hold conv1, .*, got 'a'")
    refused(
        path, files.pth({"conv1.weight": state["conv1.weight"]}), "conv1 must have a weight and a bias, got 1 of them"
    )
    for value, message in (
        (3, "conv1's weight must be a dense array, got int"),
        (torch.zeros(2, 3, dtype=torch.int32), "conv1's weight must be of floating point, got torch.int32"),
        (torch.zeros(2, 3), r"conv1's weight must have 4 dimensions, got shape \(2, 3\)"),
        (torch.zeros(1).expand(2**20, 2**10, 2**10, 2**10), "conv1's weight of shape .* is more than AlexNet's can be"),
        (torch.eye(3).to_sparse(), "conv1's weight must be a dense array"),
        (torch.zeros(5, 3, 2, 4, device="meta"), "conv1's weight must be a dense array"),
        (torch.full((5, 3, 2, 4), torch.nan), "conv1's weight holds NaN or infinity"),
    ):
        refused(path, files.pth({**state, "conv1.weight": value}), message)


def repacked(data, change=lambda name, content: content, **options):
    """PyTorch's archive with its entries changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def test_pth_that_lies(path):
    """It claims more numbers than it has, a view goes beyond their end, or its entries are compressed."""
    layers = {"fc8": (np.ones((3, 12), np.float32), np.zeros(3, np.float32))}
    good = files.pth(files.state_dict(layers))
    check(load(path, repacked(good)), layers)
    refused(path, repacked(good, compression=zipfile.ZIP_DEFLATED), "it is compressed, which PyTorch does not do")

    def replaced(old, new):
        changed = repacked(good, lambda name, content: content.replace(old, new))
        assert changed != repacked(good)
        return changed

    claims = "fc8.weight claims another size than its entry|cannot be read as a state dict: Overflow when unpacking"
    for count in (b"J\xff\xff\xff\x7f", b"K%", b"\x8a\x08" + b"\0" * 7 + b"\x10"):  # 2^31 - 1, 37, 2^60
        refused(path, replaced(b"cpuq\x06K$t", b"cpuq\x06" + count + b"t"), claims)
    refused(path, replaced(b"K\x03K\x0c\x86", b"M\xff\x03K\x0c\x86"), "cannot be read as a state dict")
    legacy = files.pth(files.state_dict(layers), zipped=False)
    lie = legacy.replace(b"cpuq\x06K$N", b"cpuq\x06J\xff\xff\xff\x7fN")
    assert lie != legacy
    refused(path, lie, "cannot be read as a state dict: .*(wrong byte size|allocate memory)")


def between(layers, *names):
    """Layers without weights after conv1, as Caffe writes them."""
    return {"conv1": layers["conv1"], **dict.fromkeys(names, ()), **layers}


@pytest.mark.parametrize("legacy", [False, True])
def test_caffenet_is_another_network(path, legacy):
    """BVLC's other network, in Caffe's zoo and in ONNX's. It has AlexNet's shapes, but pools before it normalises."""
    layers = files.small_layers()
    check(load(path, files.caffemodel(between(layers, "relu1", "norm1", "pool1"), legacy)), layers)
    refused(path, files.caffemodel(between(layers, "relu1", "pool1", "norm1"), legacy), "as CaffeNet does")
    for kinds in (("LRN", "MaxPool"), ("MaxPool", "LRN")):
        model = files.onnx_model(layers)
        for kind in reversed(kinds):  # the names of their tensors do not matter
            model.graph.node.insert(2, onnx.helper.make_node(kind, ["x"], ["y"]))
        if kinds[0] == "LRN":
            check(load(path, model.SerializeToString()), layers)
        else:
            refused(path, model.SerializeToString(), "as CaffeNet does")


# safetensors


def test_safetensors(path):
    layers = files.small_layers()
    plain = load(path, files.safetensors_file(files.state_dict(layers)))
    assert weights.format_of(path, "") is safetensors
    check(plain, layers)
    assert plain.lrn == "bvlc" and plain.classes == ("class 0", "class 1", "class 2")
    meta = describe(("a", "b", "c"), "paper", BVLC)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        state = {key: value.to(dtype) for key, value in files.state_dict(layers).items()}
        ours = load(path, files.safetensors_file({**state, "optimizer.step": torch.zeros(3)}, meta))
        check(ours, {n: tuple(state[f"{n}.{p}"].float().numpy() for p in ("weight", "bias")) for n in layers})
        assert ours.classes == ("a", "b", "c") and ours.lrn == "paper" and ours.preprocess == BVLC


def test_bad_safetensors(path):
    state = files.state_dict(files.small_layers())
    refused(path, files.safetensors_file(state, {"classes": ["a"]}), "meta must be JSON with classes, mean")
    refused(path, files.safetensors_file(state, describe("ab", "bvlc", BVLC)), "an output for each of its 2 classes")
    refused(path, files.safetensors_file({"x": torch.zeros(2)}), "must hold conv1, .*, got 'x'")
    state["conv1.weight"] = torch.zeros(5, 3, 2, 4, dtype=torch.int32)
    refused(path, files.safetensors_file(state), "conv1's weight must be of floating point, got torch.int32")
    for shape, end in (([2**60, 1, 1, 1], 4), ([2**20, 2**10, 2**10, 2**10], 2**52), ([2**63 - 1, 2, 0, 1], 0)):
        header = {
            "conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]},
            "conv1.bias": {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]},
        }
        text = json.dumps(header).encode()
        refused(path, len(text).to_bytes(8, "little") + text + bytes(8), "truncated or damaged|is empty")


@pytest.mark.parametrize(
    "meta",
    [
        {"mean": [10**400, 0, 0]},
        {"mean": [float("nan"), 0, 0]},
        {"std": [0, 1, 1]},
        {"resize": []},
        {"size": 224.0},
        {"order": ["BGR"]},
        {"classes": ["a"] * 40000},
        {"temperature": 0.0},
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": True},
        {"temperature": None},
        {"temperature": "1"},
        {"none_below": 1.5},
        {"none_below": -0.1},
        {"none_below": float("nan")},
        {"none_below": [0.5]},
    ],
    ids=str,
)
def test_meta_of_the_wrong_kind(path, meta):
    good = describe(("a", "b", "c"), "bvlc", BVLC)
    data = files.safetensors_file(files.state_dict(files.small_layers()), {**good, **meta})
    refused(path, data, f"meta's {'size' if 'size' in meta else next(iter(meta))}|meta's order .* its size")


def test_calibration_in_a_file(path):
    """Its two numbers are optional: a file without them is as it was before there were any."""
    state = files.state_dict(files.small_layers())
    plain = describe("abc", "bvlc", BVLC)
    assert list(plain) == ["classes", "lrn", "mean", "resize"] and plain == describe("abc", "bvlc", BVLC, Calibration())
    assert load(path, files.safetensors_file(state, plain)).calibration == Calibration(1.0, None)
    for calibration, entries in (
        (Calibration(2.5, 0.375), {"temperature": 2.5, "none_below": 0.375}),
        (Calibration(2.5), {"temperature": 2.5}),
        (Calibration(1.0, 0.0), {"none_below": 0.0}),
    ):
        meta = describe("abc", "bvlc", BVLC, calibration)
        assert meta == plain | entries
        assert load(path, files.safetensors_file(state, meta)).calibration == calibration


def test_a_network_of_another_size(path):
    meta = describe(("a", "b", "c"), None, BVLC)
    loaded = load(path, files.safetensors_file(files.state_dict(files.small_layers()), meta))
    with pytest.raises(WeightsError, match=r"takes photos of 224 x 224, got a size of 227"):
        AlexNet.from_weights(loaded)


# Deep Compression

CASES = {
    "dense": lambda rng, size: np.ones(size, bool),
    "sparse": lambda rng, size: rng.random(size) < 0.05,  # gaps of more than 15, several bridges in a row
    "last": lambda rng, size: np.arange(size) == size - 1,
    "first": lambda rng, size: np.arange(size) == 0,
    "every sixteenth": lambda rng, size: np.arange(size) % 16 == 15,  # a gap of exactly 15
    "every seventeenth": lambda rng, size: np.arange(size) % 17 == 16,  # and of 16
    "empty": lambda rng, size: np.zeros(size, bool),
}


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (7, 101)], ids=["conv", "fc"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_deep_compression(shape, case):
    """Our decoder reads what a simple loop wrote, and our encoder writes the same bytes as the loop."""
    rng = np.random.default_rng(0)
    codebook = np.sort(rng.standard_normal(256 if len(shape) == 4 else 16).astype("<f4"))
    codebook[0], codebook[1:] = 0.0, np.sort(codebook[1:])
    size = int(np.prod(shape))
    weight = (codebook[rng.integers(1, len(codebook), size)] * case(rng, size)).astype("<f4").reshape(shape)
    bias = rng.standard_normal(shape[0]).astype("<f4")
    part = files.deep_compression_layer(weight, bias, codebook)
    assert deep_compression.encode(weight, bias, codebook) == part
    decoded = deep_compression.decode(files.deep_compression([part, part]), {"x": shape, "y": shape})
    for name in "xy":
        assert np.array_equal(decoded[name][0], weight) and np.array_equal(decoded[name][1], bias)


def test_deep_compression_lies():
    shapes = {"x": (7, 101)}
    entries, data = files.deep_compression_layer(np.zeros((7, 101)), np.zeros(7), np.zeros(16))
    for count, message in ((2**32 - 1, "x has 4294967295 entries for 707 weights"), (3, "ends within x")):
        with pytest.raises(WeightsError, match=message):
            deep_compression.decode(files.deep_compression([(count, data)]), shapes)
    far = data + bytes(30) + b"\xff" * 30  # 60 entries, each after 15 zeros
    with pytest.raises(WeightsError, match="x has an entry beyond its 707 weights"):
        deep_compression.decode(files.deep_compression([(60, far)]), shapes)
    with pytest.raises(WeightsError, match="1 bytes follow the last layer"):
        deep_compression.decode(files.deep_compression([(entries, data + b"x")]), shapes)
    with pytest.raises(ValueError, match="one of the codebook's values"):
        deep_compression.encode(np.full((7, 101), 3.0), np.zeros(7), np.arange(16) * 0.1)


def quantised():
    """The bundled weights rounded to so few values that Deep Compression's format holds them, and that file."""
    layers, parts = {}, []
    for name, (weight, bias) in weights.load().layers.items():
        most = 127 if weight.dim() == 4 else 7
        step = weight.abs().max().item() / most
        values = np.array([n for n in range(-most, most + 2) if n], "f4") * step
        codebook = np.append(np.float32(0.0), values)
        codes = (weight / step).round_().to(torch.int16)
        places = torch.where(codes < 0, codes + most + 1, torch.where(codes > 0, codes + most, 0))
        layers[name] = codebook[places.numpy()], bias.numpy()
        parts.append(deep_compression.encode(*layers[name], codebook))
    return layers, deep_compression.join(parts, describe("0123456789", "bvlc", BVLC))


def tensorflow(layers):
    """A file in bvlc_alexnet.npy's layout, pickled by NumPy."""
    content = {}
    for name, (weight, bias) in layers.items():
        content[name] = [weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, bias]
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_the_same_weights_in_every_format(path):
    layers = files.small_layers()
    for format, data in (
        (npy, tensorflow(layers)),
        (caffemodel, files.caffemodel(layers)),
        (onnx_format, files.onnx_model(layers).SerializeToString()),
        (pth, files.pth(files.state_dict(layers))),
        (safetensors, files.safetensors_file(files.state_dict(layers))),
    ):
        loaded = load(path, data)
        assert weights.format_of(path, "") is format
        check(loaded, layers)
        assert (loaded.classes, loaded.lrn, loaded.preprocess) == (("class 0", "class 1", "class 2"), "bvlc", BVLC)


def test_whole_networks(path):
    """The same weights from Deep Compression's file and from Caffe's; logits compared with PyTorch's in float64."""
    layers, compressed = quantised()
    loaded = load(path, compressed)
    assert weights.format_of(path, "") is deep_compression
    check(loaded, layers)
    x = torch.randn(1, 3, 227, 227) * 50
    with torch.inference_mode():
        logits = AlexNet.from_weights(loaded)(x)
    expected = reference_alexnet({n: tuple(map(torch.from_numpy, pair)) for n, pair in layers.items()}, x)
    assert relative_error(logits, expected) < 2e-5
    del loaded, expected
    path.write_bytes(files.caffemodel(layers))
    net = AlexNet(num_classes=10)
    net.load_initial_weights(path, skip_layer=("conv1",))
    for name, pair in layers.items():
        for part, array in zip(("weight", "bias"), pair, strict=True):
            same = torch.equal(getattr(net.get_submodule(name), part), torch.from_numpy(array))
            assert same == (name != "conv1"), (name, part)


def test_deep_compressions_own_file(path):
    """The original's layout: true shapes, 1000 classes, and no ending, so that only its size tells the format."""
    parts, layers = [], {}
    for index, (name, shape) in enumerate({**deep_compression.SHAPES, "fc8": (1000, 4096)}.items()):
        codebook = np.arange(256 if len(shape) == 4 else 16, dtype="<f4")
        weight, bias = np.zeros(shape, np.float32), np.full(shape[0], index, np.float32)
        weight.flat[[0, 40, -1]] = 1.0, 3.0, 2.0
        layers[name] = weight, bias
        parts.append(deep_compression.encode(weight, bias, codebook))
    data = files.deep_compression(parts)
    loaded = load(path, data)
    assert loaded.classes[281] == "tabby" and loaded.lrn == "bvlc" and loaded.preprocess == BVLC
    check(loaded, layers)
    refused(path, data[:-1], "not weights in a known format")
