"""Where training begins: random orthogonal filters, or a linear block transform that compresses from the first step.

The second start is a Karhunen–Loève transform of 16×16 blocks, built layer by layer. The first convolution holds an orthonormal 4×4
cosine transform of the three colours; the next two hold the principal components of what the layer before gives on 2×2 neighbours, measured
on training crops. The synthesis is the transpose. The normalisation starts weak, so that its approximate inverse is nearly exact. Filters
for which the block transform has no use start as random ones. Overlap between blocks, and all that is not linear, is left to training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from train.objective import RateDistortion

GAMMA = 0.01
"""Initial strength of the normalisation for the block transform: with 0.1, the usual start, the approximate inverse
costs 9 dB at high rate (25.1 against 34.2 dB on held-out photographs), with 0.01 only 0.4 dB."""


FIT_STEPS = 400
FIT_RATE = 0.05
FIT_SAMPLES = 1024
"""Latents of each channel that a step of fitting a density looks at."""


class Transforms(Protocol):
    """What has an analysis and a synthesis of `codec.transforms`."""

    analysis: nn.Sequential
    synthesis: nn.Sequential


def orthogonal(model: nn.Module) -> None:
    """Random orthogonal filters, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II as n×n, a row per frequency."""
    frequency, x = torch.arange(n)[:, None], torch.arange(n)[None]
    basis = torch.cos(math.pi * (x + 0.5) * frequency / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def _colour_cosines(count: int) -> Tensor:
    """The first `count` of the 48 orthonormal functions on 4×4 pixels of three colours, low frequencies first: count×3×4×4."""
    colours = nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]))
    d = cosines(4)
    functions = torch.einsum("iy,jx,rc->ijrcyx", d, d, colours)
    frequency = (torch.arange(4)[:, None] + torch.arange(4)).repeat_interleave(3)
    return functions.reshape(48, 3, 4, 4)[frequency.argsort(stable=True)[:count]]


def _principal_components(x: Tensor, count: int) -> Tensor:
    """Of 2×2 neighbourhoods of B×C×H×W, strongest first, about zero and not about the mean: count×C×2×2."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c * 4).double()
    _, vectors = torch.linalg.eigh(blocks.T @ blocks)
    return vectors.flip(1)[:, :count].T.reshape(-1, c, 2, 2).float()


def _set_pair(down: nn.Conv2d, up: nn.Conv2d, basis: Tensor, stride: int) -> None:
    """An orthonormal basis, count×C×stride×stride, into a strided convolution, and its transpose into the one before a `PixelShuffle`.

    The block that output i of the convolution stands for is the `stride` taps from the middle of its kernel on. Filters beyond `count`
    stay random in `down`, where nothing listens to them yet, and in `up`, where nothing speaks to them yet: both can learn.
    """
    count, channels = basis.shape[:2]
    middle = down.kernel_size[0] // 2
    block = slice(middle, middle + stride)
    down.weight[:count] = 0
    down.weight[:count, :channels, block, block] = basis
    up.weight[:, :count] = 0
    up.weight[: channels * stride**2, :count, 1, 1] = basis.permute(1, 2, 3, 0).reshape(-1, count)


@torch.no_grad()
def karhunen_loeve(model: Transforms, images: Tensor) -> None:
    """Turn random transforms into the block transform. images are B×3×H×W in 0…1, H and W multiples of 16."""
    down = [model.analysis.get_submodule(f"conv{i}") for i in (1, 2, 3)]
    up = [model.synthesis.get_submodule(f"conv{i}") for i in (3, 2, 1)]
    for module in [*model.analysis, *model.synthesis]:
        if hasattr(module, "gamma_reparam"):
            module.gamma.copy_(module.gamma_reparam.init(GAMMA * torch.eye(len(module.gamma))))
    basis = _colour_cosines(min(48, len(down[0].weight))).to(images)
    x = model.analysis.get_submodule("centre")(images)
    for i, (d, u) in enumerate(zip(down, up, strict=True)):
        if i:
            basis = _principal_components(x[:, : len(basis)], len(d.weight))
        _set_pair(d, u, basis, 2 if i else 4)
        if i < 2:
            x = model.analysis.get_submodule(f"gdn{i + 1}")(d(x))


@torch.no_grad()
def narrowed(start: dict[str, Tensor], wide: RateDistortion, images: Tensor, latents: int) -> dict[str, Tensor]:
    """Of weights for a wide model, those of so many of its latents: the ones that vary most on images B×3×H×W in 0…1, in their steps.

    At a low λ most latents of a model for all rates are nearly always rounded to zero. A straight-through gradient, which does not see
    that, lets them grow until they do reach the decoder, as noise.
    """
    wide.load_state_dict({**wide.state_dict(), **start})
    y = torch.cat([wide.latents(x) for x in images.split(4)])
    spread = (y * wide.log_gain[len(wide.log_gain) // 2].exp()[:, None, None]).std(dim=(0, 2, 3))
    keep = spread.argsort(descending=True)[:latents].sort().values
    axes = {
        "log_gain": 1,
        "log_unit": 0,
        "analysis.conv3.weight": 0,
        "synthesis.conv1.weight": 1,
        "density.log_scale": 0,
        "density.logits": 0,
    }
    return {name: t.index_select(axes[name], keep) if name in axes else t for name, t in start.items()}


def fit_density(model: RateDistortion, images: Tensor, seed: int = 0) -> None:
    """Train the density alone on the latents of images B×3×H×W in 0…1, so that it suits transforms and gains that are there already."""
    generator, rungs = torch.Generator().manual_seed(seed), len(model.log_gain)
    with torch.no_grad():
        y = torch.cat([model.latents(x) for x in images.split(4)]).transpose(0, 1).flatten(1)
        model.density.log_scale.copy_(y.abs().mean(dim=1).clamp(min=1e-6).log())
    optimiser = torch.optim.Adam(model.density.parameters(), lr=FIT_RATE)
    for step in range(FIT_STEPS):
        optimiser.param_groups[0]["lr"] = FIT_RATE * (0.5 + 0.5 * math.cos(math.pi * step / FIT_STEPS))
        some = y[:, torch.randint(y.shape[1], (FIT_SAMPLES,), generator=generator)]
        noise = torch.rand(some.shape, generator=generator) - 0.5
        gain = model.gain((rungs - 1) * torch.rand(1, generator=generator)).detach()[..., 0]
        bits = model.density.bits(some[None] + noise / gain, 1 / gain)
        optimiser.zero_grad()
        bits.mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
