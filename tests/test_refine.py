from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model_bytes
from hypothesis import given
from hypothesis import strategies as st

from codec import inference, refine
from codec.model import Model, from_bytes
from codec.soft import SoftFactorized
from codec.tiles import Box


@given(st.floats(-5, 5, width=32), st.floats(0.5, 20))
def test_soft_rounding_lies_between_the_number_and_the_nearest_integer(x: float, alpha: float) -> None:
    value = float(refine.soft_rounding(alpha)(torch.tensor(x)))
    low, high = sorted((x, float(np.round(x)) if abs(x - np.floor(x) - 0.5) > 1e-3 else x))
    assert low - 2e-3 <= value <= high + 2e-3


def test_soft_rounding_goes_from_nothing_to_rounding() -> None:
    x = torch.linspace(-2.45, 2.45, 50)
    torch.testing.assert_close(refine.soft_rounding(0.01)(x), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(refine.soft_rounding(200.0)(x), torch.round(x), atol=1e-3, rtol=0)


def test_soft_rounding_has_a_gradient() -> None:
    x = torch.tensor([0.3, 1.45], requires_grad=True)
    refine.soft_rounding(4.0)(x).sum().backward()
    # The steeper, the nearer to the middle between integers.
    assert float(x.grad[1]) > float(x.grad[0]) > 0


def test_the_synthesis_with_gradients_is_the_synthesis(tiny_model: Model, photograph: np.ndarray) -> None:
    y = tiny_model.analyse(photograph[:64, :96])
    shown = refine.synthesiser(tiny_model, 2)(torch.from_numpy(y)[None])[0].permute(1, 2, 0)
    exact = tiny_model.restore_window(y, 2, Box(0, 0, 4, 6))
    np.testing.assert_allclose(shown.round().clamp(0, 255).numpy(), exact, atol=1)


def test_a_search_shows_what_is_fine_in_single_precision(photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rest in bf16 where the processor has it, unless all is to be in bf16, whatever the model shows its pictures in."""
    monkeypatch.setattr(Model, "lambda_at", lambda model, quality: {1: 0.02, 2: 0.04}[quality])
    shown = {}
    for best in ("fp32", "bf16"):
        monkeypatch.setattr(inference, "best_precision", lambda best=best: best)
        model = from_bytes(tiny_model_bytes(), "tiny")
        y = torch.from_numpy(model.analyse(photograph[:64, :96]))[None]
        for chosen in (model, model.in_precision("bf16")):
            shown |= {(best, chosen.choice, quality): refine.synthesiser(chosen, quality)(y) for quality in (1, 2)}
    exact = {quality: shown["fp32", "fp32", quality] for quality in (1, 2)}
    same = {key for key, picture in shown.items() if torch.equal(picture, exact[key[2]])}
    assert same == {("fp32", "fp32", 1), ("fp32", "fp32", 2), ("bf16", "fp32", 2)}


@pytest.mark.parametrize("grey", [False, True])
def test_a_scene_s_distortion(tiny_model: Model, photograph: np.ndarray, grey: bool) -> None:
    """Only pixels that count do, latents around stay, and grey pictures are compared in luma."""
    original = photograph[:80, :96, 1] if grey else photograph[:80, :96]
    around = tiny_model.analyse(photograph[:80, :96])
    weight = torch.zeros(1, 1, 80, 96)
    weight[..., 16:48, 5:70] = 1
    pixels = torch.from_numpy(np.atleast_3d(original).astype(np.float32)).permute(2, 0, 1)[None]
    scene = refine.Scene(pixels, weight, torch.from_numpy(around)[None], slice(1, 3), slice(0, 4))
    decoded = np.round(around[:, 1:3, :4])
    found = float(scene.distortion(torch.from_numpy(decoded)[None], refine.synthesiser(tiny_model, 2)))
    around[:, 1:3, :4] = decoded
    shown = tiny_model.restore_window(around, 2, Box(0, 0, 5, 6), grey).astype(float)
    error = ((shown - original) ** 2)[16:48, 5:70]
    assert found == pytest.approx(error.sum() if grey else error.sum() / 3, rel=0.02)


def test_refined_latents_lower_the_objective_once_they_are_rounded(tiny_model: Model, photograph: np.ndarray) -> None:
    y = torch.from_numpy(tiny_model.analyse(photograph[:64, :64]))[None]
    pixels = torch.from_numpy(photograph[:64, :64].astype(np.float32)).permute(2, 0, 1)[None]
    scene = refine.Scene(pixels, torch.ones(1, 1, 64, 64), y, slice(0, 4), slice(0, 4))
    soft, synthesise, ticks = SoftFactorized(tiny_model.entropy, 1), refine.synthesiser(tiny_model, 2), []

    def objective(latents: torch.Tensor) -> float:
        with torch.no_grad():
            bits, decoded = soft(latents, None, torch.round)
            return float(bits + 0.013 * scene.distortion(decoded, synthesise))

    found, side = refine.refine(y, None, soft, scene, synthesise, 0.013, (1, 12), lambda: ticks.append(1))
    assert objective(found) < objective(y) and side is None and len(ticks) == 12
    again, _ = refine.refine(y, None, soft, scene, synthesise, 0.013, (1, 12))
    assert torch.equal(found, again)
    # Of several rounds the first is the same, and none that is worse is returned.
    further, _ = refine.refine(y, None, soft, scene, synthesise, 0.013, (3, 12), lambda: ticks.append(1))
    assert objective(further) < objective(found) and len(ticks) == 12 + 36


def test_the_best_round_is_kept(tiny_model: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.from_numpy(tiny_model.analyse(photograph[:64, :64]))[None]
    pixels = torch.from_numpy(photograph[:64, :64].astype(np.float32)).permute(2, 0, 1)[None]
    scene = refine.Scene(pixels, torch.ones(1, 1, 64, 64), y, slice(0, 4), slice(0, 4))
    soft, synthesise = SoftFactorized(tiny_model.entropy, 1), refine.synthesiser(tiny_model, 2)
    given, results = [], iter([y * 3, y + 0.1, y * 5])

    def round_(start: torch.Tensor, *rest: object) -> tuple[torch.Tensor, None]:
        given.append(start)
        return next(results), None

    monkeypatch.setattr(refine, "_round", round_)
    assert torch.equal(refine.refine(y, None, soft, scene, synthesise, 0.013, (3, 1))[0], y + 0.1)
    # A round starts where the one before it would be rounded to, and near that.
    for start, before in zip(given[1:], (y * 3, y + 0.1), strict=True):
        assert torch.equal(torch.round(start / soft.step), torch.round(before / soft.step))
        assert float((start / soft.step - torch.round(start / soft.step)).abs().max()) < refine.NEAR + 1e-4


def test_what_a_decoder_clips_is_no_error(tiny_model: Model) -> None:
    y = torch.zeros(1, tiny_model.latents, 2, 2)
    white = torch.full((1, 3, 32, 32), 255.0)
    scene = refine.Scene(white, torch.ones(1, 1, 32, 32), y, slice(0, 2), slice(0, 2))
    shown = torch.full((1, 3, 32, 32), 300.0, requires_grad=True)
    assert float(scene.distortion(y, lambda _: shown.detach())) == 0
    grey = refine.Scene(white - 15, torch.ones(1, 1, 32, 32), y, slice(0, 2), slice(0, 2))
    error = grey.distortion(y, lambda _: shown)
    error.backward()
    # Beyond the range, gradients still say where to go.
    assert float(error.detach()) == pytest.approx(15**2 * 32 * 32) and float(shown.grad.min()) > 0
