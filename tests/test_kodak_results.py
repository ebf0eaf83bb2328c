"""The committed results on Kodak agree with what was measured before, by other code, and with themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.bdrate import bd_rate, readme_table
from tools.results import Curve, Store, stored_curves

FOLDER = Path(__file__).parent.parent / "data" / "results" / "kodak"

# Mean bpp and PSNR at equal settings.
EARLIER = {
    "jpeg-420": "5 .154/23.85, 10 .268/26.67, 15 .369/28.14, 20 .458/29.14, 30 .615/30.49, 50 .865/32.17, 70 1.193/33.92, 80 1.504/35.37,"
    " 90 2.207/38.03",
    "webp": "10 .274/28.93, 20 .377/30.19, 40 .577/32.20, 70 .877/34.48, 80 1.154/36.18",
    "avif-iq": "10 .107/27.09, 20 .167/28.46, 30 .253/29.94, 40 .391/31.66, 50 .618/33.87, 60 .926/36.02, 70 1.290/38.16",
}
# These were .jp2 files, whose 85 bytes of boxes a bare codestream of the same length spends on the picture.
EARLIER_JP2 = (
    "240 .099/26.34, 160 .149/27.52, 120 .200/28.46, 80 .299/29.94, 60 .398/31.13, 48 .499/32.16, 34 .705/33.95, 24 .998/35.98,"
    " 16 1.498/38.65, 12 1.998/40.79"
)


@pytest.fixture(scope="module")
def measured() -> dict[str, Curve]:
    return {curve.key: curve for curve in stored_curves(FOLDER)}


def points(text: str) -> list[tuple[str, float, float]]:
    parts = (part.replace("/", " ").split() for part in text.split(", "))
    return [(setting, float(rate), float(psnr)) for setting, rate, psnr in parts]


def at(curve: Curve, setting: str) -> tuple[float, float]:
    where = curve.labels.index(setting)
    rate, psnr = curve.means["bpp"][where], curve.means["psnr"][where]
    assert rate is not None
    assert psnr is not None
    return rate, psnr


@pytest.mark.parametrize("key", EARLIER)
def test_agreement_at_equal_settings(key: str, measured: dict[str, Curve]) -> None:
    for setting, rate, psnr in points(EARLIER[key]):
        assert at(measured[key], setting) == (pytest.approx(rate, abs=0.0006), pytest.approx(psnr, abs=0.02))


def test_jpeg2000_is_a_little_better_than_jp2_files(measured: dict[str, Curve]) -> None:
    for setting, rate, psnr in points(EARLIER_JP2):
        found = at(measured["jpeg2000"], setting)
        assert found[0] == pytest.approx(rate, abs=0.0015)
        assert psnr < found[1] < psnr + 0.06


def test_bd_rates_at_the_same_settings_are_the_same(measured: dict[str, Curve]) -> None:
    def earlier(text: str) -> tuple[np.ndarray, np.ndarray]:
        rates, psnrs = np.array([(rate, psnr) for _, rate, psnr in points(text)]).T
        return rates, psnrs

    def now(key: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        rates, psnrs = np.array([at(measured[key], setting) for setting, _, _ in points(text)]).T
        return rates, psnrs

    jpeg = EARLIER["jpeg-420"]
    for key, text, percent in (("jpeg2000", EARLIER_JP2, -44.6), ("webp", EARLIER["webp"], -33.8), ("avif-iq", EARLIER["avif-iq"], -50.4)):
        assert bd_rate(earlier(jpeg), earlier(text)).percent == pytest.approx(percent, abs=0.05)
        assert bd_rate(now("jpeg-420", jpeg), now(key, text)).percent == pytest.approx(percent, abs=0.3)


def test_every_file_is_there_and_fits_the_measurements(measured: dict[str, Curve]) -> None:
    store = Store(FOLDER / "results.json")
    assert sorted(image["name"] for image in store.images.values()) == [f"kodim{number:02d}.png" for number in range(1, 25)]
    assert (FOLDER / "results.json").stat().st_size < 2e6
    for key, curve in measured.items():
        assert len(curve.rows) == 24
        for image, rows in curve.rows.items():
            size = store.images[image]["width"] * store.images[image]["height"]
            assert [row["bpp"] for row in rows] == pytest.approx([8 * (row["bytes"] or 0) / size for row in rows], abs=1e-5)
        summary = json.loads((FOLDER / "summary" / f"{key}.json").read_text(encoding="utf-8"))
        rates = [rate for rate in curve.means["bpp"] if rate is not None]
        assert summary["results"]["bpp"] == pytest.approx(rates, abs=1e-5)
        assert np.ptp(rates) > 0 or len(rates) == 1
    for picture in ("rd.png", "rd.svg"):
        assert (FOLDER / picture).stat().st_size > 50_000


def test_the_report_holds_the_table_of_the_measurements(measured: dict[str, Curve]) -> None:
    report = (FOLDER / "bd_rate.md").read_text(encoding="utf-8")
    table = readme_table(FOLDER, tuple(measured))
    assert table in report
