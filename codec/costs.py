"""What symbols cost, in bits: the code lengths of the integer tables, with straight lines between them, so that they have slopes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from codec.coder import PRECISION, Tables

BEYOND: Final = 32
"""So many escaped symbols on each side of a table have their own cost; further out, the last ones' stand for all."""


class Costs:
    """The costs of all symbols of some tables."""

    def __init__(self, tables: Tables) -> None:
        outside = np.arange(1, BEYOND + 1, dtype=np.float64)
        # Behind an escape come the length of its distance from the table, by a static table, then its sign and its lower bits.
        suffix = 2.0 * np.frexp(outside)[1]
        parts = []
        for counts in tables.counts:
            cost = PRECISION - np.log2(counts + 1)
            escaped = cost[-1] + suffix
            parts.append(np.concatenate([escaped[::-1], cost[:-1], escaped]))
        sizes = np.array([len(part) for part in parts], np.int64)
        start = np.cumsum(sizes) - sizes
        self._flat = torch.from_numpy(np.concatenate(parts)).float()
        # Where in it a symbol's cost is, less the symbol; and the places of each table's first cost and of its last but one.
        self._offset, self._first, self._last = map(torch.from_numpy, (start - tables.lowest + BEYOND, start, start + sizes - 2))

    def beside(self, symbols: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of whole numbers (float) and of the next higher ones, with the tables of these numbers (int64), all of the same shape."""
        place = torch.clamp(symbols.long().add_(self._offset[table]), self._first[table], self._last[table])
        return self._flat[place], self._flat[place.add_(1)]

    def between(self, symbols: Tensor, table: Tensor) -> Tensor:
        """Bits of real numbers: on a line between the whole ones beside each. The table's number may be real too; both have gradients.

        On that line lies the expected cost of a number that is rounded up or down at random with itself as the mean.
        """
        bits: Tensor = _Between.apply(symbols, table, self)
        return bits


class _Between(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, symbols: Tensor, table: Tensor, costs: Costs) -> Tensor:
        low = torch.floor(symbols)
        part = symbols - low
        if not table.is_floating_point():
            a, b = costs.beside(low, table)
            ctx.save_for_backward(b - a, None)
            return torch.lerp(a, b, part)
        first = torch.floor(table)
        between, number = table - first, first.long()
        a, b = costs.beside(low, number)
        c, d = costs.beside(low, (number + 1).clamp_(max=len(costs._first) - 1))
        ctx.save_for_backward(torch.lerp(b - a, d - c, between), torch.lerp(c - a, d - b, part))
        return torch.lerp(torch.lerp(a, b, part), torch.lerp(c, d, part), between)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_symbol, by_table = ctx.saved_tensors
        return gradients[0] * by_symbol, None if by_table is None else gradients[0] * by_table, None
