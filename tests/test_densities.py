"""The drawn densities are the coded ones: they integrate to one and agree with each other and with the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model_bytes
from PIL import Image

from codec.model import Model, from_bytes
from tools import densities as tool
from tools import rungs


@pytest.fixture(scope="module")
def rung(tiny_model: Model) -> rungs.Rung:
    return rungs.Rung(tiny_model, 2, 0.013)


def test_densities_integrate_to_one(rung: rungs.Rung) -> None:
    assert tool.mass_error(rung) < 1e-9
    x = np.linspace(-3000, 3000, 6_000_001)
    for channel in (0, 5, 11):
        # The exponential tails beyond the knots are no part of p; little lies there.
        assert tool.density_at(rung, channel, x).sum() * 1e-3 == pytest.approx(1, abs=2e-3)


def test_the_smoothed_density_is_the_box_average_of_the_density(rung: rungs.Rung) -> None:
    fine = np.linspace(-6, 6, 120_001)
    for channel in (0, 5, 11):
        cumulated = np.concatenate([[0], np.cumsum(tool.density_at(rung, channel, (fine[1:] + fine[:-1]) / 2) * np.diff(fine))])
        n = np.linspace(-5, 5, 83)
        averaged = np.interp(n + 0.5, fine, cumulated) - np.interp(n - 0.5, fine, cumulated)
        np.testing.assert_allclose(tool.smoothed_at(rung, channel, n), averaged, atol=3e-4)


def test_tables_are_samples_of_the_smoothed_density(rung: rungs.Rung) -> None:
    k = np.arange(-4, 5)
    for channel in range(12):
        np.testing.assert_allclose(tool.table_at(rung, channel, k), tool.smoothed_at(rung, channel, k.astype(float)), atol=5e-5)
    assert tool.table_at(rung, 0, np.array([-100_000, 100_000])).tolist() == [0, 0]


def test_channels_without_information_are_counted(photograph: np.ndarray) -> None:
    model = from_bytes(tiny_model_bytes(), "tiny")
    model.analysis.conv3.weight[3:5] = 0
    model.entropy.density.scale[3:5] = 1  # all mass within a small part of a step
    row, n = tool.row_of(rungs.Rung(model, 3, 0.013), {"x": photograph[:128, :160]})
    assert n.shape == (12, 80) and (row["channels"], row["informative"]) == (12, 10)
    assert (np.array(row["bits_per_latent"])[3:5] < 0.001).all()
    *telling, silent = tool.chosen(row["bits_per_latent"])
    assert silent in (3, 4) and not {3, 4} & set(telling) and len(telling) == len(tool.SHOWN)


def test_distributions_narrow_as_steps_grow(tiny_model: Model, photograph: np.ndarray) -> None:
    rows = [tool.row_of(rungs.Rung(tiny_model, q, 0.013), {"x": photograph[:96, :96]})[0] for q in (1, 2, 3)]
    widths = [row["deviation"] * row["step"].numpy() for row in rows]
    np.testing.assert_allclose(widths[0], widths[2])
    assert [row["bpp"] for row in rows] == sorted(row["bpp"] for row in rows)
    assert rows[0]["zeros"] > rows[1]["zeros"] > rows[2]["zeros"]


def test_the_tool_draws_both_figures(tiny_model_file: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photograph[:64, :80]).save(tmp_path / "a.png")
    assert tool.main([str(tmp_path / "a.png"), "--model", str(tiny_model_file), "--quality", "1", "3", "--out", str(tmp_path)]) == 0
    for name in ("densities", "channels"):
        assert Image.open(tmp_path / f"{name}.png").width > 800 and (tmp_path / f"{name}.svg").stat().st_size > 10_000
    rows = rungs.read_json(tmp_path, "densities")["rows"]
    assert len(rows) == 2 and all(row["mass_error"] < 1e-9 and len(row["bits_per_latent"]) == 12 for row in rows)
