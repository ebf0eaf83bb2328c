from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES
from safetensors.torch import load

from codec import image as images
from codec import model as models
from codec.fixedpoint import BITS
from codec.hyperprior import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Sizes
from codec.model import Model
from train import freeze, freeze_hyper
from train.config import Config
from train.freeze import steps_of
from train.hyper import HyperModel, Shape
from train.objective import RateDistortion

LADDER = (0.0035, 0.013, 0.0483)
CONFIG = Config(lambdas=LADDER, filters=8, latents=12, entropy="hyperprior", slices=(4, 4, 4), quantiser="mixed")
SIZES = Sizes(side=6, analysis=10, synthesis=10, features=12, slices=(4, 4, 4), width=16)


@pytest.fixture(scope="module")
def trained() -> HyperModel:
    """A small model after some steps on fixed transforms, so that all of its networks say something."""
    torch.manual_seed(0)
    model = HyperModel(LADDER, 8, 12, SIZES)
    with torch.no_grad():
        y = model.latents(picture()[None])
        model.calibrate(y)
    optimiser = torch.optim.Adam([p for n, p in model.named_parameters() if not n.startswith(("analysis", "synthesis"))], lr=5e-3)
    for _ in range(120):
        bits_y, bits_z, _ = model.code(y, 2 * torch.rand(1), torch.rand(y.shape) - 0.5)
        optimiser.zero_grad()
        (bits_y + bits_z).sum().backward()
        optimiser.step()
    return model.requires_grad_(False)


def picture() -> torch.Tensor:
    pixels = images.read(SAMPLES / "chelsea.png")[:288, :448]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def frozen(trained: HyperModel) -> Model:
    return freeze.in_memory(trained, CONFIG)


@pytest.mark.parametrize(("quality", "position"), [(1, 0.0), (34, 66 / 99), (100, 2.0)])
def test_the_integers_code_as_well_as_the_floats(trained: HyperModel, frozen: Model, quality: int, position: float) -> None:
    """Real rounding on both sides: half a per cent is what may be lost, and what comes back is what went in."""
    y = trained.latents(picture()[None])[0]
    bits_y, bits_z, _ = trained.code(y[None], torch.tensor([position]))
    side, rest = frozen.entropy.bits(y.numpy(), quality)
    assert side == pytest.approx(float(bits_z), rel=0.01, abs=20)
    assert float(bits_y) * 0.998 < rest < 1.005 * float(bits_y)
    data = frozen.entropy.encode(y.numpy(), quality)
    np.testing.assert_array_equal(frozen.entropy.decode(data, quality, 18, 28), frozen.entropy.quantise(y.numpy(), quality))
    assert 8 * len(data) < 1.001 * (side + rest) + 64


def test_means_and_scales_follow_the_floats(trained: HyperModel, frozen: Model) -> None:
    """With the same symbols in both, so that one latent on the edge of rounding does not set them apart."""
    y = trained.latents(picture()[None])
    position, quality = torch.tensor([2.0]), 100
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [part.register_forward_hook(lambda _, __, out: outputs.append(out)) for part in trained.slices]
    trained.code(y, position)
    for hook in hooks:
        hook.remove()
    spread, gain = torch.exp2(trained.log_spread)[:, None, None], trained.gain(position)[0]
    units = gain * spread
    z_gain = trained.log_gain_z[2].exp()[:, None, None]
    z = torch.round(trained.hyper_analysis(y / spread)[0] * z_gain).to(torch.int32).numpy()
    seen = []

    def code(k: int, means: np.ndarray, tables: np.ndarray) -> np.ndarray:
        own = slice(4 * k, 4 * k + 4)
        mean, octave = (part[0] for part in outputs[k])
        ideal = (octave + units[own].log2() - LOWEST_OCTAVE) * PER_OCTAVE
        seen.append((means / 65536 / spread[own].numpy() - mean.numpy(), tables - ideal.clamp(0, TABLES - 1).numpy()))
        return torch.round((y[0, own] - mean * spread[own]) * gain[own]).to(torch.int32).numpy()

    frozen.entropy.run(z, quality, 18, 28, code)
    for mean_error, table_error in seen:
        assert abs(mean_error).max() < 0.005
        # The nearest table is up to half a table away.
        assert abs(table_error).max() < 0.5 + 0.05 and abs(table_error).mean() < 0.3


def test_a_frozen_file_is_what_is_used(trained: HyperModel, frozen: Model, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    freeze.freeze_to_file(trained, CONFIG, {"step": 120}, (picture() * 255).to(torch.uint8).permute(1, 2, 0)[None, :256, :256], path)
    model = models.load(path).in_precision("fp32")
    assert model.metadata["profile"] == "hyperprior" and model.metadata["measured_on_held_out_crops"]["bits_over_ideal"] < 1.1
    assert model.qualities == 100 and model.default_quality == 50 and model.metadata["sizes"]["slices"] == [4, 4, 4]
    pixels = (picture() * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    assert np.array_equal(model.decode(model.encode(pixels)), frozen.decode(frozen.encode(pixels)))
    sizes = [len(model.encode(pixels, quality)) for quality in (1, 25, 50, 75, 100)]
    assert sizes == sorted(sizes) and sizes[-1] > 1.5 * sizes[0]


def test_weights_take_all_the_bits_there_are(trained: HyperModel) -> None:
    tensors = load(models.to_bytes(freeze.tensors_of(trained), {}))
    for name in [name for name in tensors if name.endswith(".shift")]:
        layer = name.removesuffix(".shift")
        shift = int(tensors[name])
        largest = tensors[f"{layer}.weight"].abs().max()
        if layer.endswith(".features") and f"{layer[:-9]}.context.weight" in tensors:
            largest = max(largest, tensors[f"{layer[:-9]}.context.weight"].abs().max())
        assert largest > 1 << 14 or shift == freeze_hyper.MOST_SHIFT or tensors[f"{layer}.bias"].abs().max() > 1 << 30
    float_weight = trained.slices[1].hidden.weight
    restored = tensors["slices.1.hidden.weight"].double() / 2 ** int(tensors["slices.1.hidden.shift"])
    assert (restored - float_weight).abs().max() <= 2.0 ** -(int(tensors["slices.1.hidden.shift"]) + 1)


def test_a_bias_out_of_range_takes_bits_from_the_weights() -> None:
    layer = torch.nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([100.0, -0.5]))
    out = freeze_hyper.integer_layer("x", layer)
    assert int(out["x.shift"]) == 12
    np.testing.assert_array_equal(out["x.bias"].numpy(), np.array([100, -0.5]) * 2 ** (BITS + 12))


def test_frozen_steps_and_logarithms_belong_together(trained: HyperModel) -> None:
    tensors = freeze_hyper.tensors(trained, 100)
    exact = np.log2(steps_of(trained).numpy() / 65536)
    assert abs(tensors["log2_steps"].numpy() / 2**BITS - exact).max() <= 2.0 ** -(BITS + 1)
    widths = np.log2(65536 / tensors["shape.steps"].numpy())
    np.testing.assert_allclose(widths, LOWEST_OCTAVE + np.arange(TABLES) / PER_OCTAVE, atol=0.01)


def test_a_frozen_shape_costs_nothing_against_the_learned_one() -> None:
    torch.manual_seed(3)
    shape = Shape().requires_grad_(False)
    torch.nn.init.normal_(shape.logits, std=0.3)
    tensors = freeze_hyper.frozen_shape(shape)
    grid, cdf = tensors["shape.grid"].numpy() / 65536, tensors["shape.cdf"].numpy() / 2**30
    assert (np.diff(cdf) >= 0).all() and cdf[len(cdf) // 2] == 0.5
    u = np.interp(np.random.default_rng(0).random(50_000), cdf, grid)
    for step in (16.0, 1.0, 0.02):
        n = np.rint(u / step)
        mass = np.interp((n + 0.5) * step, grid, cdf) - np.interp((n - 0.5) * step, grid, cdf)
        ideal = shape.bits(torch.from_numpy(n * step).float(), torch.tensor(step)).sum()
        assert -np.log2(mass.clip(1e-9)).sum() == pytest.approx(float(ideal), rel=1e-3)


def test_training_goes_on_where_a_frozen_model_stands(trained: HyperModel, tmp_path: Path) -> None:
    """Thawed, the networks code the same latents in the same bits as before, but for the rounding to integers and half precision."""
    path = tmp_path / "frozen.safetensors"
    path.write_bytes(models.to_bytes(freeze.tensors_of(trained), freeze._metadata(trained, CONFIG)))
    thawed = HyperModel(LADDER, 8, 12, SIZES)
    thawed.load_state_dict({**thawed.state_dict(), **freeze.weights_to_start_from(path, LADDER, "hyperprior")})
    thawed.requires_grad_(False)
    assert torch.equal(thawed.log_spread, trained.log_spread)
    y = trained.latents(picture()[None])
    torch.testing.assert_close(thawed.latents(picture()[None]), y, rtol=0.01, atol=0.01)
    # A rate of learning suits weights of a certain size: frozen ones have the units in them.
    down, up = thawed.analysis.conv3.weight.square().sum(dim=(1, 2, 3)), thawed.synthesis.conv1.weight.square().sum(dim=(0, 2, 3))
    torch.testing.assert_close(down, up)
    for rung in (0.0, 1.0, 2.0):
        before, after = ([float(bits) for bits in model.code(y, torch.tensor([rung]))[:2]] for model in (trained, thawed))
        assert after[0] == pytest.approx(before[0], rel=0.015) and after[1] == pytest.approx(before[1], rel=0.02, abs=20)


def test_other_models_take_only_the_transforms(trained: HyperModel, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    path.write_bytes(models.to_bytes(freeze.tensors_of(trained), freeze._metadata(trained, CONFIG)))
    factorized = RateDistortion(LADDER, 8, 12)
    factorized.load_state_dict({**factorized.state_dict(), **freeze.weights_to_start_from(path, LADDER)})
    with torch.no_grad():
        x = picture()[None]
        torch.testing.assert_close(
            factorized.synthesis(factorized.analysis(x)), trained.synthesis(trained.analysis(x)), rtol=0.01, atol=0.01
        )
        # The same steps, in the latents' own units.
        ours, theirs = ((m.log_gain + m.log_unit).exp() * m.analysis.conv3.weight.flatten(1).norm(dim=1) for m in (factorized, trained))
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0)
