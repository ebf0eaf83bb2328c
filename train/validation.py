"""What a model reaches on held-out photographs, with real rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train import data
from train.objective import RateDistortion, to_image
from train.vae import GaussianVAE


def centre_crops(paths: list[Path], side: int = 256) -> Tensor:
    """The middles of photographs, N×side×side×3 uint8; smaller ones are mirrored, unreadable ones left out.

    Raises `DataError` when none is left.
    """
    crops = []
    for path in paths:
        try:
            pixels = data.read(path)
        except Exception:
            continue
        missing = [max(0, side - n) for n in pixels.shape[:2]]
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
        top, left = ((n - side) // 2 for n in pixels.shape[:2])
        crops.append(pixels[top : top + side, left : left + side])
    if not crops:
        raise data.DataError("none of the held-out images is readable")
    return torch.from_numpy(np.stack(crops))


@torch.no_grad()
def validate(
    model: RateDistortion | GaussianVAE, crops: Tensor, lambdas: tuple[float, ...], distortion: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[dict[str, float]]:
    """Mean bits per pixel, squared error on 0…1, what λ multiplies, and PSNR per image, with real rounding in single precision, for each λ.

    A variational autoencoder does not round: its rate is the KL divergence, its errors are those of one sample of the posterior.
    """
    rows = []
    for rung in range(len(lambdas)):
        rates, errors, costs = [], [], []
        for some in crops.split(8):
            x = to_image(some)
            bits, mse, restored = model(x, torch.full((len(x),), float(rung), device=x.device))
            rates.append(bits / (x.shape[2] * x.shape[3]))
            errors.append(mse)
            costs.append(distortion(mse, restored, x))
        mse = torch.cat(errors)
        psnr = float((-10 * torch.log10(mse)).mean())
        means = {"bpp": rates, "mse": errors, "distortion": costs}
        rows.append({**{name: float(torch.cat(values).mean()) for name, values in means.items()}, "psnr": psnr})
    return rows
