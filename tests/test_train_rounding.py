"""How thriftily a model rounds is measured when it is frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codec.layout import Sizes
from codec.model import Model
from train import freeze, freeze_hyper
from train.allocation import log_gains, sensitivity
from train.hyper import HyperModel
from train.initialise import karhunen_loeve
from train.objective import RateDistortion, thriftily, to_image
from train.rounding import CANDIDATES, best_thrift

LADDER = (0.0035, 0.0483)
SIZES = Sizes(side=4, analysis=6, synthesis=6, features=8, slices=(4, 8), width=8, turns=(2, 2))


def make(entropy: str, thrift: float, crops: torch.Tensor) -> RateDistortion:
    """An untrained model."""
    torch.manual_seed(0)
    if entropy == "factorized":
        model = RateDistortion(LADDER, 8, 12, mixed=True, thrift=thrift)
        karhunen_loeve(model, to_image(crops))
    else:
        model = HyperModel(LADDER, 8, 12, SIZES, thrift)
        model.calibrate(model.latents(to_image(crops)))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def crops(photograph: np.ndarray) -> torch.Tensor:
    """One piece, 1×96×192×3."""
    return torch.from_numpy(photograph[:96, :192].reshape(1, 96, 192, 3).copy())


def test_lowered_where_bits_are_worth_it() -> None:
    """By hand: 1.6 is nearest to 2; at 1 the squared error is 0.36 instead of 0.16, 0.2 more."""
    x, nearest = torch.tensor([1.6, -1.6, 0.4, 1.6]), torch.tensor([2.0, -2.0, 0.0, 2.0])
    saved = torch.tensor([2.1, 2.1, 9.0, 1.9])
    assert thriftily(x, nearest, saved, 0.1).tolist() == [1, -1, 0, 2]


@pytest.mark.parametrize("rung", [0, 1])
def test_training_rounds_as_the_frozen_model_does(crops: torch.Tensor, rung: int) -> None:
    model = make("factorized", 0.2, crops)
    x, position = to_image(crops), torch.tensor([float(rung)])
    frozen = Model(freeze.tensors_of(model, crops), {"filters": 8, "latents": 12, "thrift": [0.2]}, "0" * 64, "tiny")
    y = model.latents(x)
    bits, _, decoded = model.code(y, position)
    quality = (1, 100)[rung]
    symbols = frozen.entropy.quantise(y[0].numpy(), quality)
    ours = (decoded[0] * model.gain(position)[0]).round().int().numpy()
    # What lies on the edge may go either way: the frozen tables are rounded.
    assert (ours != symbols).mean() < 0.002 and (symbols != frozen.entropy.quantise(y[0].numpy(), quality, thrifty=False)).any()
    assert sum(frozen.entropy.bits(y[0].numpy(), quality)) == pytest.approx(float(bits), rel=0.002)
    # With noise in the rate, the synthesis still gets what an encoder would write.
    noisy = model.code(y, position, torch.rand(y.shape) - 0.5)
    torch.testing.assert_close(noisy[2], decoded)


@pytest.mark.parametrize("entropy", ["factorized", "hyperprior"])
def test_what_is_no_number_stays_none(crops: torch.Tensor, entropy: str) -> None:
    """So that the loss tells that a run has diverged, and the run can go back."""
    model = make(entropy, 0.1, crops)
    y = model.latents(to_image(crops))
    y[0, 3, 1, 1] = float("nan")
    assert all(torch.isnan(part).any() for part in (model.code(y, torch.zeros(1))[0], model.code(y, torch.zeros(1))[2]))


def test_the_search_for_gains_knows_how_thriftily_is_rounded(crops: torch.Tensor) -> None:
    """By what it minimises, no other gains are as good for a model that rounds so."""
    plain, thrifty = (make("factorized", thrift, crops) for thrift in (0.0, 0.1))
    x = to_image(crops)
    own, others = log_gains(thrifty, x, LADDER), log_gains(plain, x, LADDER)
    assert not torch.equal(own, others)
    y = thrifty.latents(x)
    answer = sensitivity(thrifty, y, torch.Generator().manual_seed(0))
    for rung, value in enumerate(LADDER):
        costs = []
        for gains in (own, others):
            gain = gains[rung].exp()[:, None, None]
            decoded = thrifty.rounded(y, gain[None]) / gain
            error = ((decoded - y).square() * answer).sum()
            costs.append(float(thrifty.density.bits(decoded, 1 / gain).sum() + value * 255**2 / 3 * error))
        assert costs[0] <= costs[1]


@pytest.mark.parametrize("entropy", ["factorized", "hyperprior"])
def test_the_best_of_the_candidates_is_found(crops: torch.Tensor, entropy: str) -> None:
    """By the same objective, computed here from what the frozen model writes and restores."""
    trained = make(entropy, 0.05, crops)
    profile = freeze_hyper.metadata(trained) if isinstance(trained, HyperModel) else {}
    metadata = {**profile, "filters": 8, "latents": 12, "lambdas": LADDER}
    found = best_thrift(Model(freeze.tensors_of(trained, crops), metadata, "0" * 64, "tiny"), crops)
    pixels = crops[0].numpy()
    for rung, (quality, value) in enumerate(zip((1, 100), LADDER, strict=True)):
        costs = {}
        for candidate in CANDIDATES:
            model = Model(freeze.tensors_of(trained, crops), {**metadata, "thrift": [candidate]}, "0" * 64, "tiny")
            bits, symbols = model.entropy.trial(model.analyse(pixels), quality)
            error = np.square(model.synthesise(symbols, quality, *pixels.shape[:2]).astype(float) - pixels).mean()
            costs[candidate] = sum(bits) + value * error * 96 * 192
        assert costs[found[rung]] <= min(costs.values()) * (1 + 1e-9)
    assert max(found) > 0
