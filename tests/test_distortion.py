from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hyper_metadata, tiny_hyper_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_msssim import ms_ssim

from codec import distortion
from codec.distortion import Similarity
from codec.errors import ModelError
from codec.model import Model, from_bytes, to_bytes


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)[None].double()


def ones(pixels: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(pixels[:, :1])


def reference(shown: torch.Tensor, wanted: torch.Tensor) -> float:
    """pytorch-msssim's, with a window that has double precision too."""
    window = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    return float(ms_ssim(shown, wanted, data_range=255, win=(window / window.sum()).expand(wanted.shape[1], 1, 1, -1)))


def spoilt(pixels: torch.Tensor, size: float) -> torch.Tensor:
    return (pixels + size * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5), dtype=pixels.dtype)).clamp(0, 255)


@settings(max_examples=12, deadline=None)
@given(st.integers(161, 230), st.integers(161, 230), st.booleans(), st.floats(0.5, 60))
def test_it_is_what_everyone_computes(height: int, width: int, grey: bool, size: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wave = 128 + 60 * torch.sin(rows / 7) + 50 * torch.cos(columns * rows / 300)
    wanted = (wave if grey else torch.stack([wave, wave.flip(0), 255 - wave]))[None].view(1, -1, height, width).double()
    shown = spoilt(wanted, size)
    assert float(Similarity(wanted, ones(wanted))(shown)) == pytest.approx(reference(shown, wanted), abs=1e-9)


@pytest.mark.parametrize("shape", [(11, 11, 3), (16, 400, 3), (80, 90), (160, 160, 3)])
def test_small_pictures_have_fewer_scales(photograph: np.ndarray, shape: tuple[int, ...]) -> None:
    image = photograph[: shape[0], : shape[1]]
    wanted = planes(image[..., 1] if len(shape) == 2 else image)
    similarity = Similarity(wanted, ones(wanted))
    assert float(similarity(wanted)) == pytest.approx(1)
    assert 1 > float(similarity(spoilt(wanted, 5))) > float(similarity(spoilt(wanted, 30))) > 0


def test_too_small_for_a_window(photograph: np.ndarray) -> None:
    wanted = planes(photograph[:40, :10])
    with pytest.raises(ValueError, match="no window of 11×11 fits into 10×40 pixels"):
        Similarity(wanted, ones(wanted))


def test_only_pixels_that_count_do(photograph: np.ndarray) -> None:
    wanted = planes(photograph[:192, :384])
    counted = ones(wanted)
    counted[..., 176:] = 0
    near, far = spoilt(wanted, 20), spoilt(wanted, 20)
    far[..., 176 + 6 * 16 :] = 0  # beyond the windows around pixels that count, at the coarsest scale too
    similarity = Similarity(wanted, counted)
    assert float(similarity(near)) == pytest.approx(float(similarity(far)), abs=1e-12)
    assert float(similarity(near)) != pytest.approx(float(Similarity(wanted, ones(wanted))(near)), abs=1e-4)
    # Where none do, or only such as have no window of their own, it is a number all the same.
    for some in (torch.zeros_like(counted), torch.zeros_like(counted).index_fill_(3, torch.tensor([0]), 1.0)):
        assert 0 < float(Similarity(wanted, some)(near)) < 1
    assert float(distortion.dissimilarity(wanted, torch.zeros_like(counted))(near)) == 0


def test_its_gradient_leads_to_what_is_wanted(photograph: np.ndarray) -> None:
    wanted = planes(photograph[:176, :176])
    error = distortion.dissimilarity(wanted, ones(wanted))
    x = spoilt(wanted, 20).requires_grad_()
    (gradient,) = torch.autograd.grad(error(x), x)
    step = 1e-3
    along = (error(x + step * gradient) - error(x - step * gradient)) / (2 * step)
    assert float(along.detach()) == pytest.approx(float(gradient.square().sum()), rel=1e-3)
    assert float((gradient * (x - wanted)).sum().detach()) > 0
    # Nor is there anything that is not a number where nothing is alike.
    x = (255 - wanted).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(error(x), x)[0]).all()


def test_measures_are_sums_over_pixels(photograph: np.ndarray) -> None:
    wanted = planes(photograph[:176, :192])
    shown, counted = spoilt(wanted, 9), ones(wanted)
    mse = float((shown - wanted).square().mean())
    assert float(distortion.measure("psnr")(wanted, counted)(shown)) == pytest.approx(176 * 192 * mse)
    similarity = reference(shown, wanted)
    assert float(distortion.measure("ms-ssim")(wanted, counted)(shown)) == pytest.approx(176 * 192 * (1 - similarity))


def trained_for(what: str) -> Model:
    return from_bytes(to_bytes(tiny_hyper_tensors(), {**hyper_metadata(), "distortion": what}), "some")


def test_what_a_measure_is_worth(tiny_hyper: Model) -> None:
    plain, similar = ([distortion.weight(tiny_hyper, tune, quality) for quality in (1, 2, 3)] for tune in ("psnr", "ms-ssim"))
    assert plain == [tiny_hyper.lambda_at(quality) for quality in (1, 2, 3)]
    assert similar == sorted(similar) and similar[0] > 0
    # Of a model that was trained for it, λ is that already.
    assert distortion.weight(trained_for("ms-ssim"), "ms-ssim", 2) == plain[1]
    with pytest.raises(ModelError, match="some was trained for ms-ssim, but --effort searches for the best PSNR; --tune ms-ssim does that"):
        distortion.weight(trained_for("ms-ssim"), "psnr", 1)
    for tune in ("psnr", "ms-ssim"):
        with pytest.raises(ModelError, match="some was trained for l1"):
            distortion.weight(trained_for("l1"), tune, 1)
