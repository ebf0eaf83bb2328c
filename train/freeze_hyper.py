"""A trained model with a hyperprior to the integers that the codec computes with."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from codec.density import HALF_KNOTS, SPACING, freeze
from codec.fixedpoint import BITS, LIMIT
from codec.frozen import CDF_BITS, STEP_BITS
from codec.hyperprior import LOWEST_OCTAVE, PER_OCTAVE, TABLES
from train.hyper import HyperModel, Shape, at

WEIGHT_LIMIT = (1 << 15) - 1
BIAS_LIMIT = (1 << 31) - 1
MOST_SHIFT = 18
FINER = 4
"""Knots of the frozen shape to one of the trained one, whose density is not constant between them."""


def integer_layer(name: str, convolution: nn.Conv2d, context: nn.Conv2d | None = None) -> dict[str, Tensor]:
    """Weights in as many bits as int16 holds, the bias and the shift that goes with them, of one layer or the sum of two."""
    weights = [c.weight.detach().double().cpu() for c in (convolution, context) if c is not None]
    assert convolution.bias is not None
    bias = convolution.bias.detach().double().cpu()
    shift = MOST_SHIFT
    while shift > 1 and (
        max(float(w.abs().max()) for w in weights) * 2**shift > WEIGHT_LIMIT or bias.abs().max() * 2 ** (BITS + shift) > BIAS_LIMIT
    ):
        shift -= 1
    rounded = [(w * 2**shift).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT).to(torch.int16) for w in weights]
    out = {f"{name}.weight": rounded[0], f"{name}.shift": torch.tensor(shift, dtype=torch.int32)}
    out[f"{name}.bias"] = (bias * 2 ** (BITS + shift)).round().clamp(-BIAS_LIMIT, BIAS_LIMIT).to(torch.int32)
    if context is not None:
        out[f"{name.rpartition('.')[0]}.context.weight"] = rounded[1]
    return out


def frozen_shape(shape: Shape) -> dict[str, Tensor]:
    """F at finer knots, and the steps Δ/σ that the tables are for, all integers."""
    half = torch.sinh(SPACING / FINER * torch.arange(FINER * HALF_KNOTS + 1, dtype=torch.float64))
    with torch.no_grad():
        above = shape.survival(half.float().to(shape.grid.device), shape.pieces()).double().cpu()
    grid, cdf = torch.cat([-half.flip(0), half[1:]]), torch.cat([above.flip(0), 1 - above[1:]])
    steps = torch.exp2(-(LOWEST_OCTAVE + torch.arange(TABLES, dtype=torch.float64) / PER_OCTAVE))
    return {
        "shape.grid": (grid * (1 << STEP_BITS)).round().to(torch.int32),
        "shape.cdf": (cdf * (1 << CDF_BITS)).round().to(torch.int32),
        "shape.steps": (steps * (1 << STEP_BITS)).round().to(torch.int32),
    }


def tensors(model: HyperModel, qualities: int) -> dict[str, Tensor]:
    """The entropy model's part of the model file."""
    rungs = model.log_gain.shape[0]
    position = torch.linspace(0, rungs - 1, qualities) if rungs > 1 else torch.zeros(1)
    position = position.to(model.log_gain.device)
    spread = model.log_spread.cpu()
    out: dict[str, Tensor] = {"spread": spread.round().to(torch.int32)}
    with torch.no_grad():
        # Of the steps as they are stored, in units of 2⁻¹⁶.
        gain = model.gain(position)[:, :, 0, 0].double().cpu()
        steps = ((1 << STEP_BITS) / gain).round().clamp(1, (1 << 31) - 1)
        out["log2_steps"] = ((steps.log2() - STEP_BITS) * (1 << BITS)).round().to(torch.int32)
        z_gain = at(model.log_gain_z, position).double().cpu().exp()
        out["z_steps"] = ((1 << STEP_BITS) / z_gain).round().clamp(1, (1 << 31) - 1).to(torch.int32)
        bias = at(model.features_bias, position).double().cpu() * (1 << BITS)
        out["features_bias"] = bias.round().clamp(-LIMIT, LIMIT).to(torch.int32)
        for name, tensor in model.hyper_analysis.state_dict().items():
            # The encoder's network gets latents as they are.
            scaled = tensor.cpu() * torch.exp2(-spread)[:, None, None] if name == "conv1.weight" else tensor.cpu()
            out[f"hyper_analysis.{name}"] = scaled.to(torch.float16)
    out |= integer_layer("hyper_synthesis.conv1", model.hyper_synthesis.conv1)
    out |= integer_layer("hyper_synthesis.conv2", model.hyper_synthesis.conv2)
    for k, part in enumerate(model.slices):
        out |= integer_layer(f"slices.{k}.features", part.features, part.context)
        out |= integer_layer(f"slices.{k}.hidden", part.hidden)
        out |= integer_layer(f"slices.{k}.last", part.last)
    density = freeze(model.z_density)
    for part in ("grid", "scale", "cdf"):
        out[f"z_density.{part}"] = torch.from_numpy(getattr(density, part)).to(torch.int32)
    return {**out, **frozen_shape(model.density)}


def metadata(model: HyperModel) -> dict[str, Any]:
    """What a model says of its profile."""
    return {"profile": "hyperprior", "sizes": {**dataclasses.asdict(model.sizes), "slices": list(model.sizes.slices)}}
