"""The piecewise-linear entropy model: trained in floating point, frozen to integers.

Per latent channel, a cumulative distribution F that is linear between knots and has exponential tails. The
density of y is then piecewise constant, and that of y + U(-Δ/2, Δ/2), times Δ,

    P(ŷ) = F(ŷ + Δ/2) - F(ŷ - Δ/2),                               (Ballé et al. 2017, section 3 and appendix 6.2)

is piecewise linear; its samples on any grid of spacing Δ sum to one without renormalisation. One F therefore
serves every quantiser step.

Knots lie at s_c · sinh(0.1 k), k = -K…K: ten to a unit interval around zero, a constant ten per cent apart far from it,
in units of the learned scale s_c of the channel.

Frozen, everything is an integer (`codec/frozen.py`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from codec.frozen import CDF_BITS, STEP_BITS, FrozenDensity

SPACING = 0.1
"""Distance of knots in asinh(y / s_c)."""
HALF_KNOTS = 80
"""K: the knots reach to ±sinh(8) = ±1490 scales."""


def knot_grid() -> Tensor:
    """The 2K + 1 knots in units of a channel's scale, float64."""
    k = torch.arange(-HALF_KNOTS, HALF_KNOTS + 1, dtype=torch.float64)
    return torch.sinh(SPACING * k)


def start_log_mass() -> Tensor:
    """Logarithms of the masses (left tail, 2K intervals, right tail) that training starts from, float64.

    They are those of Student's t with two degrees of freedom, F(u) = ½ + u / 2√(2 + u²), whose heavy tails keep a gradient on
    latents that lie far out when training begins.
    """
    grid = knot_grid()
    cdf = 0.5 + grid / (2 * torch.sqrt(2 + grid * grid))
    edges = torch.cat([torch.zeros(1, dtype=grid.dtype), cdf, torch.ones(1, dtype=grid.dtype)])
    return edges.diff().log()


class Density(nn.Module):
    """A trainable piecewise-linear cumulative distribution for each of C channels.

    Parameters: `log_scale` (C), the logarithm of s_c; `logits` (C × 2K + 2), corrections to the logarithms of the
    masses of the left tail, the intervals and the right tail.
    """

    grid: Tensor
    start: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        grid = knot_grid()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.logits = nn.Parameter(torch.zeros(channels, 2 * HALF_KNOTS + 2))
        self.register_buffer("grid", grid.to(torch.float32), persistent=False)
        self.register_buffer("start", start_log_mass().to(torch.float32), persistent=False)

    def masses(self) -> Tensor:
        """Probability of the left tail, of each interval between knots and of the right tail, C × 2K + 2; rows sum to 1."""
        return functional.softmax(self.start + self.logits, dim=1)

    def cdf(self, y: Tensor) -> Tensor:
        """F_c(y) for y of shape B×C×…, the same shape."""
        value, above = self._anchored(y, self.masses())
        return value + above.to(value.dtype)

    def likelihood(self, y: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """F(y + Δ/2) - F(y - Δ/2) for y of shape B×C×… and a step Δ that broadcasts against it."""
        half = step / 2
        value, above = self._anchored(torch.cat([y - half, y + half]), self.masses())
        (lower, upper), (lower_above, upper_above) = value.chunk(2), above.chunk(2)
        return upper - lower + (upper_above & ~lower_above).to(value.dtype)

    def bits(self, y: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """-log2 of the likelihood, elementwise; finite wherever y lies."""
        # Differences of F may fall below zero by a rounding error.
        return -torch.log2(self.likelihood(y, step).clamp(min=0) + 1e-9)

    def _anchored(self, y: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
        """(F(y), False) below the middle knot and (F(y) - 1, True) above it, so that differences keep their precision in both tails."""
        shape = (1, -1) + (1,) * (y.dim() - 2)
        u = y * torch.exp(-self.log_scale).reshape(shape)
        edge = math.sinh(SPACING * HALF_KNOTS)
        inside = u.clamp(-edge, edge)
        with torch.no_grad():
            # Rounding of asinh may name the neighbour of the interval; F is continuous, so the neighbour's linear piece, extended
            # by a rounding error, gives the same value to that error.
            k = torch.floor(torch.asinh(inside) / SPACING).long().add_(HALF_KNOTS).clamp_(0, 2 * HALF_KNOTS - 1)
            row = torch.arange(masses.shape[0], device=y.device).reshape(shape)
            above = k >= HALF_KNOTS
        # F at the left end of each interval, summed from the nearer end.
        below_it = torch.cumsum(masses[:, : HALF_KNOTS + 1], dim=1)[:, :HALF_KNOTS]
        above_it = -masses[:, HALF_KNOTS + 1 :].flip(1).cumsum(dim=1).flip(1)[:, :HALF_KNOTS]
        base = torch.cat([below_it, above_it], dim=1)
        slope = masses[:, 1:-1] / self.grid.diff()
        flat = k + row * (2 * HALF_KNOTS)
        value = base.reshape(-1)[flat] + slope.reshape(-1)[flat] * (inside - self.grid[k])
        # Tails: F = m·exp((u + edge) / τ) below the knots, mirrored above, with τ an eighth of their reach.
        tau = edge / 8
        left, right = masses[:, 0].reshape(shape), masses[:, -1].reshape(shape)
        value = value + left * torch.expm1((u + edge).clamp(max=0) / tau)
        return value - right * torch.expm1(-(u - edge).clamp(min=0) / tau), above


def freeze(density: Density) -> FrozenDensity:
    """Round a trained density to integers."""
    with torch.no_grad():
        masses = functional.softmax(start_log_mass() + density.logits.detach().double().cpu(), dim=1)
        cdf = torch.cumsum(masses[:, :-1], dim=1).numpy()
        scale = density.log_scale.detach().double().cpu().exp().numpy()
    return FrozenDensity(
        np.rint(knot_grid().numpy() * (1 << STEP_BITS)).astype(np.int64),
        np.clip(np.rint(scale * (1 << STEP_BITS)), 1, (1 << 30) - 1).astype(np.int64),
        np.clip(np.rint(cdf * (1 << CDF_BITS)), 0, 1 << CDF_BITS).astype(np.int64),
    )
