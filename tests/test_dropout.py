"""kernels.dropout: its mask against Philox written out in NumPy, its values against input / (1 - p)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import tiles
from kernels.tools.workloads import ALEXNET
from tests.reference import DTYPES, LAYOUTS, assert_close, assert_refused, cases, exact, name, randn


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """The first word of Philox4x32-10 for counters (counter, 0): Salmon et al. 2011, section 3.3 and table 2."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c = [counter.astype(np.uint64) & low, counter.astype(np.uint64) >> half, 0 * counter.astype(np.uint64)]
    c = [*c, c[2]]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (second >> half) ^ c[1] ^ np.uint64(key[0]),
            second & low,
            (first >> half) ^ c[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0].astype(np.uint32)


def uniform(elements: int, seed: int) -> torch.Tensor:
    """In [0, 1): a signed word, complemented if negative, times almost 2^-31."""
    word = philox(np.arange(elements), seed).view(np.int32)
    return torch.from_numpy(np.where(word < 0, ~word, word).astype(np.float32) * np.float32(4.6566127342e-10))


def expected(x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    kept = (uniform(x.numel(), seed) >= torch.tensor(p, dtype=torch.float32)).reshape(x.shape)
    return torch.where(kept, exact(x) / (1 - p), 0.0) if p < 1 else torch.zeros_like(exact(x))


def test_philox_known_answers():
    """Random123's kat_vectors: philox4x32 with 10 rounds, all zeros."""
    assert philox(np.array([0]), 0)[0] == 0x6627E8D5


SEEDS = [0, 1, 1234, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**62 + 12345, 2**63 - 1]


@pytest.mark.parametrize("seed", cases(SEEDS, "0", str(2**31), str(2**63 - 1)))
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_mask_is_philox(p, seed, guarded):
    x = torch.ones(3, 227)
    y = kernels.dropout(guarded(x), p, seed=seed)
    assert torch.equal(y.cpu() == 0, expected(x, p, seed) == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("p", cases([0, 0.1, 0.5, 0.9, 1.0, 1], "0.1", "0.5", "1"))
@pytest.mark.parametrize(
    "shape",
    cases([(), (1,), (7,), (31, 5), (3, 5, 7, 2), (1, 227, 3), (0, 5), (2, 0, 3)], "()", "(3, 5, 7, 2)", "(0, 5)"),
)
def test_values(shape, p, dtype, guarded):
    x = randn(*shape, dtype=dtype)
    y = kernels.dropout(guarded(x), p, seed=42)
    assert_close(y, expected(x, p, 42), dtype)
    assert torch.equal(y.cpu() == 0, (expected(x, p, 42) == 0))
    assert y.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, guarded):
    """The mask follows the row-major order of the elements, not that of memory."""
    x = LAYOUTS[layout](randn(2, 5, 7, 3))
    assert_close(kernels.dropout(guarded(x), 0.5, seed=7), expected(x, 0.5, 7))


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_alexnet(dtype, layer, guarded):
    (layer,) = (x for x in ALEXNET if x.name == layer)
    x = randn(*layer.cost().output, dtype=dtype)
    assert_close(kernels.dropout(guarded(x), 0.5, seed=3), expected(x, 0.5, 3), dtype)


@pytest.mark.parametrize("block", cases([1, 16, 256, 4096], "16", "256"))
def test_tile_does_not_change_the_mask(block, guarded, monkeypatch):
    x = torch.ones(61)
    before = kernels.dropout(guarded(x), 0.5, seed=9)
    monkeypatch.setattr(tiles, "lookup", lambda *_: {"BLOCK_M": block})
    assert torch.equal(kernels.dropout(guarded(x), 0.5, seed=9), before)


@pytest.mark.parametrize("start", [1, 16, 100])
def test_mask_depends_on_the_position_in_the_input_alone(start, guarded):
    """A view has the same mask as a copy of it, wherever its memory begins."""
    x = torch.ones(200)
    y = kernels.dropout(guarded(x)[start:], 0.5, seed=9)
    assert torch.equal(y, kernels.dropout(guarded(x[start:].clone()), 0.5, seed=9))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_kept_fraction(p, guarded):
    kept = (kernels.dropout(guarded(torch.ones(100_000)), p, seed=5) != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / 100_000) ** 0.5


def test_seeds_differ(guarded):
    x = torch.ones(256)
    masks = {tuple((kernels.dropout(guarded(x), 0.5, seed=seed) != 0).tolist()) for seed in SEEDS}
    assert len(masks) == len(SEEDS)


def test_seed_is_drawn_on_the_cpu_for_every_default_device(guarded):
    x = guarded(torch.ones(1000))
    torch.manual_seed(1)
    y = kernels.dropout(x)
    torch.manual_seed(1)
    with torch.device("meta"):
        assert torch.equal(kernels.dropout(x), y)


def test_seed_from_pytorchs_generator(guarded):
    x = guarded(torch.ones(256))
    torch.manual_seed(1)
    first, second = kernels.dropout(x), kernels.dropout(x)
    torch.manual_seed(1)
    assert torch.equal(kernels.dropout(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_evaluation_is_the_identity(p, guarded):
    x = guarded(randn(3, 5))
    assert kernels.dropout(x, p, training=False) is x


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_infinity_as_in_pytorch(value, p, guarded):
    """PyTorch multiplies by the mask: NaN or infinity that is dropped becomes NaN."""
    x = torch.full((100,), value)
    kept = expected(torch.ones(100), p, 11) != 0
    assert_close(kernels.dropout(guarded(x), p, seed=11), torch.where(kept, exact(x), torch.nan))
    assert F.dropout(x, p).isnan().any() or p == 0.0


def T(*shape, dtype=torch.float32):  # noqa: N802
    return torch.ones(shape, dtype=dtype)


BASE = {"input": T(3, 5)}
REFUSED = {
    "input-list": ({"input": [1.0]}, ("input", "list")),
    "p-negative": ({"p": -0.1}, ("p must be", "-0.1")),
    "p-over-1": ({"p": 1.1}, ("p must be", "1.1")),
    "p-negative-evaluation": ({"p": -0.1, "training": False}, ("p must be", "-0.1")),
    "p-nan": ({"p": float("nan")}, ("p must be", "nan")),
    "p-none": ({"p": None}, ("p must be", "None")),
    "p-string": ({"p": "0.5"}, ("p must be", "'0.5'")),
    "training-int": ({"training": 1}, ("training", "1")),
    "training-none": ({"training": None}, ("training", "None")),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refused_as_in_pytorch(arguments, words):
    assert_refused(kernels.dropout, F.dropout, {**BASE, **arguments}, words)


@pytest.mark.parametrize("seed, error", [(-1, ValueError), (2**63, ValueError), (0.5, TypeError), ("1", TypeError)])
def test_seeds_that_are_refused(seed, error, device):
    with pytest.raises(error, match=f"dropout: seed must be.*got {seed!r}"):
        kernels.dropout(T(3).to(device), seed=seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=name)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(kernels.ArgumentError, match=f"dropout: input must be float32.*got {dtype}"):
        kernels.dropout(T(3, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("p", cases([0.0, 0.3, 1.0], "0.3"))
@pytest.mark.parametrize("shape", [(3, 227), (7,), (0, 5)], ids=str)
def test_gradients_pass_where_the_forward_did(shape, p, dtype, guarded):
    x, grad = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    given = guarded(x).detach().requires_grad_()
    y = kernels.dropout(given, p, seed=7)
    saved = [cell for cell in (getattr(y.grad_fn, "saved_tensors", ()) or ()) if cell is not None]
    assert not saved, "nothing but the seed is kept"
    (actual,) = torch.autograd.grad(y, given, guarded(grad))
    assert_close(actual, expected(grad, p, 7), dtype)


def test_the_gradients_mask_does_not_depend_on_the_tile(guarded):
    x, grad = torch.ones(1000), randn(1000)

    def gradient():
        given = guarded(x).detach().requires_grad_()
        y = kernels.dropout(given, 0.5, seed=11)
        with tiles.use("dropout", {"BLOCK_M": 64}):
            return torch.autograd.grad(y, given, guarded(grad))[0]

    assert_close(gradient(), expected(grad, 0.5, 11), torch.float32)


@pytest.mark.unguarded
def test_registered(device):
    torch.library.opcheck(
        torch.ops.alexnet.dropout.default, (torch.randn(3, 5, device=device, requires_grad=True), 0.3, 5)
    )
