"""The network against plain PyTorch in float64, with the bundled weights and a photo."""

import copy
import dataclasses
from pathlib import Path

import pytest
import skimage
import torch

import kernels
from kernels import ArgumentError
from kernels.runtime import default_device
from kernels.tools import torch_ops
from model import weights
from model.alexnet import AlexNet
from model.layers import Conv2d, Dropout, Layer, Linear, MaxPool2d
from model.photos.preprocess import open_image
from tests.narrow import Narrow
from tests.reference_alexnet import reference_alexnet, relative_error

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"


@pytest.fixture(scope="module")
def loaded():
    return weights.load()


@pytest.fixture(scope="module")
def photo(loaded):
    return loaded.preprocess(open_image(CHELSEA))[None]


@pytest.fixture(scope="module")
def loud(loaded):
    """The bundled weights with conv1's outputs 16 times as large. Otherwise LRN's sum would be small beside k."""
    weight, bias = loaded.layers["conv1"]
    return dataclasses.replace(loaded, layers={**loaded.layers, "conv1": (weight * 16, bias * 16)})


@pytest.fixture(scope="module")
def references(loud, photo):
    return {lrn: reference_alexnet(loud.layers, photo, lrn) for lrn in ("bvlc", "tensorflow", "paper")}


def run(loaded, photo, dtype=torch.float32):
    net = AlexNet.from_weights(loaded).to(default_device(), dtype)
    with torch.inference_mode():
        return net(photo.to(default_device(), dtype)).cpu()


# fp32 adds in another order than float64 through eight layers: 1e-6 measured on a CPU.
@pytest.mark.parametrize(
    "lrn", ["bvlc", *(pytest.param(lrn, marks=pytest.mark.full) for lrn in ("tensorflow", "paper"))]
)
def test_logits_match_float64(loud, photo, references, lrn):
    output = run(dataclasses.replace(loud, lrn=lrn), photo)
    assert relative_error(output, references[lrn]) < 2e-5
    for other, reference in references.items():
        assert other == lrn or relative_error(output, reference) > 1e-2, f"{lrn} and {other} cannot be told apart"


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)], ids=str)
def test_half_precision(loud, photo, references, dtype, tolerance):
    output = run(loud, photo, dtype)
    assert output.dtype == dtype
    assert relative_error(output, references["bvlc"]) < tolerance


def test_walk_through_the_layers():
    with torch.device("meta"):
        rows = {row.name: row for row in AlexNet().layers(batch=2)}
    assert {name: row.output for name, row in rows.items()} == {
        "conv1": (2, 96, 55, 55),
        "pool1": (2, 96, 27, 27),
        "conv2": (2, 256, 27, 27),
        "pool2": (2, 256, 13, 13),
        "conv3": (2, 384, 13, 13),
        "conv4": (2, 384, 13, 13),
        "conv5": (2, 256, 13, 13),
        "pool5": (2, 256, 6, 6),
        "fc6": (2, 4096),
        "fc7": (2, 4096),
        "fc8": (2, 1000),
    }
    assert sum(row.parameters for row in rows.values()) == 60_965_224
    assert sum(row.macs for row in rows.values()) == 2 * 724_406_816


def test_parameters_from_weights(loaded):
    turned = {
        name: (weight.T.contiguous().T if name == "fc8" else weight, bias)
        for name, (weight, bias) in loaded.layers.items()
    }
    net = AlexNet.from_weights(dataclasses.replace(loaded, layers=turned))
    assert not net.training
    assert net.fc8.weight.is_contiguous()
    for name, (weight, bias) in loaded.layers.items():
        layer = getattr(net, name)
        assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)
        assert layer.weight.requires_grad and not layer.weight.is_meta
        assert layer.weight.dim() == 2 or layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_networks_of_the_same_weights_are_independent(loaded):
    """If one is trained, the other stays as it was."""
    first, second = AlexNet.from_weights(loaded), AlexNet.from_weights(loaded)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    for name, pair in loaded.layers.items():
        for part, tensor in zip(("weight", "bias"), pair, strict=True):
            before, after = second.get_parameter(f"{name}.{part}"), first.get_parameter(f"{name}.{part}")
            assert torch.equal(before, tensor) and torch.equal(after, tensor + 1.0), (name, part)


def test_skip_layer():
    net = AlexNet(num_classes=7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(weights.WeightsError, match=r"cifar10: fc8.*\(7, 4096\).*\(10, 4096\).*skip_layer=\(\"fc8\",\)"):
        net.load_initial_weights("cifar10")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "loaded by halves"
    with pytest.raises(ArgumentError, match=r"skip_layer must name layers among conv1, .*, got 'fc9'"):
        net.load_initial_weights("cifar10", skip_layer=["fc9"])
    net.load_initial_weights("cifar10", skip_layer=("fc8",))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("fc8"), name
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("scheme", "fc", "bias"), [("paper", 0.01, 1.0), ("bvlc", 0.005, 0.1)])
def test_initialisation(scheme, fc, bias):
    net = AlexNet(num_classes=10)
    net.initialise(scheme)
    for name, layer in net.named_children():
        if hasattr(layer, "weight"):
            std = fc if name in ("fc6", "fc7") else 0.01
            assert layer.weight.std().item() == pytest.approx(std, rel=0.02) and abs(layer.weight.mean()) < 0.03 * std
            expected = bias if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert torch.equal(layer.bias, torch.full_like(layer.bias, expected)), name
    with pytest.raises(ArgumentError, match="initialisation must be 'paper' or 'bvlc', got 'he'"):
        net.initialise("he")


def test_missing_and_misshapen_layers(loaded):
    layers = {name: layer for name, layer in loaded.layers.items() if name != "conv3"}
    with pytest.raises(weights.WeightsError, match="cifar10: lacks conv3"):
        AlexNet.from_weights(dataclasses.replace(loaded, layers=layers))
    layers = {**loaded.layers, "conv4": (torch.zeros(384, 384, 3, 3), torch.zeros(384))}
    with pytest.raises(
        weights.WeightsError, match=r"conv4's weight must be \(384, 192, 3, 3\), got \(384, 384, 3, 3\)$"
    ):
        AlexNet.from_weights(dataclasses.replace(loaded, layers=layers))
    with pytest.raises(weights.WeightsError, match="lrn must be one of bvlc, tensorflow, paper, got 'other'"):
        AlexNet.from_weights(dataclasses.replace(loaded, lrn="other"))


@pytest.mark.parametrize("operators", [kernels, torch_ops], ids=lambda module: module.__name__)
def test_copied_and_saved_with_its_operators(operators, tmp_path):
    net = Narrow(3, keep_prob=1.0).use(operators).to(default_device())
    torch.save(net, tmp_path / "net.pt")
    x = torch.randn(2, net.fc8.in_features, device=default_device())
    for other in (copy.deepcopy(net), torch.load(tmp_path / "net.pt", weights_only=False)):
        assert all(layer.operators is operators for layer in other.children() if isinstance(layer, Layer))
        assert other.fc8.weight is not net.fc8.weight
        assert torch.equal(other.fc8(x), net.fc8(x))


@pytest.mark.parametrize(
    ("layer", "arguments", "other"),
    [
        (Conv2d, (3, 4, 3), {"padding_mode": "reflect"}),
        (Conv2d, (3, 4, 3), {"dilation": 2}),
        (Linear, (3, 4), {"bias": False, "relu": True}),
        (MaxPool2d, (3, 2), {"padding": 1}),
        (MaxPool2d, (3, 2), {"ceil_mode": True}),
        (Dropout, (0.5,), {"inplace": True}),
    ],
)
def test_layers_refuse_what_they_do_not_honour(layer, arguments, other):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        layer(*arguments, **other)
