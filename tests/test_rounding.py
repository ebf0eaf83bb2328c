"""Rounding that counts bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hyper_metadata, tiny_hyper_tensors, tiny_model_bytes
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from codec import container
from codec.coder import Tables
from codec.errors import ModelError
from codec.model import Model, from_bytes, to_bytes
from codec.rounding import MOST, Savings

METADATA = {"filters": 8, "latents": 12, "lambdas": [0.013], "default_quality": 2}


def cost(tables: Tables, table: int, symbol: int) -> float:
    """Code length of one symbol."""
    return float(tables.bits([np.array([symbol] if c == table else [], np.int64) for c in range(len(tables.counts))])[table])


@given(x=st.floats(-MOST - 0.4, MOST + 0.4), table=st.integers(0, 11), thrift=st.sampled_from([0.0, 0.03, 0.1, 0.3]))
def test_a_symbol_is_lowered_where_that_pays(tiny_model: Model, x: float, table: int, thrift: float) -> None:
    tables = tiny_model.entropy.tables(2)
    found = int(Savings(tables).rounded(torch.tensor([x]), torch.tensor([table]), thrift)[0])
    nearest = int(np.rint(np.float32(x)))
    lower = nearest - int(np.sign(nearest))
    gain = thrift * (cost(tables, table, nearest) - cost(tables, table, lower)) - ((x - lower) ** 2 - (x - nearest) ** 2)
    if abs(gain) > 1e-4:
        assert found == (lower if gain > 0 and nearest else nearest)
    else:
        assert found in (lower, nearest)


def test_none_is_plain_rounding(tiny_model: Model) -> None:
    x = torch.randn(12, 1000) * 10.0 ** torch.arange(-6, 6)[:, None]
    rounded = Savings(tiny_model.entropy.tables(1)).rounded(x, torch.arange(12)[:, None].expand(x.shape), 0.0)
    np.testing.assert_array_equal(rounded, np.rint(x.numpy()))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 3e9, -3e9])
def test_what_is_out_of_range_is_refused(tiny_model: Model, wrong: float) -> None:
    with pytest.raises(ModelError, match="out of range"):
        Savings(tiny_model.entropy.tables(1)).rounded(torch.tensor([0.0, wrong]), torch.tensor([0, 1]), 0.1)


def thrifty(profile: int, thrift: list[float]) -> Model:
    """An untrained model that rounds thriftily, at three qualities."""
    if profile == container.HYPERPRIOR:
        return from_bytes(to_bytes(tiny_hyper_tensors(), {**hyper_metadata(), "thrift": thrift}), "thrifty")
    return from_bytes(to_bytes(load(tiny_model_bytes()), {**METADATA, "thrift": thrift}), "thrifty")


@pytest.mark.parametrize("profile", list(container.PROFILES))
def test_models_round_as_their_files_say(profile: int, photograph: np.ndarray) -> None:
    """The middle quality is halfway between two rungs; whatever is rounded, decoders get it back."""
    plain, model = thrifty(profile, [0.0]), thrifty(profile, [0.0, 0.2])
    np.testing.assert_allclose(model.entropy.thrift, [0, 0.1, 0.2])
    y = plain.analyse(photograph[:96, :160]) * 2
    np.testing.assert_array_equal(model.entropy.quantise(y, 1), plain.entropy.quantise(y, 1))
    for quality in (2, 3):
        symbols = model.entropy.quantise(y, quality)
        assert sum(model.entropy.bits(y, quality)) < sum(plain.entropy.bits(y, quality))
        np.testing.assert_array_equal(model.entropy.decode(model.entropy.encode(y, quality), quality, 6, 10), symbols)


@pytest.mark.parametrize("thrift", [[], [-0.1], [1.0], [float("nan")], [[0.1]], "much", None])
def test_absurd_thrift_is_refused(thrift: object) -> None:
    with pytest.raises(ModelError, match="thrifty: not a usable model"):
        thrifty(container.FACTORIZED, thrift)  # type: ignore[arg-type]
