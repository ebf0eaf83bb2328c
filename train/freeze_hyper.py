"""A trained model with a hyperprior to the integers that the codec computes with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codec.density import HALF_KNOTS, SPACING, freeze, start_log_mass
from codec.fixedpoint import BITS, LIMIT
from codec.frozen import CDF_BITS, STEP_BITS, FrozenDensity
from codec.hyperprior import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Hyperprior
from codec.model import Model
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


def density_weights(density: FrozenDensity) -> dict[str, Tensor]:
    """Training weights of a frozen density."""
    cdf = torch.from_numpy(density.cdf / (1 << CDF_BITS))
    edges = torch.cat([torch.zeros(len(cdf), 1), cdf, torch.ones(len(cdf), 1)], dim=1).double()
    return {
        "density.logits": (edges.diff(dim=1).clamp(min=2.0**-CDF_BITS).log() - start_log_mass()).float(),
        "density.log_scale": torch.from_numpy(density.scale / (1 << STEP_BITS)).log().float(),
    }


def weights(model: Model, file: Mapping[str, Tensor], rungs: Tensor) -> dict[str, Tensor]:
    """Training weights of a frozen entropy model, to go on from: the inverse of `tensors`, up to what rounding took.

    `file` holds the tensors of the model's file, `rungs` where on its qualities (0…Q-1, real) each λ lies.
    """
    entropy = model.entropy
    assert isinstance(entropy, Hyperprior)
    out: dict[str, Tensor] = {}
    for name, tensor in file.items():
        if name.endswith(".shift"):
            layer, shift = name.removesuffix(".shift"), int(tensor)
            out[f"{layer}.weight"] = file[f"{layer}.weight"].float() / 2**shift
            out[f"{layer}.bias"] = file[f"{layer}.bias"].float() / 2 ** (BITS + shift)
            context = f"{layer.rpartition('.')[0]}.context.weight"
            if layer.endswith(".features") and context in file:
                out[context] = file[context].float() / 2**shift
        elif name.startswith("hyper_analysis."):
            out[name] = tensor.float()
    spread = file["spread"].float()
    out["log_spread"] = spread
    out["hyper_analysis.conv1.weight"] = out["hyper_analysis.conv1.weight"] * torch.exp2(spread)[:, None, None]
    out["features_bias"] = at(file["features_bias"].float() / (1 << BITS), rungs)
    out["log_gain_z"] = -at((file["z_steps"].double() / (1 << STEP_BITS)).log().float(), rungs)
    out |= {f"z_{name}": tensor for name, tensor in density_weights(entropy.z_density).items()}
    out["density.logits"] = _shape_logits(file["shape.grid"], file["shape.cdf"])
    return out


def _shape_logits(grid: Tensor, cdf: Tensor) -> Tensor:
    """Corrections to the shape's starting densities, from its frozen F at the knots and between them."""
    start = Shape()
    middle = len(grid) // 2
    u, above = grid[middle:].double() / (1 << STEP_BITS), 1 - cdf[middle:].double() / (1 << CDF_BITS)
    centre = (u[1:] + u[:-1]) / 2
    density = -above.diff() / u.diff()
    # Linear within each piece: what its first and last parts hold says how it goes on to the knots.
    first, last = density[::FINER], density[FINER - 1 :: FINER]
    slope = (last - first) / (centre[FINER - 1 :: FINER] - centre[::FINER])
    inner = first - slope * (centre[::FINER] - u[:-1:FINER])
    outer = last + slope * (u[FINER::FINER] - centre[FINER - 1 :: FINER])
    knots = torch.cat([inner[:1], (inner[1:] + outer[:-1]) / 2, outer[-1:]]).clamp(min=2.0**-CDF_BITS)
    # Only their ratios matter.
    logits = knots.log() - start.start.double()
    return (logits - logits[0]).float()
