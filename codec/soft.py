"""The entropy models as functions with gradients, for the encoder's search.

What is coded, and how, is decided in integers (`codec/factorized.py`, `codec/hyperprior.py`). Here the same networks run in single
precision, and symbols cost what the coding tables say, on lines between them (`codec/costs.py`). No decoder sees these rates.

Both are called with latents and a function that stands in for rounding. The side information of profile 2 is in units of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from codec.costs import Costs
from codec.factorized import Factorized
from codec.fixedpoint import BITS
from codec.frozen import STEP_BITS
from codec.hyperprior import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Hyperprior

Relax = Callable[[Tensor], Tensor]


class SoftFactorized:
    """Profile 1: one table for each channel."""

    def __init__(self, entropy: Factorized, quality: int) -> None:
        self.step = _column(entropy.steps[quality - 1] / (1 << STEP_BITS))
        """M×1×1."""
        self._costs = Costs(entropy.tables(quality))
        self._channels = torch.arange(len(self.step))[:, None, None]

    def __call__(self, y: Tensor, side: Tensor | None, relax: Relax) -> tuple[Tensor, Tensor]:
        """Bits of latents 1×M×h×w, and the decoded latents, of the same shape."""
        symbols = relax(y / self.step)
        return self._costs.between(symbols, self._channels.expand(symbols.shape)).sum(), symbols * self.step


class SoftHyperprior:
    """Profile 2: what `Hyperprior.run` computes."""

    def __init__(self, entropy: Hyperprior, quality: int) -> None:
        self.step = _column(entropy.steps[quality - 1] / (1 << STEP_BITS))
        """M×1×1."""
        self.side_step = _column(entropy.z_steps[quality - 1] / (1 << STEP_BITS))
        """Cz×1×1."""
        self._spread = _column(2.0**entropy.spread)
        self._known = _column(entropy.spread - LOWEST_OCTAVE - entropy.log2_steps[quality - 1] / (1 << BITS))
        self._features_bias = _column(entropy.features_bias[quality - 1] / (1 << BITS))
        self._synthesis, self._slices = entropy.real_layers()
        self._sizes = entropy.sizes
        self._costs, self._side_costs = Costs(entropy.tables), Costs(entropy.z_tables(quality))
        self._channels = torch.arange(len(self.side_step))[:, None, None]

    def __call__(self, y: Tensor, side: Tensor, relax: Relax) -> tuple[Tensor, Tensor]:
        """Bits of latents 1×M×h×w and side information 1×Cz×⌈h/4⌉×⌈w/4⌉, and the decoded latents 1×M×h×w."""
        symbols = relax(side)
        bits = self._side_costs.between(symbols, self._channels.expand(symbols.shape)).sum()
        coarse, fine = self._synthesis
        middle = functional.pixel_shuffle(torch.relu(_convolved([symbols * self.side_step], coarse)), 2)
        features = functional.pixel_shuffle(_convolved([middle], fine), 2)[:, :, : y.shape[2], : y.shape[3]]
        features = torch.relu(features + self._features_bias)
        decoded = y[:, :0]
        for start, size, (first, hidden, last) in zip(self._sizes.starts, self._sizes.slices, self._slices, strict=True):
            own = slice(start, start + size)
            maps = [features] + ([decoded / self._spread[:start]] if start else [])
            inside = torch.relu(_convolved([torch.relu(_convolved(maps, first))], hidden))
            mean, octave = _convolved([inside], last).chunk(2, dim=1)
            mean = mean * self._spread[own]
            # Where the exact model takes the nearest table, this one is between two.
            table = ((octave + self._known[own]) * PER_OCTAVE).clamp(0, TABLES - 1)
            symbols = relax((y[:, own] - mean) / self.step[own])
            bits = bits + self._costs.between(symbols, table).sum()
            decoded = torch.cat([decoded, symbols * self.step[own] + mean], dim=1)
        return bits, decoded


def _column(values: Any) -> Tensor:
    """C numbers as C×1×1."""
    return torch.as_tensor(values).float()[:, None, None]


def _convolved(maps: Sequence[Tensor], layer: tuple[Sequence[Tensor], Tensor]) -> Tensor:
    """The sum of some maps' convolutions, with zeros beyond the edges."""
    weights, bias = layer
    out = functional.conv2d(maps[0], weights[0], bias, padding=weights[0].shape[2] // 2)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        out = out + functional.conv2d(x, weight, padding=weight.shape[2] // 2)
    return out
