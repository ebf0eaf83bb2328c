from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_model_bytes

from codec import container, rate
from codec import model as models
from codec import picture as pictures
from codec.encoder import Encoder
from codec.errors import ImageError, ModelError
from codec.model import Model


class Fine:
    """A model of a hundred qualities: the tiny one with a ladder of steps."""

    model = models.from_bytes(tiny_model_bytes(steps=tuple(np.geomspace(2, 0.02, 100))), "fine")


@pytest.fixture
def encoder(photograph: np.ndarray) -> Encoder:
    return Encoder(Fine.model, pictures.from_array(photograph[:160, :200]), keep=True)


def psnr(model: Model, data: bytes, image: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((model.decode(data).astype(float) - image) ** 2)))


def test_a_size_is_never_exceeded_and_nearly_used(encoder: Encoder) -> None:
    sizes = {q: len(encoder.encode(q)) for q in (1, 30, 60, 100)}
    for limit in (sizes[1], sizes[30] - 1, sizes[30], sizes[60] + 7, sizes[100], 10**6):
        coded = rate.encode(encoder, size=limit)
        assert len(coded.data) <= limit and coded.note is None
        assert coded.quality == 100 or len(encoder.encode(coded.quality + 1)) > limit
        assert container.read(coded.data).quality == coded.quality
    with pytest.raises(ImageError, match=f"cannot be coded in 60 bytes: the smallest file has {sizes[1]}"):
        rate.encode(encoder, size=60)


def test_bits_per_pixel_are_the_nearest(encoder: Encoder) -> None:
    pixels = 160 * 200
    rates = [8 * len(encoder.encode(q)) / pixels for q in range(1, 101)]
    for target in (rates[10], 0.5 * (rates[40] + rates[41]), rates[80] * 1.003):
        coded = rate.encode(encoder, bpp=target)
        assert coded.note is None
        assert abs(8 * len(coded.data) / pixels - target) == pytest.approx(min(abs(r - target) for r in rates))
    for target, quality in ((rates[0] / 2, 1), (rates[-1] * 2, 100)):
        coded = rate.encode(encoder, bpp=target)
        assert coded.quality == quality and coded.note is not None and "the nearest there is" in coded.note


def test_a_psnr_is_never_missed_unless_out_of_reach(photograph: np.ndarray) -> None:
    image = photograph[:160, :200]
    encoder = Encoder(Fine.model, pictures.from_array(image), keep=True)
    reachable = [psnr(Fine.model, encoder.encode(q), image) for q in (1, 50, 100)]
    target = sum(reachable[:2]) / 2
    coded = rate.encode(encoder, psnr=target)
    assert psnr(Fine.model, coded.data, image) >= target and coded.note is None
    assert coded.quality == 1 or psnr(Fine.model, encoder.encode(coded.quality - 1), image) < target
    coded = rate.encode(encoder, psnr=60)
    assert coded.note is not None and "60 dB are out of reach" in coded.note
    assert psnr(Fine.model, coded.data, image) == pytest.approx(max(reachable), abs=0.2)


def test_what_is_measured_is_what_a_decoder_shows(tiny_model: Model, photograph: np.ndarray) -> None:
    for image in (photograph[:91, :1100], photograph[:91, :101, 0]):
        encoder = Encoder(tiny_model, pictures.from_array(image), keep=True)
        assert encoder.psnr(2) == pytest.approx(psnr(tiny_model, encoder.encode(2), image), abs=1e-6)
    plane = np.zeros((91, 101), np.uint8)
    plane[20:50, 30:60] = 200
    encoder = Encoder(tiny_model, pictures.from_array(np.dstack([photograph[:91, :101], plane])), keep=True)
    shown = tiny_model.decode(encoder.encode(2))
    error = np.mean((shown[20:50, 30:60, :3].astype(float) - photograph[20:50, 30:60]) ** 2)
    assert encoder.psnr(2) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)


def test_a_search_analyses_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = Model.analyse_window
    monkeypatch.setattr(Model, "analyse_window", lambda *arguments: calls.append(1) or original(*arguments))
    tried = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda quality: tried.append(quality) or encode(quality))
    rate.encode(encoder, bpp=1.0)
    rate.encode(encoder, psnr=20)
    assert len(calls) == 1 and len(tried) <= 10


def test_a_model_of_one_rate_says_so(photograph: np.ndarray) -> None:
    model = models.from_bytes(tiny_model_bytes(steps=(0.5,)), "single")
    image = photograph[:64, :64]
    encoder = Encoder(model, pictures.from_array(image), keep=True)
    size = len(encoder.encode(1))
    reached = 8 * size / 64**2
    note = rate.encode(encoder, bpp=0.1).note
    assert note == f"0.1 bpp asked for, the nearest there is has {reached:.3f} bpp (model single offers this one rate only)"
    assert rate.encode(encoder, size=size).data == encoder.encode(1)
    with pytest.raises(ImageError, match=r"single offers this one rate only"):
        rate.encode(encoder, size=size - 1)
    met, missed = rate.encode(encoder, psnr=1).note, rate.encode(encoder, psnr=90).note
    assert met is not None and "asked for and met" in met and "one rate only" in met
    assert missed is not None and "out of reach" in missed and "one rate only" in missed


def test_impossible_wishes(encoder: Encoder) -> None:
    for wish in ({"bpp": 0.0}, {"psnr": -3.0}, {"size": 0}, {"psnr": float("nan")}):
        with pytest.raises(ImageError, match="not a positive number"):
            rate.encode(encoder, **wish)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="only one"):
        rate.encode(encoder, bpp=1, size=1000)
    with pytest.raises(ModelError, match="no quality 101"):
        rate.encode(encoder, quality=101)
