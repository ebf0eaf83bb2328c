"""The integer form of a piecewise-linear density (`codec/density.py`), from which coding tables are computed. Needs no torch.

Positions on the latent axis are in units of 2⁻¹⁷, steps Δ in units of 2⁻¹⁶ (so that the edges (n ± ½)Δ of a bin are integers too), and F
in units of 2⁻³⁰.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from codec.coder import PRECISION, Tables

if TYPE_CHECKING:
    from torch import Tensor

STEP_BITS: Final = 16
"""A frozen step Δ is an integer number of 2⁻¹⁶."""
CDF_BITS: Final = 30
"""Frozen values of F are integer numbers of 2⁻³⁰."""
TAIL_BITS: Final = 16
"""Tables end where less than 2⁻¹⁶ of the mass is left on a side; what lies beyond is escaped."""
MAX_SYMBOLS: Final = 1 << 12
"""No table holds more symbols than this; they are those nearest to the median."""
Integers = npt.NDArray[np.int64]


def integers(tensor: Tensor) -> Integers:
    """What a model file holds as integers of any size, int64. Raises ValueError when they are none."""
    if tensor.is_floating_point():
        raise ValueError("tables must be integers")
    return np.asarray(tensor.numpy(), dtype=np.int64)


@dataclass(frozen=True)
class FrozenDensity:
    """The integer form of a density, from which all coding tables are computed. No floating-point number takes part."""

    grid: Integers
    """2K + 1 knots in units of 2⁻¹⁶ of a channel's scale, increasing."""
    scale: Integers
    """C scales in units of 2⁻¹⁶, positive."""
    cdf: Integers
    """C × 2K + 1 values of F at the knots in units of 2⁻³⁰, not decreasing. What lies outside the knots is tail."""

    def __post_init__(self) -> None:
        shape = (len(self.scale), len(self.grid))
        if self.cdf.shape != shape or shape[1] < 2 or any(a.dtype != np.int64 for a in (self.grid, self.scale, self.cdf)):
            raise ValueError("the parts of a density do not fit each other")
        if (np.diff(self.grid) <= 0).any() or abs(self.grid).max() >= 1 << 30 or self.scale.min() < 1 or self.scale.max() >= 1 << 30:
            raise ValueError("the knots of a density must increase")
        if (np.diff(self.cdf) < 0).any() or self.cdf.min() < 0 or self.cdf.max() > 1 << CDF_BITS:
            raise ValueError("a cumulative distribution must not decrease and must lie in 0…1")

    def tables(self, steps: Integers) -> Tables:
        """Coding tables for quantiser steps Δ (C integers, in units of 2⁻¹⁶): P(n) = F(Δ(n + ½)) - F(Δ(n - ½))."""
        if steps.shape != self.scale.shape or steps.dtype != np.int64 or steps.min() < 1 or steps.max() >= 1 << 31:
            raise ValueError("there must be one positive step for each channel")
        tables = [self._table(c, int(steps[c])) for c in range(len(self.scale))]
        return Tables(np.array([lowest for lowest, _ in tables], np.int64), [counts for _, counts in tables])

    def _table(self, channel: int, step: int) -> tuple[int, npt.NDArray[np.float64]]:
        """(lowest symbol, counts) of one channel."""
        knots = (self.grid * self.scale[channel]) >> (STEP_BITS - 1)  # in units of 2⁻¹⁷
        cdf = self.cdf[channel]
        tail = 1 << (CDF_BITS - TAIL_BITS)
        # Symbols whose bins may touch the region where tail < F < 1 - tail, then fewer if they are too many.
        first = int(knots[max(int(np.searchsorted(cdf, tail)) - 1, 0)])
        last = int(knots[min(int(np.searchsorted(cdf, (1 << CDF_BITS) - tail)), len(knots) - 1)])
        middle = int(knots[min(int(np.searchsorted(cdf, 1 << (CDF_BITS - 1))), len(knots) - 1)])
        low, high, centre = (_nearest(x, step) for x in (first, last, middle))
        low, high = max(low, centre - MAX_SYMBOLS // 2), min(high, centre + MAX_SYMBOLS // 2 - 1)
        edges = (2 * np.arange(low, high + 2, dtype=np.int64) - 1) * step
        values = _interpolate(knots, cdf, edges)
        # Leave out the symbols that lie wholly in a tail, but never all of them.
        keep = np.flatnonzero((values[1:] > tail) & (values[:-1] < (1 << CDF_BITS) - tail))
        a, b = (int(keep[0]), int(keep[-1])) if len(keep) else (centre - low, centre - low)
        values = values[a : b + 2]
        size = b - a + 2  # with the escape
        cumulative = np.concatenate([values - values[0], [1 << CDF_BITS]])
        return low + a, np.diff(cumulative * ((1 << PRECISION) - size) >> CDF_BITS).astype(np.float64)


def _nearest(position: int, step: int) -> int:
    """The symbol n whose bin Δ(n ± ½) holds a position (in units of 2⁻¹⁷)."""
    return (position + step) // (2 * step)


def _interpolate(knots: Integers, cdf: Integers, x: Integers) -> Integers:
    """F at positions x, by integer linear interpolation, rounded down; constant outside the knots."""
    x = np.clip(x, knots[0], knots[-1])
    k = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    width = np.maximum(knots[k + 1] - knots[k], 1)
    value: Integers = cdf[k] + (cdf[k + 1] - cdf[k]) * (x - knots[k]) // width
    return value
