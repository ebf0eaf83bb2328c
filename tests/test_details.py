from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DETAILED, SAMPLES, tiny_hyper_bytes, tiny_hyper_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import container, decoder, tiles
from codec import image as images
from codec import model as models
from codec import picture as pictures
from codec.encoder import Encoder
from codec.errors import ModelError
from codec.hyperprior import Hyperprior
from codec.model import Model
from codec.tiles import Box
from codec.transforms import Details
from train import freeze
from train.config import Config, ConfigError
from train.details import with_details
from train.hyper import HyperModel

LADDER = (0.0035, 0.013, 0.0483)
CONFIG = Config(
    lambdas=LADDER, filters=8, latents=16, entropy="hyperprior", slices=(2, 4, 6, 4), turns=(7, 4, 2, 2), quantiser="mixed",
    details=4, details_from=0.013,
)  # fmt: skip


@pytest.fixture(scope="module")
def detailed() -> Model:
    """Of three qualities, the second and the third have details."""
    return models.from_bytes(tiny_hyper_bytes(sizes=DETAILED), "detailed", "fp32")


def test_a_quality_below_the_first_codes_what_a_model_without_details_does(detailed: Model, photograph: np.ndarray) -> None:
    tensors = tiny_hyper_tensors(sizes=DETAILED)
    plain = dataclasses.replace(DETAILED, slices=DETAILED.slices[:3], turns=DETAILED.turns[:3], details=0)
    for name in ("steps", "log2_steps"):
        tensors[name] = tensors[name][:, :9]
    for name in ("spread", "context_shift"):
        tensors[name] = tensors[name][:9]
    other = Hyperprior(tensors, tensors["steps"].numpy().astype(np.int64), plain)
    y = detailed.analyse(photograph[:96, :128])
    assert detailed.entropy.encode(y, 1) == other.encode(y[:9], 1)
    latents = detailed.entropy.quantise(y, 1)
    np.testing.assert_array_equal(latents[:9], other.quantise(y[:9], 1))
    assert not latents[9:].any() and y[9:].any() and detailed.entropy.quantise(y, 2)[9:].any()


def test_details_are_what_the_synthesis_does_not_show(detailed: Model, photograph: np.ndarray) -> None:
    """Their basis is orthonormal, so each takes its own energy off the error."""
    image = photograph[:64, :96]
    y = detailed.analyse(image)
    x = to_image(torch.from_numpy(image.copy())[None])
    with torch.no_grad():
        missing = x - detailed.synthesis(detailed.analysis(x))
        np.testing.assert_allclose(y[9:], detailed.details.analyse(missing)[0].numpy(), atol=0.01)
        added = 255 * detailed.details.synthesise(torch.from_numpy(y[None, 9:]))[0].permute(1, 2, 0).numpy()
    whole = Box(0, 0, 4, 6)
    bare, full = (detailed.restore_window(some, 3, whole).astype(float) for some in (np.concatenate([y[:9], 0 * y[9:]]), y))
    inside = (np.minimum(bare, full) > 0) & (np.maximum(bare, full) < 255)
    assert inside.mean() > 0.5
    np.testing.assert_allclose((full - bare)[inside], added[inside], atol=1.01)
    assert ((image - full) ** 2).sum() < ((image - bare) ** 2).sum()
    # In grey as in colours.
    grey = [detailed.restore_window(some, 3, whole, grey=True).astype(float) for some in (np.concatenate([y[:9], 0 * y[9:]]), y)]
    np.testing.assert_allclose((grey[1] - grey[0])[inside.all(axis=2)], (added @ (0.299, 0.587, 0.114))[inside.all(axis=2)], atol=1.01)


def test_details_not_asked_for_are_zero_and_change_nothing_else(detailed: Model, photograph: np.ndarray) -> None:
    box = Box(1, 2, 5, 9)
    with_them, without = (detailed.analyse_window(photograph, box, details) for details in (True, False))
    assert with_them.shape == without.shape == (12, 4, 7)
    assert not without[9:].any()
    np.testing.assert_allclose(with_them[:9], without[:9], atol=1e-4)


def test_windows_have_the_details_of_the_whole(detailed: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detailed.analyse(photograph)
    monkeypatch.setattr(tiles, "WINDOW", 5)
    np.testing.assert_allclose(detailed.analyse(photograph), whole, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.sampled_from([1, 3, 4]), st.integers(0, 1 << 20))
def test_any_picture_comes_back(detailed: Model, width: int, height: int, quality: int, channels: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    array = array[..., 0] if channels == 1 else array
    encoder = Encoder(detailed, pictures.from_array(array))
    data = encoder.encode(quality)
    stream = container.read(data)
    np.testing.assert_array_equal(detailed.decode_latents(stream), encoder.symbols(quality))
    assert decoder.decode(detailed, stream).array.shape == array.shape
    assert Encoder(detailed, pictures.from_array(array), keep=True).encode(quality) == data


def test_settings_around_the_codec_change_nothing(detailed: Model, photograph: np.ndarray) -> None:
    image = photograph[:90, :130]
    y = detailed.analyse(image)
    data = detailed.encode(image, 3)
    shown = detailed.decode(data)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_array_equal(detailed.analyse(image), y)
            np.testing.assert_array_equal(detailed.decode(data), shown)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tiles_and_regions(detailed: Model, photograph: np.ndarray) -> None:
    wide = np.tile(photograph, (3, 2, 1))[:1101, :1070]
    for quality in (1, 3):
        whole = decoder.decode(detailed, container.read(Encoder(detailed, pictures.from_array(wide), tile=128).encode(quality)))
        stream = container.read(Encoder(detailed, pictures.from_array(wide), tile=128, jobs=2).encode(quality))
        part = decoder.decode(detailed, stream, region=(900, 1000, 150, 90)).array
        np.testing.assert_allclose(part.astype(int), whole.array[1000:1090, 900:1050], atol=1)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("quality", [1, 2])
def test_the_search_knows_of_details(detailed: Model, photograph: np.ndarray, quality: int, keep: bool) -> None:
    """What it finds decodes, and costs no more than what it begins with, whether or not latents have details that the quality has not."""
    image = photograph[:80, :96]

    def cost(effort: int) -> float:
        encoder = Encoder(detailed, pictures.from_array(image), effort=effort, keep=keep)
        data = encoder.encode(quality)
        error = ((detailed.decode(data).astype(float) - image) ** 2).sum() / 3
        return 8 * len(data) + detailed.lambda_at(quality) * error

    assert cost(2) <= cost(0) + 32


def test_files_that_contradict_themselves(detailed: Model) -> None:
    for change in ({"details": 2}, {"details": True, "slices": [2, 4, 5, 1]}, {"details": -3}, {"details": "3"}):
        metadata = {**detailed.metadata, "sizes": {**detailed.metadata["sizes"], **change}}
        with pytest.raises(ModelError):
            models.from_bytes(models.to_bytes(tiny_hyper_tensors(sizes=DETAILED), metadata), "forged")
    tensors = tiny_hyper_tensors(sizes=DETAILED)
    tensors["details.analysis.weight"] = tensors["details.analysis.weight"][:, :700]
    with pytest.raises(ModelError):
        models.from_bytes(models.to_bytes(tensors, detailed.metadata), "forged")


# Training


def crops(count: int = 6) -> torch.Tensor:
    pixels = images.read(SAMPLES / "chelsea.png")
    corners = itertools.islice(itertools.product((0, 60, 160), (0, 120, 300)), count)
    return torch.from_numpy(np.stack([pixels[top : top + 128, left : left + 128] for top, left in corners]))


def to_image(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def plain() -> HyperModel:
    torch.manual_seed(0)
    sizes = dataclasses.replace(network_sizes(), slices=(2, 4, 6), turns=(7, 4, 2), details=0)
    model = HyperModel(LADDER, 8, 12, sizes, CONFIG.thrift)
    with torch.no_grad():
        model.calibrate(model.latents(to_image(crops())))
    return model.requires_grad_(False)


def network_sizes() -> object:
    from train.loop import sizes_for

    return sizes_for(CONFIG)


@pytest.fixture(scope="module")
def trained(plain: HyperModel) -> HyperModel:
    torch.manual_seed(1)
    model = HyperModel(LADDER, 8, 16, network_sizes(), CONFIG.thrift, CONFIG.details_from)
    start = with_details(plain.state_dict(), model, to_image(crops()), LADDER)
    model.load_state_dict(start)
    return model.requires_grad_(False)


def test_a_model_gets_details_and_stays_what_it_was(plain: HyperModel, trained: HyperModel) -> None:
    x = to_image(crops())
    assert trained.details_from == 1
    for rung in range(3):
        position = torch.full((len(x),), float(rung))
        (before, error, _), (after, less, _) = (model(x, position) for model in (plain, trained))
        if rung < 1:
            torch.testing.assert_close(after, before)
            torch.testing.assert_close(less, error)
        else:
            assert (after > before).all() and (less < error).all()
            # And it pays.
            value = LADDER[rung] * 255**2 * 128**2
            assert (after + value * less).sum() < (before + value * error).sum()


def test_images_of_a_batch_have_details_each_for_itself(trained: HyperModel) -> None:
    x, position = to_image(crops(3)), torch.tensor([0.0, 2.0, 0.9])
    bits, mse, _ = trained(x, position)
    for i in range(3):
        one, error, _ = trained(x[i : i + 1], position[i : i + 1])
        torch.testing.assert_close(bits[i], one[0], rtol=1e-4, atol=0.1)
        torch.testing.assert_close(mse[i], error[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("position", [0.0, 2.0])
def test_gradients_exist_in_every_process(trained: HyperModel, position: float) -> None:
    """Also where no image of a batch has details; then those of the details are zero."""
    import copy

    model = copy.deepcopy(trained).requires_grad_(True)
    x = to_image(crops(2))
    bits, mse, _ = model(x, torch.full((2,), position), torch.rand(2, 16, 8, 8) - 0.5)
    (bits.mean() + mse.mean()).backward()
    for name, parameter in model.named_parameters():
        own = name.startswith(("details.", "slices.3."))
        assert parameter.grad is not None, name
        assert not own or bool(parameter.grad.any()) == (position > 0), name


def test_frozen_and_thawed(trained: HyperModel, tmp_path: Path) -> None:
    frozen = freeze.in_memory(trained, CONFIG, crops())
    assert frozen.metadata["details_from"] == 51 and [frozen.detailed(q) for q in (50, 51)] == [False, True]
    x = crops(1)[0].numpy()
    with torch.no_grad():
        y = trained.latents(to_image(crops(1)))[0]
    np.testing.assert_allclose(frozen.analyse(x), y.numpy(), rtol=0.02, atol=0.1)
    for quality, position in ((1, 0.0), (100, 2.0)):
        bits, mse, _ = trained(to_image(crops(1)), torch.tensor([position]))
        data = frozen.encode(x, quality)
        assert 8 * len(data) == pytest.approx(float(bits), rel=0.05, abs=400)
        assert np.mean((frozen.decode(data) / 255.0 - x / 255.0) ** 2) == pytest.approx(float(mse), rel=0.05, abs=2e-5)
    path = tmp_path / "frozen.safetensors"
    path.write_bytes(models.to_bytes(freeze.tensors_of(trained, crops()), freeze._metadata(trained, CONFIG)))
    thawed = HyperModel(LADDER, 8, 16, network_sizes(), CONFIG.thrift, CONFIG.details_from)
    thawed.load_state_dict({**thawed.state_dict(), **freeze.weights_to_start_from(path, LADDER, "hyperprior")})
    with torch.no_grad():
        torch.testing.assert_close(thawed.latents(to_image(crops(1)))[0], y, rtol=0.01, atol=0.05)
        torch.testing.assert_close(thawed.restore(y[None]), trained.restore(y[None]), rtol=0.01, atol=0.01)
    # A model of profile 1 takes the others.
    assert freeze.weights_to_start_from(path, LADDER)["log_unit"].shape == (12,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"details": 3}, "--details: 3 is not the last of several --slices, 4"),
        ({"details": -1}, "--details: -1 is not the last"),
        ({"details_from": 0.2}, "--details-from: 0.2 is beyond every λ"),
        ({"entropy": "factorized"}, "--details: are for --entropy hyperprior"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, object], message: str) -> None:
    CONFIG.check()
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change).check()


def test_the_block_transform_is_of_places() -> None:
    details = Details(2).requires_grad_(False)
    image = torch.zeros(1, 3, 32, 48)
    image[0, 1, 16 + 3, 32 + 5] = 1
    y = details.analyse(image)
    assert y.shape == (1, 2, 2, 3) and y[0, :, 1, 2].all() and torch.count_nonzero(y) == 2
    torch.testing.assert_close(y[0, :, 1, 2], details.analysis.weight[:, 256 + 3 * 16 + 5, 0, 0])
    shown = details.synthesise(y)
    assert shown.shape == image.shape and not shown[..., :16, :].any() and not shown[..., :32].any()
