"""The statistics are right on distributions that are known, and GDN undoes a scale mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec.model import Model
from codec.transforms import GDN
from tools import gdn as tool
from tools import rungs


def test_kurtosis_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(3, 2, 200_000), rng.laplace(size=200_000), rng.uniform(size=200_000)])
    assert tool.kurtosis(values) == pytest.approx([0, 3, -1.2], abs=0.15)


def test_mutual_information_of_known_pairs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 100_000))
    assert tool.mutual_information(a, b) == pytest.approx(0, abs=0.002)
    assert tool.mutual_information(a, a) == pytest.approx(4, abs=0.01)  # sixteen bins
    joined = 0.8 * a + 0.6 * b
    exact = -0.5 * np.log2(1 - 0.8**2)
    assert 0.9 * exact < tool.mutual_information(a, joined) < exact
    assert tool.mutual_information(np.exp(a), joined**3) == pytest.approx(tool.mutual_information(a, joined), abs=1e-9)
    # The bias of counting is taken off: with few samples too, nothing is nothing.
    assert np.mean([tool.mutual_information(*rng.normal(size=(2, 2000))) for _ in range(20)]) == pytest.approx(0, abs=0.01)


def test_gdn_undoes_a_scale_mixture() -> None:
    """Gaussians with one common random scale have heavy tails and dependent magnitudes; dividing by the scale leaves neither."""
    torch.manual_seed(0)
    y = torch.randn(1, 32, 60, 60) * torch.exp(0.8 * torch.randn(1, 1, 60, 60))
    layer = GDN(32)
    layer.beta.fill_(0.01)
    layer.gamma.fill_(1 / 32)
    before, after = (tool.statistics([v[0].double().numpy()], tool.channel_pairs(32, 0)[:20], 0) for v in (y, layer(y)))
    assert np.median(before["kurtosis"]) > 3 > 0.5 > np.median(np.abs(after["kurtosis"]))
    assert np.median(before["channels"]) > 0.1 > 0.02 > np.median(after["channels"])
    assert np.abs(np.median(before["shuffled"])) < 0.01 and np.median(before["correlation"]) < 0.1


def test_responses_are_taken_on_both_sides_of_each_gdn(tiny_model: Model, photograph: np.ndarray) -> None:
    found = tool.responses(tiny_model, photograph[:160, :192])
    assert list(found) == ["gdn1", "gdn2"]
    for name, (before, after) in found.items():
        layer = getattr(tiny_model.analysis, name)
        norm = layer.beta.double().numpy()[:, None, None] + np.einsum("ij,jhw->ihw", layer.gamma[:, :, 0, 0].double().numpy(), before**2)
        np.testing.assert_allclose(after, before / np.sqrt(norm), rtol=1e-4, atol=1e-6)
    assert found["gdn1"][0].shape == (8, 32, 40)


def test_the_tool(tiny_model_file: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photograph[:200, :256]).save(tmp_path / "a.png")
    assert tool.main([str(tmp_path / "a.png"), "--model", str(tiny_model_file), "--quality", "1", "--out", str(tmp_path)]) == 0
    layers = rungs.read_json(tmp_path, "gdn")["layers"]
    assert list(layers) == ["gdn1", "gdn2"] and all(a != b for layer in layers.values() for a, b in layer["pairs"])
    assert (tmp_path / "gdn.png").exists() and (tmp_path / "gdn.svg").exists()
