from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.fixedpoint import LIMIT
from codec.layout import Sizes, mask
from train import compensate
from train.hyper import HyperModel

SIZES = Sizes(side=4, analysis=6, synthesis=6, features=5, slices=(2, 3, 4), width=7, turns=(7, 4, 2))


def related(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Integers N×D of which neighbours are alike, and the last is one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=generator).cumsum(dim=1)
    return torch.cat([(20 * x).round().clamp(-127, 127), torch.ones(count, 1)], dim=1)


def test_the_factor_is_that_of_the_inverse() -> None:
    x = related(50, 12).double()
    gram = x.t() @ x
    factor = compensate.factor(gram)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(gram), rtol=1e-6, atol=1e-9)


def test_errors_make_up_for_each_other() -> None:
    """Of related inputs, the sum is far nearer than with each weight rounded for itself, also across blocks of columns."""
    x = related(4000, 300).double()
    w = torch.randn(8, 301, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    whole = compensate.rounded(w, compensate.factor(x.t() @ x + 1e-3 * torch.eye(301, dtype=torch.float64)), 1)
    assert torch.equal(whole[:, :-1], whole[:, :-1].round()) and not torch.equal(whole[:, -1], whole[:, -1].round())
    plain = torch.cat([w[:, :-1].round(), w[:, -1:]], dim=1)
    lost, before = (((w - q) @ x.t()).square().mean() for q in (whole, plain))
    assert lost < 0.2 * before


def test_of_inputs_that_are_not_related_each_weight_is_rounded_for_itself() -> None:
    w = torch.tensor([[0.4, 126.6, -300.0, 2.5001]], dtype=torch.float64)
    assert compensate.rounded(w, torch.eye(4, dtype=torch.float64), 0).tolist() == [[0, 127, -127, 3]]


def test_a_layer_is_fitted_to_what_is_wanted() -> None:
    """Also where its inputs were clamped, which weights that are only rounded know nothing of."""
    real = related(3000, 40)
    real[:, :-1] *= 1.5
    given = [x.clamp(-127, 127).to(torch.int16) for x in real.split(1000)]
    weights = torch.randn(6, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 50
    wanted = [x @ weights.float().t() for x in real.split(1000)]
    unit, reach = torch.full((6,), 64.0, dtype=torch.float64), torch.full((41,), 127.0, dtype=torch.float64)
    whole, shift = compensate.fitted(weights, given, wanted, 1, unit, reach)
    assert whole[:, :-1].abs().max() <= 127 and whole[:, :-1].abs().amax(dim=1).min() >= 32
    scale = (unit * torch.exp2(shift))[:, None]
    x, t = torch.cat(given).double(), torch.cat(wanted).double()
    errors = [(x @ w.t() - t).square().mean() for w in (whole / scale, (weights * scale).round() / scale, weights)]
    assert errors[0] < 0.8 * errors[2] < errors[1]


@settings(max_examples=15, deadline=None)
@given(st.floats(-3, 20), st.integers(0, 3))
def test_sums_stay_exact_in_single_precision(magnitude: float, seed: int) -> None:
    """However large weights and what is wanted are, or how fine the unit, no sum of what there may be reaches 2²⁴."""
    x = related(200, 600, seed)
    weights = torch.randn(3, 601, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2.0**magnitude
    weights[:, -1] *= 100
    reach = torch.full((601,), 255.0, dtype=torch.float64)
    reach[-1] = 1
    unit = torch.full((3,), 2.0**4, dtype=torch.float64)
    whole, shift = compensate.fitted(weights, [x], [x @ weights.float().t()], 1, unit, reach)
    assert ((whole.abs() * reach).sum(dim=1) + torch.exp2(shift - 1) < LIMIT).all()
    assert whole[:, :-1].abs().max() <= 127


@pytest.mark.parametrize("k", [0, 1, 2])
def test_places_and_columns_are_the_first_layer(k: int) -> None:
    """Their product is what the network computes, at each place as of its turn."""
    torch.manual_seed(3)
    model = HyperModel((0.01, 0.02), 4, 9, SIZES).requires_grad_(False)
    part = model.slices[k]
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    features, latents = torch.rand(5, 6, 8), torch.randn(9, 6, 8)
    layers = [part.features, *([] if part.context is None else [part.context]), *part.own]
    found = compensate._places(features, latents, k, SIZES) @ compensate._columns(layers).float().t()
    start, size, count = SIZES.starts[k], SIZES.slices[k], SIZES.turns_of(k)
    common, own = part.common(features[None], latents[None, :start]), latents[None, start : start + size]
    known = torch.zeros(6, 8, dtype=torch.bool)
    for turn in range(count):
        here = torch.from_numpy(mask(count, turn, 6, 8))
        wanted = common + part.own[turn - 1](part.shown(own * known)) if turn else common
        torch.testing.assert_close(found.t().reshape(-1, 6, 8)[:, here], wanted[0][:, here], rtol=1e-4, atol=1e-4)
        known |= here
