"""Models in floating point agree with the integers that files are made of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from codec.coder import PRECISION
from codec.errors import ModelError
from codec.model import Model
from tools import densities, elbo, gdn, gradient_variance, noise_vs_rounding, rungs, sample


def test_the_float_density_gives_the_probabilities_of_the_tables(tiny_model: Model) -> None:
    for rung in (rungs.Rung(tiny_model, quality, 0.013) for quality in (1, 3)):
        tables = tiny_model.entropy.tables(rung.quality)
        k = torch.arange(-40, 41, dtype=torch.float64).expand(tiny_model.latents, 1, -1)
        probability = 2 ** -rung.bits(k[None])[0, :, 0].numpy()
        for channel, counts in enumerate(tables.counts):
            index = np.arange(-40, 41) - tables.lowest[channel]
            inside = (index >= 0) & (index < len(counts) - 1)
            coded = (counts[index[inside]] + 1) / (1 << PRECISION)
            assert inside.sum() > 3
            # A table's ends lose to the escape what lies beyond them, and every symbol a count.
            np.testing.assert_allclose(coded[1:-1], probability[channel][inside][1:-1], rtol=1e-3, atol=2e-5)


def test_float_reconstructions_are_those_of_the_codec(tiny_model: Model, photograph: np.ndarray) -> None:
    image = photograph[:75, :90]
    rung = rungs.Rung(tiny_model, 2, 0.013)
    symbols = tiny_model.quantise(tiny_model.analyse(image), 2)
    restored = rung.restore(torch.from_numpy(symbols).double(), 75, 90)
    decoded = tiny_model.synthesise(symbols, 2, 75, 90)
    assert np.abs(restored.clamp(0, 255).permute(1, 2, 0).numpy() - decoded).max() <= 0.501
    n = rung.analyse(image)
    assert np.array_equal(torch.round(n).numpy(), symbols) or (np.abs(torch.round(n).numpy() - symbols).mean() < 1e-4)
    assert rung.mse(torch.from_numpy(symbols).double(), image) == pytest.approx(
        float(((restored.permute(1, 2, 0).numpy() - image) ** 2).mean())
    )


def test_windows_leave_no_seams(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rung = rungs.Rung(tiny_model, 1, 0.013)
    n = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (12, 20, 13))).double()
    whole = rung.restore(n, 320, 208)
    monkeypatch.setattr(rungs.tiles, "WINDOW", 8)
    torch.testing.assert_close(rung.restore(n, 320, 208), whole, rtol=0, atol=2e-3)


def test_qualities_divide_the_ladder_evenly_in_log_lambda() -> None:
    model = SimpleNamespace(name="m", qualities=101, metadata={"lambdas": [0.01, 0.04, 0.16]})
    at = [rungs.lambda_at(model, q) for q in (1, 26, 51, 76, 101)]  # type: ignore[arg-type]
    assert at == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16])
    for metadata in ({}, {"lambdas": []}, {"lambdas": [1], "distortion": "ms-ssim"}):
        with pytest.raises(ModelError, match="m was not trained for squared error"):
            rungs.lambda_at(SimpleNamespace(name="m", qualities=1, metadata=metadata), 1)  # type: ignore[arg-type]


def test_rungs_of_the_models_at_hand() -> None:
    found = rungs.ladder(rungs.default_models())
    assert found and all(rung.lambda_ > 0 and 1 <= rung.quality <= rung.model.qualities for rung in found)
    for model in {rung.model.sha256: rung.model for rung in found}.values():
        lambdas = [rung.lambda_ for rung in found if rung.model is model]
        assert lambdas == sorted(lambdas) and len(lambdas) == len(model.metadata["lambdas"])
        assert lambdas == pytest.approx(model.metadata["lambdas"], rel=0.05)


def test_json_is_short_and_never_holds_what_is_no_number(tmp_path: Path) -> None:
    values = {"a": np.array([[1 / 3, 2], [3, 4]]), "b": {"c": torch.ones(2), "d": None}, "e": np.int64(7), "f": "ü"}
    rungs.write_json(values, tmp_path / "new", "x")
    text = (tmp_path / "new" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [[0.33333, 2], [3, 4]], "b": {"c": [1, 1], "d": None}, "e": 7, "f": "ü"}
    assert "[0.33333, 2.0]" in text
    with pytest.raises(rungs.ImageError):
        rungs.write_json({"a": float("nan")}, tmp_path, "y")
    assert not (tmp_path / "y.json").exists()


@pytest.mark.parametrize("tool", [noise_vs_rounding, densities, elbo, gradient_variance, sample, gdn])
def test_bad_input_gets_one_clear_line(tool: object, tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tool.__name__.split(".")[-1]  # type: ignore[attr-defined]
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    out = tmp_path / "out"
    for arguments, words in (
        ([str(broken), "--model", str(tiny_model_file)], "broken.png: not an image"),
        (["--model", "no-such-model"], "'no-such-model'"),
        (["--model", str(broken)], "broken: not an rdae model file"),
        (["--model", str(tiny_model_file), "--quality", "4"], "has no quality 4"),
    ):
        assert tool.main([*arguments, "--out", str(out)]) == 2  # type: ignore[attr-defined]
        error = capsys.readouterr().err
        assert error.startswith(f"{name}: ") and words in error and error.count("\n") == 1
        assert not out.exists()
