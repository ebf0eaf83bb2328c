from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import hyper_metadata, tiny_hyper_tensors

import codec
from codec import container, distortion, refine, tiles
from codec import model as models
from codec import picture as pictures
from codec.encoder import MOST_EFFORT, Encoder
from codec.errors import ImageError, ModelError
from codec.hyperprior import Hyperprior
from codec.model import Model, from_bytes, to_bytes
from codec.search import ITERATIONS, Search
from tools.bdrate import bd_rate
from tools.metrics import decibels, ms_ssim

SHIPPED = [("hyperprior-9", 60), ("lambda-0.013", 1)]


@pytest.fixture(params=["tiny_model", "tiny_hyper"])
def tiny(request: pytest.FixtureRequest) -> Model:
    model: Model = request.getfixturevalue(request.param)
    return model


def tiny_side(model: Model, y: np.ndarray, quality: int) -> np.ndarray | None:
    """The side information of latents."""
    return model.entropy.side_information(y, quality) if isinstance(model.entropy, Hyperprior) else None


def objective(model: Model, image: np.ndarray, data: bytes, quality: int) -> float:
    """Bits + λ·255²·MSE for each pixel, of what a decoder shows of the visible pixels."""
    shown = model.decode(data)
    colours = {1: 1, 2: 1, 3: 3, 4: 3}[np.atleast_3d(image).shape[2]]
    error = (np.atleast_3d(shown).astype(float) - np.atleast_3d(image))[..., :colours] ** 2
    if image.ndim == 3 and image.shape[2] in (2, 4):
        error = error[image[..., -1] > 0]
    return 8 * len(data) + model.lambda_at(quality) * error.mean(axis=-1).sum()


def test_more_effort_is_more_steps() -> None:
    assert len(ITERATIONS) == MOST_EFFORT + 1 and ITERATIONS[0] == 0 and list(ITERATIONS) == sorted(set(ITERATIONS))


def test_no_effort_is_a_plain_forward_pass(tiny: Model, photograph: np.ndarray) -> None:
    image = photograph[:100, :90]
    data = tiny.encode(image, 2, effort=0)
    assert data == tiny.encode(image, 2)
    assert container.read(data).latents == tiny.entropy.encode(tiny.analyse(image), 2)


@pytest.mark.parametrize("effort", [1, 4])
def test_what_was_found_is_what_is_decoded(tiny: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch, effort: int) -> None:
    image, given = photograph[:100, :90], []
    encode = tiny.entropy.encode

    def spy(*arguments: Any) -> bytes:
        given.append(arguments)
        return encode(*arguments)

    monkeypatch.setattr(tiny.entropy, "encode", spy)
    data = tiny.encode(image, 1, effort)
    ((y, quality, side, thrifty),) = given
    np.testing.assert_array_equal(tiny.decode_latents(container.read(data)), tiny.entropy.trial(y, quality, side, thrifty)[1])
    assert data != tiny.encode(image, 1)


@pytest.mark.parametrize(("name", "quality"), SHIPPED)
def test_effort_pays_on_a_photograph(name: str, quality: int, photograph: np.ndarray) -> None:
    model, image = codec.load(name), photograph[150:278, 200:392]
    plain, some, more = (model.encode(image, quality, effort) for effort in (0, 1, 4))
    costs = [objective(model, image, data, quality) for data in (plain, some, more)]
    # The first steps bring the most.
    assert costs[1] < costs[0] - 0.02 * 8 * len(plain)
    assert costs[2] < costs[1]


@pytest.mark.parametrize("shape", [(41, 57, 3), (70, 33), (70, 33, 2), (33, 70, 4), (1, 1, 3)])
def test_no_picture_becomes_worse(tiny: Model, photograph: np.ndarray, shape: tuple[int, ...]) -> None:
    image = photograph[: shape[0], 100 : 100 + shape[1]]
    image = image[..., 1] if len(shape) == 2 or shape[2] == 2 else image
    if shape[2:] in ((2,), (4,)):
        mask = np.full(shape[:2], 255, np.uint8)
        mask[10:30, 5:25] = 0
        image = np.dstack([image, mask])
    plain, searched = (tiny.encode(image, 2, effort) for effort in (0, 2))
    assert tiny.decode(searched).shape == image.shape
    assert objective(tiny, image, searched, 2) <= objective(tiny, image, plain, 2) + 32  # bytes come in words


@pytest.mark.parametrize("tile", [0, 128])
def test_large_pictures_are_searched_piece_by_piece(
    tiny: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    """Several windows to a tile, or several tiles; threads change nothing."""
    monkeypatch.setattr(tiles, "WINDOW", 8)
    image, seen = photograph[:200, :300], []
    encoders = [
        Encoder(tiny, pictures.from_array(image), tile=tile, jobs=jobs, effort=effort, progress=lambda *now: seen.append(now))
        for effort, jobs in ((0, 1), (2, 1), (2, 2))
    ]
    plain, searched, threaded = (encoder.encode(2) for encoder in encoders)
    assert threaded == searched
    assert objective(tiny, image, searched, 2) < objective(tiny, image, plain, 2)
    assert seen[-1] == (6 * ITERATIONS[2],) * 2


@pytest.mark.parametrize("quality", [1, 3])
def test_it_starts_from_what_would_be_coded_without_it(
    tiny: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch, quality: int
) -> None:
    """Plain rounding of its start gives what thrifty rounding of the latents gives; most of them stay where they are."""
    image = photograph[:96, :128]
    y = tiny.analyse(image) * 2
    monkeypatch.setattr(tiny.entropy, "thrift", np.full(tiny.qualities, 0.15))
    wanted = tiny.entropy.quantise(y, quality)
    start = Search(tiny, image, None, 1)._start(y, wanted, quality)
    np.testing.assert_array_equal(tiny.entropy.trial(start, quality, tiny_side(tiny, y, quality), thrifty=False)[1], wanted)
    assert (tiny.entropy.trial(y, quality, thrifty=False)[1] != wanted).any()
    assert np.median(np.abs(start - y)) < 1e-3 * np.median(np.abs(y))


def test_a_search_that_finds_nothing_changes_nothing(tiny: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph[:64, :64]
    plain = tiny.encode(image, 2)
    for worse in (lambda y: y * 30 + 7, lambda y: y * float("nan"), lambda y: y + 1e9):
        monkeypatch.setattr(refine, "refine", lambda y, side, *rest, worse=worse: (worse(y), side))
        assert tiny.encode(image, 2, effort=1) == plain


def test_the_same_search_finds_the_same(tiny: Model, photograph: np.ndarray) -> None:
    image = photograph[:96, :128]
    assert tiny.encode(image, 3, effort=2) == tiny.encode(image, 3, effort=2)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_caller_s_mode_does_not_matter(tiny: Model, photograph: np.ndarray, mode: Any) -> None:
    image = photograph[:48, :48]
    with mode():
        data = tiny.encode(image, 2, effort=1)
    assert data == tiny.encode(image, 2, effort=1)


def test_targets_hold_for_what_was_found(tiny_model_file: Any, photograph: np.ndarray) -> None:
    image = photograph[:64, :80]
    model = models.load(tiny_model_file)
    sizes = [len(model.encode(image, quality, 1)) for quality in (1, 2, 3)]
    assert len(codec.compress(image, model=tiny_model_file, size=sizes[1], effort=1)) == sizes[1]
    encoder = Encoder(model, pictures.from_array(image), effort=1)
    error = np.mean((model.decode(encoder.encode(3)).astype(float) - image) ** 2)
    assert encoder.psnr(3) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)


@pytest.mark.parametrize("effort", [-1, 10])
def test_efforts_that_do_not_exist(tiny: Model, photograph: np.ndarray, effort: int) -> None:
    with pytest.raises(ImageError, match=f"effort runs from 0 to 9; not {effort}"):
        tiny.encode(photograph, effort=effort)


def test_without_lambda_there_is_nothing_to_search_for(photograph: np.ndarray) -> None:
    model = from_bytes(to_bytes(tiny_hyper_tensors(), {**hyper_metadata(), "lambdas": []}), "mute")
    with pytest.raises(ModelError, match="mute does not say its λ"):
        model.encode(photograph[:32, :32], effort=1)
    assert model.encode(photograph[:32, :32], effort=0)


@pytest.mark.parametrize("shape", [(176, 190, 3), (70, 33), (33, 70, 4), (1, 1, 3)])
def test_the_search_can_be_tuned_for_ms_ssim(tiny: Model, photograph: np.ndarray, shape: tuple[int, ...]) -> None:
    image = photograph[: shape[0], 100 : 100 + shape[1]]
    image = image[..., 1] if len(shape) == 2 else image
    if shape[2:] == (4,):
        image = np.dstack([image, np.where(np.arange(shape[1]) > 30, 0, 255)[None].repeat(shape[0], 0).astype(np.uint8)])
    files = [tiny.encode(image, 2), tiny.encode(image, 2, effort=2, tune="ms-ssim"), tiny.encode(image, 2, effort=2)]
    assert all(tiny.decode(data).shape == image.shape for data in files)
    assert tiny.encode(image, 2, tune="ms-ssim") == tiny.encode(image, 2, effort=2, tune="ms-ssim")
    if min(shape[:2]) > 160:
        weight = distortion.weight(tiny, "ms-ssim", 2) * image[..., 0].size
        plain, tuned, other = (8 * len(data) - weight * (ms_ssim(image, tiny.decode(data)) or 0) for data in files)
        assert tuned < min(plain, other)


def test_tuned_for_ms_ssim_the_curve_moves_to_the_left(photograph: np.ndarray) -> None:
    model, image = codec.load("hyperprior-9"), photograph[100:276, 200:392]
    curves = []
    for tune, effort in (("psnr", 0), ("ms-ssim", 1)):
        files = [model.encode(image, quality, effort, tune) for quality in (40, 60, 80)]
        values = [decibels(ms_ssim(image, model.decode(data))) for data in files]
        curves.append((np.array([len(data) for data in files], float), np.array(values, float)))
    percent = bd_rate(*curves).percent
    assert percent is not None and percent < -10


def test_tunes_that_do_not_exist(tiny: Model, photograph: np.ndarray) -> None:
    with pytest.raises(ImageError, match="tune can be psnr or ms-ssim; not ssim"):
        tiny.encode(photograph, tune="ssim")
    with pytest.raises(ImageError, match="tune ms-ssim is up to the search, and effort 0 makes none; 1 to 9 do"):
        tiny.encode(photograph, effort=0, tune="ms-ssim")


def test_another_distortion_is_not_searched_for(photograph: np.ndarray) -> None:
    model = from_bytes(to_bytes(tiny_hyper_tensors(), {**hyper_metadata(), "distortion": "ms-ssim"}), "pretty")
    with pytest.raises(ModelError, match="pretty was trained for ms-ssim"):
        model.encode(photograph[:32, :32], effort=1)
    assert model.encode(photograph[:32, :32], tune="ms-ssim")


def test_the_curve_moves_to_the_left(photograph: np.ndarray) -> None:
    """Fewer bits at equal PSNR, not only another place on the same curve."""
    model, image = codec.load("hyperprior-9"), photograph[150:246, 200:344]
    curves = []
    for effort in (0, 3):
        files = [model.encode(image, quality, effort) for quality in (40, 60, 80)]
        errors = [np.mean((model.decode(data).astype(float) - image) ** 2) for data in files]
        curves.append((np.array([len(data) for data in files], float), 10 * np.log10(255**2 / np.array(errors))))
    percent = bd_rate(*curves).percent
    assert percent is not None and percent < -2
