"""Draws from the prior follow the tables, escapes included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codec import coder
from codec.coder import PRECISION, Tables
from codec.model import Model
from tools import rungs
from tools import sample as tool


def table(frequencies: list[int]) -> np.ndarray:
    return np.array(frequencies, np.float64) - 1


def test_symbols_come_as_often_as_their_tables_say() -> None:
    whole = 1 << PRECISION
    tables = Tables(np.array([-1, 5]), [table([whole // 2, whole // 4, whole // 8, whole // 8]), table([whole - 9, 9])])
    symbols = tool.draw_symbols(tables, (400, 500), np.random.default_rng(0))
    frequency = [(symbols[0] == k).mean() for k in (-1, 0, 1)]
    assert frequency == pytest.approx([0.5, 0.25, 0.125], abs=0.005)
    assert (symbols[1] == 5).mean() > 0.9999
    # Escapes: half at distance 1, a quarter at 2 or 3, and as many above as below.
    outside = symbols[0][(symbols[0] < -1) | (symbols[0] > 1)]
    assert len(outside) / symbols[0].size == pytest.approx(0.125, abs=0.005)
    distance = np.where(outside > 1, outside - 1, -1 - outside)
    assert (distance == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert np.isin(distance, (2, 3)).mean() == pytest.approx(0.25, abs=0.02)
    assert (outside > 1).mean() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(coder.decode(coder.encode(symbols, tables), tables, symbols.shape), symbols)


def test_the_code_length_of_draws_is_the_priors_entropy(tiny_model: Model) -> None:
    tables = tiny_model.entropy.tables(2)
    symbols = tool.draw_symbols(tables, (60, 70), np.random.default_rng(1))
    per_latent = tables.bits(symbols) / 4200
    np.testing.assert_allclose(per_latent, tool.entropy_of(tables), atol=0.12)
    assert per_latent.sum() == pytest.approx(tool.entropy_of(tables).sum(), rel=0.01)


def test_shuffling_keeps_histograms_and_nothing_else() -> None:
    symbols = np.arange(3 * 20 * 20, dtype=np.int32).reshape(3, 20, 20)
    mixed = tool.shuffled(symbols, np.random.default_rng(0))
    assert np.array_equal(np.sort(mixed.reshape(3, -1)), symbols.reshape(3, -1))
    moved = [mixed[c].ravel() - 400 * c for c in range(3)]
    assert not np.array_equal(moved[0], moved[1]) and abs(np.corrcoef(moved[0], np.arange(400))[0, 1]) < 0.2


def test_block_correlation() -> None:
    ramp = np.repeat(np.repeat(np.arange(160, dtype=np.uint8)[None, :, None], 160, 0), 3, 2)
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 1), dtype=np.uint8).repeat(16, 0).repeat(16, 1).repeat(3, 2)
    assert tool.neighbours(ramp) > 0.9 and abs(tool.neighbours(noise)) < 0.2 and tool.neighbours(ramp[:16]) == 0


def test_the_tool_is_repeatable_and_its_seed_matters(tiny_model_file: Path, photograph: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photograph[:64, :80]).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--model", str(tiny_model_file), "--quality", "2"]
    for name, seed in (("x", "1"), ("y", "1"), ("z", "2")):
        assert tool.main([*arguments, "--seed", seed, "-o", str(tmp_path / "new" / f"{name}.png")]) == 0
    x, y, z = ((tmp_path / "new" / f"{name}.png").read_bytes() for name in "xyz")
    assert x == y != z
    result = rungs.read_json(tmp_path / "new", "x")
    photo, mixed, drawn = result["pictures"]
    assert photo["bpp"] == mixed["bpp"] != drawn["bpp"]


def test_only_png(tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--model", str(tiny_model_file), "-o", str(tmp_path / "x.jpg")]) == 2
    assert capsys.readouterr().err == f"sample: {tmp_path / 'x.jpg'}: the picture is a .png\n" and not (tmp_path / "x.jpg").exists()
