from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, tiny_hyper_tensors

import codec
from codec.frozen import STEP_BITS
from codec.hyperprior import Hyperprior
from codec.model import Model
from codec.soft import SoftFactorized, SoftHyperprior


@pytest.fixture
def latents(tiny_model: Model, photograph: np.ndarray) -> np.ndarray:
    return tiny_model.analyse(photograph[:112, :176]) * 3


@pytest.mark.parametrize("quality", [1, 2, 3])
def test_the_factorized_rate_is_exact_on_whole_numbers(tiny_model: Model, latents: np.ndarray, quality: int) -> None:
    bits, decoded = SoftFactorized(tiny_model.entropy, quality)(torch.from_numpy(latents)[None], None, torch.round)
    assert float(bits) == pytest.approx(sum(tiny_model.entropy.bits(latents, quality)), rel=1e-5)
    exact = tiny_model.entropy.dequantise(tiny_model.entropy.quantise(latents, quality), quality)
    np.testing.assert_allclose(decoded[0].numpy(), exact, atol=1e-5)


@pytest.mark.parametrize("quality", [1, 2, 3])
def test_the_hyperprior_decodes_as_the_exact_one(quality: int) -> None:
    """With integers so fine, and so much room, that they are as good as real numbers; and the same symbols in both, turn by turn."""
    tensors = tiny_hyper_tensors()
    tensors["limits"][:] = 1 << 24
    for name in ("side_shift", "context_shift"):
        tensors[name] -= 8
    for name in [name for name in tensors if name.endswith(".shift")]:
        finely = name.startswith("slices.") and int(name.split(".")[1]) < TINY_SIZES.fine
        wide = name.endswith(".last.shift")
        if wide and not finely:
            tensors[name] += 8
        if not finely:
            bias = name.replace(".shift", ".bias")
            tensors[bias] = tensors[bias] << 8
    for name in [name for name in tensors if ".own." in name and name.endswith(".bias") and int(name.split(".")[1]) >= TINY_SIZES.fine]:
        tensors[name] = tensors[name] << 8
    tensors["features_bias"] = tensors["features_bias"] << 8
    # Means that do not grow from turn to turn.
    for name in [name for name in tensors if name.endswith(".weight") and (".last." in name or ".direct." in name)]:
        tensors[name] = tensors[name] // 32
    entropy = Hyperprior(tensors, tensors["steps"].numpy().astype(np.int64), TINY_SIZES)
    rng = np.random.default_rng(quality)
    z, symbols = (rng.integers(-3, 4, shape).astype(np.int32) for shape in ((4, 2, 3), (12, 7, 11)))

    def code(own: slice, at: np.ndarray, means: np.ndarray, tables: np.ndarray) -> np.ndarray:
        return symbols[own].reshape(len(means), -1)[:, at]

    exact = entropy.run(z, quality, 7, 11, code) / (1 << STEP_BITS)
    sizes = TINY_SIZES
    turns = [
        slice(start, start + n) for k, (start, n) in enumerate(zip(sizes.starts, sizes.slices, strict=True)) for _ in range(sizes.turns[k])
    ]
    given = iter([z, *(symbols[own] for own in turns)])
    bits, decoded = SoftHyperprior(entropy, quality)(
        torch.zeros(1, 12, 7, 11), torch.zeros(1, 4, 2, 3), lambda _: torch.from_numpy(next(given)).float()[None]
    )
    np.testing.assert_allclose(decoded[0].numpy(), exact, rtol=0.02, atol=0.05)
    assert next(given, None) is None and bits > 1000


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_the_hyperprior_s_rate_is_nearly_exact_on_whole_numbers(photograph: np.ndarray, quality: int) -> None:
    """Of a real model: the exact one takes the nearest of the tables, this one a mean of the two beside."""
    model = codec.load(precision="fp32")
    entropy = model.entropy
    assert isinstance(entropy, Hyperprior)
    y = model.analyse(photograph[:144, :240])
    soft = SoftHyperprior(entropy, quality)
    bits, decoded = soft(torch.from_numpy(y)[None], entropy.real_side_information(y).float()[None] / soft.side_step, torch.round)
    exact, latents = entropy.trial(y, quality, thrifty=False)
    assert float(bits) == pytest.approx(sum(exact), rel=0.02)
    # A mean that is off by a rounding error may lead to the next integer, rarely.
    assert np.mean(np.abs(decoded[0].numpy() - latents / (1 << STEP_BITS)) > soft.step.numpy() / 2) < 0.01


def test_rates_have_gradients_in_latents_and_side_information(tiny_hyper: Model, latents: np.ndarray) -> None:
    soft = SoftHyperprior(tiny_hyper.entropy, 2)
    y = torch.from_numpy(latents)[None].requires_grad_()
    side = (tiny_hyper.entropy.real_side_information(latents).float()[None] / soft.side_step).requires_grad_()
    bits, _ = soft(y, side, lambda x: x)
    gradients = torch.autograd.grad(bits, (y, side))
    with torch.no_grad():
        lower, _ = soft(y - 0.002 * gradients[0], side - 0.002 * gradients[1], lambda x: x)
    assert float(lower) < float(bits.detach())
    assert all((g != 0).float().mean() > 0.5 for g in gradients)
