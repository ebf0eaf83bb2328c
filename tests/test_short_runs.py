"""The short trainings, shorter still."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SAMPLES
from test_train import TINY

from tools import rungs
from tools import short_runs as tool


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tool, "COMMON", [*TINY, "--early-steps", "0", "--crop", "32", "--filters", "8", "--ema", "0.5", "--init", "orthogonal"]
    )
    monkeypatch.setattr(tool, "LAMBDAS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(tool, "LADDER", (0.01, 0.04))
    monkeypatch.setattr(tool, "RELU_RATES", (0.01, 0.02))
    monkeypatch.setattr(tool, "STEPS", 18)


def test_both_comparisons(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(SAMPLES), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), str(SAMPLES / "chelsea.png")]
    assert tool.main(arguments) == 0
    vae = rungs.read_json(tmp_path / "out", "vae")
    assert [row["lambda"] for row in vae["rows"]] == [0.01, 0.02, 0.04]
    for row in vae["rows"]:
        for kind in tool.KINDS:
            m = row[kind]
            # The bound is what the definition says, and no divergence is negative.
            expected = m["bpp"] + row["lambda"] * m["mse"] + tool.constant(row["sigma"] ** 2)
            assert m["negative_elbo"] == pytest.approx(expected, rel=1e-3) and m["bpp"] >= 0
            assert 0 <= m["informative"] <= m["channels"] == 12
    relu = rungs.read_json(tmp_path / "out", "relu")
    assert [row["run"] for row in relu["rows"]] == ["gdn", "relu-0.01", "relu-0.02", "relu-equal-time"]
    costs = relu["seconds_per_step"]
    assert relu["rows"][-1]["steps"] == pytest.approx(18 * costs["gdn"] / costs["relu"], abs=1) and relu["rows"][1]["steps"] == 18
    assert relu["best_learning_rate"] in (0.01, 0.02)
    for name in ("vae", "relu"):
        assert (tmp_path / "out" / f"{name}.png").exists()
    # What is there is not trained again, and gives the same numbers.
    monkeypatch.setattr(tool, "step_costs", None)
    capsys.readouterr()
    assert tool.main(arguments) == 0
    assert "step/s" not in capsys.readouterr().err and rungs.read_json(tmp_path / "out", "vae") == vae


def test_a_training_that_fails_is_reported(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--data", str(tmp_path / "nothing"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err and not (tmp_path / "out").exists()
