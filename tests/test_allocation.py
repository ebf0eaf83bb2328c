"""Quantiser steps found by measuring."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train.allocation import high_resolution_log_gains, log_gains, sensitivity
from train.initialise import karhunen_loeve
from train.objective import RateDistortion

LADDER = (0.002, 0.02, 0.2)


@pytest.fixture(scope="module")
def crops(photograph: np.ndarray) -> torch.Tensor:
    """Four pieces of a photograph, 4×3×96×96 in 0…1."""
    pieces = [photograph[y : y + 96, x : x + 96] for y in (0, 32) for x in (0, 64)]
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def linear(crops: torch.Tensor) -> RateDistortion:
    """Orthonormal transforms without normalisation, latents in units of a sixteenth."""
    torch.manual_seed(0)
    model = RateDistortion(LADDER, 48, 96)
    karhunen_loeve(model, crops)
    for module in [*model.analysis, *model.synthesis]:
        if hasattr(module, "gamma_reparam"):
            module.gamma.data.copy_(module.gamma_reparam.init(torch.zeros_like(module.gamma)))
    return model


def test_an_orthonormal_synthesis_answers_with_one_over_the_unit_squared(linear: RateDistortion, crops: torch.Tensor) -> None:
    unit = linear.log_unit.detach().exp()
    with torch.no_grad():
        y = linear.analysis(crops) * unit[:, None, None]
    measured = sensitivity(linear, y, torch.Generator().manual_seed(0)).mean(dim=(0, 2, 3))
    # Two random probes on four crops: a few per cent of noise on the mean over channels, more on each.
    torch.testing.assert_close(measured, 1 / unit**2, rtol=0.5, atol=0)
    assert float((measured * unit**2).mean()) == pytest.approx(1, abs=0.05)


def test_gains_rise_with_lambda_and_are_no_worse_than_their_neighbours(linear: RateDistortion, crops: torch.Tensor) -> None:
    found = log_gains(linear, crops, LADDER)
    assert found.shape == (3, 96) and (found.diff(dim=0) >= 0).all() and (found.diff(dim=0) > 0).any()

    def lagrangian(shift: float, rung: int) -> float:
        linear.log_gain.data.copy_(found + shift)
        with torch.no_grad():
            bits, mse, _ = linear(crops, torch.full((4,), float(rung)))
        return float((bits / 96**2 + LADDER[rung] * 255**2 * mse).mean())

    for rung in range(3):
        assert lagrangian(0.0, rung) <= min(lagrangian(-0.5, rung), lagrangian(0.5, rung))


def test_high_resolution_gains_are_those_of_the_formula(linear: RateDistortion, crops: torch.Tensor) -> None:
    found = high_resolution_log_gains(linear, crops, LADDER)
    # Steps go as the root of λ, and an orthonormal transform has the same step, in pixels, for all: Δ² = 6 / (λ 255²/3 ln 2).
    torch.testing.assert_close(found[1] - found[0], torch.full((96,), 0.5 * math.log(10)), rtol=1e-4, atol=1e-4)
    in_pixels = torch.exp(-found[0] - linear.log_unit.detach())
    assert float(in_pixels.mean()) == pytest.approx(math.sqrt(6 / (0.002 * 255**2 / 3 * math.log(2))), rel=0.05)
    assert float(in_pixels.std() / in_pixels.mean()) < 0.15
