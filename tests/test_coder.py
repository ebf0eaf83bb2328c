from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec import coder
from codec.coder import PRECISION, Tables
from codec.errors import FormatError

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)


def table(weights: list[int]) -> np.ndarray:
    """Counts with these proportions, and the exact sum that the coder asks for."""
    total, size = (1 << PRECISION) - len(weights), len(weights)
    edges = np.concatenate([[0], np.cumsum(weights)]).astype(np.int64) * total // max(sum(weights), 1)
    if sum(weights) == 0:
        edges = np.concatenate([np.zeros(size, np.int64), [total]])
    return np.diff(edges).astype(np.float64)


def make(lowest: list[int], weights: list[list[int]]) -> Tables:
    return Tables(np.array(lowest, np.int64), [table(w) for w in weights])


tables_of = st.lists(
    st.tuples(st.integers(-1000, 1000), st.lists(st.integers(0, 1000), min_size=2, max_size=40)), min_size=1, max_size=5
).map(lambda rows: make([r[0] for r in rows], [r[1] for r in rows]))


@settings(max_examples=150, deadline=None)
@given(st.data(), tables_of)
def test_any_array_comes_back(data: st.DataObject, tables: Tables) -> None:
    shape = (len(tables.counts), data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6)))
    values = st.one_of(st.integers(-1040, 1040), INT32)
    symbols = data.draw(hnp.arrays(np.int32, shape, elements=values))
    np.testing.assert_array_equal(coder.decode(coder.encode(symbols, tables), tables, shape), symbols)


@pytest.mark.parametrize("value", [-(1 << 31), -1, 0, 1, (1 << 31) - 1])
def test_all_escapes(value: int) -> None:
    tables = make([100], [[1, 1, 0]])
    symbols = np.full((1, 7, 5), value, np.int32)
    np.testing.assert_array_equal(coder.decode(coder.encode(symbols, tables), tables, symbols.shape), symbols)


def test_many_far_escapes() -> None:
    """Lengths of 25 bits and more are all coded in 24 bits."""
    tables = make([0], [[0, 1]])
    symbols = np.full((1, 3, 400), 1 << 30, np.int32)
    np.testing.assert_array_equal(coder.decode(coder.encode(symbols, tables), tables, symbols.shape), symbols)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0.1, 60), st.integers(1, 3000))
def test_length_is_the_code_length(seed: int, spread: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    tables = make([-20, -5], [rng.integers(1, 1000, 42).tolist(), rng.integers(1, 1000, 12).tolist()])
    symbols = np.rint(rng.normal(0, spread, (2, 1, count))).astype(np.int32)
    size = len(coder.encode(symbols, tables))
    ideal = tables.bits(symbols).sum() / 8
    assert ideal <= size + 1e-6
    assert size <= 1.001 * ideal + 16


def test_code_length_counts_the_frequencies_that_the_coder_uses() -> None:
    tables = make([0], [[2, 1, 1, 0]])
    frequency = (tables.counts[0] + 1) / 2**PRECISION
    symbols = np.array([[[0, 0, 1, 2]]], np.int32)
    assert tables.bits(symbols).sum() == pytest.approx(-np.log2(frequency[[0, 0, 1, 2]]).sum())
    far = np.array([[[3, -1, 4, 1000]]], np.int32)
    # Escape, then bit lengths 1, 1, 2, 10 with probabilities ½, ½, ¼, 2⁻¹⁰ (nearly), then as many bits.
    expected = -4 * np.log2(frequency[3]) + (1 + 1 + 2 + 10) + (1 + 1 + 2 + 10)
    assert tables.bits(far).sum() == pytest.approx(expected, abs=1e-4)


def test_words_are_pinned() -> None:
    """These bytes were written once. If they change, files of earlier releases no longer decode."""
    tables = make([-2, -1], [[1, 5, 20, 5, 1, 1], [3, 10, 3, 1]])
    symbols = np.array([[[0, 1, -1], [0, 0, 9]], [[0, 0, 1], [-70000, 1, 0]]], np.int32)
    data = coder.encode(symbols, tables)
    assert data.hex() == PINNED
    np.testing.assert_array_equal(coder.decode(bytes.fromhex(PINNED), tables, (2, 2, 3)), symbols)


PINNED = "bec0d4aba365d33700000088"


def test_a_pure_integer_range_coder_reads_the_same_symbols() -> None:
    """The coder's frequencies are exactly counts + 1: a decoder in Python integers, written from the definition, agrees."""
    rng = np.random.default_rng(3)
    tables = make([-3, 0], [rng.integers(0, 50, 9).tolist(), rng.integers(0, 50, 5).tolist()])
    symbols = np.stack([rng.integers(-3, 5, (4, 25)), rng.integers(0, 4, (4, 25))]).astype(np.int32)
    words = np.frombuffer(coder.encode(symbols, tables), "<u4").tolist()
    point, rest = (words[0] << 32) | (words[1] if len(words) > 1 else 0), words[2:]
    lower, span = 0, (1 << 64) - 1
    out = []
    for c in range(2):
        cumulative = np.concatenate([[0], np.cumsum(tables.counts[c] + 1)]).astype(int).tolist()
        for _ in range(100):
            unit = span >> PRECISION
            quantile = ((point - lower) % (1 << 64)) // unit
            s = max(i for i in range(len(cumulative) - 1) if cumulative[i] <= quantile)
            out.append(s + int(tables.lowest[c]))
            lower = (lower + unit * cumulative[s]) % (1 << 64)
            span = unit * (cumulative[s + 1] - cumulative[s])
            while span < 1 << 32:
                lower, span = (lower << 32) % (1 << 64), span << 32
                point = ((point << 32) % (1 << 64)) | (rest.pop(0) if rest else 0)
    np.testing.assert_array_equal(np.array(out).reshape(symbols.shape), symbols)


def test_damaged_data_are_an_error_or_other_symbols_but_nothing_else() -> None:
    tables = make([-2], [[1, 5, 20, 5, 1, 1]])
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = rng.bytes(4 * int(rng.integers(0, 8)))
        with contextlib.suppress(FormatError):
            assert coder.decode(data, tables, (1, 5, 5)).shape == (1, 5, 5)


def test_leftover_and_ragged_data_are_refused() -> None:
    tables = make([-2], [[1, 5, 20, 5, 1, 1]])
    data = coder.encode(np.zeros((1, 4, 4), np.int32), tables)
    with pytest.raises(FormatError, match="go on"):
        coder.decode(data + bytes(40) + b"abcd", tables, (1, 4, 4))
    with pytest.raises(FormatError, match="words"):
        coder.decode(data + b"x", tables, (1, 4, 4))
    with pytest.raises(FormatError, match="where none belong"):
        coder.decode(data, tables, (1, 0, 4))


def test_bad_tables_are_refused() -> None:
    for counts in ([2.0**24 - 1], [2.0**24, -2.0], [1.0, 2.0], [0.5, 2.0**24 - 2.5]):
        with pytest.raises(ValueError, match="2\\*\\*24"):
            Tables(np.zeros(1, np.int64), [np.array(counts)])
    with pytest.raises(ValueError, match="int32"):
        coder.encode(np.zeros((1, 2, 2)), make([0], [[1, 1]]))  # type: ignore[arg-type]
