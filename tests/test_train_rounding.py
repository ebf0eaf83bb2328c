"""How thriftily a model rounds is measured when it is frozen."""

from __future__ import annotations

import torch

from codec.layout import Sizes
from train.hyper import HyperModel
from train.objective import to_image
from train.rounding import CANDIDATES, best_thrift

LADDER = (0.0035, 0.0483)
SIZES = Sizes(side=4, analysis=6, synthesis=6, features=8, slices=(4, 8), width=8, turns=(2, 2))


def test_the_best_of_the_candidates_is_found(photograph: torch.Tensor) -> None:
    """By the same objective, computed here from the model's own answers."""
    torch.manual_seed(0)
    model = HyperModel(LADDER, 8, 12, SIZES, thrift=0.05).requires_grad_(False)
    crops = torch.from_numpy(photograph[:96, :192].reshape(1, 96, 192, 3).copy())
    model.calibrate(model.latents(to_image(crops)))
    found = best_thrift(model, crops, LADDER)
    assert model.thrift == 0.05
    for rung, value in enumerate(LADDER):
        costs = {}
        for candidate in CANDIDATES:
            model.thrift = candidate
            bits, mse, _ = model(to_image(crops), torch.tensor([float(rung)]))
            costs[candidate] = float(bits + value * 255**2 * mse * 96 * 192)
        assert found[rung] in CANDIDATES and costs[found[rung]] <= min(costs.values()) * (1 + 1e-5)
    assert max(found) > 0
