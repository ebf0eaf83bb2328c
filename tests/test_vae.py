"""The Gaussian variational autoencoder: its divergence, its bound, and its training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import SAMPLES
from test_train import TINY, curve
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import codec
from codec.errors import ModelError
from train import vae
from train.__main__ import main
from train.loop import MODEL
from train.vae import DiagonalGaussian, GaussianVAE


def run(out: Path, *more: str) -> int:
    return main(
        [
            "--data",
            str(SAMPLES),
            "--out",
            str(out),
            *TINY,
            "--steps",
            "40",
            "--objective",
            "vae",
            "--init",
            "orthogonal",
            "--lr",
            "0.02",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    assert run(out) == 0
    return out / "lambda-0.013"


def test_the_divergence_is_the_textbook_one() -> None:
    torch.manual_seed(0)
    prior = DiagonalGaussian(5, learned=True)
    nn.init.normal_(prior.mean)
    nn.init.normal_(prior.log_deviation)
    mean, log_variance = torch.randn(3, 5, 4, 2), torch.randn(3, 5, 4, 2)
    p = Normal(prior.mean[:, None, None], prior.log_deviation.exp()[:, None, None])
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), p) / math.log(2)
    torch.testing.assert_close(prior.kl(mean, log_variance), expected, rtol=1e-5, atol=1e-5)


def test_the_divergence_is_never_negative_and_zero_only_at_the_prior() -> None:
    torch.manual_seed(1)
    prior = DiagonalGaussian(1, learned=False)
    small = 10.0 ** torch.linspace(-8, 1, 200) * torch.tensor([[1.0], [-1.0]])
    for mean, log_variance in ((torch.zeros_like(small), small), (small, torch.zeros_like(small))):
        bits = prior.kl(mean[:, None, None], log_variance[:, None, None])
        assert (bits >= 0).all() and (bits[small[:, None, None].abs() > 1e-3] > 0).all()
    assert float(prior.kl(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))) == 0


class Fixed(nn.Module):
    """An analysis that gives one posterior, whatever it sees."""

    def __init__(self, mean: Tensor, log_variance: Tensor) -> None:
        super().__init__()
        self.out = torch.cat([mean, log_variance])[None, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.out.expand(len(x), -1, -1, -1)


def test_the_elbo_bounds_the_evidence_and_reaches_it_at_the_true_posterior() -> None:
    """With a linear synthesis the evidence and the posterior are Gaussian, and known exactly."""
    torch.manual_seed(2)
    model = GaussianVAE(4, 2, "standard")
    weight = torch.linalg.qr(torch.randn(768, 2, dtype=torch.float64))[0] * torch.tensor([3.0, 5.0])  # orthogonal columns
    model.synthesis = nn.Sequential(nn.ConvTranspose2d(2, 3, 16, stride=16, bias=False))
    model.synthesis[0].weight.data = weight.T.reshape(2, 3, 16, 16).float()
    x, deviation = weight @ torch.tensor([0.7, -1.2], dtype=torch.float64) + 0.3 * torch.randn(768, dtype=torch.float64), 0.3
    covariance = weight @ weight.T + deviation**2 * torch.eye(768, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(768, dtype=torch.float64), covariance).log_prob(x) / math.log(2)
    gains = (weight**2).sum(dim=0)
    variance = 1 / (1 + gains / deviation**2)
    mean = variance * (weight.T @ x) / deviation**2
    copies = x.float().reshape(1, 3, 16, 16).expand(4000, -1, -1, -1)

    def negative_elbo(mean: Tensor, log_variance: Tensor) -> tuple[float, float]:
        """(estimate, its standard error) in bits, from what the loss is made of."""
        model.analysis = Fixed(mean.float(), log_variance.float() - model.log_variance.detach())
        noise = torch.rand(4000, 2, 1, 1) - 0.5
        with torch.no_grad():
            bits, mse, _ = model(copies, torch.zeros(4000), noise)
        errors = 768 * mse.double() / (2 * deviation**2 * math.log(2))
        values = bits + errors + 384 * math.log2(2 * math.pi * deviation**2)
        return float(values.mean()), float(values.std() / math.sqrt(4000))

    at_posterior, error = negative_elbo(mean, variance.log())
    assert abs(at_posterior + float(evidence)) < 5 * error + 0.02
    for shift, factor in ((0.2, 1.0), (0.0, 4.0), (0.0, 0.3), (-0.1, 2.0)):
        worse, error = negative_elbo(mean + shift, (factor * variance).log())
        exact = kl_divergence(Normal(mean + shift, (factor * variance).sqrt()), Normal(mean, variance.sqrt())).sum() / math.log(2)
        assert worse > -float(evidence) + 5 * error
        assert worse + float(evidence) == pytest.approx(float(exact), abs=5 * error + 0.02)


def test_it_trains_and_is_read_back(trained: Path) -> None:
    losses = [float(row["loss"]) for row in curve(trained)]
    assert losses[-1] < 0.8 * losses[0]
    model = vae.load(trained / MODEL)
    picture = model.sample(3, 4, torch.Generator().manual_seed(1))
    assert picture.shape == (3, 48, 64) and torch.isfinite(picture).all()
    assert torch.equal(picture, model.sample(3, 4, torch.Generator().manual_seed(1)))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(x, torch.zeros(1)), model(x, torch.zeros(1)), strict=True))
    assert model.density.mean.abs().max() > 0  # the prior was learned


def test_the_standard_prior_stays(tmp_path: Path) -> None:
    assert run(tmp_path, "--prior", "standard", "--steps", "20", "--distortion", "l1", "--lambda", "0.2") == 0
    model = vae.load(tmp_path / "lambda-0.2" / MODEL)
    assert model.density.mean.abs().max() == 0 and model.density.log_deviation.abs().max() == 0


def test_it_is_no_codec_and_a_codec_is_not_it(
    trained: Path, tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="rdae-weights-1"):
        codec.load(trained / MODEL)
    for path in (tiny_model_file, tmp_path / "missing.safetensors", SAMPLES / "README.md"):
        with pytest.raises(ModelError, match=f"{path.name}: cannot be used"):
            vae.load(path)
    assert run(tmp_path, "--variable-rate", "--lambda", "0.01", "0.02") == 2
    assert capsys.readouterr().err == "train: --variable-rate: not with --objective vae, which has no quantiser\n"
    assert run(tmp_path, "--init", "klt") == 2
    assert capsys.readouterr().err.startswith("train: --init: klt suits neither ReLU nor a variational autoencoder")
