"""How far a decoded image is from its original. Images are H×W×3 uint8; PSNR in dB against a peak of 255."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pytorch_msssim import ms_ssim as pytorch_ms_ssim

Pixels = npt.NDArray[np.uint8]
MS_SSIM_SIDE: Final = 161
"""The shorter side that MS-SSIM needs: its 11×11 window must fit after four halvings."""

# ITU-R BT.601 at full range, as in JFIF: rows are Y', Cb, Cr. An offset of 128 for chroma cancels in differences.
_BT601: Final = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def psnr_of_mse(mse: float) -> float:
    """PSNR in dB of a mean squared error on 0…255; infinite for none."""
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def psnr(original: Pixels, decoded: Pixels) -> tuple[float, float, float]:
    """PSNR over all samples of (RGB, luma Y', chroma Cb and Cr together), the latter two without rounding to integers."""
    difference = original.astype(np.float64) - decoded
    squares = np.square(difference @ _BT601.T)
    parts = np.square(difference), squares[..., 0], squares[..., 1:]
    red_green_blue, luma, chroma = (psnr_of_mse(float(part.mean())) for part in parts)
    return red_green_blue, luma, chroma


def ms_ssim(original: Pixels, decoded: Pixels) -> float | None:
    """Multi-scale SSIM, the mean over R, G and B, at most 1; None for an image too small for five scales."""
    if min(original.shape[:2]) < MS_SSIM_SIDE:
        return None
    x, y = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() for image in (original, decoded))
    with torch.inference_mode():
        return float(pytorch_ms_ssim(x, y, data_range=255))


def decibels(similarity: float | None) -> float | None:
    """-10·log10(1 - MS-SSIM), which spreads out the values near one; infinite for 1."""
    if similarity is None:
        return None
    return math.inf if similarity >= 1 else -10 * math.log10(1 - similarity)


def compare(original: Pixels, decoded: Pixels) -> dict[str, float | None]:
    """All measures of one decoded image. An infinite one is None, since JSON has no infinity; so is an MS-SSIM that does not exist."""
    if original.shape != decoded.shape:
        raise ValueError(f"decoded as {decoded.shape[1]}×{decoded.shape[0]}, not {original.shape[1]}×{original.shape[0]}")
    similarity = ms_ssim(original, decoded)
    names = ("psnr", "psnr_luma", "psnr_chroma")
    values: dict[str, float | None] = dict(zip(names, psnr(original, decoded), strict=True))
    values.update(ms_ssim=similarity, ms_ssim_db=decibels(similarity))
    return {name: None if value is None or math.isinf(value) else round(value, 6) for name, value in values.items()}
