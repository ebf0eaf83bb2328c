"""A trained model with a hyperprior to the integers that the codec computes with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from codec.density import HALF_KNOTS, SPACING, freeze, start_log_mass
from codec.fixedpoint import LIMIT, MAX_SHIFT
from codec.frozen import CDF_BITS, STEP_BITS, FrozenDensity
from codec.hyperfile import BITS
from codec.hyperprior import Hyperprior
from codec.layout import LOWEST_OCTAVE, PER_OCTAVE, TABLES
from codec.model import Model
from codec.soft import float_weights
from train import compensate
from train.compensate import HEADROOM, QUIET
from train.hyper import HyperModel, Shape, at

WEIGHT_LIMIT = 127
"""Weights have eight bits with their sign,"""
SIGNED_LIMIT, RECTIFIED_LIMIT = 127, 255
"""and so have maps, of which some have no sign."""
SUM_LIMIT = 1 << 24
"""Single precision is exact too, for processors that do not multiply bytes."""
FINE_WEIGHT_LIMIT, FINE_SUM_LIMIT = (1 << 15) - 1, 1 << 52
"""Of the slices that are computed finely, in double precision."""
CONTEXT_HEADROOM = 0.35
"""Latents that later slices see are clamped sooner, for the many small ones to be seen in finer steps,"""
CONTEXT_REACH = 1.5
"""though at no less than so many spreads of their channel."""
SIDE_STEPS = 8
"""The side information has room for so many steps to each side, in any case."""
FINER = 4
"""Knots of the frozen shape to one of the trained one, whose density is not constant between them."""


@dataclass(frozen=True)
class Added:
    """A convolution that is added to a layer's sum, its name in the model file, and the binary places of its inputs."""

    name: str
    convolution: nn.Conv2d
    into: Tensor
    reach: int = SIGNED_LIMIT
    """The largest size of its inputs, in their last place."""


@torch.no_grad()
def places_of(model: HyperModel, crops: Tensor) -> dict[str, Tensor]:
    """How many binary places there is room for in each channel of what enters each layer, by the layer's name, float64.

    The maps' largest numbers are measured on photographs' crops, N×H×W×3 uint8, at all rungs. Within the networks, where nobody asks for
    the maps' units, places need not be whole.
    """
    layers = {f"hyper_synthesis.{name}": model.hyper_synthesis.get_submodule(name) for name in ("conv1", "conv2")}
    for k, part in enumerate(model.slices):
        layers |= {f"slices.{k}.{name}": part.get_submodule(name) for name in ("features", "hidden", "last")}
    # The last slice sees all latents that any of them sees, and its own last turn the rest.
    last = model.slices[-1]
    layers |= {} if last.context is None else {"context": last.context}
    layers |= {"own": last.own[-1]} if len(last.own) else {}
    found: dict[str, Tensor] = {}

    def keep(name: str, given: Tensor) -> None:
        largest = given.double().cpu().abs().amax(dim=(0, 2, 3))
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    hooks = [layer.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0])) for name, layer in layers.items()]
    try:
        for some in crops.split(4):
            y = model.latents(some.permute(0, 3, 1, 2).to(model.log_spread.device).float() / 255)
            for rung in range(len(model.log_gain)):
                model.code(y, torch.full((len(y),), float(rung), device=y.device))
    finally:
        for hook in hooks:
            hook.remove()
    step = (-model.log_gain_z.double().cpu()).exp().amax(dim=0)
    found["hyper_synthesis.conv1"] = torch.maximum(found["hyper_synthesis.conv1"], SIDE_STEPS / HEADROOM * step)
    # Of the signed view. Latents that none sees stand as the smallest.
    seen = [found.pop(name) for name in ("context", "own") if name in found]
    shown = torch.cat([part[: len(part) // model.sizes.views] for part in seen]) if seen else torch.zeros(0, dtype=torch.float64)
    found["context"] = functional.pad(shown, (0, sum(model.sizes.slices) - len(shown)))
    headroom = {name: CONTEXT_HEADROOM if name == "context" else HEADROOM for name in found}
    rooms = {name: headroom[name] * torch.maximum(largest, QUIET * largest.max()) for name, largest in found.items()}
    rooms["context"] = rooms["context"].clamp(min=CONTEXT_REACH)
    limits = {name: SIGNED_LIMIT if name in ("hyper_synthesis.conv1", "context") else RECTIFIED_LIMIT for name in rooms}
    places = {name: torch.log2(limits[name] / room.clamp(min=2.0**-8)) for name, room in rooms.items()}
    # What is shifted on the way in has whole places.
    return {name: torch.floor(part) if limits[name] == SIGNED_LIMIT else part for name, part in places.items()}


def integer_layer(
    name: str,
    convolution: nn.Conv2d,
    into: Tensor,
    out: Tensor,
    added: Sequence[Added] = (),
    extra: Tensor | None = None,
    reach: int = RECTIFIED_LIMIT,
    fine: bool = False,
) -> dict[str, Tensor]:
    """The integers of a layer whose inputs have `into` binary places in each channel, and its outputs at most `out`.

    `added` names what is added to its sum, in its units: convolutions of signed maps, with the places of these. `extra` holds biases
    Q×C that are chosen from, each of which goes to as many outputs as C is smaller than them. `reach` is that of the inputs, and `fine`
    layers have weights of sixteen bits.
    """
    parts = [Added(name, convolution, into, reach), *added]
    scaled = [p.convolution.weight.detach().double().cpu() * torch.exp2(-p.into)[:, None, None] for p in parts]
    none = torch.zeros(len(scaled[0]), dtype=torch.float64)
    biases = [none if p.convolution.bias is None else p.convolution.bias.detach().double().cpu() for p in parts]
    group = 1 if extra is None else len(none) // extra.shape[1]
    extras = none[None] if extra is None else extra.double().cpu().repeat_interleave(group, dim=1)
    # Rounding adds at most a half to each weight, and the output's rounding a half of its last place.
    count = sum(w[0].numel() * p.reach for w, p in zip(scaled, parts, strict=True))
    sums = [w.abs().sum(dim=(1, 2, 3)) * p.reach + b.abs() for w, p, b in zip(scaled, parts, biases, strict=True)]
    # Of those that are for one turn each, there is one at a time.
    turns = [t for p, t in zip(parts, sums, strict=True) if p.name.rpartition(".")[2].isdigit()]
    always = [t for p, t in zip(parts, sums, strict=True) if not p.name.rpartition(".")[2].isdigit()]
    total = sum(always) - biases[0].abs() + (biases[0] + extras).abs().amax(dim=0) + torch.exp2(-out - 1)
    total = total + (torch.stack(turns).amax(dim=0) if turns else 0)
    largest = torch.stack([w.abs().amax(dim=(1, 2, 3)) for w in scaled]).amax(dim=0)
    most, highest = (FINE_SUM_LIMIT, FINE_WEIGHT_LIMIT) if fine else (SUM_LIMIT, WEIGHT_LIMIT)
    places = torch.minimum(torch.log2((most - 2 - 0.5 * count) / total.clamp(min=1e-12)), torch.log2(highest / largest.clamp(min=1e-12)))
    # The outputs that share a bias share their places.
    shift = torch.floor(places - out).reshape(-1, group).amin(dim=1).repeat_interleave(group).clamp(max=MAX_SHIFT)
    unit = torch.exp2(out + shift)
    tensors = {f"{name}.shift": shift.to(torch.int32)}
    for part, weight, bias in zip(parts, scaled, biases, strict=True):
        tensors[f"{part.name}.weight"] = (weight * unit[:, None, None, None]).round().to(torch.int16 if fine else torch.int8)
        if part.convolution.bias is not None:
            tensors[f"{part.name}.bias"] = (bias * unit).round().to(torch.int64 if fine else torch.int32)
    if extra is not None:
        tensors["features_bias"] = (extra.double().cpu() * unit[::group]).round().to(torch.int32)
    return tensors


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


def tensors(model: HyperModel, qualities: int, crops: Tensor) -> dict[str, Tensor]:
    """The entropy model's part of the model file; photographs' crops, N×H×W×3 uint8, show how far its networks' maps reach."""
    rungs = model.log_gain.shape[0]
    position = torch.linspace(0, rungs - 1, qualities) if rungs > 1 else torch.zeros(1)
    position = position.to(model.log_gain.device)
    spread = model.log_spread.cpu().round()
    places = places_of(model, crops)
    side = places["hyper_synthesis.conv1"].clamp(max=STEP_BITS)
    seen = places["context"]
    out: dict[str, Tensor] = {
        "limits": torch.tensor([SIGNED_LIMIT, SIGNED_LIMIT, RECTIFIED_LIMIT], dtype=torch.int32),
        "spread": spread.to(torch.int32),
        "side_shift": (STEP_BITS - side).to(torch.int32),
        "context_shift": (STEP_BITS + spread - seen).clamp(0, MAX_SHIFT).to(torch.int32),
    }
    with torch.no_grad():
        # Of the steps as they are stored, in units of 2⁻¹⁶.
        gain = model.gain(position)[:, :, 0, 0].double().cpu()
        steps = ((1 << STEP_BITS) / gain).round().clamp(1, (1 << 31) - 1)
        out["log2_steps"] = ((steps.log2() - STEP_BITS) * (1 << BITS)).round().to(torch.int32)
        z_gain = at(model.log_gain_z, position).double().cpu().exp()
        out["z_steps"] = ((1 << STEP_BITS) / z_gain).round().clamp(1, (1 << 31) - 1).to(torch.int32)
        bias = at(model.features_bias, position)
        for name, tensor in model.hyper_analysis.state_dict().items():
            # The encoder's network gets latents as they are.
            scaled = tensor.cpu() * torch.exp2(-spread)[:, None, None] if name == "conv1.weight" else tensor.cpu()
            out[f"hyper_analysis.{name}"] = scaled.to(torch.float16)
    # The four outputs that become a channel's sub-pixels have its places.
    coarse, features = places["hyper_synthesis.conv2"], places["slices.0.features"]
    out |= integer_layer("hyper_synthesis.conv1", model.hyper_synthesis.conv1, side, coarse.repeat_interleave(4))
    out |= integer_layer("hyper_synthesis.conv2", model.hyper_synthesis.conv2, coarse, features.repeat_interleave(4), extra=bias)
    for k, part in enumerate(model.slices):
        fine = k < model.sizes.fine
        units = torch.full((model.sizes.width,), float(BITS), dtype=torch.float64)
        first, hidden = (units, units) if fine else (places[f"slices.{k}.hidden"], places[f"slices.{k}.last"])
        reach = LIMIT if fine else RECTIFIED_LIMIT
        name, last = f"slices.{k}.features", f"slices.{k}.last"
        out |= integer_layer(name, part.features, features, first, _added(model, name, seen), fine=fine)
        out |= integer_layer(f"slices.{k}.hidden", part.hidden, first, hidden, reach=reach, fine=fine)
        units = torch.full((len(part.last.weight),), float(BITS), dtype=torch.float64)
        out |= integer_layer(last, part.last, hidden, units, _added(model, last, seen), reach=reach, fine=fine)
    density = freeze(model.z_density)
    for name in ("grid", "scale", "cdf"):
        out[f"z_density.{name}"] = torch.from_numpy(getattr(density, name)).to(torch.int32)
    out |= frozen_shape(model.density)
    return {**out, **compensate.slices(model, out, steps.numpy().astype(np.int64), torch.exp2(features), crops)}


def _added(model: HyperModel, layer: str, seen: Tensor) -> list[Added]:
    """What is added to a layer's sum. Latents are in units of their spread, with `seen` places, or 12 where a fine slice sees them."""
    out = []
    fine = int(layer.split(".")[1]) < model.sizes.fine
    for name, channels in model.sizes.ever_added(layer).items():
        convolution = model.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        into = torch.full_like(seen[channels], BITS) if fine else seen[channels]
        into = into.repeat(convolution.in_channels // len(into))
        out.append(Added(name, convolution, into, LIMIT if fine else SIGNED_LIMIT))
    return out


def metadata(model: HyperModel) -> dict[str, Any]:
    """What a model says of its profile."""
    lists = {"slices": list(model.sizes.slices), "turns": list(model.sizes.turns)}
    return {"profile": "hyperprior", "sizes": {**dataclasses.asdict(model.sizes), **lists}}


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
    out = float_weights(entropy)
    out["features_bias"] = at(out["features_bias"], rungs)
    out |= {name: tensor.float() for name, tensor in file.items() if name.startswith("hyper_analysis.")}
    spread = out["log_spread"] = file["spread"].float()
    out["hyper_analysis.conv1.weight"] = out["hyper_analysis.conv1.weight"] * torch.exp2(spread)[:, None, None]
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
