"""Densities that are fitted to the symbols that an encoder writes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import hyper_metadata, tiny_hyper_tensors, tiny_model_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from codec.frozen import FrozenDensity
from codec.hyperprior import Hyperprior
from codec.layout import TABLES
from codec.model import Model, from_bytes, to_bytes
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
    rows = data.draw(st.lists(st.integers(0, TABLES - 1), min_size=1, max_size=4, unique=True))
    seen = []
    # The same rows with two steps, as a channel has them at two qualities.
    for factor in (1, 3):
        counts = np.zeros((TABLES, len(SYMBOLS)), np.int64)
        for row in rows:
            drawn = data.draw(st.dictionaries(st.integers(-6, 6), st.integers(1, 100_000), min_size=1))
            counts[row, np.array(list(drawn)) + COUNTED] = list(drawn.values())
        seen.append((factor * steps, counts))
    fitted = fit(shape, [(step, counts.astype(float)) for step, counts in seen])
    before, after = (sum(bits(density, step, counts) for step, counts in seen) for density in (shape, fitted))
    # A symbol in a thousand may be worth the prior.
    assert after <= before * 1.001 + 1
    others = np.setdiff1d(np.arange(TABLES), rows)
    # Up to the rounding of sums.
    assert np.abs(fitted.cdf[others] - shape.cdf[others]).max() <= 1


def test_many_symbols_are_coded_at_their_entropy(entropy: Hyperprior) -> None:
    """Zeros in a wide dead zone, which no scaled shape has: within a thousandth of what is possible."""
    counts = np.zeros((TABLES, len(SYMBOLS)), np.int64)
    row, wanted = 30, {-2: 4_000, -1: 36_000, 0: 920_000, 1: 36_000, 2: 4_000}
    counts[row, np.array(list(wanted)) + COUNTED] = list(wanted.values())
    share = np.array(list(wanted.values())) / 1e6
    ideal = -1e6 * float((share * np.log2(share)).sum())
    fitted = fit(entropy.shape, [(entropy.shape_steps, counts.astype(float))])
    before, after = (bits(density, entropy.shape_steps, counts) for density in (entropy.shape, fitted))
    assert before > 1.01 * ideal and after == pytest.approx(ideal, rel=1e-3)


@pytest.mark.parametrize("profile", ["factorized", "hyperprior"])
def test_a_fitted_model_writes_smaller_files(profile: str, tiny_model: Model, photograph: np.ndarray) -> None:
    image = photograph[:192, :256]
    if profile == "factorized":
        plain, tensors, metadata = tiny_model, load(tiny_model_bytes()), tiny_model.metadata
    else:
        tensors, metadata = tiny_hyper_tensors(), hyper_metadata()
        plain = from_bytes(to_bytes(tensors, metadata), "tiny")
    fitted = from_bytes(to_bytes({**tensors, **refit(plain.entropy, [plain.analyse(image)], [1, plain.qualities])}, metadata), "fitted")
    for quality in (1, plain.qualities):
        data, others = fitted.encode(image, quality), plain.encode(image, quality)
        assert len(data) < len(others)
        np.testing.assert_array_equal(fitted.decode(data), plain.decode(others))


def test_fitted_tables_are_as_likely_to_the_left_as_to_the_right(entropy: Hyperprior) -> None:
    """F(-x) = 1 - F(x), as far as it was so before."""
    rng = np.random.default_rng(0)
    latents = rng.laplace(0.4, 1.5, (entropy.latents, 6, 6)).astype(np.float32)
    cdf = refit(entropy, [latents], [1])["shape.fitted"].numpy().astype(np.int64)
    was, now = (np.abs(rows + rows[:, ::-1] - (1 << 30)).max() for rows in (entropy.shape.cdf, cdf))
    assert (cdf != entropy.shape.cdf).any() and now <= was + 2


def test_another_shape_leaves_the_first_model_as_it_is(entropy: Hyperprior) -> None:
    before = copy.copy(entropy.tables.counts[10])
    wider = entropy.with_shape(FrozenDensity(entropy.shape.grid, 2 * entropy.shape.scale, entropy.shape.cdf))
    assert len(wider.tables.counts[10]) != len(before)
    np.testing.assert_array_equal(entropy.tables.counts[10], before)
