"""The objective with the second entropy model: side information and channel slices in floating point.

The networks are those that `codec.hyperprior` runs in integers. All of them see latents divided by `spread`, a power of two for
each channel near its standard deviation, and give means and scales in units of it, so that their weights are near one whatever
the latents' units are (and so that, in integers, the division is a shift).

What stands in for rounding, and why:

- *The rate* is that of the latents with additive uniform noise, -log2 p((y - μ)/Δ + u), as in profile 1: it is a smooth function
  of y, μ, σ and Δ, and rounding inside a likelihood has no useful gradient.
- *What the networks of later slices and the synthesis see* is really rounded, ŷ = round((y - μ)/Δ) Δ + μ, with the gradient of y
  (straight through), and as an encoder rounds, thriftily. Where a latent is rounded to its mean, nothing of it reaches the decoder; with
  noise, something always would, and the networks would come to rely on what they will not have.
- The side information z follows the same two rules. Its noise is made of that for y, so a step depends on nothing else.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from compressai.ops import LowerBound
from torch import Tensor, nn

from codec.density import HALF_KNOTS, SPACING, Density
from codec.layout import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Sizes, mask
from codec.rounding import MOST
from train.objective import RateDistortion, rounded, straight_through, thriftily

SMALLEST_SPREAD = -2
"""log2 of the smallest divisor: channels that hardly ever leave zero are not blown up to look like the others."""
LARGEST_SPREAD = 10


class Shape(nn.Module):
    """A trainable symmetric density of u = (y - μ)/σ: linear between knots at sinh(0.1 k), k = 0…K, exponential beyond.

    `Density` is constant between knots. That serves where σ is near the step; here many bins are far narrower than the
    knots' distance, and within a constant piece no gradient would reach μ.
    """

    grid: Tensor
    start: Tensor

    def __init__(self) -> None:
        super().__init__()
        grid = torch.sinh(SPACING * torch.arange(HALF_KNOTS + 1, dtype=torch.float64))
        self.reach = float(grid[-1])
        self.decay = self.reach / 8
        """The tail falls to 1/e in so many σ."""
        # Laplace's density with E|u| = 1, and a twentieth of heavy tails, which keep a gradient on what lies far out.
        start = 0.95 * 0.5 * (-grid).exp() + 0.05 * (2 + grid * grid) ** -1.5
        self.logits = nn.Parameter(torch.zeros(len(grid)))
        self.register_buffer("grid", grid.float(), persistent=False)
        self.register_buffer("start", start.log().float(), persistent=False)

    def pieces(self) -> Tensor:
        """K rows of (mass beyond the piece's outer end, density at its inner end, density at its outer end)."""
        p = torch.exp(self.start + self.logits)
        masses = torch.cat([0.5 * (p[1:] + p[:-1]) * self.grid.diff(), p[-1:] * self.decay])
        # Summed from the outside, so that small sums keep their precision; a half in all.
        beyond = masses.flip(0).cumsum(0).flip(0)
        return torch.stack([beyond[1:], p[:-1], p[1:]], dim=1) / (2 * beyond[0])

    def survival(self, u: Tensor, pieces: Tensor) -> Tensor:
        """The mass above u ≥ 0, elementwise."""
        inside = u.clamp(max=self.reach)
        with torch.no_grad():
            # asinh, from functions that are quick. Its rounding may name the neighbour; the formula then continues that one's line.
            k = (torch.log(inside + (inside * inside + 1).sqrt_()) / SPACING).long().clamp_(0, HALF_KNOTS - 1)
            outer, width = self.grid[k + 1], (self.grid[1:] - self.grid[:-1])[k]
        mass, inner_density, outer_density = _Pick.apply(pieces, k).unbind(-1)
        t = (outer - inside) / width
        value = mass + width * t * (outer_density + 0.5 * t * (inner_density - outer_density))
        return value * torch.exp((self.reach - u).clamp(max=0) / self.decay)

    def bits(self, u: Tensor, step: Tensor) -> Tensor:
        """-log2 of the mass within step / 2 of u, elementwise; finite wherever u lies."""
        pieces = self.pieces()
        u, half = u.abs(), step / 2
        inner, outer = u - half, u + half
        near, far = self.survival(torch.cat([inner.abs(), outer]), pieces).chunk(2)
        mass = torch.where(inner < 0, 1 - near, near) - far
        # Differences may fall below zero by a rounding error.
        return -torch.log2(mass.clamp(min=0) + 1e-9)


class _Pick(torch.autograd.Function):
    """Rows R×C of a small table at numbers K of any shape; `embedding`, with a gradient that takes a tenth of the time."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(k)
        ctx.count = len(rows)
        return functional.embedding(k, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (k,) = ctx.saved_tensors
        columns = [torch.bincount(k.flatten(), g.flatten(), minlength=ctx.count) for g in gradients[0].unbind(-1)]
        return torch.stack(columns, dim=1), None


class Product(nn.Conv2d):
    """A convolution of 1×1 as a product of matrices, which in single precision takes two thirds of the time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B×I×h×w to B×O×h×w."""
        return functional.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class Slice(nn.Module):
    """Mean and log2 σ of a slice's channels from the features and what is decoded: slices before it, its own places of earlier turns."""

    def __init__(self, k: int, sizes: Sizes) -> None:
        super().__init__()
        before, channels, turns, side = sizes.starts[k], sizes.slices[k], sizes.turns_of(k), sizes.own_kernel(k)

        def sees(channels: int, outputs: int, side: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(channels, outputs, side, padding=side // 2, bias=bias)

        self.views = sizes.views
        self.features = nn.Conv2d(sizes.features, sizes.width, 1)
        self.context = sees(self.views * before, sizes.width, sizes.kernel, bias=False) if before else None
        self.own = nn.ModuleList(sees(self.views * channels, sizes.width, side) for _ in range(turns - 1))
        self.hidden = nn.Conv2d(sizes.width, sizes.width, 1)
        self.last = Product(sizes.width, 2 * channels)
        self.direct = nn.ModuleList(sees(channels, 2 * channels, side) for _ in range(turns - 1 if side == 5 else 0))

    def shown(self, y: Tensor) -> Tensor:
        """What the networks see of decoded latents: themselves, and their sizes."""
        return torch.cat([y, y.abs()], dim=1) if self.views == 2 else y

    def common(self, features: Tensor, before: Tensor) -> Tensor:
        """What all turns have of the first layer's sum, of B×H2×h×w and B×C×h×w (C may be zero), in units of the channels' spread."""
        h: Tensor = self.features(features)
        return h if self.context is None else h + self.context(self.shown(before))

    def forward(self, common: Tensor, turn: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Twice B×S×h×w, of which the places of the turn are meant; `own` is B×S×h×w, zero where it is not decoded yet."""
        h = common + self.own[turn - 1](self.shown(own)) if turn else common
        h = torch.relu(self.hidden(torch.relu(h)))
        # Eight bits of mantissa are too few for a mean.
        with torch.autocast(h.device.type, enabled=False):
            out = self.last(h.float())
            if turn and self.direct:
                out = out + self.direct[turn - 1](own.float())
            mean, octaves = out.contiguous().chunk(2, dim=1)
        return mean, octaves


class HyperModel(RateDistortion):
    """Transforms and gains as in `RateDistortion`; the density is one shape for all latents, shifted by μ and scaled by σ."""

    log_gain_z: Tensor
    log_spread: Tensor

    def __init__(
        self,
        lambdas: Sequence[float],
        filters: int = 128,
        latents: int = 192,
        sizes: Sizes | None = None,
        thrift: float = 0.0,
        tilted: bool = False,
    ) -> None:
        """`thrift` and `tilted` are as in `RateDistortion`."""
        super().__init__(lambdas, filters, latents, mixed=True, thrift=thrift, tilted=tilted)
        sizes = sizes or Sizes()
        if sum(sizes.slices) != latents or sizes.side > latents:
            raise ValueError("the slices must add up to the latents, and the side information may not have more channels")
        self.sizes = sizes
        self.density = Shape()
        self.z_density = Density(sizes.side)
        self.hyper_analysis = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(latents, sizes.analysis, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(sizes.analysis, sizes.analysis, 5, stride=2, padding=2),
                relu2=nn.ReLU(),
                conv3=nn.Conv2d(sizes.analysis, sizes.side, 5, stride=2, padding=2, bias=False),
            )
        )
        self.hyper_synthesis = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(sizes.side, 4 * sizes.synthesis, 3, padding=1),
                up1=nn.PixelShuffle(2),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(sizes.synthesis, 4 * sizes.features, 3, padding=1),
                up2=nn.PixelShuffle(2),
            )
        )
        self.slices = nn.ModuleList(Slice(k, sizes) for k in range(len(sizes.slices)))
        self.features_bias = nn.Parameter(torch.zeros(len(lambdas), sizes.features))
        if len(lambdas) > 1:
            self.log_gain_z = nn.Parameter(torch.zeros(len(lambdas), sizes.side))
        else:
            self.register_buffer("log_gain_z", torch.zeros(1, sizes.side))
        self.register_buffer("log_spread", torch.zeros(latents))
        self.lower_bound = LowerBound(LOWEST_OCTAVE)
        self._start()

    def _start(self) -> None:
        """He's initialisation (for what a ReLU follows), μ = 0 and σ = 1 everywhere, side information that is mostly zero."""
        for part in (self.hyper_analysis, self.hyper_synthesis, self.slices):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.hyper_analysis.conv3.weight.mul_(0.35)
            self.z_density.log_scale.fill_(math.log(0.3))
            for part in self.slices:
                part.last.weight.zero_()
                if part.context is not None:
                    # Two sums meet in the first layer; together they should be as large as either.
                    part.context.weight.mul_(math.sqrt(0.5))
                    part.features.weight.mul_(math.sqrt(0.5))
                # Turns start alike, and learn what sets them apart.
                for convolution in (*part.own, *part.direct):
                    convolution.weight.zero_()

    @torch.no_grad()
    def calibrate(self, y: Tensor) -> None:
        """Set spreads, and the σ and μ that training begins with, from sample latents B×M×h×w in their units (analysis times unit)."""
        y = y.double()
        mean = y.mean(dim=(0, 2, 3))
        deviation = (y - mean[:, None, None]).abs().mean(dim=(0, 2, 3)).clamp(min=2.0 ** (LOWEST_OCTAVE - 2))
        self.log_spread.copy_(y.std(dim=(0, 2, 3)).clamp(min=1e-9).log2().round().clamp(SMALLEST_SPREAD, LARGEST_SPREAD))
        for start, size, part in zip(self.sizes.starts, self.sizes.slices, self.slices, strict=True):
            own = slice(start, start + size)
            spread = self.log_spread[own]
            part.last.bias[:size] = mean[own] / torch.exp2(spread)
            part.last.bias[size:] = deviation[own].log2() - spread

    @torch.no_grad()
    def savings(self) -> Tensor:
        """Bits that a symbol costs more than the next one nearer to zero: a row for each table, symbols 0…`MOST` (none for zero)."""
        octaves = LOWEST_OCTAVE + torch.arange(TABLES, device=self.log_unit.device)[:, None] / PER_OCTAVE
        step = torch.exp2(-octaves)
        symbols = torch.arange(MOST + 1, device=step.device)
        with torch.autocast(step.device.type, enabled=False):
            bits = self.density.bits(symbols * step, step.expand(-1, len(symbols)))
        return functional.pad(bits.diff(dim=1), (1, 0))

    def side(self, y: Tensor, position: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Bits of the side information per image (B), and features B×H2×h×w of latents B×M×h×w."""
        h = self.hyper_analysis(y * torch.exp2(-self.log_spread)[:, None, None])
        with torch.autocast(y.device.type, enabled=False):
            gain = at(self.log_gain_z, position).exp()[:, :, None, None]
            z = h.float()
            noisy = torch.round(z * gain) if noise is None else z * gain + _noise_for(z, noise)
            bits = self.z_density.bits(noisy / gain, 1 / gain).sum(dim=(1, 2, 3))
            z = rounded(z, gain)
        features = self.hyper_synthesis(z)[:, :, : y.shape[2], : y.shape[3]]
        return bits, torch.relu(features + at(self.features_bias, position)[:, :, None, None])

    def code(self, y: Tensor, position: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Bits of latents B×M×h×w and of their side information per image (B each), and the decoded latents ŷ B×M×h×w.

        position and noise are as in `forward`. For latents that were computed once, this alone trains the entropy model.
        """
        # All in one order in memory, channels first: sums of two orders are slow.
        y = y.contiguous()
        bits_z, features = self.side(y, position, noise)
        gain = self.gain(position)
        spread = torch.exp2(self.log_spread)[:, None, None]
        savings = self.savings()
        means, octaves, symbols = [], [], []
        decoded = y[:, :0]
        for k, part in enumerate(self.slices):
            start, size, count = self.sizes.starts[k], self.sizes.slices[k], self.sizes.turns_of(k)
            own = slice(start, start + size)
            common = part.common(features, decoded / spread[:start])
            mean, octave, symbol, known = (torch.zeros_like(y[:, own]) for _ in range(4))
            for turn in range(count):
                m, o = part(common, turn, known / spread[own])
                m, o = m * spread[own], o + self.log_spread[own, None, None]
                here = torch.from_numpy(mask(count, turn, y.shape[2], y.shape[3])).to(y.device)
                mean, octave = torch.where(here, m, mean), torch.where(here, o, octave)
                residual = (y[:, own] - m) * gain[:, own]
                with torch.no_grad():
                    nearest = torch.round(residual)
                    if self.thrift:
                        level = (o + torch.log2(gain[:, own]) - LOWEST_OCTAVE).nan_to_num_()
                        table = (level * PER_OCTAVE).round_().clamp_(0, TABLES - 1).long()
                        saved = savings[table, nearest.abs().nan_to_num().clamp(max=MOST).long()]
                        nearest = thriftily(residual, nearest, saved, self.thrift)
                # Straight through.
                known = torch.where(here, straight_through(y[:, own] - m, nearest, gain[:, own]) + m, known)
                symbol = torch.where(here, nearest, symbol)
            means.append(mean)
            octaves.append(octave)
            symbols.append(symbol)
            decoded = torch.cat([decoded, known], dim=1)
        with torch.autocast(y.device.type, enabled=False):
            residual = torch.cat(symbols, dim=1) if noise is None else (y - torch.cat(means, dim=1)) * gain + noise
            # log2 σ/Δ, in the range that there are tables for.
            octave = self.lower_bound(torch.cat(octaves, dim=1) + torch.log2(gain))
            step = torch.exp2(-octave.clamp(max=LOWEST_OCTAVE + (TABLES - 1) / PER_OCTAVE))
            bits_y = self.density.bits(residual * step, step).sum(dim=(1, 2, 3))
        return bits_y, bits_z, decoded


def at(rows: Tensor, position: Tensor) -> Tensor:
    """Rows R×C at real positions B, interpolated linearly: B×C."""
    low = position.floor().clamp(0, max(len(rows) - 2, 0)).long()
    high = (low + 1).clamp(max=len(rows) - 1)
    return torch.lerp(rows[low], rows[high], (position - low)[:, None])


def _noise_for(z: Tensor, noise: Tensor) -> Tensor:
    """Uniform noise in ±½ of z's shape B×C×⌈h/4⌉×⌈w/4⌉ from noise B×M×h×w for the latents.

    The sum of two independent uniform numbers, modulo one, is uniform, and independent of each of them.
    """
    both = noise[:, : z.shape[1]] + noise.roll(1, dims=1)[:, : z.shape[1]]
    some = both[:, :, ::4, ::4]
    return some - torch.round(some)
