"""Both estimators have one mean, and it is the gradient."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec.model import Model
from tools import gradient_variance as tool
from tools import rungs


@pytest.fixture(scope="module")
def loss(tiny_model: Model, photograph: np.ndarray) -> tool.Loss:
    return tool.Loss(rungs.Rung(tiny_model, 2, 0.013), tool.block_of(photograph))


@pytest.fixture(scope="module")
def samples(loss: tool.Loss) -> dict[str, np.ndarray]:
    return tool.draw_samples(loss, 1 << 13, seed=0)


def test_the_block_has_the_largest_variance(photograph: np.ndarray) -> None:
    image = np.full((50, 70, 3), 128, np.uint8)
    image[16:32, 48:64] = photograph[:16, :16]
    assert np.array_equal(tool.block_of(image), photograph[:16, :16])
    with pytest.raises(rungs.ImageError, match="16×16"):
        tool.block_of(image[:10])


def test_derivatives_are_those_of_finite_differences(loss: tool.Loss) -> None:
    z = loss.mean[None] + 0.1
    _, gradient = loss.with_gradient(z)
    for channel in (0, 4, 11):
        shift = torch.zeros(12, dtype=torch.float64)
        shift[channel] = 0.02
        with torch.no_grad():
            difference = float(loss(z + shift) - loss(z - shift)) / 0.04
        assert float(gradient[0, channel]) == pytest.approx(difference, rel=0.05, abs=2e-3 * float(gradient.abs().max()))


def test_the_means_agree(samples: dict[str, np.ndarray]) -> None:
    summary, _ = tool.agreement(samples)
    assert summary["expected_distance"] < 0.5  # there is something to tell apart: a gradient of zero would lie at 1
    assert summary["distance"] < 2 * summary["expected_distance"]
    assert summary["mean_square_z"] < 3 and summary["largest_z"] < 4.5


def test_a_wrong_sign_would_be_noticed(samples: dict[str, np.ndarray]) -> None:
    summary, _ = tool.agreement({**samples, "epsilon": -samples["epsilon"]})
    assert summary["distance"] > 3 * summary["expected_distance"]


def test_the_baseline_lowers_the_variance_and_keeps_the_mean() -> None:
    """For f(z) = 50 + aᵀz, whose gradient is a."""
    rng = np.random.default_rng(0)
    a, epsilon = np.array([1.0, -2.0, 0.5]), rng.normal(size=(20_000, 8, 3))
    value = 50 + tool.SPREAD * epsilon @ a
    plain, better = (tool.score(value, epsilon, baseline).mean(axis=1) for baseline in (False, True))
    np.testing.assert_allclose(better.mean(axis=0), a, atol=5 * better.std(axis=0).max() / math.sqrt(20_000))
    assert better.std(axis=0).max() < 0.1 * plain.std(axis=0).min()


def test_the_error_falls_as_the_root_and_the_ratio_is_large(samples: dict[str, np.ndarray]) -> None:
    sizes = [1, 4, 16, 64, 256]
    error = tool.errors(samples, sizes)
    scaled = np.array(error["score"]) * np.sqrt(sizes)
    assert scaled.max() < 1.4 * scaled.min()
    assert math.isnan(error["score with baseline"][0]) and not math.isnan(error["score with baseline"][1])
    variance = tool.variances(samples)
    assert variance["score"] > variance["score with baseline"] > 5 * variance["reparametrised"]


def test_under_uniform_noise_the_derivative_is_the_difference_of_the_ends(loss: tool.Loss) -> None:
    for row in tool.uniform_ends(loss, [0, 3, 8], 4096, seed=1):
        assert abs(row["reparametrised"] - row["ends"]) < 4.5 * row["standard_error"]
        assert row["standard_error"] < 0.3 * abs(row["ends"]) and row["score"] == 0


def test_the_tool(tiny_model_file: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photograph[:64, :80]).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--model", str(tiny_model_file), "--quality", "2", "--samples", "512", "--out", str(tmp_path)]
    assert tool.main(arguments) == 0
    result = rungs.read_json(tmp_path, "gradient_variance")
    assert [row["latents"] for row in result["by_number_of_noisy_latents"]] == [1, 4, 12] and result["sizes"] == [1, 4, 16]
    assert result["error"]["score with baseline"][0] is None and (tmp_path / "gradient_variance.svg").exists()
    with pytest.raises(SystemExit):
        tool.main(["--samples", "3"])
