"""A trained model to the one immutable file that the codec reads, and back to weights to train on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from compressai.layers import GDN
from safetensors.torch import load_file
from torch import Tensor, nn

from codec import model as codec_model
from codec.density import freeze
from codec.errors import ModelError
from codec.factorized import Factorized
from codec.frozen import STEP_BITS
from codec.hyperprior import Hyperprior
from codec.model import TILT, Model
from train import freeze_hyper
from train.config import Config
from train.hyper import HyperModel, at
from train.objective import RateDistortion, Tilted
from train.refit import refit
from train.rounding import best_thrift, rungs_of

WEIGHTS = "rdae-weights-1"
"""Format of a file that holds weights as they were trained, which the codec does not read."""
QUALITIES = 100
"""How many qualities a variable-rate model gets, spread evenly over the ladder of λ."""
SHOWN = 32
"""Training crops that a hyperprior's networks are shown, for the maps' ranges and what their integers are fitted to."""


def transform_tensors(model: RateDistortion) -> dict[str, Tensor]:
    """Weights as the codec stores them: half precision, β and γ as plain numbers, the latents' units folded in."""
    out: dict[str, Tensor] = {}
    for prefix, module in (("analysis", model.analysis), ("synthesis", model.synthesis)):
        for name, layer in module.named_children():
            if isinstance(layer, GDN):
                gamma = layer.gamma_reparam(layer.gamma)
                out[f"{prefix}.{name}.beta"] = layer.beta_reparam(layer.beta)
                out[f"{prefix}.{name}.gamma"] = gamma.reshape(*gamma.shape, 1, 1)
            elif isinstance(layer, nn.Conv2d):
                out[f"{prefix}.{name}.weight"] = layer.weight
                if layer.bias is not None:
                    out[f"{prefix}.{name}.bias"] = layer.bias
            if isinstance(layer, Tilted):
                out |= {f"{prefix}.{name}.{part}_tilt": getattr(layer, f"{part}_tilt") for part in ("weight", "bias")}
    unit = model.log_unit.exp()
    out["analysis.conv3.weight"] = out["analysis.conv3.weight"] * unit[:, None, None, None]
    for name in out.keys() & {"synthesis.conv1.weight", "synthesis.conv1.weight_tilt"}:
        out[name] = out[name] / unit[None, :, None, None]
    # What is added to the weights is a tenth of them, and does with fewer digits: zeros compress.
    short = {name: t.to(torch.bfloat16) if name.endswith(TILT) else t for name, t in out.items()}
    return {name: t.detach().cpu().to(torch.float16).contiguous() for name, t in short.items()}


def steps_of(model: RateDistortion) -> Tensor:
    """Q×M quantiser steps in units of 2⁻¹⁶, int32: one row for a single λ, a hundred for a ladder."""
    rungs = model.log_gain.shape[0]
    positions = torch.linspace(0, rungs - 1, QUALITIES) if rungs > 1 else torch.zeros(1)
    with torch.no_grad():
        gain = model.gain(positions.to(model.log_gain.device))[:, :, 0, 0].double().cpu()
    return ((1 << STEP_BITS) / gain).round().clamp(1, (1 << 31) - 1).to(torch.int32)


def tensors_of(model: RateDistortion, crops: Tensor) -> dict[str, Tensor]:
    """All tensors of the model file. With N×H×W×3 uint8 crops of photographs, a hyperprior's integers are fitted to real maps."""
    if isinstance(model, HyperModel):
        return {**transform_tensors(model), "steps": steps_of(model), **freeze_hyper.tensors(model, QUALITIES, crops)}
    frozen = freeze(model.density)
    return {
        **transform_tensors(model),
        "steps": steps_of(model),
        "density.grid": torch.from_numpy(frozen.grid).to(torch.int32),
        "density.scale": torch.from_numpy(frozen.scale).to(torch.int32),
        "density.cdf": torch.from_numpy(frozen.cdf).to(torch.int32),
    }


def _metadata(model: RateDistortion, config: Config) -> dict[str, Any]:
    """What a model says of itself, apart from where it comes from. The default quality is the middle of the ladder."""
    profile = freeze_hyper.metadata(model) if isinstance(model, HyperModel) else {"profile": "factorized"}
    return {
        **profile,
        "filters": config.filters,
        "latents": config.latents,
        "lambdas": list(config.lambdas),
        "distortion": config.distortion,
        **({"thrift": [model.thrift] * len(config.lambdas)} if model.thrift else {}),
        "default_quality": 1 if len(config.lambdas) == 1 else QUALITIES // 2,
    }


def in_memory(model: RateDistortion, config: Config, crops: Tensor) -> Model:
    """The frozen model, without a file. The crops are as in `tensors_of`."""
    return Model(tensors_of(model, crops), _metadata(model, config), "0" * 64, "unsaved")


def measure(model: Model, crops: Tensor, quality: int) -> dict[str, float]:
    """Real files of N×H×W×3 uint8 crops: mean bits per pixel, PSNR, and the files' bits against the tables' -log2 P."""
    bpp, psnr, real, ideal = [], [], 0.0, 0.0
    for crop in crops.cpu().numpy():
        data = model.encode(crop, quality)
        restored = model.decode(data)
        real += 8 * len(data)
        ideal += sum(model.entropy.bits(model.analyse(crop), quality))
        bpp.append(8 * len(data) / (crop.shape[0] * crop.shape[1]))
        psnr.append(10 * np.log10(255**2 / max(np.mean((crop.astype(np.float64) - restored) ** 2), 1e-9)))
    return {"bpp": round(float(np.mean(bpp)), 4), "psnr": round(float(np.mean(psnr)), 3), "bits_over_ideal": round(real / ideal, 5)}


def freeze_to_file(
    model: RateDistortion, config: Config, provenance: dict[str, Any], training: Tensor, held_out: Tensor, path: Path
) -> dict[str, float]:
    """Freeze, fit what can be fitted to real symbols, measure real files of the held-out crops, write. Returns what was measured.

    Crops are N×H×W×3 uint8. To training crops a hyperprior's integers are fitted (`train/compensate.py`), and its tables
    (`train/refit.py`); how thriftily to round is found on held-out ones.
    """
    settings = config.as_dict()
    settings.pop("data")
    tensors, metadata = tensors_of(model, training[:SHOWN]), _metadata(model, config)
    frozen = Model(tensors, metadata, "0" * 64, "unsaved")
    if isinstance(frozen.entropy, Hyperprior):
        latents, qualities = [frozen.analyse(crop) for crop in training.cpu().numpy()], rungs_of(frozen)
        tensors["shape.fitted"] = refit(frozen.entropy, latents, qualities)
        if not any(frozen.entropy.side_information(y, quality).any() for y in latents for quality in qualities):
            # Of a network that always says zero the codec need not ask.
            tensors["hyper_analysis.conv3.weight"].zero_()
        frozen = Model(tensors, metadata, "0" * 64, "unsaved")
    if "thrift" in metadata:
        metadata["thrift"] = best_thrift(frozen, held_out)
        frozen = Model(tensors, metadata, "0" * 64, "unsaved")
    metadata |= {"training": {**settings, **provenance}}
    return _write(frozen, tensors, metadata, held_out, path)


def behind_to_file(model: RateDistortion, config: Config, provenance: dict[str, Any], held_out: Tensor, path: Path) -> dict[str, float]:
    """The frozen model that a synthesis was trained behind, with that synthesis; of all else every bit stays. Raises `ModelError`.

    held_out is N×H×W×3 uint8. Returns what real files of it measure.
    """
    source = Path(config.behind)
    former = codec_model.load(source)
    tensors, metadata = load_file(source), dict(former.metadata)
    # Training may have had other units for the latents; the quotient of the steps is that of the units.
    unit = -model.log_gain[0].double().cpu() - torch.from_numpy(former.steps[0] / (1 << STEP_BITS)).log()
    for name, t in transform_tensors(model).items():
        if name.startswith("synthesis."):
            first = name.startswith("synthesis.conv1.weight")
            tensors[name] = (t.double() * unit.exp()[None, :, None, None]).to(t.dtype) if first else t
    settings = {**config.as_dict(), "behind": source.name}
    settings.pop("data")
    metadata["training"] = {**settings, **provenance, "former": {"sha256": former.sha256, "training": metadata.get("training")}}
    return _write(Model(tensors, metadata, "0" * 64, "unsaved"), tensors, metadata, held_out, path)


def _write(frozen: Model, tensors: dict[str, Tensor], metadata: dict[str, Any], held_out: Tensor, path: Path) -> dict[str, float]:
    """Write the file of a frozen model, with what real files of held-out crops measure, which is returned."""
    measured = measure(frozen, held_out, frozen.default_quality)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(codec_model.to_bytes(tensors, {**metadata, "measured_on_held_out_crops": measured}))
    temporary.replace(path)
    return measured


def weights_to_file(model: nn.Module, config: Config, provenance: dict[str, Any], path: Path) -> None:
    """Write the weights of a network that no codec is made of, those of its convolutions in half precision, with its settings."""
    settings = config.as_dict()
    settings.pop("data")
    metadata = {"format": WEIGHTS, "training": {**settings, **provenance}}
    tensors = {n: t.detach().cpu().to(torch.float16 if t.dim() == 4 else t.dtype).contiguous() for n, t in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(safetensors.torch.save(tensors, {"rdae": json.dumps(metadata, sort_keys=True, ensure_ascii=False)}))
    temporary.replace(path)


def weights_to_start_from(path: Path, lambdas: tuple[float, ...], entropy: str = "factorized", tilted: bool = False) -> dict[str, Tensor]:
    """Training weights from a frozen model, to begin another model with. Raises `ModelError`.

    A model for one λ takes over the steps of the frozen model at that λ, a ladder those at each of its rungs; away from the λ that
    the frozen model knows, steps go as λ^-½. Of an entropy model of another kind than the one to be trained nothing is taken. Where the
    synthesis changes with the rate, it is taken as it is in the middle of these λ, and how it changes about there for a `tilted` one.
    """
    model = codec_model.load(path)
    tensors = {name: t.float() for name, t in load_file(path).items()}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".beta"):
            out[name] = GDN(1).beta_reparam.init(tensor)
        elif name.endswith(".gamma"):
            out[name] = GDN(1).gamma_reparam.init(tensor[:, :, 0, 0])
        elif name.startswith(("analysis.", "synthesis.")):
            out[name] = tensor
    if model.tilted:
        first, last = (2 * place / max(model.qualities - 1, 1) - 1 for place in _positions(model, path, lambdas)[[0, -1]])
        for name in [name for name in out if name.endswith(TILT)]:
            tilt = out.pop(name)
            out[name.removesuffix(TILT)] = out[name.removesuffix(TILT)] + (first + last) / 2 * tilt
            if tilted:
                out[name] = (last - first) / 2 * tilt
    log_gain = _log_gains(model, path, lambdas)
    goes_on = entropy == "hyperprior" and isinstance(model.entropy, Hyperprior)
    # The unit of a latent is its step in the middle of the ladder; a hyperprior that is taken over knows the latents as they are.
    unit = torch.zeros(model.latents) if goes_on else log_gain[len(log_gain) // 2]
    out["log_gain"] = log_gain - unit
    # Weights before and after the quantiser become of one size, as they were in training: for others, its learning rate is wrong.
    down, up = out["analysis.conv3.weight"], out["synthesis.conv1.weight"]
    scale = (down.square().sum(dim=(1, 2, 3)).clamp(min=1e-12) / up.square().sum(dim=(0, 2, 3)).clamp(min=1e-12)).pow(0.25)
    out["log_unit"] = unit + scale.log()
    out["analysis.conv3.weight"] = down / scale[:, None, None, None]
    for name in out.keys() & {"synthesis.conv1.weight", "synthesis.conv1.weight_tilt"}:
        out[name] = out[name] * scale[None, :, None, None]
    if goes_on:
        out |= freeze_hyper.weights(model, load_file(path), torch.from_numpy(_positions(model, path, lambdas)).float())
    elif entropy == "factorized" and isinstance(model.entropy, Factorized):
        out |= freeze_hyper.density_weights(model.entropy.density)
        out["density.log_scale"] += unit
    return out


def _positions(model: Model, path: Path, lambdas: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Where on the qualities of a frozen model, 0…Q-1, these λ lie; the nearest for those beyond."""
    known = model.metadata.get("lambdas")
    if not isinstance(known, list) or not known:
        raise ModelError(f"{path}: the model does not say which λ it was trained for")
    places = np.linspace(0, model.qualities - 1, len(known))
    return np.asarray(np.interp(np.log(np.asarray(lambdas)), np.log(np.asarray(known)), places), np.float64)


def _log_gains(model: Model, path: Path, lambdas: tuple[float, ...]) -> Tensor:
    """R×M logarithms of the reciprocal steps that a frozen model has, or would have, at these λ."""
    position = torch.from_numpy(_positions(model, path, lambdas)).float()
    known = model.metadata["lambdas"]
    beyond = 0.5 * np.log(np.asarray(lambdas) / np.clip(np.asarray(lambdas), known[0], known[-1]))
    return at(-torch.from_numpy(model.steps / (1 << STEP_BITS)).log().float(), position) + torch.from_numpy(beyond).float()[:, None]
