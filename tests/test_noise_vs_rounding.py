"""Entropies with noise and with rounding, and the loss terms of a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec.model import Model
from tools import noise_vs_rounding as tool
from tools import rungs


@pytest.fixture(scope="module")
def rung(tiny_model: Model) -> rungs.Rung:
    return rungs.Rung(tiny_model, 2, 0.013)


def test_differential_entropy_is_the_mean_over_shifted_grids(rung: rungs.Rung) -> None:
    """h(n + U) of the model's own density by fine integration, against the entropies of its samples on 64 grids."""
    k = torch.arange(-400, 401, dtype=torch.float64)
    grids = [2 ** -rung.bits((k + u).expand(1, 12, 1, -1))[0, :, 0] for u in (torch.arange(64) + 0.5) / 64 - 0.5]
    on_grids = torch.stack([-(p * torch.log2(p)).sum(dim=1) for p in grids]).mean(dim=0)
    x = torch.linspace(-400.5, 400.5, 801 * 90 + 1, dtype=torch.float64)
    p = 2 ** -rung.bits(x.expand(1, 12, 1, -1))[0, :, 0]
    integrated = torch.trapezoid(-p * torch.log2(p), x, dim=1)
    torch.testing.assert_close(on_grids, integrated, rtol=1e-3, atol=1e-3)


def test_empirical_entropies_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(0.2, 3, 200_000)
    exact = 0.5 * math.log2(2 * math.pi * math.e * (9 + 1 / 12))
    assert tool.entropies(wide) == pytest.approx((exact, exact), abs=0.01)
    assert tool.entropies(np.full(100, 0.3)) == pytest.approx((0, 0), abs=0.01)
    # At the middle between two integers, rounding tosses a coin that noise does not have to.
    coin = 0.5 + rng.uniform(-0.01, 0.01, 10_000)
    soft, hard = tool.entropies(coin)
    assert hard == pytest.approx(1, abs=0.01) and soft < 0.1
    # Near an integer it is the other way round.
    near = rng.normal(0, 0.12, 10_000)
    soft, hard = tool.entropies(near)
    assert hard < 0.01 < 0.2 < soft


def test_terms_of_the_loss(rung: rungs.Rung, photograph: np.ndarray) -> None:
    image = np.ascontiguousarray(photograph[:90, :100])
    whole, channels = tool.terms(rung, image, torch.Generator().manual_seed(0))
    assert channels["noise"].shape == channels["rounding"].shape == channels["error"].shape == (12,)
    assert whole["bpp_rounding"] == pytest.approx(float(channels["rounding"].sum()) / 9000)
    assert whole["bpp_noise"] == pytest.approx(whole["bpp_rounding"], rel=0.1)
    header = 8 * 64 / 9000
    assert whole["bpp_rounding"] - 1e-3 < whole["bpp_file"] < whole["bpp_rounding"] + header
    assert (channels["error"] / channels["latents"].shape[1] <= 0.25).all()
    assert whole["mse_file"] == pytest.approx(whole["mse_rounding"], rel=0.05)


def test_one_channel_at_a_time(rung: rungs.Rung, photograph: np.ndarray) -> None:
    image = np.ascontiguousarray(photograph[:64, :64])
    changes = tool.one_at_a_time(rung, [image], torch.Generator().manual_seed(0))
    n = rung.analyse(image)
    disturbed = n.clone()
    disturbed[7] = torch.round(n[7])
    expected = float((rung.restore(disturbed, 64, 64) - rung.restore(n, 64, 64)).square().mean())
    assert changes["rounding"][7] == pytest.approx(expected, rel=1e-3)
    assert changes["noise"].shape == (12,) and (changes["noise"] > 0).all()


def test_the_tool_writes_the_same_twice(tiny_model_file: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photograph[:64, :80]).save(tmp_path / "a.png")
    Image.fromarray(photograph[64:160, :64]).save(tmp_path / "b.png")
    images = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for out in ("one", "two"):
        arguments = [*images, "--model", str(tiny_model_file), "--quality", "1", "3", "--out", str(tmp_path / out)]
        assert tool.main(arguments) == 0
    for kind in ("json", "png", "svg"):
        name = f"noise_vs_rounding.{kind}"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = rungs.read_json(tmp_path / "one", "noise_vs_rounding")["rows"]
    assert [row["quality"] for row in rows] == [1, 3] and list(rows[0]["images"]) == ["a", "b"]
    # Steps eight times as fine cost up to three bits more in every latent, and never less.
    for kind in ("noise", "rounding"):
        more = np.array(rows[1][f"bits_per_latent_{kind}"]) - np.array(rows[0][f"bits_per_latent_{kind}"])
        assert (more > 0).all() and more.mean() < 3.3
