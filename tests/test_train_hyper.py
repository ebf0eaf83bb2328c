from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SAMPLES

from codec import image as images
from codec.layout import LOWEST_OCTAVE, Sizes
from train.hyper import HyperModel, Shape, _noise_for
from train.objective import RateDistortion

LADDER = (0.0035, 0.013, 0.0483)
TINY = Sizes(side=6, analysis=8, synthesis=8, features=10, slices=(4, 4, 4), width=12)


def make(seed: int = 0, sizes: Sizes = TINY, lambdas: tuple[float, ...] = LADDER) -> HyperModel:
    torch.manual_seed(seed)
    return HyperModel(lambdas, 8, 12, sizes)


def crop(top: int = 0, left: int = 0, side: int = 128) -> torch.Tensor:
    pixels = images.read(SAMPLES / "chelsea.png")[top : top + side, left : left + side]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


def photographs() -> torch.Tensor:
    return torch.cat([crop(top, left) for top in (0, 60, 160) for left in (0, 120, 300)])


def test_training_starts_from_the_latents_statistics() -> None:
    """Before any step the rate is that of independent channels of known width, and z costs next to nothing."""
    model = make()
    with torch.no_grad():
        y = model.latents(photographs())
        model.calibrate(y)
        bits_y, bits_z, _ = model.code(y, torch.ones(9))
        entropy = 0.0
        for channel in y.round().transpose(0, 1):
            counts = np.unique(channel.numpy(), return_counts=True)[1] / channel.numel()
            entropy -= channel.numel() * float((counts * np.log2(counts)).sum())
    assert entropy < float(bits_y.sum()) < 1.2 * entropy + 200
    assert bits_z.sum() < 0.1 * bits_y.sum()


def test_the_loss_falls_and_the_context_is_used() -> None:
    """With the transforms as they are, the entropy model alone learns what the channels' tables cannot know."""
    model = make()
    with torch.no_grad():
        y = model.latents(photographs())
    model.calibrate(y)
    optimiser = torch.optim.Adam([p for n, p in model.named_parameters() if not n.startswith(("analysis", "synthesis"))], lr=5e-3)
    torch.manual_seed(1)
    first = last = 0.0
    for step in range(120):
        position, noise = 2 * torch.rand(9), torch.rand(y.shape) - 0.5
        bits_y, bits_z, _ = model.code(y, position, noise)
        loss = (bits_y + bits_z).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first, last = first + loss.item() * (step < 20), last + loss.item() * (step >= 100)
    assert last < 0.85 * first
    with torch.no_grad():
        bits = model.code(y, torch.ones(9))[0].sum()
        for part in model.slices:
            if part.context is not None:
                part.context.weight.zero_()
        assert model.code(y, torch.ones(9))[0].sum() > 1.02 * bits


def test_what_the_decoder_sees_is_rounded_and_what_is_counted_is_noisy() -> None:
    model = make()
    x, position = crop(), torch.tensor([0.7])
    with torch.no_grad():
        y = model.latents(x)
        model.calibrate(y)
        for part in model.slices:
            torch.nn.init.normal_(part.last.weight, std=0.05)
        noise = torch.rand(y.shape) - 0.5
        soft, hard = model.code(y, position, noise), model.code(y, position)
        gain = model.gain(position)
    assert torch.equal(soft[2], hard[2])
    error = (hard[2] - y).abs() * gain
    assert error.max() <= 0.5 + 1e-3 and error.max() > 0.4
    assert float(soft[0]) == pytest.approx(float(hard[0]), rel=0.1) and not torch.equal(soft[0], hard[0])


def test_gradients_reach_every_parameter() -> None:
    model = make()
    with torch.no_grad():
        model.calibrate(model.latents(photographs()))
        for part in model.slices:
            torch.nn.init.normal_(part.last.weight, std=0.05)
    x = photographs()
    bits, mse, _ = model(x, torch.linspace(0, 2, 9), torch.rand(9, 12, 8, 8) - 0.5)
    (bits.mean() / 128**2 + 1000 * mse.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


def test_sigma_below_the_tables_is_pushed_up_but_not_down() -> None:
    """At the lower bound the gradient passes when a larger scale would pay."""
    model = make()
    y = torch.zeros(1, 12, 4, 4)
    with torch.no_grad():
        for part in model.slices:
            part.last.bias[-4:] = LOWEST_OCTAVE - 3.0
    for value, pays in ((0.0, False), (20.0, True)):
        model.zero_grad()
        model.code(y + value, torch.ones(1), torch.zeros(y.shape))[0].sum().backward()
        slope = model.slices[0].last.bias.grad[-4:]
        assert bool((slope < 0).all()) if pays else bool((slope == 0).all())


def test_the_shape_is_a_density() -> None:
    """Its bins sum to one on any grid, its two halves mirror each other, its tails keep their precision."""
    torch.manual_seed(0)
    shape = Shape()
    torch.nn.init.normal_(shape.logits, std=0.3)
    for step, offset in ((0.01, 0.3), (1.0, 0.2), (16.0, -0.4)):
        n = torch.arange(-int(2000 / step), int(2000 / step) + 1)
        with torch.no_grad():
            mass = torch.exp2(-shape.bits((n + offset) * step, torch.tensor(step))).double() - 1e-9
            mirrored = torch.exp2(-shape.bits(-(n + offset) * step, torch.tensor(step))).double() - 1e-9
        assert float(mass.sum()) == pytest.approx(1, abs=2e-4)
        torch.testing.assert_close(mass, mirrored)
    far = torch.tensor([100.0, 1000.0, 1480.0, 1600.0, 3000.0])
    with torch.no_grad():
        near_zero, exact = shape.bits(far, torch.tensor(50.0)), shape.double()
        exact.grid = torch.sinh(0.1 * torch.arange(81, dtype=torch.float64))
        torch.testing.assert_close(near_zero.double(), exact.bits(far.double(), torch.tensor(50.0).double()), rtol=1e-3, atol=0)


def test_means_get_a_gradient_from_narrow_bins() -> None:
    """Also where a bin is a hundredth of σ, each latent pulls the mean towards itself."""
    u = torch.linspace(0.05, 3, 500).requires_grad_()
    (slope,) = torch.autograd.grad(Shape().bits(u, torch.tensor(0.01)).sum(), u)
    assert (slope > 0.2).all()


def test_noise_for_the_side_information_is_uniform_and_independent() -> None:
    noise = torch.rand(8, 12, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    z = _noise_for(torch.zeros(8, 6, 16, 16), noise)
    assert z.shape == (8, 6, 16, 16) and z.abs().max() <= 0.5
    histogram = torch.histc(z, 10, -0.5, 0.5) / z.numel()
    assert (histogram - 0.1).abs().max() < 0.01
    for c in range(6):
        assert abs(float(torch.corrcoef(torch.stack([z[:, c].flatten(), noise[:, c, ::4, ::4].flatten()]))[0, 1])) < 0.05
    small = _noise_for(torch.zeros(1, 6, 1, 2), noise[:1, :, :3, :5])
    assert small.shape == (1, 6, 1, 2)


def test_it_takes_the_place_of_the_first_objective() -> None:
    """Same call, same results' shapes, its parameters a superset apart from the density."""
    first, second = RateDistortion(LADDER, 8, 12), make()
    x = crop(side=80)
    for one, other in zip(first(x, torch.ones(1)), second(x, torch.ones(1)), strict=True):
        assert one.shape == other.shape
    shared = {n for n, _ in first.named_parameters() if not n.startswith("density.")}
    assert shared < {n for n, _ in second.named_parameters()}


def test_slices_must_fit() -> None:
    with pytest.raises(ValueError, match="add up"):
        make(sizes=Sizes(side=6, slices=(4, 4)))
    with pytest.raises(ValueError, match="side information"):
        make(sizes=Sizes(side=16, slices=(6, 6)))
