"""torchvision's AlexNet on the kernels, against torchvision's own."""

import json
import shutil
from pathlib import Path

import pytest
import skimage
import torch
import torchvision

from kernels import ArgumentError
from kernels.runtime import default_device
from model import evaluate, infer, weights
from model.alexnet import AlexNet, TorchvisionAlexNet
from model.photos.preprocess import TORCHVISION, open_image
from tests.reference_alexnet import relative_error

DATA = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def theirs():
    """torchvision's network, with filters scaled so that each layer keeps its input's variance and logits differ."""
    torch.manual_seed(0)
    net = torchvision.models.alexnet().eval()
    with torch.no_grad():
        for layer in (*net.features, *net.classifier):
            if hasattr(layer, "weight"):
                layer.weight.mul_(6.0**0.5)  # PyTorch draws them from U(-1, 1) / sqrt(inputs)
    return net


@pytest.fixture(scope="module")
def path(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(theirs.state_dict(), path)
    yield path
    path.unlink()


def transformed(photo):
    """Preprocesses a photo as torchvision's weights say."""
    return torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()(photo)


@pytest.mark.parametrize("photo", ["chelsea.png", "rocket.jpg", "page.png", "astronaut.png"])
def test_preprocessing(photo):
    image = open_image(DATA / photo)
    expected = transformed(image)
    assert expected.shape == (3, 224, 224)
    torch.testing.assert_close(TORCHVISION(image), expected, rtol=0, atol=2e-6)
    crops = TORCHVISION.ten_crops(image)
    assert crops.shape == (10, 3, 224, 224)
    torch.testing.assert_close(crops[4], expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(crops[9], expected.flip(2), rtol=0, atol=2e-6)


@pytest.mark.full
def test_logits(theirs, path):
    loaded = weights.load(path)
    assert loaded.lrn is None and loaded.preprocess == TORCHVISION
    assert len(loaded.classes) == 1000 and loaded.classes[281] == "tabby"
    net = AlexNet.from_weights(loaded)
    assert type(net) is TorchvisionAlexNet and not net.training
    photo = open_image(DATA / "chelsea.png")
    with torch.inference_mode():
        output = net.to(default_device())(loaded.preprocess(photo)[None].to(default_device())).cpu()
        expected = theirs.double()(transformed(photo)[None].double())
        other = theirs(torch.zeros(1, 3, 224, 224).double())
    theirs.float()
    assert relative_error(output, expected) < 2e-5
    assert relative_error(other, expected) > 0.1, "a network that sees nothing"


def test_walk_through_the_layers():
    with torch.device("meta"):
        rows = {row.name: row for row in TorchvisionAlexNet().layers(batch=2)}
    assert {name: row.output for name, row in rows.items()} == {
        "conv1": (2, 64, 55, 55),
        "pool1": (2, 64, 27, 27),
        "conv2": (2, 192, 27, 27),
        "pool2": (2, 192, 13, 13),
        "conv3": (2, 384, 13, 13),
        "conv4": (2, 256, 13, 13),
        "conv5": (2, 256, 13, 13),
        "pool5": (2, 256, 6, 6),
        "fc6": (2, 4096),
        "fc7": (2, 4096),
        "fc8": (2, 1000),
    }
    assert sum(row.parameters for row in rows.values()) == 61_100_840
    assert sum(row.macs for row in rows.values()) == 2 * 714_188_480


def test_arguments():
    with torch.device("meta"):
        with pytest.raises(ArgumentError, match="TorchvisionAlexNet: lrn must be one of None, got 'bvlc'"):
            TorchvisionAlexNet(lrn="bvlc")
        with pytest.raises(ArgumentError, match=r"input must be \(N, 3, 224, 224\), got shape \(1, 3, 227, 227\)"):
            TorchvisionAlexNet()(torch.zeros(1, 3, 227, 227))


def test_infer(theirs, path, capsys):
    """The probabilities are torchvision's."""
    with torch.inference_mode():
        expected = theirs(transformed(open_image(DATA / "chelsea.png"))[None])[0].softmax(0)
    arguments = [DATA / "chelsea.png", "--weights", path, "--json", "--layers", "--top", 3]
    assert infer.main(list(map(str, arguments))) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["weights"] == str(path)
    assert [layer["output"] for layer in record["layers"]][:2] == [[1, 64, 55, 55], [1, 64, 27, 27]]
    assert [p["index"] for p in record["predictions"]] == expected.topk(3).indices.tolist()
    for prediction in record["predictions"]:
        assert prediction["probability"] == pytest.approx(expected[prediction["index"]].item(), abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("crops", [[], ["--ten-crop"]], ids=["centre", "ten crops"])
def test_evaluate(theirs, path, crops, tmp_path, capsys):
    """Runs our network on plain PyTorch's operators, which are fast."""
    with torch.inference_mode():
        best = theirs(transformed(open_image(DATA / "chelsea.png"))[None])[0].argmax().item()
    label = weights.load(path).classes[best]
    (tmp_path / label).mkdir()
    shutil.copy(DATA / "chelsea.png", tmp_path / label)
    arguments = [tmp_path, "--weights", path, "--json", "--workers", 0, "--operators", "torch", *crops]
    assert evaluate.main(list(map(str, arguments))) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 1 and found["top1"] == found["top5"] == 1.0
