"""The tables of a frozen hyperprior, fitted to the symbols that it codes.

Training measures rates with noise in the place of rounding, and of that the shape of the density learns. What is coded is rounded, and
thriftily: there are more zeros. So, when all else is frozen, photographs are quantised as an encoder would do it, and the table of each
σ/Δ gets a cumulative distribution of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec.coder import Symbols, Tables
from codec.frozen import CDF_BITS, STEP_BITS, FrozenDensity, Integers
from codec.hyperprior import Hyperprior
from codec.layout import TABLES

PRIOR: Final = 400.0
"""So many symbols' worth of what a table was before: most are seen a hundred thousand times, a few hardly ever."""
ROUNDS: Final = 2
"""What is thrifty depends on the tables."""
ITERATIONS: Final = 100
COUNTED: Final = 255
"""The largest symbols that are counted."""
Numbers = npt.NDArray[np.float64]


def refit(entropy: Hyperprior, latents: Sequence[npt.NDArray[np.float32]], qualities: Sequence[int]) -> Tensor:
    """F for each table of a hyperprior, TABLES × knots in units of 2⁻³⁰, int32: `shape.fitted` of its file.

    It is fitted to the symbols of latents M×h×w of photographs, coded at some qualities.
    """
    first = entropy.shape
    for _ in range(ROUNDS):
        counts = np.zeros((TABLES, 2 * COUNTED + 1))
        for quality in qualities:
            # Every quality counts alike, whatever its rate.
            own = np.zeros_like(counts)
            bits = sum(_count(entropy, y, quality, own) for y in latents)
            counts += own / max(bits, 1.0)
        counts *= sum(y.size for y in latents) * len(qualities) / counts.sum()
        entropy = entropy.with_shape(fit(first, entropy.shape_steps, counts))
    return torch.from_numpy(entropy.shape.cdf).to(torch.int32)


def _count(entropy: Hyperprior, y: npt.NDArray[np.float32], quality: int, counts: Numbers) -> float:
    """Adds how often each table coded each symbol -255…255 of latents M×h×w. Returns the bits."""
    total = 0.0

    def put(symbols: Symbols, numbers: Integers, tables: Tables) -> None:
        nonlocal total
        if tables is entropy.tables:
            place = np.repeat(np.arange(TABLES), numbers) * counts.shape[1] + symbols + COUNTED
            counts[:] += np.bincount(place[np.abs(symbols) <= COUNTED], minlength=counts.size).reshape(counts.shape)
            total += float(tables.bits(np.split(symbols, np.cumsum(numbers)[:-1])).sum())

    entropy.coded(y, quality, put)
    return total


def fit(shape: FrozenDensity, steps: Integers, counts: Numbers) -> FrozenDensity:
    """A density with a row for each table that is likeliest to have made these counts, TABLES × symbols -N…N.

    A table's F is a mixture of uniform densities, one between each two knots, whose masses are fitted by expectation and maximisation
    (Dempster, Laird, Rubin 1977) from a Dirichlet prior about what they were. What is seen to one side counts for both. The tails beyond
    the knots are kept.
    """
    counts = (counts + counts[:, ::-1]) / 2
    most = counts.shape[1] // 2
    knots = shape.grid / (1 << STEP_BITS)
    out = np.empty_like(shape.cdf)
    for row, (cdf, step) in enumerate(zip(shape.cdf, steps / (1 << STEP_BITS), strict=True)):
        known = np.diff(cdf) / (1 << CDF_BITS)
        edges = (np.arange(-most, most + 2) - 0.5) * step
        seen = np.flatnonzero((counts[row] > 0) & (edges[:-1] >= knots[0]) & (edges[1:] <= knots[-1]))
        # Of each interval, the share that each symbol's bin has.
        overlap = np.minimum(edges[seen + 1, None], knots[1:]) - np.maximum(edges[seen, None], knots[:-1])
        shares = np.maximum(overlap, 0) / np.diff(knots)
        number, mass = counts[row, seen], known
        for _ in range(ITERATIONS):
            mass = mass * ((number / np.maximum(shares @ mass, 1e-300)) @ shares) + PRIOR * known
            mass *= known.sum() / mass.sum()
        out[row] = np.clip(np.rint(cdf[0] + np.concatenate([[0.0], mass.cumsum()]) * (1 << CDF_BITS)), 0, 1 << CDF_BITS)
    return FrozenDensity(shape.grid, shape.scale, out)
