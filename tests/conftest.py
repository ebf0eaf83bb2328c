"""Small models with random weights, and photographs that ship with the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codec import transforms
from codec.density import Density, freeze
from codec.model import Model, from_bytes, to_bytes

SAMPLES = Path(__file__).parent.parent / "data" / "samples"


def tiny_model_bytes(filters: int = 8, latents: int = 12, steps: tuple[float, ...] = (1.0, 0.5, 0.125), seed: int = 0) -> bytes:
    """The file of an untrained model: random convolutions, a density with random corrections."""
    torch.manual_seed(seed)
    tensors = {}
    for prefix, module in (("analysis", transforms.analysis(filters, latents)), ("synthesis", transforms.synthesis(filters, latents))):
        for name, tensor in module.state_dict().items():
            factor = 8.0 if name == "conv3.weight" and prefix == "analysis" else 1.0
            tensors[f"{prefix}.{name}"] = (tensor * factor).to(torch.float16)
    density = Density(latents)
    torch.nn.init.normal_(density.logits, std=0.3)
    torch.nn.init.normal_(density.log_scale, std=0.5)
    frozen = freeze(density)
    for part in ("grid", "scale", "cdf"):
        tensors[f"density.{part}"] = torch.from_numpy(getattr(frozen, part)).to(torch.int32)
    tensors["steps"] = torch.tensor(steps)[:, None].mul(65536).round().to(torch.int32).repeat(1, latents)
    return to_bytes(tensors, {"filters": filters, "latents": latents, "lambdas": [0.013], "default_quality": 2})


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    return from_bytes(tiny_model_bytes(), "tiny", "fp32")


@pytest.fixture(scope="session")
def tiny_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    path.write_bytes(tiny_model_bytes())
    return path


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    from codec import image

    return image.read(SAMPLES / "coffee.png")
