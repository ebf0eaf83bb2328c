from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import color, metrics
from torch.nn import functional

from tools.metrics import MS_SSIM_SIDE, compare, decibels, ms_ssim, psnr


@pytest.fixture(scope="module")
def pair(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image = photograph[:192, :208]
    noise = np.random.default_rng(1).normal(0, 12, image.shape)
    return image, np.clip(image + noise, 0, 255).astype(np.uint8)


def test_psnr_is_that_of_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert psnr(*pair)[0] == pytest.approx(metrics.peak_signal_noise_ratio(*pair), abs=1e-9)


def test_luma_and_chroma_are_those_of_bt601(pair: tuple[np.ndarray, np.ndarray]) -> None:
    # scikit-image has BT.601 at studio range, where luma spans 219 and chroma 224: the same signals, scaled.
    a, b = (color.rgb2ycbcr(image) for image in pair)
    _, luma, chroma = psnr(*pair)
    assert luma == pytest.approx(metrics.peak_signal_noise_ratio(a[..., 0], b[..., 0], data_range=219), abs=1e-3)
    assert chroma == pytest.approx(metrics.peak_signal_noise_ratio(a[..., 1:], b[..., 1:], data_range=224), abs=1e-3)


def test_a_grey_error_is_all_luma() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    rgb, luma, chroma = psnr(image, image + np.uint8(10))
    assert rgb == pytest.approx(10 * math.log10(255**2 / 100))
    assert luma == pytest.approx(rgb)
    assert chroma > 100


def scikit_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2003 from scikit-image's SSIM: with C1 as large as can be, the luminance term is one and contrast-structure remains."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    means = []
    for channel in range(3):
        x, y = a[..., channel].astype(np.float64), b[..., channel].astype(np.float64)
        product = 1.0
        for scale, weight in enumerate(weights):
            options = {
                "gaussian_weights": True,
                "sigma": 1.5,
                "use_sample_covariance": False,
                "data_range": 255,
                "truncate": 10 / 3,
                "full": True,
            }
            k1 = 0.01 if scale == len(weights) - 1 else 1e6
            field = metrics.structural_similarity(x, y, K1=k1, **options)[1]
            product *= float(field[5:-5, 5:-5].mean()) ** weight
            x, y = (functional.avg_pool2d(torch.from_numpy(v)[None, None], 2)[0, 0].numpy() for v in (x, y))
        means.append(product)
    return float(np.mean(means))


def test_ms_ssim_is_that_of_scikit_images_ssim_at_five_scales(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert ms_ssim(*pair) == pytest.approx(scikit_ms_ssim(*pair), abs=1e-4)


def test_small_images_have_no_ms_ssim() -> None:
    image = np.zeros((MS_SSIM_SIDE, MS_SSIM_SIDE, 3), np.uint8)
    assert ms_ssim(image, image) == 1
    assert ms_ssim(image[1:], image[1:]) is None
    assert compare(image[1:], image[1:])["ms_ssim_db"] is None


def test_decibels() -> None:
    assert decibels(0.99) == pytest.approx(20)
    assert decibels(1.0) == math.inf
    assert decibels(None) is None


def test_what_is_infinite_is_none() -> None:
    image = np.zeros((170, 170, 3), np.uint8)
    assert compare(image, image) == {"psnr": None, "psnr_luma": None, "psnr_chroma": None, "ms_ssim": 1.0, "ms_ssim_db": None}


def test_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="decoded as 4×5, not 4×4"):
        compare(np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8))
