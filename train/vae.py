"""A Gaussian variational autoencoder from the codec's parts: the same transforms, another posterior and another prior.

The analysis gives two numbers for each latent, the mean μ and the logarithm of the variance s² of a Gaussian q(z|x); the prior p(z) is
N(0, 1) in every channel, or N(m_c, t_c²) with learned m and t. With the likelihood p(x|z) = N(x; synthesis(z), σ²), the negative ELBO is

    KL(q(z|x) ‖ p(z)) + E_q[-log₂ p(x|z)] bits,          KL = ½ log₂e · Σ ((s² + (μ - m)²) / t² - 1 - ln(s² / t²)),

and for λ = 3 / (2σ² ln 2) it is, up to a constant and per pixel, the codec's loss with KL in the place of the rate.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import safetensors
import torch
from compressai.layers import GDN
from safetensors.torch import load_file
from torch import Tensor, nn

from codec import transforms
from codec.errors import ModelError
from train.freeze import WEIGHTS
from train.initialise import orthogonal
from train.objective import LATENT_SCALE

LOG_VARIANCE_START = -math.log(12 * LATENT_SCALE**2)
"""Where ln s² starts: as much noise, next to the latents, as quantisation in steps of one brings where `RateDistortion` starts."""


class DiagonalGaussian(nn.Module):
    """The prior: a mean and the logarithm of a standard deviation for each of C channels, learned unless they stay at N(0, 1)."""

    mean: Tensor
    log_deviation: Tensor

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        for name in ("mean", "log_deviation"):
            if learned:
                self.register_parameter(name, nn.Parameter(torch.zeros(channels)))
            else:
                self.register_buffer(name, torch.zeros(channels))

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL divergence in bits, elementwise, of Gaussians B×C×h×w from the prior."""
        m, log_t = self.mean[:, None, None], self.log_deviation[:, None, None]
        # s²/t² - 1 - ln(s²/t²) as expm1(v) - v, lest rounding make a small divergence negative.
        v = log_variance - 2 * log_t
        return (torch.expm1(v) - v + ((mean - m) * torch.exp(-log_t)).square()) / (2 * math.log(2))


class GaussianVAE(nn.Module):
    """Transforms with a Gaussian between them. Called as `RateDistortion` is, and returns the same three things."""

    def __init__(self, filters: int = 128, latents: int = 192, prior: str = "learned", gdn: transforms.GDNFactory = GDN) -> None:
        super().__init__()
        self.analysis = transforms.analysis(filters, 2 * latents, gdn)
        self.synthesis = transforms.synthesis(filters, latents, gdn)
        self.density = DiagonalGaussian(latents, prior == "learned")
        self.log_variance = nn.Parameter(torch.full((latents,), LOG_VARIANCE_START))
        orthogonal(self)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(μ, ln s²), each B×M×H/16×W/16, of images B×3×H×W in 0…1."""
        mean, log_variance = self.analysis(x).float().chunk(2, dim=1)
        return mean, (log_variance + self.log_variance[:, None, None]).clamp(-30, 10)

    def forward(self, x: Tensor, position: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """KL divergence in bits per image (B), mean squared error on 0…1 per image (B), reconstruction B×3×H×W.

        `noise` is uniform in ±½, and Φ⁻¹(½ + noise) is the standard normal ε of z = μ + s·ε; without it, ε is drawn with a fixed
        seed, so that validation is the same every time. There is one λ, so `position` plays no part.
        """
        mean, log_variance = self.posterior(x)
        with torch.autocast(x.device.type, enabled=False):
            if noise is None:
                epsilon = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean.device)
            else:
                epsilon = math.sqrt(2) * torch.erfinv((2 * noise).clamp(-1 + 1e-6, 1 - 1e-6))
            z = mean + torch.exp(log_variance / 2) * epsilon
            bits = self.density.kl(mean, log_variance).sum(dim=(1, 2, 3))
        restored = self.synthesis(z).float()
        return bits, (restored - x).square().mean(dim=(1, 2, 3)), restored

    @torch.no_grad()
    def sample(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """An image 3×16·height×16·width whose latents are drawn from the prior."""
        epsilon = torch.randn(1, len(self.log_variance), height, width, generator=generator)
        z = self.density.mean[:, None, None] + torch.exp(self.density.log_deviation[:, None, None]) * epsilon
        restored: Tensor = self.synthesis(z)[0]
        return restored


def load(path: Path) -> GaussianVAE:
    """The autoencoder that `python -m train --objective vae` wrote. Raises `ModelError`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["rdae"])
        settings = metadata["training"]
        if metadata["format"] != WEIGHTS or settings["objective"] != "vae" or settings["normalisation"] != "gdn":
            raise ValueError("not a variational autoencoder")
        model = GaussianVAE(settings["filters"], settings["latents"], settings["prior"])
        model.load_state_dict({name: t.float() for name, t in load_file(path).items()})
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be used: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False)
