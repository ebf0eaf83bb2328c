"""How thriftily each rate of a trained model is best rounded (`codec/rounding.py`), found by measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from train.objective import PEAK, RateDistortion, to_image

CANDIDATES: Final = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.075)
BATCH: Final = 8


@torch.no_grad()
def best_thrift(model: RateDistortion, crops: Tensor, lambdas: Sequence[float]) -> list[float]:
    """For each rung, of the candidates that which minimises bits + λ · squared error on 0…255, over crops N×H×W×3 uint8.

    The model's own thrift stays as it is.
    """
    own, batches = model.thrift, [to_image(some) for some in crops.split(BATCH)]
    latents = [model.latents(x) for x in batches]
    found = []
    for rung, weight in enumerate(lambdas):
        costs = []
        for candidate in CANDIDATES:
            model.thrift, cost = candidate, 0.0
            for x, y in zip(batches, latents, strict=True):
                bits_y, bits_z, decoded = model.code(y, torch.full((len(x),), float(rung), device=x.device))
                restored = model.synthesis(decoded * (-model.log_unit).exp()[:, None, None]).float()
                error = PEAK * (restored - x).square().mean(dim=1).sum()
                cost += float(bits_y.sum() + bits_z.sum() + weight * error)
            costs.append(cost)
        found.append(CANDIDATES[costs.index(min(costs))])
    model.thrift = own
    return found
