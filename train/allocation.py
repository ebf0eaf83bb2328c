"""The quantiser steps of a variable-rate model, found by measuring instead of by gradients.

To rate and distortion, each channel contributes by itself: its rate is -log2 P of its rounded latents; its distortion, for transforms near
enough to linear, the squared error of those latents times how strongly the synthesis answers to them there. So the best step of every
channel at every λ is a search along a line, as in reverse water-filling (Cover, Thomas, "Elements of Information Theory", section 10.3.3),
but on measured curves: real latents, real rounding, the trained density.

Gradients do worse. With noise for rounding, or rounding that is straight through, a finer step always promises less error, also where
everything is rounded to zero anyway; steps stay too fine, most of all at low rate. The exact derivative has so large a
variance that steps drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from train.objective import RateDistortion

LOG_GAINS = (-4.5, 3.0, 61)
"""Candidates for the logarithm of a gain: first, last, how many."""
PROBES = 2
"""Random vectors for each batch that measure how the synthesis answers."""
BATCH = 4
SAMPLES = 4096
"""Latents of each channel that rates and errors are averaged over."""


def sensitivity(model: RateDistortion, y: Tensor, generator: torch.Generator, rung: float = 0.0) -> Tensor:
    """Squared pixel values (on 0…1, summed over all pixels) for a squared unit of error in each latent B×M×h×w, about its value.

    It is that of the synthesis at a place on the ladder, which makes a difference only where the synthesis changes with the rate.

    That is the squared length of each column of the synthesis' Jacobian, J: the mean of (Jᵀv)² over random v of unit variance.
    """
    total = torch.zeros_like(y)
    for _ in range(PROBES):
        at = y.detach().requires_grad_()
        with torch.enable_grad():
            x = model.show(at, torch.full((len(y),), rung, device=y.device))
            v = torch.randn(x.shape, generator=generator).to(x)
            (answer,) = torch.autograd.grad((x * v).sum(), at)
        total += answer.square()
    return total / PROBES


@torch.no_grad()
def log_gains(model: RateDistortion, images: Tensor, lambdas: Sequence[float], seed: int = 0) -> Tensor:
    """R×M logarithms of the gains that minimise bits + λ·255²·squared error, for images B×3×H×W in 0…1.

    They rise with λ in every channel: a channel's error falls with its gain and its rate rises.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = [model.latents(x) for x in images.split(BATCH)]
    y = torch.cat(batches).transpose(0, 1).flatten(1)
    # A synthesis that changes with the rate does so evenly: three places on the ladder tell of all.
    places = [0.0, (len(lambdas) - 1) / 2, len(lambdas) - 1.0] if model.tilted else [0.0]
    weights = [torch.cat([sensitivity(model, part, generator, place) for part in batches]).transpose(0, 1).flatten(1) for place in places]
    some = torch.randperm(y.shape[1], generator=generator)[:SAMPLES].to(y.device)
    y, weights = y[:, some], [weight[:, some] for weight in weights]
    first, last, count = LOG_GAINS
    candidates = torch.linspace(first, last, count)
    rates, errors = [], []
    for candidate in candidates.tolist():
        gain = torch.full((1, len(y), 1), math.exp(candidate), device=y.device)
        restored = model.rounded(y[None], gain)[0] / gain[0]
        rates.append(model.density.bits(restored[None], 1 / gain)[0].mean(dim=1))
        errors.append(torch.stack([((restored - y).square() * weight).mean(dim=1) for weight in weights]))
    rate, error = torch.stack(rates), torch.stack(errors, dim=1)
    best = []
    for rung, value in enumerate(lambdas):
        here = rung / max(len(lambdas) - 1, 1) * (len(weights) - 1)
        low = min(int(here), max(len(weights) - 2, 0))
        between = torch.lerp(error[low], error[min(low + 1, len(weights) - 1)], here - low)
        # A latent answers for 16×16 pixels of three colours; the mean squared error is over colours as well.
        best.append((rate + value * 255**2 / 3 * between).argmin(dim=0).cpu())
    return candidates[torch.stack(best).cummax(dim=0).values].to(y.device)


@torch.no_grad()
def high_resolution_log_gains(model: RateDistortion, images: Tensor, lambdas: Sequence[float], seed: int = 0) -> Tensor:
    """R×M logarithms of gains for an entropy model that knows where a latent is quiet, for images B×3×H×W in 0…1.

    Steps are those at which the last bit pays for itself where the error is uniform: the rate falls by dΔ / (Δ ln 2) and the
    error grows by S Δ dΔ / 6. Where latents are smaller than that, such a model spends next to nothing on them anyway.
    """
    generator = torch.Generator().manual_seed(seed)
    answers = [sensitivity(model, model.latents(x), generator).mean(dim=(0, 2, 3)) for x in images.split(BATCH)]
    answer = torch.stack(answers).mean(dim=0)
    return torch.stack([0.5 * torch.log(value * 255**2 / 3 * math.log(2) / 6 * answer) for value in lambdas])
