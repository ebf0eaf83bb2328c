from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec.coder import PRECISION, Tables
from codec.costs import BEYOND, Costs


def some_tables() -> Tables:
    """Three, of different widths and places."""
    random = np.random.default_rng(3)
    counts = []
    for size in (2, 9, 40):
        cuts = np.sort(random.integers(0, (1 << PRECISION) - size, size - 1))
        counts.append(np.diff(np.concatenate([[0], cuts, [(1 << PRECISION) - size]])).astype(np.float64))
    return Tables(np.array([0, -4, 7]), counts)


TABLES = some_tables()
COSTS = Costs(TABLES)


@given(st.integers(0, 2), st.lists(st.integers(-24, 31), min_size=1, max_size=20))
def test_whole_numbers_cost_what_the_coder_takes(table: int, values: list[int]) -> None:
    symbols = [np.zeros(0, np.int32)] * 3
    symbols[table] = np.array(values, np.int32)
    number = torch.full((len(values),), table)
    bits, _ = COSTS.beside(torch.tensor(values).float(), number)
    assert float(bits.sum()) == pytest.approx(TABLES.bits(symbols).sum(), rel=1e-5)
    _, bits = COSTS.beside(torch.tensor(values).float() - 1, number)
    assert float(bits.sum()) == pytest.approx(TABLES.bits(symbols).sum(), rel=1e-5)


def test_far_out_the_last_escape_stands_for_all() -> None:
    for edge in ([-4.0 - BEYOND, -4.0 - 2 * BEYOND, -1e6], [3.0 + BEYOND, 1e6]):
        bits, above = COSTS.beside(torch.tensor(edge), torch.ones(len(edge), dtype=torch.int64))
        assert len(set(bits.tolist())) == len(set(above.tolist())) == 1


@given(st.floats(-20, 50, width=32), st.floats(0, 2, width=32))
def test_between_whole_numbers_costs_lie_on_lines(symbol: float, table: float) -> None:
    low, first = np.floor(symbol), min(int(table), 1)
    corner = torch.cat([torch.stack(COSTS.beside(torch.tensor(low), torch.tensor(t))) for t in (first, first + 1)]).double().numpy()
    across, along = symbol - low, table - first
    expected = (corner[:2] * (1 - along) + corner[2:] * along) @ [1 - across, across]
    assert float(COSTS.between(torch.tensor(symbol), torch.tensor(table))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("real", [True, False])
def test_slopes_are_those_of_the_lines(real: bool) -> None:
    symbols = torch.tensor([-3.3, 0.2, 8.7, 60.5], requires_grad=True)
    table = torch.tensor([0.3, 1.6, 1.2, 0.9], requires_grad=True) if real else torch.tensor([0, 1, 2, 1])
    COSTS.between(symbols, table).sum().backward()
    small = 2.0**-6
    with torch.no_grad():
        slope = (COSTS.between(symbols + small, table) - COSTS.between(symbols - small, table)) / (2 * small)
        torch.testing.assert_close(symbols.grad, slope, atol=2e-3, rtol=2e-3)
        if real:
            slope = (COSTS.between(symbols, table + small) - COSTS.between(symbols, table - small)) / (2 * small)
            torch.testing.assert_close(table.grad, slope, atol=2e-3, rtol=2e-3)
