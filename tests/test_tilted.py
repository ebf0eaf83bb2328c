"""A synthesis that changes with the rate, from training to the file and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model_bytes, tiny_tilted_bytes
from lightning.fabric import Fabric
from safetensors.torch import load

import codec
from codec import container
from codec import model as models
from codec.errors import ModelError
from codec.model import Model
from train import allocation, data, freeze
from train.config import Config
from train.loop import MODEL, Trainer
from train.network import network
from train.objective import RateDistortion, Tilted

LADDER = (0.0018, 0.013, 0.0932)
SAMPLES = Path(__file__).parent.parent / "data" / "samples"


@pytest.fixture
def tilted() -> Model:
    return models.from_bytes(tiny_tilted_bytes(), "tilted")


def trained(seed: int = 0) -> RateDistortion:
    """Not trained, but with a synthesis that changes."""
    torch.manual_seed(seed)
    model = RateDistortion(LADDER, 8, 12, mixed=True, tilted=True)
    for layer in model.synthesis:
        if isinstance(layer, Tilted):
            torch.nn.init.normal_(layer.weight_tilt, std=0.05)
            torch.nn.init.normal_(layer.bias_tilt, std=0.05)
    return model


def test_the_weights_go_evenly_from_the_first_quality_to_the_last(tilted: Model) -> None:
    stored = load(tiny_tilted_bytes())
    for quality, place in ((1, -1.0), (2, 0.0), (3, 1.0)):
        state = tilted.synthesis_at(quality).state_dict()
        for name in ("conv1.weight", "conv3.bias"):
            expected = stored[f"synthesis.{name}"].float() + place * stored[f"synthesis.{name}_tilt"].float()
            assert torch.equal(state[name], expected)
        assert torch.equal(state["igdn1.gamma"], stored["synthesis.igdn1.gamma"].float())
    assert tilted.tilted


def test_each_quality_is_shown_by_its_own_synthesis(tilted: Model, photograph: np.ndarray) -> None:
    image = photograph[:96, :128]
    plain = models.from_bytes(tiny_model_bytes(), "plain")
    y = tilted.analyse(image)
    np.testing.assert_array_equal(y, plain.analyse(image))
    for quality in (3, 1, 2, 3):  # in an order in which one that was kept must not be taken for another
        symbols = tilted.quantise(y, quality)
        shown = tilted.decode(tilted.encode(image, quality))
        latents = torch.from_numpy(tilted.entropy.dequantise(symbols, quality))[None]
        exact = tilted.synthesis_at(quality)(latents)[0].permute(1, 2, 0).mul(255).clamp(0, 255)
        assert float((torch.from_numpy(shown).float() - exact).abs().max()) <= 0.501
        same = np.array_equal(shown, plain.synthesise(symbols, quality, *image.shape[:2]))
        assert same == (quality == 2)


def test_no_more_than_a_few_are_kept(tilted: Model, photograph: np.ndarray) -> None:
    many = models.from_bytes(tiny_tilted_bytes(steps=torch.linspace(1, 0.2, 12)[:, None].mul(65536).to(torch.int32).repeat(1, 12)), "many")
    symbols = np.zeros((12, 2, 2), np.int32)
    shown = [many.synthesise(symbols, quality, 32, 32) for quality in range(1, 13)]
    assert len(many._networks) <= models.KEPT + 1
    np.testing.assert_array_equal(many.synthesise(symbols, 1, 32, 32), shown[0])
    assert len({pixels.tobytes() for pixels in shown}) > 6


def test_both_precisions_show_the_same_picture(tilted: Model, photograph: np.ndarray) -> None:
    image = photograph[:96, :128]
    data = tilted.encode(image, 3)
    exact, rough = (tilted.in_precision(precision).decode(data).astype(int) for precision in ("fp32", "bf16"))
    assert np.abs(exact - rough).mean() < 1


def test_effort_searches_with_the_synthesis_of_the_quality(tilted: Model, photograph: np.ndarray) -> None:
    image = photograph[:64, :96]
    for quality in (1, 3):
        costs = []
        for effort in (0, 3):
            file = tilted.encode(image, quality, effort)
            bits = sum(tilted.entropy.bits(tilted.entropy.dequantise(tilted.decode_latents(container.read(file)), quality), quality))
            error = np.square(tilted.decode(file).astype(float) - image).sum() / 3
            costs.append(bits + tilted.lambda_at(quality) * error)
        assert costs[1] < costs[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"synthesis.conv1.weight_tilt": torch.zeros(3, 3)},
        {"synthesis.conv3.bias_tilt": torch.full((48,), float("nan"))},
        {"synthesis.conv9.weight_tilt": torch.zeros(1)},
        {"synthesis.igdn1.gamma_tilt": torch.zeros(8, 8, 1, 1)},
    ],
)
def test_a_change_that_does_not_fit_is_refused(changed: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match=r"bad: not a usable model: what '.*' changes by is of another shape, or not finite"):
        models.from_bytes(tiny_tilted_bytes(**changed), "bad")


def test_training_shows_each_image_at_its_own_place() -> None:
    model = trained()
    x = torch.rand(5, 3, 32, 32)
    position = torch.tensor([0.0, 0.0, 1.3, 2.0, 0.0])
    together = model(x, position)[2]
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1], position[i : i + 1])[2])
    together.sum().backward()
    tilt = model.synthesis.conv2.weight_tilt.grad
    assert tilt is not None and float(tilt.abs().max()) > 0


def test_the_frozen_model_shows_what_training_showed(photograph: np.ndarray, tmp_path: Path) -> None:
    model, config = trained(), Config(lambdas=LADDER, filters=8, latents=12, quantiser="mixed", tilted=True)
    crop = torch.from_numpy(photograph[:64, :64].copy())[None]
    frozen = freeze.in_memory(model, config, crop)
    y = torch.from_numpy(np.round(frozen.analyse(crop[0].numpy())))[None]
    for quality, position in ((1, 0.0), (100, 2.0), (34, 2 * 33 / 99)):
        with torch.no_grad():
            shown = frozen.synthesis_at(quality)(y).clamp(0, 1)
            assert 0 < float(shown.median()) < 1
            torch.testing.assert_close(shown, model.show(y, torch.tensor([position])), rtol=0.01, atol=0.01)


def test_a_frozen_model_is_a_start_again(tmp_path: Path) -> None:
    model, config = trained(), Config(lambdas=LADDER, filters=8, latents=12, quantiser="mixed", tilted=True)
    path = tmp_path / "model.safetensors"
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    freeze.freeze_to_file(model, config, {}, crops, crops, path)
    frozen, image = codec.load(path, "fp32"), crops[0].numpy()
    y, x = torch.from_numpy(frozen.analyse(image))[None], crops[:1].permute(0, 3, 1, 2) / 255

    def shown(lambdas: tuple[float, ...], tilted: bool, position: float) -> torch.Tensor:
        """Without rounding."""
        thawed = RateDistortion(lambdas, 8, 12, tilted=tilted)
        thawed.load_state_dict({**thawed.state_dict(), **freeze.weights_to_start_from(path, lambdas, tilted=tilted)})
        with torch.no_grad():
            return thawed.show(thawed.latents(x), torch.tensor([position]))

    first, middle, last = (frozen.synthesis_at(quality)(y).clamp(0, 1) for quality in (1, 50, 100))
    assert float((last - first).abs().max()) > 0.1
    for lambdas, tilted, position, expected in (
        (LADDER, True, 0.0, first), (LADDER, True, 2.0, last), (LADDER[1:], True, 1.0, last), (LADDER[:2], True, 0.0, first),
        (LADDER[2:], False, 0.0, last), (LADDER[:1], False, 0.0, first), (LADDER, False, 0.0, middle),
    ):  # fmt: skip
        torch.testing.assert_close(shown(lambdas, tilted, position), expected, rtol=0.01, atol=0.02)


def test_the_search_for_gains_knows_how_the_synthesis_answers_at_each_rate() -> None:
    """Where it answers ten times as strongly at the top as at the bottom, steps must be about as much finer there."""
    torch.manual_seed(0)
    model = network(Config(lambdas=LADDER, filters=8, latents=12, quantiser="mixed", tilted=True))
    assert isinstance(model, RateDistortion)
    x = torch.rand(4, 3, 64, 64)
    plain = allocation.log_gains(model, x, LADDER)
    with torch.no_grad():
        last = model.synthesis.conv3
        last.weight_tilt.copy_(0.8 * last.weight)
    tilted = allocation.log_gains(model, x, LADDER)
    change = (tilted - plain).mean(dim=1)
    assert float(change[0]) < -0.5 and float(change[2]) > 0.3
    assert bool((tilted.diff(dim=0) >= 0).all())


def test_crops_that_share_a_place_are_neighbours() -> None:
    photographs = data.Photographs(data.find_photographs(SAMPLES))
    settings = {"seed": 1, "first": 3, "last": 5, "size": 8, "crop": 16, "latents": 2, "rates": 3, "alike": 4}
    whole = list(data.batches(photographs, **settings))
    for batch in whole:
        first, second = batch.position[:4], batch.position[4:]
        assert len(set(first)) == len(set(second)) == 1 and 0 <= first[0] < 1 <= second[0] < 2
    assert whole[0].position[0] != whole[1].position[0]
    for rank in (0, 1):
        for batch, part in zip(whole, data.batches(photographs, rank=rank, world=2, **settings), strict=True):
            np.testing.assert_array_equal(part.position, batch.position[rank::2])
            np.testing.assert_array_equal(part.crops, batch.crops[rank::2])


def test_a_ladder_that_leans_draws_the_same_crops_at_higher_places() -> None:
    photographs = data.Photographs(data.find_photographs(SAMPLES))
    settings = {"seed": 1, "first": 0, "last": 4, "size": 16, "crop": 16, "latents": 2, "rates": 10}
    even, leant, back = ([*data.batches(photographs, lean=lean, **settings)] for lean in (1.0, 2.0, 0.5))
    for one, other, third in zip(even, leant, back, strict=True):
        np.testing.assert_array_equal(one.crops, other.crops)
        np.testing.assert_allclose(other.position, 9 * np.sqrt(one.position / 9), rtol=1e-5)
        np.testing.assert_allclose(third.position, (one.position / 9) ** 2 * 9, rtol=1e-5)
    # The mean of √u is two thirds.
    assert 0.6 < np.concatenate([batch.position for batch in leant]).mean() / 9 < 0.74


def test_a_run_trains_it_and_leaves_a_file(tmp_path: Path) -> None:
    config = Config(
        data=str(SAMPLES), lambdas=LADDER, filters=8, latents=12, quantiser="mixed", tilted=True, held_out=1, steps=6, batch=8, crop=32,
        early_steps=0, warmup=0, allocate_every=3, validate_every=6, match_steps=2, optimiser="soap", lr=1e-3,
    )  # fmt: skip
    trainer = Trainer(config, tmp_path, Fabric(accelerator="cpu", devices=1))
    trainer.run()
    model = codec.load(tmp_path / MODEL)
    assert model.tilted and model.metadata["training"]["tilted"]
    assert not torch.equal(model.synthesis_at(1).conv1.weight, model.synthesis_at(100).conv1.weight)
