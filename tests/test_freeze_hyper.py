from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES

import codec
from codec import fixedpoint
from codec import image as images
from codec import model as models
from codec.hyperfile import BITS
from codec.layout import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Sizes, sizes_of
from codec.model import Model
from tools.integers import thaw
from train import freeze, freeze_hyper
from train.config import Config
from train.freeze import steps_of
from train.hyper import HyperModel, Shape
from train.objective import RateDistortion

LADDER = (0.0035, 0.013, 0.0483)
CONFIG = Config(lambdas=LADDER, filters=8, latents=12, entropy="hyperprior", slices=(2, 4, 6), turns=(7, 4, 2), quantiser="mixed")
SIZES = Sizes(side=6, analysis=10, synthesis=10, features=12, slices=(2, 4, 6), width=16, turns=(7, 4, 2), fine=2)


@pytest.fixture(scope="module")
def trained() -> HyperModel:
    """A small model after some steps on fixed transforms, so that all of its networks say something."""
    torch.manual_seed(0)
    model = HyperModel(LADDER, 8, 12, SIZES, CONFIG.thrift)
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


def crops() -> torch.Tensor:
    """What the integers are fitted to, as when a run ends: the photograph that was trained on, and another."""
    chelsea, coffee = (images.read(SAMPLES / f"{name}.png") for name in ("chelsea", "coffee"))
    parts = [chelsea[:256, :256], chelsea[32:288, 192:448], *(coffee[:256, left : left + 256] for left in (0, 150, 300))]
    return torch.from_numpy(np.stack(parts))


@pytest.fixture(scope="module")
def frozen(trained: HyperModel) -> Model:
    return freeze.in_memory(trained, CONFIG, crops())


@pytest.mark.parametrize(("quality", "position"), [(1, 0.0), (34, 66 / 99), (100, 2.0)])
def test_the_integers_code_as_well_as_the_floats(trained: HyperModel, frozen: Model, quality: int, position: float) -> None:
    """Real rounding on both sides, and what comes back is what went in.

    Eight bits, and limits that suit real latents, show more in so narrow networks, trained on one picture, than in real ones.
    """
    y = trained.latents(picture()[None])[0]
    bits_y, bits_z, _ = trained.code(y[None], torch.tensor([position]))
    side, rest = frozen.entropy.bits(y.numpy(), quality)
    assert side == pytest.approx(float(bits_z), rel=0.02, abs=20)
    assert float(bits_y) * 0.98 < rest < 1.07 * float(bits_y)
    data = frozen.entropy.encode(y.numpy(), quality)
    np.testing.assert_array_equal(frozen.entropy.decode(data, quality, 18, 28), frozen.entropy.quantise(y.numpy(), quality))
    assert 8 * len(data) < 1.001 * (side + rest) + 64


@pytest.fixture(scope="module")
def real() -> tuple[HyperModel, Model]:
    """The networks of a trained model, thawed, are floating-point networks; and frozen again.

    A model that shipped before, so that what is asked here does not change with the default: of what was thawed from `hyperprior-6`,
    rounded once already, some maps grew far beyond those of the networks that were trained (see the training record).
    """
    file = SAMPLES.parent / "models" / "hyperprior-5.safetensors"
    model = codec.load(file)
    thawed = thaw(model, file)
    shape = {"filters": model.metadata["filters"], "latents": model.latents, "slices": thawed.sizes.slices, "turns": thawed.sizes.turns}
    config = Config(lambdas=tuple(model.metadata["lambdas"]), quantiser="mixed", thrift=thawed.thrift, **shape)
    return thawed, freeze.in_memory(thawed, config, crops()[2:])


def test_a_real_model_loses_little(real: tuple[HyperModel, Model]) -> None:
    """On photographs that nothing was fitted to; one was."""
    thawed, model = real
    floats, integers, last = 0.0, 0.0, len(thawed.log_gain) - 1
    for photograph in ("astronaut", "chelsea"):
        x = torch.from_numpy(images.read(SAMPLES / f"{photograph}.png")[:288, :448].copy()).permute(2, 0, 1)[None] / 255
        y = thawed.latents(x)
        for quality, position in ((34, last * 33 / 99), (100, float(last))):
            floats += sum(float(bits) for bits in thawed.code(y, torch.tensor([position]))[:2])
            integers += sum(model.entropy.bits(y[0].numpy(), quality))
    assert 0.99 < integers / floats < 1.009


def test_means_and_scales_follow_the_floats(real: tuple[HyperModel, Model]) -> None:
    """With the same symbols in both, so that one latent on the edge of rounding does not set them apart."""
    thawed, model = real
    y = thawed.latents(picture()[None])
    last = len(thawed.log_gain) - 1
    position, quality = torch.tensor([float(last)]), 100
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [part.register_forward_hook(lambda _, __, out: outputs.append(out)) for part in thawed.slices]
    thawed.code(y, position)
    for hook in hooks:
        hook.remove()
    turn = iter(outputs)
    spread, gain = torch.exp2(thawed.log_spread)[:, None], thawed.gain(position)[0, :, 0]
    units = gain * spread
    z_gain = thawed.log_gain_z[last].exp()[:, None, None]
    z = torch.round(thawed.hyper_analysis(y / spread[..., None])[0] * z_gain).to(torch.int32).numpy()
    errors = []

    def code(own: slice, at: np.ndarray, means: np.ndarray, tables: np.ndarray) -> np.ndarray:
        mean, octave = (part[0].flatten(1)[:, at] for part in next(turn))
        ideal = ((octave + units[own].log2() - LOWEST_OCTAVE) * PER_OCTAVE).clamp(0, TABLES - 1)
        # In units of σ, which is what they matter in.
        errors.append((abs(means / 65536 / spread[own].numpy() - mean.numpy()) / torch.exp2(octave).numpy(), abs(tables - ideal.numpy())))
        return torch.round((y[0, own].flatten(1)[:, at] - mean * spread[own]) * gain[own]).to(torch.int32).numpy()

    model.entropy.run(z, quality, 18, 28, code)
    for mean_error, table_error in errors:
        assert mean_error.mean() < 0.015 and np.quantile(mean_error, 0.999) < 0.2
        # The nearest table is up to half a table away, and a quarter in the mean; eight bits add up to four times as much. A table is
        # a sixth of an octave.
        assert table_error.mean() < 1.3 and np.quantile(table_error, 0.999) < 7


def test_a_frozen_file_is_what_is_used(trained: HyperModel, frozen: Model, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    freeze.freeze_to_file(trained, CONFIG, {"step": 120}, crops(), crops(), path)
    model = models.load(path).in_precision("fp32")
    assert model.metadata["profile"] == "hyperprior" and model.metadata["measured_on_held_out_crops"]["bits_over_ideal"] < 1.1
    assert model.qualities == 100 and model.default_quality == 50 and sizes_of(model.metadata) == SIZES
    pixels = (picture() * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    # How thriftily it rounds was measured on the way.
    thrift = model.metadata["thrift"]
    assert len(thrift) == len(LADDER) and model.entropy.thrift[[0, -1]].tolist() == [thrift[0], thrift[-1]]
    # So are its tables, which say nothing of what is decoded when all is rounded plainly.
    assert (model.entropy.shape.cdf != frozen.entropy.shape.cdf).any()
    symbols = [m.entropy.trial(m.analyse(pixels), 50, thrifty=False)[1] for m in (model, frozen)]
    np.testing.assert_array_equal(*symbols)
    sizes = [len(model.encode(pixels, quality)) for quality in (1, 25, 50, 75, 100)]
    assert sizes == sorted(sizes) and sizes[-1] > 1.5 * sizes[0]


def test_weights_and_sums_take_the_bits_there_are_and_no_more(trained: HyperModel, frozen: Model) -> None:
    entropy = frozen.entropy
    layers = [entropy._coarse, entropy._fine, *(layer for turns in entropy._turns for turn in turns for layer in turn)]
    fine = [turn for turns in entropy._turns[:2] for turn in turns]
    layers = [layer for layer in layers if not any(layer in turn for turn in fine)]
    assert {layer.dtype for layer in layers} == {torch.int8 if fixedpoint.byte_products() else torch.float32}
    assert {layer._tail for layer in layers} == {torch.float32}  # sums of 24 bits
    assert {layer.dtype for turn in fine for layer in turn} == {torch.float64}
    tensors = freeze.tensors_of(trained, crops())
    for name in [name.removesuffix(".shift") for name in tensors if name.endswith(".shift")]:
        is_fine = name.startswith(("slices.0.", "slices.1."))
        assert tensors[f"{name}.weight"].dtype == (torch.int16 if is_fine else torch.int8)
        largest = tensors[f"{name}.weight"].int().abs().flatten(1).amax(1)
        for part in SIZES.ever_added(name):
            largest = torch.maximum(largest, tensors[f"{part}.weight"].int().abs().flatten(1).amax(1))
        # The outputs of conv2 that share a bias share their places, and each has a power of two for its unit.
        groups = largest.reshape(-1, 4).amax(1) if name.endswith("conv2") else largest
        assert (groups >= (1 << 14 if is_fine else 64)).float().mean() > 0.9 and largest.max() <= (32767 if is_fine else 127)


def layer_of(weight: float, bias: float, inputs: int = 4) -> torch.nn.Conv2d:
    layer = torch.nn.Conv2d(inputs, 2, 1).requires_grad_(False)
    layer.weight.fill_(weight)
    layer.weight[1] /= 1024
    layer.bias.copy_(torch.tensor([bias, 0.0]))
    return layer


def test_each_output_has_its_own_unit() -> None:
    """Small weights are not rounded away beside large ones, and inputs of any unit are accounted for."""
    out = freeze_hyper.integer_layer("x", layer_of(0.75, -0.5), torch.tensor([0.0, 0, 3, -2]), torch.tensor([1.0, 4.0]))
    weight, places = out["x.weight"].double(), out["x.shift"].double() + torch.tensor([1.0, 4.0])
    expected = torch.tensor([0.75, 0.75 / 1024])[:, None] * torch.tensor([1, 1, 1 / 8, 4.0])
    np.testing.assert_allclose(weight[:, :, 0, 0] / 2 ** places[:, None], expected, rtol=0.02)
    assert out["x.bias"].tolist() == [-(2 ** (int(places[0]) - 1)), 0]
    assert out["x.weight"].abs().amax() > 63


def test_what_has_no_room_loses_places() -> None:
    """A bias of a thousand has ten bits before the point, and so no more than fourteen behind it."""
    out = freeze_hyper.integer_layer("x", layer_of(0.001, 1000.0), torch.zeros(4), torch.tensor([15.0, 15.0]))
    assert out["x.shift"].tolist()[0] == -1 and out["x.bias"][0] == 1000 * 2**14


def test_frozen_steps_and_logarithms_belong_together(trained: HyperModel) -> None:
    tensors = freeze_hyper.tensors(trained, 100, crops())
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
    path.write_bytes(models.to_bytes(freeze.tensors_of(trained, crops()), freeze._metadata(trained, CONFIG)))
    thawed = HyperModel(LADDER, 8, 12, SIZES, CONFIG.thrift)
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
        assert after[0] == pytest.approx(before[0], rel=0.03) and after[1] == pytest.approx(before[1], rel=0.02, abs=20)


def test_other_models_take_only_the_transforms(trained: HyperModel, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    path.write_bytes(models.to_bytes(freeze.tensors_of(trained, crops()), freeze._metadata(trained, CONFIG)))
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
