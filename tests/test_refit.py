"""Densities that are fitted to the symbols that an encoder writes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import hyper_metadata, tiny_hyper_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.frozen import FrozenDensity
from codec.hyperprior import Hyperprior
from codec.layout import TABLES
from codec.model import from_bytes, to_bytes
from train.refit import COUNTED, fit, refit

SYMBOLS = np.arange(-COUNTED, COUNTED + 1)


@pytest.fixture(scope="module")
def entropy() -> Hyperprior:
    model = from_bytes(to_bytes(tiny_hyper_tensors(), hyper_metadata()), "tiny").entropy
    assert isinstance(model, Hyperprior)
    return model


def bits(density: FrozenDensity, steps: np.ndarray, counts: np.ndarray) -> float:
    """What so many symbols of each table cost."""
    return float(density.tables(steps).bits([np.repeat(SYMBOLS, row).astype(np.int32) for row in counts]).sum())


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_what_is_seen_becomes_cheaper_and_the_rest_stays(entropy: Hyperprior, data: st.DataObject) -> None:
    shape, steps = entropy.shape, entropy.shape_steps
    # Where σ/Δ is smaller, the shape gives the larger of these symbols nothing at all, and they stay escapes.
    rows = data.draw(st.lists(st.integers(24, TABLES - 1), min_size=1, max_size=4, unique=True))
    counts = np.zeros((TABLES, len(SYMBOLS)), np.int64)
    for row in rows:
        seen = data.draw(st.dictionaries(st.integers(-6, 6), st.integers(1, 100_000), min_size=1))
        counts[row, np.array(list(seen)) + COUNTED] = list(seen.values())
    fitted = fit(shape, steps, counts.astype(float))
    both = counts + counts[:, ::-1]
    assert bits(fitted, steps, both) <= bits(shape, steps, both) * 1.001 + 1
    others = np.setdiff1d(np.arange(TABLES), rows)
    # Up to the rounding of sums.
    assert np.abs(fitted.cdf[others] - shape.cdf[others]).max() <= 1
    # As likely to the left as to the right: F(-x) = 1 - F(x), as far as it was so before.
    was, now = (np.abs(cdf + cdf[:, ::-1] - (1 << 30)).max() for cdf in (shape.cdf, fitted.cdf))
    assert now <= was + 2


def test_many_symbols_are_coded_at_their_entropy(entropy: Hyperprior) -> None:
    """Zeros in a wide dead zone, which no scaled shape has: within a thousandth of what is possible."""
    counts = np.zeros((TABLES, len(SYMBOLS)), np.int64)
    row, wanted = 30, {-2: 4_000, -1: 36_000, 0: 920_000, 1: 36_000, 2: 4_000}
    counts[row, np.array(list(wanted)) + COUNTED] = list(wanted.values())
    share = np.array(list(wanted.values())) / 1e6
    ideal = -1e6 * float((share * np.log2(share)).sum())
    fitted = fit(entropy.shape, entropy.shape_steps, counts.astype(float))
    before, after = (bits(density, entropy.shape_steps, counts) for density in (entropy.shape, fitted))
    assert before > 1.01 * ideal and after == pytest.approx(ideal, rel=1e-3)


def test_a_fitted_model_writes_smaller_files(entropy: Hyperprior, photograph: np.ndarray) -> None:
    image, tensors, metadata = photograph[:192, :256], tiny_hyper_tensors(), hyper_metadata()
    plain = from_bytes(to_bytes(tensors, metadata), "tiny")
    tensors["shape.fitted"] = refit(entropy, [plain.analyse(image)], [1, plain.qualities])
    fitted = from_bytes(to_bytes(tensors, metadata), "fitted")
    for quality in (1, plain.qualities):
        data, others = fitted.encode(image, quality), plain.encode(image, quality)
        assert len(data) < len(others)
        np.testing.assert_array_equal(fitted.decode(data), plain.decode(others))


def test_another_shape_leaves_the_first_model_as_it_is(entropy: Hyperprior) -> None:
    before = copy.copy(entropy.tables.counts[10])
    wider = entropy.with_shape(FrozenDensity(entropy.shape.grid, 2 * entropy.shape.scale, entropy.shape.cdf))
    assert len(wider.tables.counts[10]) != len(before)
    np.testing.assert_array_equal(entropy.tables.counts[10], before)
