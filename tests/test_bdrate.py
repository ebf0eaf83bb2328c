from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate
from scipy.interpolate import PchipInterpolator

from tools.bdrate import bd_rate, front, markdown_table, per_image_table, report, worst_images_table
from tools.results import Curve

RATE = np.array([0.1, 0.25, 0.5, 1.0, 2.0])
PSNR = np.array([25.0, 28.5, 31.0, 34.5, 39.0])


def curve(name: str, factor: float = 1.0, images: dict[str, float] | None = None, shift: float = 0.0) -> Curve:
    """RATE × factor at PSNR + shift; images have factors of their own."""
    values = list(PSNR + shift)
    rows = {
        image: [{"bpp": r * own, "psnr": q, "psnr_luma": q, "ms_ssim_db": None} for r, q in zip(RATE, values, strict=True)]
        for image, own in (images or {}).items()
    }
    means = {"bpp": list(RATE * factor), "psnr": values, "psnr_luma": values, "ms_ssim_db": [None] * 5}
    return Curve(name, name, "settings", "library 1.0", tuple("abcde"), rows, means)


def test_a_fifth_fewer_bits_is_minus_twenty_per_cent() -> None:
    found = bd_rate((RATE, PSNR), (0.8 * RATE, PSNR))
    assert found.percent == pytest.approx(-20)
    assert str(found) == "−20.0 %"
    assert (found.low, found.high, found.share) == (25, 39, 1)


def test_it_is_the_integral_of_pchip_over_the_common_range() -> None:
    other_rate, other_psnr = np.array([0.2, 0.4, 0.9, 1.5]), np.array([28.0, 31.0, 35.5, 41.0])
    at = np.linspace(28, 39, 20001)
    difference = PchipInterpolator(other_psnr, np.log(other_rate))(at) - PchipInterpolator(PSNR, np.log(RATE))(at)
    expected = 100 * np.expm1(integrate.trapezoid(difference, at) / 11)
    assert bd_rate((RATE, PSNR), (other_rate, other_psnr)).percent == pytest.approx(expected, abs=1e-4)


def test_curves_that_do_not_overlap_are_not_extrapolated() -> None:
    assert str(bd_rate((RATE, PSNR), (RATE, PSNR + 20))) == "no overlap"
    assert str(bd_rate((RATE, PSNR), (RATE[:1], PSNR[:1]))) == "too few points"
    assert str(bd_rate((RATE, PSNR), (RATE[:0], PSNR[:0]))) == "too few points"


def test_a_short_overlap_is_marked() -> None:
    assert str(bd_rate((RATE, PSNR), (RATE * 4, PSNR + 10))).endswith("†")


def test_order_of_points_does_not_matter_and_dominated_ones_are_left_out() -> None:
    rate, quality = np.array([0.5, 0.1, 0.6, 1.0, 0.1]), np.array([31.0, 25.0, 30.0, 34.0, 24.0])
    assert [list(part) for part in front(rate, quality)] == [[0.1, 0.5, 1.0], [25.0, 31.0, 34.0]]


def test_tables() -> None:
    anchor = curve("JPEG", images={"x": 1.0, "y": 1.0, "z": 1.0})
    better = curve("rdae", 0.7, images={"x": 0.5, "y": 0.9, "z": 1.1})
    assert markdown_table([better], [anchor, better]).splitlines() == [
        "| BD-rate | against JPEG | against rdae |",
        "| --- | ---: | ---: |",
        "| rdae | −30.0 % | — |",
    ]
    line = per_image_table([better, anchor], {"x": "x.png", "y": "y.png", "z": "z.png"}).splitlines()[2]
    assert line == "| rdae | JPEG | −30.0 % | 25.0–39.0 | −16.7 % | −10.0 % | +10.0 % (z.png) | 3 |"


def test_the_worst_images_come_first() -> None:
    factors = {str(i): 1 + i / 10 for i in range(-3, 4)}
    table = worst_images_table(
        [curve("rdae", images=factors)], [curve("JPEG", images=dict.fromkeys(factors, 1.0))], {k: f"{k}.png" for k in factors}
    )
    assert table.splitlines()[2] == "| rdae | JPEG | 3.png +30.0 %, 2.png +20.0 %, 1.png +10.0 %, 0.png +0.0 %, -1.png −10.0 % |"


def test_the_report_says_what_does_not_overlap() -> None:
    far = curve("far", shift=30, images={"x": 1.0})
    text = report([curve("near", images={"x": 1.0}), far], [curve("published", 0.5)], {"x": "x.png"}, ["a remark"])
    assert "| far | near | no overlap |  | no overlap | no overlap | no overlap | 0 of 1 |" in text
    assert "- near: settings (library 1.0)" in text
    assert "| near | +100.0 % |" in text
    assert "a remark" in text
    assert "No image has it." in text  # MS-SSIM
