"""How thriftily each rate of a frozen model is best rounded (`codec/rounding.py`), found by measuring."""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
from torch import Tensor

from codec.model import Model

CANDIDATES: Final = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.075)
FIRST: Final = 4
"""The candidate that is looked at first; the others are as the cost falls from it to either side."""


def rungs_of(model: Model) -> list[int]:
    """The qualities nearest to the λ that a frozen model was trained for."""
    return [1 + round(float(x)) for x in np.linspace(0, model.qualities - 1, len(model.metadata["lambdas"]))]


def best_thrift(model: Model, crops: Tensor) -> list[float]:
    """For each rung, of the candidates that which minimises bits + λ · squared error on 0…255, over crops N×H×W×3 uint8.

    The cost is taken to have one minimum only. The model's own thrift stays as it is.
    """
    entropy = copy.copy(model.entropy)
    images = list(crops.cpu().numpy())
    latents = [model.analyse(image) for image in images]

    def cost(thrift: float, quality: int, value: float) -> float:
        entropy.thrift = np.full(model.qualities, thrift)
        total = 0.0
        for image, y in zip(images, latents, strict=True):
            bits, coded = entropy.trial(y, quality)
            restored = model.synthesise(coded, quality, *image.shape[:2])
            total += sum(bits) + value * float(((restored.astype(np.float64) - image) ** 2).sum()) / 3
        return total

    found = []
    for quality, value in zip(rungs_of(model), model.metadata["lambdas"], strict=True):
        costs = {FIRST: cost(CANDIDATES[FIRST], quality, value)}
        for way in (-1, 1):
            here = FIRST + way
            while 0 <= here < len(CANDIDATES):
                costs[here] = cost(CANDIDATES[here], quality, value)
                if costs[here] > costs[here - way]:
                    break
                here += way
        found.append(CANDIDATES[min(costs, key=costs.__getitem__)])
    return found
