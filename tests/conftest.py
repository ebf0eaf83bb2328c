"""Small models with random weights, and photographs that ship with the repository."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from codec import transforms
from codec.density import Density, freeze, knot_grid
from codec.frozen import CDF_BITS, STEP_BITS
from codec.hyperfile import BITS
from codec.layout import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Sizes, analysis_shapes, shapes
from codec.model import Model, from_bytes, to_bytes

SAMPLES = Path(__file__).parent.parent / "data" / "samples"


def random_transforms(filters: int, latents: int) -> dict[str, torch.Tensor]:
    """Their tensors in a model file."""
    tensors = {}
    for prefix, module in (("analysis", transforms.analysis(filters, latents)), ("synthesis", transforms.synthesis(filters, latents))):
        for name, tensor in module.state_dict().items():
            factor = 8.0 if name == "conv3.weight" and prefix == "analysis" else 1.0
            tensors[f"{prefix}.{name}"] = (tensor * factor).to(torch.float16)
    return tensors


def random_density(channels: int) -> dict[str, torch.Tensor]:
    """A frozen density with random corrections."""
    density = Density(channels)
    torch.nn.init.normal_(density.logits, std=0.3)
    torch.nn.init.normal_(density.log_scale, std=0.5)
    frozen = freeze(density)
    return {part: torch.from_numpy(getattr(frozen, part)).to(torch.int32) for part in ("grid", "scale", "cdf")}


def frozen_steps(steps: tuple[float, ...], channels: int) -> torch.Tensor:
    """The same for all channels."""
    return torch.tensor(steps)[:, None].mul(65536).round().to(torch.int32).repeat(1, channels)


def tiny_model_bytes(filters: int = 8, latents: int = 12, steps: tuple[float, ...] = (1.0, 0.5, 0.125), seed: int = 0) -> bytes:
    """The file of an untrained model: random convolutions, a density with random corrections."""
    torch.manual_seed(seed)
    tensors = random_transforms(filters, latents)
    tensors |= {f"density.{part}": tensor for part, tensor in random_density(latents).items()}
    tensors["steps"] = frozen_steps(steps, latents)
    return to_bytes(tensors, {"filters": filters, "latents": latents, "lambdas": [0.013], "default_quality": 2})


def tiny_tilted_bytes(filters: int = 8, latents: int = 12, size: float = 0.05, **changed: torch.Tensor) -> bytes:
    """The file of an untrained model of three qualities whose synthesis changes with them, with some tensors exchanged."""
    tensors, generator = load(tiny_model_bytes(filters, latents)), torch.Generator().manual_seed(3)
    for name in sorted(name for name in tensors if name.startswith("synthesis.conv")):
        tensors[f"{name}_tilt"] = (size * torch.randn(tensors[name].shape, generator=generator)).to(torch.float16)
    about = {"filters": filters, "latents": latents, "lambdas": [0.0018, 0.013, 0.0932], "default_quality": 2}
    return to_bytes({**tensors, **changed}, about)


TINY_SIZES = Sizes(side=4, analysis=6, synthesis=5, features=7, slices=(2, 4, 3, 3), width=9, turns=(7, 4, 2, 1), fine=2)


def tiny_hyper_tensors(
    filters: int = 8, sizes: Sizes = TINY_SIZES, steps: tuple[float, ...] = (1.0, 0.5, 0.125), seed: int = 0
) -> dict[str, torch.Tensor]:
    """The tensors of an untrained model with a hyperprior: its networks are random, its shape is Laplace's."""
    torch.manual_seed(seed)
    latents = sum(sizes.slices)
    out = random_transforms(filters, latents)
    for name, shape in analysis_shapes(latents, sizes).items():
        out[name] = (torch.randn(shape) * (2 / max((*shape[1:2], 1)) / 9) ** 0.5).to(torch.float16)
    for name, shape in shapes(latents, len(steps), sizes).items():
        layer, _, part = name.rpartition(".")
        if part == "weight":
            out[name] = torch.randint(-127, 128, shape, dtype=torch.int8)
        elif part == "bias":
            out[name] = torch.randint(-20_000, 20_000, shape, dtype=torch.int32)
        elif part == "shift":
            # Sums of n products have about √n times the size of one; what leaves the last layer is a few units of 2⁻¹².
            fan_in = out[f"{layer}.weight"][0].numel()
            last = 9 if layer.startswith("slices.") and int(layer.split(".")[1]) < sizes.fine else 1
            out[name] = torch.full(shape, last if layer.endswith(".last") else 6 + round(np.log2(fan_in) / 2), dtype=torch.int32)
    out["limits"] = torch.tensor([127, 127, 255], dtype=torch.int32)
    out["side_shift"] = torch.randint(9, 13, (sizes.side,), dtype=torch.int32)
    out["context_shift"] = torch.randint(9, 13, (latents,), dtype=torch.int32)
    out["steps"], out["z_steps"] = frozen_steps(steps, latents), frozen_steps((0.5,) * len(steps), sizes.side)
    out["log2_steps"] = ((out["steps"].double().log2() - STEP_BITS) * 2**BITS).round().to(torch.int32)
    out["features_bias"] = torch.randint(-20_000, 20_000, (len(steps), sizes.features), dtype=torch.int32)
    out["spread"] = torch.randint(-3, 3, (latents,), dtype=torch.int32)
    out |= {f"z_density.{part}": tensor for part, tensor in random_density(sizes.side).items()}
    grid = knot_grid()
    cdf = torch.where(grid < 0, 0.5 * grid.exp(), 1 - 0.5 * (-grid).exp())
    out["shape.grid"] = (grid * 2**STEP_BITS).round().to(torch.int32)
    out["shape.cdf"] = (cdf * 2**CDF_BITS).round().to(torch.int32)
    octaves = LOWEST_OCTAVE + torch.arange(TABLES, dtype=torch.float64) / PER_OCTAVE
    out["shape.steps"] = (torch.exp2(-octaves) * 2**STEP_BITS).round().to(torch.int32)
    return out


def hyper_metadata(filters: int = 8, sizes: Sizes = TINY_SIZES) -> dict[str, object]:
    """What goes with them."""
    named = {**dataclasses.asdict(sizes), "slices": list(sizes.slices), "turns": list(sizes.turns)}
    about = {"profile": "hyperprior", "filters": filters, "latents": sum(sizes.slices), "sizes": named}
    return {**about, "lambdas": [0.013], "default_quality": 2}


def tiny_hyper_bytes(filters: int = 8, sizes: Sizes = TINY_SIZES, seed: int = 0) -> bytes:
    """The file of an untrained model with a hyperprior."""
    return to_bytes(tiny_hyper_tensors(filters, sizes, seed=seed), hyper_metadata(filters, sizes))


def check_other_processes(model: Model, file: Path, image: np.ndarray, folder: Path) -> None:
    """Processes with other threads, another default type and mixed precision decode the latents that were rounded, by the model's file."""
    (folder / "x.rdae").write_bytes(model.encode(image))
    program = (
        "import sys, hashlib, torch, codec; from codec import container\n"
        "torch.set_num_threads(int(sys.argv[3])); torch.set_default_dtype(torch.float64)\n"
        "model, stream = codec.load(sys.argv[1]), container.read(open(sys.argv[2], 'rb').read())\n"
        "with torch.autocast('cpu', torch.bfloat16):\n"
        "    print(hashlib.sha256(model.decode_latents(stream).tobytes()).hexdigest())"
    )
    expected = hashlib.sha256(model.quantise(model.analyse(image), 2).tobytes()).hexdigest()
    for threads in ("1", "3"):
        command = [sys.executable, "-c", program, str(file), str(folder / "x.rdae"), threads]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    return from_bytes(tiny_model_bytes(), "tiny", "fp32")


@pytest.fixture(scope="session")
def tiny_hyper() -> Model:
    return from_bytes(tiny_hyper_bytes(), "tiny-hyper")


@pytest.fixture(scope="session")
def tiny_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    path.write_bytes(tiny_model_bytes())
    return path


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    from codec import image

    return image.read(SAMPLES / "coffee.png")
