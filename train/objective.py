"""What is minimised: rate plus λ times distortion, with additive uniform noise in the place of rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from compressai.layers import GDN
from torch import Tensor, nn

from codec import transforms
from codec.density import Density
from codec.rounding import MOST
from train.initialise import orthogonal

LATENT_SCALE = 16.0
"""Where the units of the latents start. Orthogonal filters on pixels in 0…1 give values near one, while good quantiser steps at
middling λ are near a sixteenth of that; with the factor outside the convolutions, all their weights start, and stay, near one."""
PEAK = 255**2
REFERENCE_LAMBDA = 0.013
"""Weights of the loss are relative to this λ."""
FLAT = 0.1
"""Weighted losses below this count no more when images are balanced: there is next to nothing in them."""


class Rectifier(nn.ReLU):
    """√2·max(y, 0), which keeps the mean square of symmetric responses, in the place of GDN or its inverse: what does GDN bring?"""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()

    def forward(self, y: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return math.sqrt(2) * super().forward(y)


def weights_of(lambdas: Tensor) -> Tensor:
    """Weight of an image's loss among images of other λ.

    The Lagrangian grows about as √λ, and a relative gain should count the same at every rate.
    """
    return (REFERENCE_LAMBDA / lambdas).sqrt() if len(lambdas) > 1 else torch.ones_like(lambdas)


def balanced(cost: Tensor, power: float) -> Tensor:
    """Losses of images, each divided by a constant that is its own size to this power.

    The loss of a busy crop can be ten times that of a quiet one, and so can its gradient; PSNR and BD-rate count images alike.
    At power 1 so does the gradient, which is then that of the mean of the losses' logarithms.
    """
    return cost * cost.detach().clamp(min=FLAT).pow(-power) if power else cost


def to_image(crops: Tensor) -> Tensor:
    """B×H×W×3 uint8 to B×3×H×W in 0…1, channels last."""
    return crops.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


class Tilted(nn.Conv2d):
    """A convolution whose weights change with the rate: W + t·T, where t runs from -1 at the first rung to 1 at the last one."""

    place = 0.0
    """t."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.weight_tilt = nn.Parameter(torch.zeros_like(self.weight))
        self.bias_tilt = nn.Parameter(torch.zeros(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """B×C×h×w to the same convolution's outputs, at this place."""
        bias = None if self.bias is None else self.bias + self.place * self.bias_tilt
        return self._conv_forward(x, self.weight + self.place * self.weight_tilt, bias)


class RateDistortion(nn.Module):
    """Transforms, density and gains, for one λ or a ladder of them.

    A channel's latents are the analysis times a trained unit. Each λ has a gain per channel in front of the quantiser, which between
    two rungs is interpolated geometrically. With one λ it is one, as in the paper, unless it is searched for (`train/allocation.py`). The
    density is one for all.
    """

    log_gain: Tensor

    def __init__(
        self,
        lambdas: Sequence[float],
        filters: int = 128,
        latents: int = 192,
        mixed: bool = False,
        gdn: transforms.GDNFactory = GDN,
        thrift: float = 0.0,
        tilted: bool = False,
    ) -> None:
        """`mixed` puts straight-through rounding in the place of noise for the distortion, but not for the rate.

        `thrift` is how much squared error, in squared steps, saving one bit is worth when a latent is rounded. With `tilted`, the
        synthesis' convolutions change with the rate.
        """
        super().__init__()
        self.mixed, self.thrift = mixed, thrift
        self.analysis = transforms.analysis(filters, latents, gdn)
        self.synthesis = transforms.synthesis(filters, latents, gdn, Tilted if tilted else nn.Conv2d)
        self.tilted = tilted
        self.density = Density(latents)
        self.log_unit = nn.Parameter(torch.full((latents,), math.log(LATENT_SCALE)))
        # At high rate the best step is proportional to the root of the distortion, so to λ^-½.
        middle = lambdas[len(lambdas) // 2]
        start = torch.tensor([0.5 * math.log(v / middle) for v in lambdas])[:, None].repeat(1, latents)
        if len(lambdas) > 1:
            self.log_gain = nn.Parameter(start)
        else:
            self.register_buffer("log_gain", start)
        orthogonal(self)

    def gain(self, position: Tensor) -> Tensor:
        """Gains B×M×1×1 at real positions 0…R-1 on the ladder of λ."""
        low = position.floor().clamp(0, max(self.log_gain.shape[0] - 2, 0)).long()
        high = (low + 1).clamp(max=self.log_gain.shape[0] - 1)
        weight = (position - low)[:, None]
        return torch.lerp(self.log_gain[low], self.log_gain[high], weight).exp()[:, :, None, None]

    def latents(self, x: Tensor) -> Tensor:
        """Latents B×M×h×w, in their units, of images B×3×16h×16w in 0…1."""
        return self.analysis(x).float() * self.log_unit.exp()[:, None, None]

    def show(self, y: Tensor, position: Tensor) -> Tensor:
        """Images B×3×16h×16w, in 0…1, of decoded latents B×M×h×w in their units.

        A synthesis that changes with the rate runs once for each run of equal positions.
        """
        # Channels last, as the analysis left them: else the products of GDN take three times as long.
        plain = (y * (-self.log_unit).exp()[:, None, None]).contiguous(memory_format=torch.channels_last)
        if not self.tilted:
            return clipped(self.synthesis(plain).float())
        places, counts = torch.unique_consecutive(2 * position / max(len(self.log_gain) - 1, 1) - 1, return_counts=True)
        shown = []
        for place, part in zip(places.tolist(), plain.split(counts.tolist()), strict=True):
            for layer in self.synthesis:
                if isinstance(layer, Tilted):
                    layer.place = place
            shown.append(self.synthesis(part).float())
        return clipped(torch.cat(shown))

    @torch.no_grad()
    def rounded(self, y: Tensor, gain: Tensor) -> Tensor:
        """What an encoder rounds y · gain to, whole numbers, for latents B×M×… and a gain that broadcasts against them."""
        scaled = y * gain
        nearest = torch.round(scaled)
        if not self.thrift:
            return nearest
        # The cost of the symbols -MOST…MOST in each channel; those beyond are rounded as if they cost as much more than their neighbours.
        symbols = torch.arange(-MOST, MOST + 1, device=y.device, dtype=y.dtype)
        step = (1 / gain).flatten(2)
        cost = self.density.bits(symbols * step, step)
        here = nearest.nan_to_num().clamp(-MOST, MOST).long().flatten(2) + MOST
        nearer_to_zero = here - nearest.nan_to_num().sign().long().flatten(2)
        cost = cost.expand(len(y), -1, -1)
        saved = (cost.gather(2, here) - cost.gather(2, nearer_to_zero)).reshape(y.shape)
        return thriftily(scaled, nearest, saved, self.thrift)

    def code(self, y: Tensor, position: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Bits of latents B×M×h×w and of their side information, of which there is none (B each), and the decoded latents ŷ B×M×h×w.

        position and noise are as in `forward`.
        """
        with torch.autocast(y.device.type, enabled=False):
            gain = self.gain(position)
            if noise is None:
                decoded = quantised = self.rounded(y, gain) / gain
            else:
                quantised = (y * gain + noise) / gain
                decoded = straight_through(y, self.rounded(y, gain), gain) if self.mixed else quantised
            bits = self.density.bits(quantised, 1 / gain).sum(dim=(1, 2, 3))
        return bits, torch.zeros_like(bits), decoded

    def forward(self, x: Tensor, position: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rate in bits per image (B), mean squared error on 0…1 per image (B), reconstruction B×3×H×W.

        x is B×3×H×W in 0…1; position B; noise B×M×H/16×W/16 uniform in ±½, or None for real rounding in the rate as well.
        Ballé et al. 2017, eq. (11): ỹ = y + Δy in training; eq. (8): ŷ = round(y) at test time. With `mixed`, the synthesis gets round(y)
        in training as well, and the gradient of the identity (Minnen, Singh 2020, section 3.3). Where steps are wide against the latents,
        noise of their width is far from what rounding to zero does, and a network for many rates cannot learn to ignore it.
        """
        bits_y, bits_z, decoded = self.code(self.latents(x), position, noise)
        restored = self.show(decoded, position)
        return bits_y + bits_z, (restored - x).square().mean(dim=(1, 2, 3)), restored


def clipped(x: Tensor) -> Tensor:
    """Images as a decoder shows them, within 0…1. The gradient is that of x: what lies beyond finds back to pixels that do not."""
    return x + (x.clamp(0, 1) - x).detach()


def straight_through(y: Tensor, hard: Tensor, gain: Tensor) -> Tensor:
    """The quotient hard / gain, of shapes that broadcast, for the whole numbers that y · gain was rounded to; its gradient is that of y."""
    scaled = y * gain
    return (scaled + (hard - scaled).detach()) / gain


def rounded(y: Tensor, gain: Tensor) -> Tensor:
    """ŷ = round(y · gain) / gain, of any shapes that broadcast; straight through, the gradient is that of y."""
    return straight_through(y, torch.round(y * gain), gain)


def thriftily(x: Tensor, nearest: Tensor, saved: Tensor, thrift: float) -> Tensor:
    """Of real numbers in units of the step, the whole numbers nearest to them, or the next ones nearer to zero.

    Those where each of the bits that it saves (all of the same shape) adds at most `thrift` to the squared error (`codec/rounding.py`).
    """
    # (|x| - (|n| - 1))² - (|x| - |n|)²
    more = 1 + 2 * (x.abs() - nearest.abs())
    return torch.where((nearest != 0) & (thrift * saved > more), nearest - nearest.sign(), nearest)
