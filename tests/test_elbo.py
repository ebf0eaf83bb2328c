"""The loss equals the negative ELBO, and bits-back has nothing to give."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec.model import Model
from tools import elbo as tool
from tools import rungs


@pytest.fixture(scope="module")
def rung(tiny_model: Model) -> rungs.Rung:
    return rungs.Rung(tiny_model, 2, 0.02)


@pytest.fixture(scope="module")
def images(photograph: np.ndarray) -> dict[str, np.ndarray]:
    return {"a": np.ascontiguousarray(photograph[:80, :96]), "b": np.ascontiguousarray(photograph[100:148, 200:300])}


def test_both_sides_agree_within_the_sampling_error(rung: rungs.Rung, images: dict[str, np.ndarray]) -> None:
    row = tool.check(rung, images, seed=0)
    assert 0 < row["standard_error"] < 0.01 * row["sampled"]
    assert abs(row["difference"]) < 4 * row["standard_error"]
    assert row["relative_difference_same_noise"] < 1e-6
    assert row["rate"] + row["distortion_bits"] + row["constant"] == pytest.approx(row["from_loss"])
    assert row["hard"] == pytest.approx(row["hard_rate"] + 0.02 * row["hard_mse"] + row["constant"])


def test_the_check_notices_another_variance(rung: rungs.Rung, images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """With σ² = 1 / (2λ ln 2), as if a pixel had one value and not three, the sides differ by far more than the error."""
    wrong = 1 / (2 * math.log(2) * 0.02)
    monkeypatch.setattr(rungs.Rung, "variance", property(lambda self: wrong))
    row = tool.check(rung, images, seed=0)
    assert abs(row["difference"]) > 20 * row["standard_error"]


def test_likelihood_of_one_pixel_by_hand(rung: rungs.Rung) -> None:
    """-log₂ N(x; x̂, σ²) over three values, per pixel, is λ·MSE + (3/2) log₂ 2πσ²."""
    x, restored = torch.tensor([10.0, 200.0, 30.0]), torch.tensor([14.0, 190.0, 31.0])
    density = torch.distributions.Normal(restored, math.sqrt(rung.variance)).log_prob(x).sum() / math.log(2)
    assert tool.bound(rung, 0.0, (16 + 100 + 1) / 3) == pytest.approx(-float(density), rel=1e-5)


def test_a_lattice_point_is_one_of_m_within_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    n = torch.tensor([0.3, -1.7, 2.49, 5.0]).double().expand(4000, 4)
    torch.testing.assert_close(tool.on_lattice(n, 1, generator), torch.round(n))
    for m in (2, 4, 16):
        z = tool.on_lattice(n, m, generator)
        assert ((z - n).abs() <= 0.5 + 1e-12).all() and torch.equal(z * m, torch.round(z * m))
        for column in z.T:
            values, counts = column.unique(return_counts=True)
            assert len(values) == m
            assert ((counts - 4000 / m).abs() < 6 * math.sqrt(4000 / m)).all()


def test_bits_back_is_the_entropy_of_the_choice(rung: rungs.Rung, images: dict[str, np.ndarray]) -> None:
    rows = tool.bits_back(rung, images, seed=0)
    assert [row["m"] for row in rows] == list(tool.LATTICES) and rows[0]["back"] == 0
    latents = np.mean([12 * 30 / (80 * 96), 12 * 3 * 7 / (48 * 100)])
    for row in rows:
        assert row["back"] == pytest.approx(latents * math.log2(row["m"]))
        assert row["sent"] - row["back"] == pytest.approx(row["net"])
    hard, finest = tool.check(rung, images, seed=0), rows[-1]
    assert rows[0]["net"] == pytest.approx(hard["hard_rate"]) and rows[0]["negative_elbo"] == pytest.approx(hard["hard"])
    # The finest lattice is nearly the continuum of the noise.
    assert finest["net"] == pytest.approx(hard["rate"], rel=0.02)
    # On the lattice with m points to a step, p̃ / m sums to one.
    k = torch.arange(-64_000, 64_001, dtype=torch.float64) / 16
    mass = (2 ** -rung.bits(k.expand(1, 12, 1, -1)) / 16).sum(dim=3)
    assert mass.min() > 0.995 and mass.max() < 1.001


def test_the_tool(tiny_model_file: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photograph[:64, :80]).save(tmp_path / "a.png")
    assert tool.main([str(tmp_path / "a.png"), "--model", str(tiny_model_file), "--quality", "1", "3", "--out", str(tmp_path)]) == 0
    result = rungs.read_json(tmp_path, "elbo")
    assert len(result["rows"]) == 2 and [row["m"] for row in result["bits_back"]] == list(tool.LATTICES)
    assert (tmp_path / "elbo.png").exists() and (tmp_path / "elbo.svg").exists()
