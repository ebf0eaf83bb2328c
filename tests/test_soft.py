from __future__ import annotations

import numpy as np
import pytest
import torch

from codec.frozen import STEP_BITS
from codec.hyperprior import Hyperprior
from codec.model import Model
from codec.soft import SoftFactorized, SoftHyperprior


@pytest.fixture
def latents(tiny_model: Model, photograph: np.ndarray) -> np.ndarray:
    return tiny_model.analyse(photograph[:112, :176]) * 3


@pytest.mark.parametrize("quality", [1, 2, 3])
def test_the_factorized_rate_is_exact_on_whole_numbers(tiny_model: Model, latents: np.ndarray, quality: int) -> None:
    bits, decoded = SoftFactorized(tiny_model.entropy, quality)(torch.from_numpy(latents)[None], None, torch.round)
    assert float(bits) == pytest.approx(sum(tiny_model.entropy.bits(latents, quality)), rel=1e-5)
    exact = tiny_model.entropy.dequantise(tiny_model.entropy.quantise(latents, quality), quality)
    np.testing.assert_allclose(decoded[0].numpy(), exact, atol=1e-5)


@pytest.mark.parametrize("quality", [1, 2, 3])
def test_the_hyperprior_s_rate_is_nearly_exact_on_whole_numbers(tiny_hyper: Model, latents: np.ndarray, quality: int) -> None:
    entropy = tiny_hyper.entropy
    assert isinstance(entropy, Hyperprior)
    soft = SoftHyperprior(entropy, quality)
    side = torch.from_numpy(entropy.real_side_information(latents)).float()[None] / soft.side_step
    bits, decoded = soft(torch.from_numpy(latents)[None], side, torch.round)
    # The exact model takes the nearest of the tables, this one a mean of the two beside.
    assert float(bits) == pytest.approx(sum(entropy.bits(latents, quality)), rel=0.02)
    exact = entropy.quantise(latents, quality) / (1 << STEP_BITS)
    # A mean that is off by a rounding error may lead to the next integer, rarely.
    assert np.mean(np.abs(decoded[0].numpy() - exact) > 0.01) < 0.005


def test_rates_have_gradients_in_latents_and_side_information(tiny_hyper: Model, latents: np.ndarray) -> None:
    soft = SoftHyperprior(tiny_hyper.entropy, 2)
    y = torch.from_numpy(latents)[None].requires_grad_()
    side = (torch.from_numpy(tiny_hyper.entropy.real_side_information(latents)).float()[None] / soft.side_step).requires_grad_()
    bits, _ = soft(y, side, lambda x: x)
    gradients = torch.autograd.grad(bits, (y, side))
    with torch.no_grad():
        lower, _ = soft(y - 0.002 * gradients[0], side - 0.002 * gradients[1], lambda x: x)
    assert float(lower) < float(bits)
    assert all((g != 0).float().mean() > 0.5 for g in gradients)
