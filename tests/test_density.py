from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.coder import PRECISION
from codec.density import Density, freeze, knot_grid
from codec.frozen import CDF_BITS, MAX_SYMBOLS, FrozenDensity


def random_density(seed: int, channels: int = 4) -> Density:
    torch.manual_seed(seed)
    density = Density(channels).double()
    density.grid = knot_grid()
    torch.nn.init.normal_(density.logits)
    torch.nn.init.normal_(density.log_scale, std=1.5)
    return density


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.floats(0.3, 300), st.floats(-5, 5))
def test_samples_on_any_grid_sum_to_one(seed: int, width: float, offset: float) -> None:
    density = random_density(seed)
    scale = float(density.log_scale.detach().exp().max())
    step, reach = width * scale, 2000 * scale
    n = torch.arange(-int(reach / step) - 1, int(reach / step) + 2, dtype=torch.float64)
    with torch.no_grad():
        p = density.likelihood(((n + offset) * step).expand(1, 4, -1), step)
    assert p.min() >= -1e-15
    # What is missing beyond the reach is the exponential tails' rest.
    with torch.no_grad():
        ends = density.cdf(torch.tensor([(n[0] + offset - 0.5) * step, (n[-1] + offset + 0.5) * step]).expand(1, 4, 2))
    np.testing.assert_allclose(p.sum(2)[0], (ends[..., 1] - ends[..., 0])[0], atol=1e-9)
    np.testing.assert_allclose(p.sum(2)[0] + ends[0, :, 0] + 1 - ends[0, :, 1], 1, atol=1e-6)


def test_cdf_runs_from_zero_to_one_and_never_falls() -> None:
    density = random_density(1)
    x = torch.linspace(-1e6, 1e6, 20_001, dtype=torch.float64)
    x = torch.cat([x, torch.linspace(-50, 50, 20_001, dtype=torch.float64)]).sort().values
    with torch.no_grad():
        f = density.cdf(x.expand(1, 4, -1))[0]
    assert (f.diff(dim=1) >= -1e-12).all()
    assert f[:, 0].max() < 1e-6
    assert f[:, -1].min() > 1 - 1e-6


def test_likelihood_is_the_integral_of_the_density() -> None:
    """The density, by automatic differentiation, integrated numerically over a bin."""
    density = random_density(2)
    centre, step = torch.tensor([-3.0, -0.4, 0.0, 0.7, 11.0], dtype=torch.float64), 0.75
    fine = torch.linspace(-0.5, 0.5, 20_001, dtype=torch.float64) * step
    x = (centre[:, None] + fine).reshape(1, 1, -1).repeat(1, 4, 1).requires_grad_()
    (slope,) = torch.autograd.grad(density.cdf(x).sum(), x)
    assert slope.min() >= 0
    integral = torch.trapezoid(slope.reshape(4, 5, -1), dx=step / 20_000)
    with torch.no_grad():
        expected = density.likelihood(centre.expand(1, 4, 5), step)[0]
    np.testing.assert_allclose(integral, expected, rtol=2e-3, atol=1e-7)


def test_the_smoothed_density_is_piecewise_linear() -> None:
    """Between neighbouring kinks (a knot plus or minus half a step) the likelihood is a straight line."""
    density = random_density(3, channels=1)
    with torch.no_grad():
        density.log_scale.zero_()
        knots, step = density.grid[70:91], 1.0
        kinks = torch.cat([knots - step / 2, knots + step / 2]).sort().values
        ends = density.likelihood(kinks.reshape(1, 1, -1), step)[0, 0]
        middles = density.likelihood(((kinks[1:] + kinks[:-1]) / 2).reshape(1, 1, -1), step)[0, 0]
    inner = slice(22, -22)  # there, both edges of the bin lie among the chosen knots
    np.testing.assert_allclose(middles[inner], ((ends[1:] + ends[:-1]) / 2)[inner], atol=1e-12)


def test_knots_are_ten_to_a_unit_at_the_centre() -> None:
    assert float(knot_grid().diff().min()) < 0.1002
    assert (np.abs(knot_grid()) < 0.5).sum() >= 9


def test_it_learns_a_distribution_it_was_not_made_for() -> None:
    """Two narrow peaks: the fitted code length comes near the entropy of the samples."""
    torch.manual_seed(0)
    density = Density(1)
    y = torch.cat([torch.randn(4000) * 0.3 - 6, torch.randn(4000) * 0.3 + 6]).reshape(1, 1, -1)
    optimiser = torch.optim.Adam(density.parameters(), lr=0.05)
    for _ in range(250):
        loss = density.bits(y.round()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    counts = np.unique(y.round().numpy(), return_counts=True)[1] / y.numel()
    entropy = -(counts * np.log2(counts)).sum()
    assert entropy <= loss.item() < entropy + 0.05


def test_small_probabilities_keep_their_precision_in_both_tails() -> None:
    """In single precision, F near one would swallow what lies above 10⁻⁷; the two tails must be mirror images."""
    density = Density(1)
    y = torch.tensor([3.0, 30.0, 300.0, 1400.0, 2000.0]).reshape(1, 1, -1)
    with torch.no_grad():
        up, down = density.likelihood(y), density.likelihood(-y)
        exact = random_density(0, 1)
        exact.logits.zero_()
        exact.log_scale.zero_()
        reference = exact.likelihood(-y.double())
    torch.testing.assert_close(up, down, rtol=1e-4, atol=0)
    np.testing.assert_allclose(up, reference, rtol=1e-3)
    assert up.min() > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 1 << 22), st.floats(0, 5))
def test_integer_tables_are_exact(seed: int, step: int, spread: float) -> None:
    torch.manual_seed(seed)
    density = Density(3)
    torch.nn.init.normal_(density.logits, std=spread)
    torch.nn.init.normal_(density.log_scale, std=min(spread, 1.5))
    tables = freeze(density).tables(np.full(3, step, np.int64))
    for counts in tables.counts:
        size = len(counts)
        assert 2 <= size <= MAX_SYMBOLS + 1
        assert counts.min() >= 0  # the coder adds one to each
        assert int(counts.sum()) == (1 << PRECISION) - size


def test_frozen_tables_cost_nothing_against_the_float_density() -> None:
    torch.manual_seed(5)
    density = Density(6)
    torch.nn.init.normal_(density.logits, std=0.2)
    with torch.no_grad():
        density.log_scale.copy_(torch.linspace(-2, 3, 6))
    frozen = freeze(density)
    rng = np.random.default_rng(0)
    # Samples of the density itself, by inverting its frozen cumulative distribution.
    knots = frozen.grid * frozen.scale[:, None] / 2**32
    u = rng.random((6, 20_000))
    y = np.stack([np.interp(u[c], frozen.cdf[c] / 2**CDF_BITS, knots[c]) for c in range(6)])
    for step in (0.25, 1.0, 3.0):
        symbols = np.rint(y / step).astype(np.int32)
        with torch.no_grad():
            ideal = density.bits(torch.from_numpy(symbols * np.float32(step))[None], step).sum()
        real = frozen.tables(np.full(6, int(step * 65536), np.int64)).bits(symbols).sum()
        assert real / float(ideal) < 1.001


def test_tables_need_no_floating_point() -> None:
    """Pinned: these numbers were computed once; every machine must get them."""
    grid, cdf = np.array([-2, -1, 0, 1, 2]) << 16, np.array([[1 << 20, 1 << 28, 1 << 29, 3 << 28, (1 << 30) - (1 << 20)]])
    tables = FrozenDensity(grid, np.array([1 << 16]), cdf).tables(np.array([1 << 16]))
    assert int(tables.lowest[0]) == -2
    assert tables.counts[0].tolist() == [2088959.0, 4186110.0, 4194303.0, 4186110.0, 2088960.0, 32768.0]


@pytest.mark.parametrize(
    "change",
    [
        {"grid": np.zeros(161, np.int64)},
        {"scale": np.zeros(12, np.int64)},
        {"cdf": np.full((12, 161), -1)},
        {"cdf": np.zeros((12, 5), np.int64)},
        {"cdf": np.tile(np.arange(161)[::-1], (12, 1))},
    ],
)
def test_nonsense_is_refused(change: dict[str, np.ndarray]) -> None:
    good = freeze(Density(12))
    parts = {"grid": good.grid, "scale": good.scale, "cdf": good.cdf, **change}
    with pytest.raises(ValueError, match=r"density|distribution"):
        FrozenDensity(**parts)
