from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES
from lightning.fabric import Fabric
from test_train import curve, train

import codec
from codec import image as images
from train.config import Config
from train.loop import LAST, MODEL, Trainer
from train.objective import RateDistortion, balanced


def test_rounding_and_noise_are_both_unbiased_on_a_smooth_model() -> None:
    """The rate with noise is an upper estimate of what rounding costs, and near it for wide latents."""
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 8, 12)
    x = torch.from_numpy(images.read(SAMPLES / "chelsea.png")[:288, :448].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        hard, _, _ = model(x, torch.zeros(1))
        soft, _, _ = model(x, torch.zeros(1), torch.rand(1, 12, 18, 28) - 0.5)
    assert float(soft) == pytest.approx(float(hard), rel=0.05)


def test_mixed_quantiser_has_the_rate_of_noise_and_the_distortion_of_rounding() -> None:
    torch.manual_seed(0)
    noisy, mixed = (RateDistortion((0.013, 0.025), 8, 12, mixed) for mixed in (False, True))
    mixed.load_state_dict(noisy.state_dict())
    x, position, noise = torch.rand(2, 3, 32, 32), torch.tensor([0.0, 0.6]), torch.rand(2, 12, 2, 2) - 0.5
    bits, mse, restored = mixed(x, position, noise)
    torch.testing.assert_close(bits, noisy(x, position, noise)[0])
    torch.testing.assert_close(restored, noisy(x, position)[2])
    mse.sum().backward()
    assert float(mixed.analysis.conv1.weight.grad.abs().max()) > 0
    assert not torch.equal(mse, noisy(x, position, noise)[1])


def test_errors_are_those_of_what_a_decoder_shows() -> None:
    """White that is overshot is white; from any other pixel, gradients find back."""
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 8, 12, mixed=True)
    with torch.no_grad():
        model.synthesis.conv3.bias.fill_(2.0)
    errors = {}
    for value in (1.0, 0.9):
        x = torch.full((1, 3, 32, 32), value)
        model.zero_grad()
        _, mse, restored = model(x, torch.zeros(1), torch.zeros(1, 12, 2, 2))
        mse.sum().backward()
        errors[value] = float(mse.detach())
        assert float(restored.detach().max()) <= 1
        assert (float(model.synthesis.conv3.bias.grad.min()) > 0) == (value < 1)
    assert errors[1.0] == 0 and errors[0.9] == pytest.approx(0.1**2)


def test_balanced_images_count_alike() -> None:
    """Whatever the size of a loss, a per cent less of it is worth as much; but for losses near zero."""
    scale = torch.ones(4, requires_grad=True)
    losses = torch.tensor([30.0, 2.0, 0.5, 0.01])
    for power, expected in ((0.0, losses.tolist()), (1.0, [1, 1, 1, 0.1]), (0.5, [30**0.5, 2**0.5, 0.5**0.5, 0.01 / 0.1**0.5])):
        (gradient,) = torch.autograd.grad(balanced(scale * losses, power).sum(), scale)
        assert gradient.tolist() == pytest.approx(expected)


def test_gains_interpolate_geometrically() -> None:
    model = RateDistortion((0.01, 0.04, 0.16), 4, 3)
    gains = model.gain(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]))[:, 0, 0, 0]
    ratios = (gains[1:] / gains[:-1]).tolist()
    assert ratios == pytest.approx([2**0.5] * 4, rel=1e-5)


def test_ms_ssim_can_be_the_distortion(tmp_path: Path, photograph: np.ndarray) -> None:
    settings = ["--distortion", "ms-ssim", "--lambda", "20", "--crop", "176", "--early-steps", "0", "--steps", "4", "--batch", "1"]
    assert train(tmp_path, *settings) == 0
    model = codec.load(tmp_path / "lambda-20" / MODEL)
    assert model.metadata["distortion"] == "ms-ssim" and model.decode(model.encode(photograph)).shape == photograph.shape


def test_absolute_errors_can_be_the_distortion(tmp_path: Path) -> None:
    assert train(tmp_path, "--distortion", "l1", "--lambda", "0.2", "--steps", "40", "--init", "orthogonal", "--lr", "0.02") == 0
    rows = curve(tmp_path / "lambda-0.2")
    assert float(rows[-1]["val_loss"]) < 0.8 * float(rows[0]["val_loss"])
    assert codec.load(tmp_path / "lambda-0.2" / MODEL).metadata["distortion"] == "l1"
    settings = Config(data=str(SAMPLES), distortion="l1", filters=8, latents=12, held_out=1)
    trainer = Trainer(settings, tmp_path / "other", Fabric(accelerator="cpu", devices=1))
    restored, x = torch.full((2, 3, 16, 16), 0.5), torch.tensor([0.25, 0.5]).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)
    assert trainer._distortion(torch.zeros(2), restored, x).tolist() == pytest.approx([255 / 4, 0])


def test_a_network_without_gdn_trains_and_is_kept_apart_from_the_codecs(tmp_path: Path) -> None:
    settings = ["--steps", "40", "--lr", "0.02", "--files-every", "1", "--lambda", "0.013", "0.02"]
    assert train(tmp_path, "--normalisation", "relu", "--init", "orthogonal", *settings) == 0
    rows = curve(tmp_path / "lambda-0.013")
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert not any("gdn" in name for name in torch.load(tmp_path / "lambda-0.02" / LAST, weights_only=True)["model"])
    with pytest.raises(codec.ModelError, match="rdae-weights-1"):
        codec.load(tmp_path / "lambda-0.013" / MODEL)
