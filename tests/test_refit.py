"""Tables that are fitted to the symbols that an encoder writes."""

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
from codec.model import Model, from_bytes, to_bytes
from train.refit import COUNTED, fit, refit

SYMBOLS = np.arange(-COUNTED, COUNTED + 1)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return from_bytes(to_bytes(tiny_hyper_tensors(), hyper_metadata()), "tiny")


def bits(density: FrozenDensity, steps: np.ndarray, counts: np.ndarray) -> float:
    """What so many symbols of each table cost."""
    return float(density.tables(steps).bits([np.repeat(SYMBOLS, row).astype(np.int32) for row in counts]).sum())


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_what_is_seen_becomes_cheaper_and_the_rest_stays(tiny: Model, data: st.DataObject) -> None:
    entropy = tiny.entropy
    assert isinstance(entropy, Hyperprior)
    rows = data.draw(st.lists(st.integers(0, TABLES - 1), min_size=1, max_size=4, unique=True))
    counts = np.zeros((TABLES, len(SYMBOLS)), np.int64)
    for row in rows:
        seen = data.draw(st.dictionaries(st.integers(-6, 6), st.integers(1, 100_000), min_size=1))
        counts[row, np.array(list(seen)) + COUNTED] = list(seen.values())
    fitted = fit(entropy.shape, entropy.shape_steps, counts.astype(float))
    both = counts + counts[:, ::-1]
    assert bits(fitted, entropy.shape_steps, both) <= bits(entropy.shape, entropy.shape_steps, both) + 1
    others = np.setdiff1d(np.arange(TABLES), rows)
    # Up to the rounding of sums.
    assert np.abs(fitted.cdf[others] - entropy.shape.cdf[others]).max() <= 1
    # As likely to the left as to the right: F(-x) = 1 - F(x).
    assert (
        np.abs(fitted.cdf + fitted.cdf[:, ::-1] - (1 << 30)).max()
        <= np.abs(entropy.shape.cdf + entropy.shape.cdf[:, ::-1] - (1 << 30)).max() + 2
    )


def test_many_symbols_are_coded_at_their_entropy(tiny: Model) -> None:
    """Zeros in a wide dead zone, which no scaled shape has: within a thousandth of what is possible."""
    entropy = tiny.entropy
    assert isinstance(entropy, Hyperprior)
    counts = np.zeros((TABLES, len(SYMBOLS)))
    row, wanted = 30, {-2: 4_000, -1: 36_000, 0: 920_000, 1: 36_000, 2: 4_000}
    counts[row, np.array(list(wanted)) + COUNTED] = list(wanted.values())
    share = np.array(list(wanted.values())) / 1e6
    ideal = -1e6 * float((share * np.log2(share)).sum())
    before, after = (
        bits(d, entropy.shape_steps, counts.astype(int)) for d in (entropy.shape, fit(entropy.shape, entropy.shape_steps, counts))
    )
    assert before > 1.01 * ideal and after == pytest.approx(ideal, rel=1e-3)


def test_a_model_with_fitted_tables_writes_smaller_files(tiny: Model, photograph: np.ndarray) -> None:
    entropy = tiny.entropy
    assert isinstance(entropy, Hyperprior)
    image = photograph[:192, :256]
    tensors = tiny_hyper_tensors()
    tensors["shape.fitted"] = refit(entropy, [tiny.analyse(image)], [1, tiny.qualities])
    assert tuple(tensors["shape.fitted"].shape) == entropy.shape.cdf.shape
    fitted = from_bytes(to_bytes(tensors, hyper_metadata()), "fitted")
    for quality in (1, tiny.qualities):
        data, plain = fitted.encode(image, quality), tiny.encode(image, quality)
        assert len(data) < len(plain)
        np.testing.assert_array_equal(fitted.decode(data), tiny.decode(plain))


def test_another_shape_leaves_the_first_model_as_it_is(tiny: Model) -> None:
    entropy = tiny.entropy
    assert isinstance(entropy, Hyperprior)
    before = copy.copy(entropy.tables.counts[10])
    wider = entropy.with_shape(FrozenDensity(entropy.shape.grid, 2 * entropy.shape.scale, entropy.shape.cdf))
    assert len(wider.tables.counts[10]) != len(before)
    np.testing.assert_array_equal(entropy.tables.counts[10], before)
