from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from train.data import DataError
from train.objective import RateDistortion, to_image
from train.validation import centre_crops, validate


def test_the_middles_of_photographs(tmp_path: Path) -> None:
    """Of large ones; small ones go on, mirrored, below and to the right; what cannot be read is left out."""
    large, small = (np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8) for shape in ((40, 21, 3), (16, 12, 3)))
    paths = [tmp_path / name for name in ("large.png", "broken.png", "small.png")]
    Image.fromarray(large).save(paths[0])
    paths[1].write_bytes(b"nothing")
    Image.fromarray(small).save(paths[2])
    crops = centre_crops(paths, 16).numpy()
    np.testing.assert_array_equal(crops[0], large[12:28, 2:18])
    np.testing.assert_array_equal(crops[1], np.concatenate([small, small[:, :7:-1]], axis=1))
    assert len(crops) == 2
    with pytest.raises(DataError, match="none of the held-out images is readable"):
        centre_crops(paths[1:2], 16)


def test_rows_are_means_over_all_crops_with_real_rounding() -> None:
    """Of eleven crops, which are more than go through the model at once."""
    torch.manual_seed(0)
    model = RateDistortion((0.01, 0.04), 4, 6)
    crops = torch.randint(0, 256, (11, 32, 32, 3), dtype=torch.uint8)

    def largest(mse: Tensor, restored: Tensor, x: Tensor) -> Tensor:
        return (restored - x).abs().amax(dim=(1, 2, 3))

    rows = validate(model, crops, (0.01, 0.04), largest)
    x = to_image(crops)
    torch.testing.assert_close(x[3, 1], crops[3, ..., 1] / 255)
    with torch.no_grad():
        for rung, row in enumerate(rows):
            bits, mse, restored = model(x, torch.full((11,), float(rung)))
            assert row["bpp"] == pytest.approx(float(bits.mean()) / 32**2, rel=1e-5)
            assert row["mse"] == pytest.approx(float((restored - x).square().mean()), rel=1e-5)
            assert row["distortion"] == pytest.approx(float(largest(mse, restored, x).mean()), rel=1e-5)
            assert row["psnr"] == pytest.approx(float(-10 * mse.log10().mean()), rel=1e-5)
    assert rows[0]["bpp"] < rows[1]["bpp"]
