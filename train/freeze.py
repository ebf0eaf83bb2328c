"""A trained model to the one immutable file that the codec reads, and back to weights to train on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressai.layers import GDN
from safetensors.torch import load_file
from torch import Tensor, nn

from codec import model as codec_model
from codec.density import CDF_BITS, STEP_BITS, Density, freeze, start_log_mass
from codec.errors import ModelError
from codec.model import Model
from train.config import Config
from train.data import Photographs
from train.objective import LATENT_SCALE, RateDistortion

QUALITIES = 100
"""How many qualities a variable-rate model gets, spread evenly over the ladder of λ."""


def transform_tensors(model: RateDistortion) -> dict[str, Tensor]:
    """Weights as the codec stores them: half precision, β and γ as plain numbers, the scale of the latents folded in."""
    out: dict[str, Tensor] = {}
    for prefix, module in (("analysis", model.analysis), ("synthesis", model.synthesis)):
        for name, layer in module.named_children():
            if isinstance(layer, GDN):
                gamma = layer.gamma_reparam(layer.gamma)
                out[f"{prefix}.{name}.beta"] = layer.beta_reparam(layer.beta)
                out[f"{prefix}.{name}.gamma"] = gamma.reshape(*gamma.shape, 1, 1)
            elif isinstance(layer, nn.Conv2d):
                factor = {"analysis.conv3": LATENT_SCALE, "synthesis.conv1": 1 / LATENT_SCALE}.get(f"{prefix}.{name}", 1.0)
                out[f"{prefix}.{name}.weight"] = layer.weight * factor
                if layer.bias is not None:
                    out[f"{prefix}.{name}.bias"] = layer.bias
    return {name: t.detach().cpu().to(torch.float16).contiguous() for name, t in out.items()}


def steps_of(model: RateDistortion) -> Tensor:
    """Q×M quantiser steps in units of 2⁻¹⁶, int32: one row for a single λ, a hundred for a ladder."""
    rungs = model.log_gain.shape[0]
    positions = torch.linspace(0, rungs - 1, QUALITIES) if rungs > 1 else torch.zeros(1)
    with torch.no_grad():
        gain = model.gain(positions.to(model.log_gain.device))[:, :, 0, 0].double().cpu()
    return ((1 << STEP_BITS) / gain).round().clamp(1, (1 << 31) - 1).to(torch.int32)


def _tensors(model: RateDistortion, density: Density) -> dict[str, Tensor]:
    frozen = freeze(density)
    return {
        **transform_tensors(model),
        "steps": steps_of(model),
        "density.grid": torch.from_numpy(frozen.grid).to(torch.int32),
        "density.scale": torch.from_numpy(frozen.scale).to(torch.int32),
        "density.cdf": torch.from_numpy(frozen.cdf).to(torch.int32),
    }


def calibrate(model: Model, density: Density, photographs: Photographs, *, crops: int = 96, rounds: int = 300, seed: int = 1) -> Density:
    """A copy of the density, fitted to the latents that the frozen transforms give with real rounding.

    In training the density saw noise; here it sees the quantised values themselves, at every quality. Costs a minute.
    """
    fitted = Density(model.latents)
    fitted.load_state_dict(density.state_dict())
    rng = np.random.default_rng(seed)
    y = torch.stack([torch.from_numpy(model.analyse(np.ascontiguousarray(photographs.crop(256, rng)))) for _ in range(crops)])
    steps = torch.from_numpy(model.steps / (1 << STEP_BITS)).float()
    optimiser = torch.optim.Adam(fitted.parameters(), lr=5e-3)
    for step in range(rounds):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / rounds)
        some = y[torch.from_numpy(rng.choice(crops, min(crops, 12), replace=False))]
        delta = steps[torch.from_numpy(rng.integers(len(steps), size=len(some)))][:, :, None, None]
        loss = fitted.bits(torch.round(some / delta) * delta, delta).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return fitted


def measure(model: Model, crops: Tensor) -> dict[str, float]:
    """Real files of N×H×W×3 uint8 crops at the default quality: mean bits per pixel, PSNR, and latents' bits against -log2 P."""
    bpp, psnr, real, ideal = [], [], 0.0, 0.0
    for crop in crops.cpu().numpy():
        data = model.encode(crop)
        restored = model.decode(data)
        symbols = model.quantise(model.analyse(crop), model.default_quality)
        real += 8 * len(data)
        ideal += float(model.tables(model.default_quality).bits(symbols).sum())
        bpp.append(8 * len(data) / (crop.shape[0] * crop.shape[1]))
        psnr.append(10 * np.log10(255**2 / max(np.mean((crop.astype(np.float64) - restored) ** 2), 1e-9)))
    return {"bpp": round(float(np.mean(bpp)), 4), "psnr": round(float(np.mean(psnr)), 3), "bits_over_ideal": round(real / ideal, 5)}


def freeze_to_file(
    model: RateDistortion, config: Config, provenance: dict[str, Any], photographs: Photographs, validation: Tensor, path: Path
) -> dict[str, float]:
    """Freeze, calibrate on training photographs, measure on the held-out ones, write. Returns what was measured."""
    settings = config.as_dict()
    settings.pop("data")
    metadata = {
        "profile": "factorized",
        "filters": config.filters,
        "latents": config.latents,
        "lambdas": list(config.lambdas),
        "distortion": config.distortion,
        "default_quality": 1 if len(config.lambdas) == 1 else QUALITIES // 2,
        "training": {**settings, **provenance},
    }
    draft = Model(_tensors(model, model.density), metadata, "0" * 64, path.stem)
    start = Density(config.latents)
    start.load_state_dict({k: v.cpu() for k, v in model.density.state_dict().items()})
    tensors = _tensors(model, calibrate(draft, start, photographs))
    measured = measure(Model(tensors, metadata, "0" * 64, path.stem), validation)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(codec_model.to_bytes(tensors, {**metadata, "measured_on_held_out_crops": measured}))
    os.replace(temporary, path)
    return measured


def weights_to_start_from(path: Path, lambdas: tuple[float, ...]) -> dict[str, Tensor]:
    """Training weights from a frozen model, for a warm start at other λ. Raises `ModelError`.

    Gains are taken over where the ladder is the same; else every rung starts at the λ-scaled gain of the frozen model's middle.
    """
    model = codec_model.load(path)
    tensors = {name: t.float() for name, t in load_file(path).items()}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((".beta", ".gamma")):
            layer = GDN(1)
            reparam = layer.beta_reparam if name.endswith(".beta") else layer.gamma_reparam
            out[name] = reparam.init(tensor.reshape(tensor.shape[:2]) if name.endswith(".gamma") else tensor)
        elif name.startswith(("analysis.", "synthesis.")):
            factor = {"analysis.conv3.weight": LATENT_SCALE, "synthesis.conv1.weight": 1 / LATENT_SCALE}.get(name, 1.0)
            out[name] = tensor / factor
    cdf = torch.from_numpy(model.density.cdf / (1 << CDF_BITS))
    edges = torch.cat([torch.zeros(len(cdf), 1), cdf, torch.ones(len(cdf), 1)], dim=1).double()
    out["density.logits"] = (edges.diff(dim=1).clamp(min=2.0**-CDF_BITS).log() - start_log_mass()).float()
    out["density.log_scale"] = torch.from_numpy(model.density.scale / (1 << STEP_BITS)).log().float()
    known = model.metadata.get("lambdas")
    if not isinstance(known, list) or not known:
        raise ModelError(f"{path}: the model does not say which λ it was trained for")
    log_gain = -torch.from_numpy(model.steps / (1 << STEP_BITS)).log().float()
    target = torch.tensor(lambdas).log()
    if len(known) == 1:
        out["log_gain"] = log_gain + 0.5 * (target - np.log(known[0]))[:, None]
    else:
        rungs = torch.tensor(known).log()
        # Position on the frozen ladder, then among its qualities; beyond the ends the gain goes on as √λ.
        position = np.interp(target.numpy(), rungs.numpy(), np.linspace(0, len(log_gain) - 1, len(known)))
        low = torch.from_numpy(np.floor(position).astype(np.int64)).clamp(max=len(log_gain) - 2)
        out["log_gain"] = torch.lerp(log_gain[low], log_gain[low + 1], (torch.from_numpy(position) - low).float()[:, None])
        out["log_gain"] += 0.5 * (target - target.clamp(rungs[0], rungs[-1]))[:, None]
    return out
