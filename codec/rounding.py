"""Rounding that counts bits: where the nearest symbol is dear and the next one, nearer to zero, is hardly worse, that one is coded.

What a squared error of one squared step is worth in bits is the same for all latents, if their steps are well chosen: with the rate
falling by dΔ / (Δ ln 2) and the error growing by Δ dΔ / 6 where steps are fine, a bit is worth ln 2 / 6 = 0.116 squared steps. A model says
how much of that it takes, for each quality, as its `thrift`. Less pays, since errors towards zero are not independent: the synthesis adds
them up.

It is the encoder's choice. Decoders need not know. (Video encoders call it rate-distortion-optimised quantisation.)
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from codec.coder import Symbols, Tables
from codec.costs import Costs
from codec.errors import ModelError

MOST: Final = 8
"""Symbols beyond ±8 are rounded as if each cost as much more than its neighbour as this one."""
LARGEST: Final = (1 << 31) - 1


def nearest(x: Tensor) -> Tensor:
    """The nearest whole numbers, as floats. Raises `ModelError` when they are out of range."""
    whole = torch.round(x)
    lowest, highest = (float(extreme) for extreme in whole.aminmax())
    if not (lowest >= -LARGEST and highest <= LARGEST):  # nor for NaN
        raise ModelError("the model gives latents that are out of range")
    return whole


class Savings:
    """What each symbol of some tables costs more than the next one nearer to zero."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    @cached_property
    def _bits(self) -> Tensor:
        """A row for each table, symbols -8…8. Without thrift nobody asks."""
        tables = self._tables
        costs = Costs(tables)
        symbols = torch.arange(-MOST, MOST + 1).float()
        each = torch.arange(len(tables.counts))[:, None].expand(-1, len(symbols))
        here, above = costs.beside(symbols.expand(each.shape), each)
        # Costs beside each other, turned towards zero.
        below = costs.beside((symbols - 1).expand(each.shape), each)[0]
        towards_zero = torch.where(symbols > 0, below, above)
        return torch.where(symbols == 0, 0.0, here - towards_zero)

    def rounded(self, x: Tensor, tables: Tensor, thrift: float) -> Symbols:
        """Whole numbers, int32, for real ones in units of the step, with the numbers of their tables (of the same shape).

        Each is the nearest, or the next one nearer to zero if that adds at most `thrift` to the squared error for each bit it saves.
        Raises `ModelError` when they are out of range.
        """
        whole = nearest(x).flatten()
        symbols = whole.int()
        if thrift:
            some = whole.nonzero()[:, 0]
            n = whole[some]
            saved = self._bits[tables.flatten()[some].long(), n.clamp(-MOST, MOST).long() + MOST]
            # (|x| - (|n| - 1))² - (|x| - |n|)²
            more = 1 + 2 * (x.flatten()[some].abs() - n.abs())
            lower = some[thrift * saved > more]
            symbols[lower] -= whole[lower].sign().int()
        return np.asarray(symbols.view(x.shape).numpy(), np.int32)
