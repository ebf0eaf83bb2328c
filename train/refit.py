"""The densities of a frozen model, fitted to the symbols that it codes.

Training measures rates with noise in the place of rounding, of a few photographs at a time, and the density follows. What is coded is
rounded, and thriftily: there are more zeros. So, when all else is frozen, many photographs are quantised as an encoder would do it. In
profile 1 the density of each channel is fitted to its symbols at all rates; in profile 2 the table of each σ/Δ gets a cumulative
distribution of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec.coder import Symbols, Tables
from codec.factorized import Factorized
from codec.frozen import CDF_BITS, STEP_BITS, FrozenDensity, Integers
from codec.hyperprior import Hyperprior

PRIOR: Final = 400.0
"""So many symbols' worth of what a density was before: most tables are seen a hundred thousand times, a few hardly ever."""
ROUNDS: Final = 2
"""What is thrifty depends on the tables."""
ITERATIONS: Final = 100
COUNTED: Final = 1023
"""The largest symbols that are counted."""
Numbers = npt.NDArray[np.float64]
Seen = tuple[Integers, Numbers]
"""Steps in units of 2⁻¹⁶, one for each row of a density, and how often it coded the symbols -1023…1023 with them, rows × symbols."""


def refit(entropy: Factorized | Hyperprior, latents: Sequence[npt.NDArray[np.float32]], qualities: Sequence[int]) -> dict[str, Tensor]:
    """The tensor of a model file that becomes another, fitted to latents M×h×w of photographs, coded at some qualities.

    Every quality counts alike, whatever its rate. It is the `density.cdf` of profile 1, or the `shape.fitted` of profile 2.
    """
    first = entropy.shape if isinstance(entropy, Hyperprior) else entropy.density
    for _ in range(ROUNDS):
        seen = [_seen(entropy, latents, quality) for quality in qualities]
        many = sum(y.size for y in latents) * len(qualities) / sum(counts.sum() for _, counts in seen)
        seen = [(steps, counts * many) for steps, counts in seen]
        if isinstance(entropy, Hyperprior):
            # The tables are the same at all qualities, and to the left what they are to the right.
            both = sum(counts + counts[:, ::-1] for _, counts in seen)
            entropy = entropy.with_shape(fit(first, [(entropy.shape_steps, np.asarray(both) / 2)]))
        else:
            entropy = Factorized(fit(first, seen), entropy.steps, entropy.thrift)
    fitted, name = (entropy.shape, "shape.fitted") if isinstance(entropy, Hyperprior) else (entropy.density, "density.cdf")
    return {name: torch.from_numpy(fitted.cdf).to(torch.int32)}


def _seen(entropy: Factorized | Hyperprior, latents: Iterable[npt.NDArray[np.float32]], quality: int) -> Seen:
    """The symbols of a quality, counted by table, in shares of its bits."""
    tables = entropy.tables if isinstance(entropy, Hyperprior) else entropy.tables(quality)
    counts = np.zeros((len(tables.counts), 2 * COUNTED + 1))
    bits = 0.0

    def put(symbols: Symbols, numbers: Integers, coded_with: Tables) -> None:
        nonlocal bits
        if coded_with is tables:
            place = np.repeat(np.arange(len(counts)), numbers) * counts.shape[1] + symbols + COUNTED
            counts[:] += np.bincount(place[np.abs(symbols) <= COUNTED], minlength=counts.size).reshape(counts.shape)
            bits += float(tables.bits(np.split(symbols, np.cumsum(numbers)[:-1])).sum())

    for y in latents:
        if isinstance(entropy, Hyperprior):
            entropy.coded(y, quality, put)
        else:
            put(entropy.quantise(y, quality).ravel(), np.full(len(y), y[0].size, np.int64), tables)
    return entropy.shape_steps if isinstance(entropy, Hyperprior) else entropy.steps[quality - 1], counts / max(bits, 1.0)


def fit(density: FrozenDensity, seen: Sequence[Seen]) -> FrozenDensity:
    """The density that is likeliest to have made the symbols that were seen, with any steps.

    A row's F is a mixture of uniform densities, one between each two knots, whose masses are fitted by expectation and maximisation
    (Dempster, Laird, Rubin 1977) from a Dirichlet prior about what they were. The tails beyond the knots are kept.
    """
    out = np.empty_like(density.cdf)
    for row, (cdf, scale) in enumerate(zip(density.cdf, density.scale / (1 << STEP_BITS), strict=True)):
        knots = density.grid / (1 << STEP_BITS) * scale
        known = np.diff(cdf) / (1 << CDF_BITS)
        parts, numbers = [], []
        for steps, counts in seen:
            step, symbols = steps[row] / (1 << STEP_BITS), np.flatnonzero(counts[row])
            edges = (symbols[:, None] - counts.shape[1] // 2 + (-0.5, 0.5)) * step
            inside = (edges[:, 0] >= knots[0]) & (edges[:, 1] <= knots[-1])
            # Of each interval, the share that each symbol's bin has.
            overlap = np.minimum(edges[inside, 1:], knots[1:]) - np.maximum(edges[inside, :1], knots[:-1])
            parts.append(np.maximum(overlap, 0) / np.diff(knots))
            numbers.append(counts[row, symbols[inside]])
        shares, number, mass = np.concatenate(parts), np.concatenate(numbers), known
        for _ in range(ITERATIONS):
            mass = mass * ((number / np.maximum(shares @ mass, 1e-300)) @ shares) + PRIOR * known
            mass *= known.sum() / mass.sum()
        out[row] = np.clip(np.rint(cdf[0] + np.concatenate([[0.0], mass.cumsum()]) * (1 << CDF_BITS)), 0, 1 << CDF_BITS)
    return FrozenDensity(density.grid, density.scale, out)
