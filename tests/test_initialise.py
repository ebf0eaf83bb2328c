"""The block transform that training starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.initialise import cosines, fit_density, karhunen_loeve, narrowed
from train.objective import RateDistortion


@pytest.fixture(scope="module")
def crops(photograph: np.ndarray) -> torch.Tensor:
    """Eight pieces of a photograph, 8×3×64×64 in 0…1."""
    pieces = [photograph[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 32, 64, 96)]
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).float() / 255


def restored(model: RateDistortion, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.synthesis(model.analysis(x))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_cosines_are_orthonormal() -> None:
    for n in (2, 4, 8):
        assert torch.allclose(cosines(n) @ cosines(n).T, torch.eye(n), atol=1e-6)


def test_the_block_transform_restores_what_random_filters_do_not(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 64, 96)
    before = psnr(restored(model, crops), crops)
    karhunen_loeve(model, crops)
    assert before < 15 and psnr(restored(model, crops), crops) > 27


def test_with_a_latent_for_every_number_only_the_normalisation_loses(crops: torch.Tensor) -> None:
    """192 filters hold the whole 4×4 and 8×8 blocks, 768 latents the whole of 16×16: all that is lost is the inexact inverse of GDN."""
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 192, 768)
    karhunen_loeve(model, crops)
    assert psnr(restored(model, crops), crops) > 40
    for module in [*model.analysis, *model.synthesis]:
        if hasattr(module, "gamma_reparam"):
            module.gamma.data.copy_(module.gamma_reparam.init(torch.zeros_like(module.gamma)))
    # Without normalisation the transform is orthonormal.
    latents = model.analysis(crops).detach()
    assert psnr(restored(model, crops), crops) > 80
    assert float(latents.square().sum()) == pytest.approx(float((crops - 0.5).square().sum()), rel=1e-4)


def test_latents_are_sorted_by_their_energy(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 64, 96)
    karhunen_loeve(model, crops)
    energy = model.analysis(crops).detach().square().mean(dim=(0, 2, 3))
    assert (energy.diff() <= 1e-6 * energy[0]).all()


def test_filters_without_a_use_can_still_learn(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 64, 96)
    karhunen_loeve(model, crops)
    (model.synthesis(model.analysis(crops)) - crops).square().mean().backward()
    # 48 of 64 filters hold cosines; the others are heard by the next layer, or spoken to by it, only after a first step.
    heard = model.analysis.conv2.weight.grad
    spoken = model.synthesis.conv2.weight.grad
    assert (heard[:, 48:].abs().amax(dim=(0, 2, 3)) > 0).all()
    assert (spoken[48 * 4 :].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_a_narrower_model_takes_the_latents_that_vary_most(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    wide, narrow = RateDistortion((0.013, 0.05), 16, 24), RateDistortion((0.013, 0.05), 16, 10)
    with torch.no_grad():
        wide.log_unit.add_(torch.randn(24))
        wide.log_gain.add_(torch.randn(2, 24))
    narrow.load_state_dict(narrowed(wide.state_dict(), RateDistortion((0.013, 0.05), 16, 24), crops, 10))
    with torch.no_grad():
        scaled, few = (model.latents(crops) * model.gain(torch.ones(len(crops))) for model in (wide, narrow))
    spread = scaled.std(dim=(0, 2, 3))
    keep = [channel for channel in range(24) if spread[channel] >= spread.sort().values[-10]]
    torch.testing.assert_close(few, scaled[:, keep])
    torch.testing.assert_close(narrow.synthesis.conv1.weight, wide.synthesis.conv1.weight[:, keep])


def test_a_density_is_fitted_to_latents_that_are_there_already(crops: torch.Tensor) -> None:
    """Its rate comes near the entropy of each channel's own histogram, which no static model can pass by much."""
    torch.manual_seed(0)
    model = RateDistortion((0.004, 0.04), 64, 96)
    karhunen_loeve(model, crops)
    transforms = model.analysis.conv1.weight.detach().clone()
    fit_density(model, crops)
    with torch.no_grad():
        y = model.latents(crops)
        for rung in (0, 1):
            position = torch.full((len(crops),), float(rung))
            bits = float(model.code(y, position)[0].sum())
            ideal = 0.0
            for channel in torch.round(y * model.gain(position)).transpose(0, 1).flatten(1):
                counts = channel.unique(return_counts=True)[1].float()
                ideal -= float((counts * torch.log2(counts / counts.sum())).sum())
            # A histogram of a hundred latents fits itself better than any density does.
            assert 0.98 * ideal < bits < 1.25 * ideal
    assert torch.equal(model.analysis.conv1.weight, transforms)
