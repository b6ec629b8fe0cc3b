"""Temperature, threshold and calibration error, against closed forms, numbers by hand, and PyTorch's optimiser."""

import math

import pytest
import torch

from kernels.errors import AlexNetError
from model.calibration import (
    LIMITS,
    Calibration,
    calibrate,
    calibration_gaps,
    expected_calibration_error,
    fit_temperature,
    threshold,
)


@pytest.mark.parametrize(("margin", "right", "photos"), [(6.0, 9, 10), (0.1, 9, 10), (3.0, 7, 8), (60.0, 2, 3)])
def test_temperature_of_two_classes(margin, right, photos):
    """If each photo's logits are (margin, 0), the best probability is the share of right answers."""
    logits = torch.tensor([[margin, 0.0]]).expand(photos, 2)
    labels = (torch.arange(photos) >= right).long()
    share = right / photos
    assert fit_temperature(logits, labels) == pytest.approx(margin / math.log(share / (1.0 - share)), rel=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.0, 9.0])
def test_temperature_is_what_an_optimiser_finds(scale):
    labels = torch.randint(10, (400,))
    logits = scale * (torch.randn(400, 10) + 2.0 * torch.nn.functional.one_hot(labels, 10))
    z, log_t = logits.double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = lambda: torch.nn.functional.cross_entropy(z / log_t.exp(), labels)
    optimiser = torch.optim.LBFGS(
        [log_t], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss().backward()
        return loss()

    optimiser.step(closure)
    assert fit_temperature(logits, labels) == pytest.approx(log_t.exp().item(), rel=1e-5)


def test_temperature_stays_within_its_limits():
    """If every answer is right, a smaller temperature is always better; if every one is wrong, a larger one."""
    logits = 0.01 * torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(LIMITS[0])
    assert fit_temperature(logits, (torch.arange(3) + 1) % 3) == pytest.approx(LIMITS[1])


def test_threshold():
    likeliest = torch.arange(100, 200).double() / 200  # 0.5 to 0.995
    probabilities = torch.stack([likeliest, 1.0 - likeliest], 1)[torch.randperm(100)]
    for keep, expected in ((0.95, 0.525), (1.0, 0.5), (0.01, 0.995), (0.945, 0.525)):
        assert threshold(probabilities, keep) == expected
        assert (probabilities.amax(1) >= expected).double().mean() >= keep
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(AlexNetError, match="threshold takes photos and a share up to 1"):
            threshold(probabilities, wrong)


def test_calibration_error_by_hand():
    """Two bins have photos: 0.8 and 0.7 with one right answer, 0.95 twice with two right ones."""
    probabilities = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.95, 0.05], [0.05, 0.95]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    five = (2 / 4) * abs(0.75 - 0.5) + (2 / 4) * abs(0.95 - 1.0)  # bins (0.6, 0.8] and (0.8, 1]
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(five)
    fifteen = (1 * abs(0.8 - 1.0) + 1 * abs(0.7 - 0.0) + 2 * abs(0.95 - 1.0)) / 4
    assert expected_calibration_error(probabilities, labels) == pytest.approx(fifteen)
    one = abs((0.8 + 0.7 + 0.95 + 0.95) / 4 - 3 / 4)
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(one)
    parts = [calibration_gaps(probabilities[rows], labels[rows]) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), calibration_gaps(probabilities, labels))


def test_calibrate():
    logits = torch.tensor([[6.0, 0.0]]).expand(10, 2)
    labels = (torch.arange(10) >= 9).long()
    found = calibrate(logits, labels)
    assert found.temperature == pytest.approx(6.0 / math.log(9.0))
    assert 0.9 - 1.1e-4 < found.none_below <= 0.9  # all photos have 0.9, and stay
    assert found.is_none(0.89) is True and found.is_none(0.9) is False and found.is_none(found.none_below) is False
    assert Calibration().is_none(0.01) is None


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long(), "takes .photos, classes. and a label for each photo"),
        (torch.zeros(4, 3), torch.zeros(3).long(), r"got shapes \(4, 3\) and \(3,\)"),
        (torch.zeros(3), torch.zeros(3).long(), r"got shapes \(3,\) and \(3,\)"),
        (torch.tensor([[1.0, math.nan]]), torch.zeros(1).long(), "takes finite numbers, got NaN or infinity"),
    ],
)
def test_bad_input(values, labels, message):
    for function in (fit_temperature, expected_calibration_error):
        with pytest.raises(AlexNetError, match=message):
            function(values, labels)
