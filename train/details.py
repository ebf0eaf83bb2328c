"""Details for a model that was trained without them: further latents for what its synthesis does not show (`codec/transforms.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from codec.transforms import BLOCK, STRIDE
from train.hyper import LARGEST_SPREAD, SMALLEST_SPREAD, HyperModel

BATCH = 8
FIT_STEPS = 200
FIT_RATE = 2e-3
"""Steps that train the entropy model of the details alone, and the learning rate that they begin with."""


def with_details(start: dict[str, Tensor], model: HyperModel, images: Tensor, lambdas: Sequence[float], seed: int = 0) -> dict[str, Tensor]:
    """Weights for a model with details from those for one without, made for images B×3×H×W in 0…1. The model is left with them.

    Its block transform is that of Karhunen and Loève for what the synthesis does not show. Being orthonormal, it shows an error in a
    latent as it is, so the best step follows from λ alone. The entropy model of the details is then trained on the images, alone.
    """
    assert model.details is not None
    model.load_state_dict(_transform(start, model, images, lambdas))
    _fit(model, images, seed)
    return {name: t.clone() for name, t in model.state_dict().items()}


@torch.no_grad()
def _transform(start: dict[str, Tensor], model: HyperModel, images: Tensor, lambdas: Sequence[float]) -> dict[str, Tensor]:
    """All weights, of which the entropy model of the details knows the spreads only."""
    out = {name: t.clone() for name, t in model.state_dict().items()}
    out |= {name: t for name, t in start.items() if name not in ("log_unit", "log_gain", "log_spread")}
    model.load_state_dict(out)
    blocks = []
    for x in images.split(BATCH):
        missing = functional.pixel_unshuffle(x - model.synthesis(model.analysis(x)).float(), STRIDE)
        blocks.append(missing.permute(0, 2, 3, 1).reshape(-1, BLOCK))
    missing = torch.cat(blocks)
    _, vectors = torch.linalg.eigh((missing.T @ missing).double() / len(missing))
    basis = vectors.flip(1)[:, : len(model.log_unit) - model.plain].float()
    # In levels of grey.
    spread = (255 * missing @ basis).std(dim=0)
    log_gain = torch.tensor([0.5 * math.log(value * math.log(2) / 18) for value in lambdas])[:, None].expand(-1, len(spread))
    log_spread = spread.log2().round().clamp(SMALLEST_SPREAD, LARGEST_SPREAD)
    out["details.analysis.weight"] = basis.T[:, :, None, None].contiguous()
    out["details.synthesis.weight"] = basis[:, :, None, None].contiguous()
    out["log_unit"] = torch.cat([start["log_unit"], torch.full_like(spread, math.log(255))])
    out["log_gain"] = torch.cat([start["log_gain"], log_gain], dim=1)
    out["log_spread"] = torch.cat([start["log_spread"], log_spread])
    out[f"slices.{len(model.slices) - 1}.last.bias"] = torch.cat([torch.zeros_like(spread), (spread * math.sqrt(0.5)).log2() - log_spread])
    return out


def _fit(model: HyperModel, images: Tensor, seed: int) -> None:
    """Train the last slice alone."""
    rng, own = torch.Generator().manual_seed(seed), list(model.slices[-1].parameters())
    trained = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    model.slices[-1].requires_grad_(True)
    with torch.no_grad():
        y = torch.cat([model.latents(x) for x in images.split(BATCH)])
    optimiser = torch.optim.Adam(own, lr=FIT_RATE)
    for step in range(FIT_STEPS):
        optimiser.param_groups[0]["lr"] = FIT_RATE * (0.5 + 0.5 * math.cos(math.pi * step / FIT_STEPS))
        some = y[torch.randint(len(y), (BATCH,), generator=rng)]
        position = torch.randint(model.details_from, len(model.log_gain), (BATCH,), generator=rng).float()
        bits, _, _ = model.code(some, position, torch.rand(some.shape, generator=rng) - 0.5)
        optimiser.zero_grad()
        bits.mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for parameter, was in trained.items():
        parameter.requires_grad_(was)
