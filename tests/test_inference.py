from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import codec
from codec import container, inference
from codec import model as models
from codec.errors import ModelError
from codec.inference import Transforms
from codec.model import Model

TINY = models.from_bytes(tiny_model_bytes(), "tiny")


def transforms(model: Model, precision: str) -> Transforms:
    return Transforms(model.analysis.state_dict(), model.synthesis.state_dict(), precision)


def defined_latents(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.analysis(pixels.permute(2, 0, 1)[None].float() / 255)[0]


def defined_pixels(model: Model, y: torch.Tensor) -> torch.Tensor:
    """Before rounding, H×W×3."""
    with torch.inference_mode():
        return 255 * model.synthesis(y[None])[0].permute(1, 2, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 1 << 20), st.sampled_from([1, 7, 100, 6144]))
def test_what_runs_is_what_is_defined(height: int, width: int, seed: int, band: int) -> None:
    """In any shape, with bands of any size."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (16 * height, 16 * width, 3), generator=generator, dtype=torch.uint8)
    y = 3 * torch.randn(TINY.latents, height, width, generator=generator)
    fast = transforms(TINY, "fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "BAND", band)
        torch.testing.assert_close(fast.analyse(pixels), defined_latents(TINY, pixels), rtol=1e-4, atol=1e-4)
        shown = fast.synthesise(y, slice(0, height), slice(0, width))
    assert shown.dtype == torch.uint8 and shown.is_contiguous()
    torch.testing.assert_close(shown.float(), defined_pixels(TINY, y).clamp(0, 255), rtol=0, atol=0.51)


def test_the_shipped_model_too() -> None:
    model = codec.load("lambda-0.013", "fp32")
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = defined_latents(model, pixels)
    torch.testing.assert_close(transforms(model, "fp32").analyse(pixels), y, rtol=1e-4, atol=1e-3)
    shown = transforms(model, "fp32").synthesise(y, slice(0, 4), slice(0, 6))
    torch.testing.assert_close(shown.float(), defined_pixels(model, y).clamp(0, 255), rtol=0, atol=0.51)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_grey_and_parts(precision: str) -> None:
    fast = transforms(TINY, precision)
    grey = torch.randint(0, 256, (48, 80), dtype=torch.uint8)
    assert torch.equal(fast.analyse(grey), fast.analyse(grey[..., None].expand(-1, -1, 3)))
    y = fast.analyse(grey)
    whole = fast.synthesise(y, slice(0, 3), slice(0, 5))
    assert torch.equal(fast.synthesise(y, slice(1, 3), slice(2, 4)), whole[16:48, 32:64])
    luma = fast.synthesise(y, slice(1, 3), slice(2, 4), grey=True)
    assert luma.shape == (32, 32)
    expected = whole[16:48, 32:64].float() @ torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(luma.float(), expected, rtol=0, atol=1.01)  # there, three colours are rounded; here, their sum


def test_half_precision_costs_little(photograph: np.ndarray) -> None:
    """An error in the latents far below the quantiser's, 1/√12 of a step, and one in the pixels below that of their own rounding."""
    model = codec.load("lambda-0.013", "fp32")
    pixels = torch.from_numpy(photograph[:384, :592].copy())
    y, rough = (transforms(model, precision).analyse(pixels) for precision in ("fp32", "bf16"))
    error = float((rough - y).square().mean().sqrt())
    assert 0 < error < 0.05 / 12**0.5
    shown = defined_pixels(model, y.round()).clamp(0, 255)
    exact, half = (transforms(model, p).synthesise(y.round(), slice(0, 24), slice(0, 37)).float() for p in ("fp32", "bf16"))
    added = float((half - shown).square().mean() - (exact - shown).square().mean())
    assert added < 1 / 12


def test_precision_never_changes_a_stream_s_latents(photograph: np.ndarray) -> None:
    exact = models.from_bytes(tiny_model_bytes(), "tiny", "fp32")
    half = exact.in_precision("bf16")
    image = photograph[:130, :200]
    for encoder, decoder in ((exact, half), (half, exact)):
        stream = container.read(encoder.encode(image, 3))
        expected = encoder.quantise(encoder.analyse(image), 3)
        np.testing.assert_array_equal(decoder.decode_latents(stream), expected)
        difference = np.abs(decoder.decode(container.write(stream)).astype(int) - encoder.decode(container.write(stream)))
        assert difference.max() <= 5 and difference.mean() < 0.5


def test_a_model_in_another_precision_shares_all_else() -> None:
    model = models.from_bytes(tiny_model_bytes(), "tiny", "fp32")
    half = model.in_precision("bf16")
    assert (model.precision, half.precision) == ("fp32", "bf16") and half.hash == model.hash
    assert half.in_precision("fp32") is model and model.in_precision("bf16") is half and model.in_precision("fp32") is model
    assert half.entropy is model.entropy and half.analysis is model.analysis


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_change_nothing(precision: str, photograph: np.ndarray) -> None:
    fast = transforms(codec.load("lambda-0.013", "fp32"), precision)
    pixels = torch.from_numpy(photograph[:256, :256].copy())
    threads = torch.get_num_threads()
    out = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y = fast.analyse(pixels)
            out.append((y, fast.synthesise(y.round(), slice(0, 16), slice(0, 16))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in out[1:] for a, b in zip(out[0], other, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name : A\nflags\t\t: fpu avx512f avx512_bf16 avx\n", "bf16"),
        ("flags : fpu amx_bf16 amx_tile\n", "bf16"),
        ("Features\t: fp asimd i8mm bf16\n", "bf16"),
        ("flags : fpu avx2 avx512f\nbugs : bf16\n", "fp32"),
        ("", "fp32"),
        (None, "fp32"),
    ],
)
def test_the_processor_decides(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    inference.best_precision.cache_clear()
    try:
        assert inference.best_precision(file) == expected
    finally:
        inference.best_precision.cache_clear()


def test_precisions_by_name(tiny_model_file: Path) -> None:
    assert inference.check_precision("auto") == inference.best_precision()
    assert codec.load(tiny_model_file).precision == "fp32"
    assert codec.load(tiny_model_file, "auto").precision == inference.best_precision()
    with pytest.raises(ModelError, match="no precision 'fp64'"):
        codec.load(tiny_model_file, "fp64")
