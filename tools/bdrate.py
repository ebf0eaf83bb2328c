"""Bjøntegaard's average difference in rate between two curves, and the tables made of it.

BD-rate is the mean over distortion of the difference of log rate, as a percentage: -20 % means a fifth fewer bits at equal
quality. Curves are interpolated with PCHIP and compared over the range of quality that both cover, never beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bjontegaard
import numpy as np

from tools.results import Curve, Floats, stored_curves

WORST = 5
"""How many images a list of the worst names."""
README_ANCHORS = ("jpeg-420", "jpeg2000", "webp", "jxl", "avif-psnr")
MS_SSIM_ANCHORS = ("jpeg-420", "jpeg2000", "webp", "jxl", "avif-psnr", "avif-iq")
METRICS = {"psnr": "PSNR (RGB)", "psnr_luma": "luma PSNR (Y')", "ms_ssim_db": "MS-SSIM (dB)"}


@dataclass(frozen=True)
class BDRate:
    """Rate of a codec against an anchor at equal quality."""

    percent: float | None
    """Negative: fewer bits than the anchor. None when it cannot be told."""
    note: str = ""
    """Why there is none."""
    low: float = float("nan")
    high: float = float("nan")
    """The common range of quality, dB."""
    share: float = float("nan")
    """How much of the shorter curve's range is common."""

    def __str__(self) -> str:
        if self.percent is None:
            return self.note
        percent = round(self.percent, 1) + 0.0  # no negative zero
        return f"{percent:+.1f} %".replace("-", "−") + ("†" if self.share < 0.5 else "")


def front(rate: Floats, quality: Floats) -> tuple[Floats, Floats]:
    """The points that no other beats in both rate and quality, in rising order of both."""
    order = np.lexsort((-quality, rate))
    rate, quality = rate[order], quality[order]
    best = np.concatenate([[-np.inf], np.maximum.accumulate(quality)[:-1]]) if len(quality) else quality
    keep = quality > best
    return rate[keep], quality[keep]


def bd_rate(anchor: tuple[Floats, Floats], test: tuple[Floats, Floats]) -> BDRate:
    """BD-rate of a test curve against an anchor, each given as (bpp, quality in dB)."""
    (anchor_rate, anchor_quality), (test_rate, test_quality) = front(*anchor), front(*test)
    if min(len(anchor_rate), len(test_rate)) < 2:
        return BDRate(None, "too few points")
    low, high = max(anchor_quality[0], test_quality[0]), min(anchor_quality[-1], test_quality[-1])
    if low >= high:
        return BDRate(None, "no overlap")
    percent = bjontegaard.bd_rate(
        anchor_rate, anchor_quality, test_rate, test_quality, method="pchip", require_matching_points=False, min_overlap=0
    )
    shorter = min(anchor_quality[-1] - anchor_quality[0], test_quality[-1] - test_quality[0])
    return BDRate(float(percent), "", float(low), float(high), float((high - low) / shorter))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_table(tests: Sequence[Curve], anchors: Sequence[Curve], metric: str = "psnr") -> str:
    """A Markdown table of averaged-curve BD-rates: each test curve (rows) against each anchor (columns)."""
    rows = [[test.name, *("—" if test is a else str(bd_rate(a.points(metric), test.points(metric))) for a in anchors)] for test in tests]
    return _table(["BD-rate", *(f"against {anchor.name}" for anchor in anchors)], rows)


def per_image_table(curves: Sequence[Curve], names: dict[str, str], metric: str = "psnr") -> str:
    """Each codec against every other: averaged curve, and mean, median and worst over the images (hash → name)."""
    rows = []
    for test in curves:
        for anchor in curves:
            if test is anchor:
                continue
            average = bd_rate(anchor.points(metric), test.points(metric))
            each = {names[image]: bd_rate(anchor.points(metric, image), test.points(metric, image)) for image in test.rows}
            known = {name: bd for name, bd in each.items() if bd.percent is not None}
            span = f"{average.low:.1f}–{average.high:.1f}" if average.percent is not None else ""
            if not known:
                rows.append([test.name, anchor.name, str(average), span, *[next(iter(each.values())).note] * 3, f"0 of {len(each)}"])
                continue
            percents = [bd.percent for bd in known.values() if bd.percent is not None]
            worst = max(known, key=lambda name: known[name].percent)  # type: ignore[arg-type, return-value]
            mean, median = (str(BDRate(float(of(percents)))) for of in (np.mean, np.median))
            count = f"{len(known)} of {len(each)}" if len(known) < len(each) else str(len(each))
            rows.append([test.name, anchor.name, str(average), span, mean, median, f"{known[worst]} ({worst})", count])
    return _table(["codec", "anchor", "averaged curve", "common range, dB", "mean", "median", "worst image", "images"], rows)


def readme_table(folder: Path, anchors: Sequence[str] = README_ANCHORS, metric: str = "psnr") -> str:
    """A table of averaged-curve BD-rates as the README shows them: every codec in a folder of results against a few (by key)."""
    curves = stored_curves(folder)
    return markdown_table(curves, [curve for key in anchors for curve in curves if curve.key == key], metric)


def worst_images_table(tests: Sequence[Curve], anchors: Sequence[Curve], names: dict[str, str], metric: str = "psnr") -> str:
    """The images on which a codec fares worst against each anchor, worst first, with their own BD-rates."""
    rows = []
    for test in tests:
        for anchor in (curve for curve in anchors if curve is not test):
            each = [(bd_rate(anchor.points(metric, image), test.points(metric, image)), names[image]) for image in test.rows]
            known = sorted(((bd, name) for bd, name in each if bd.percent is not None), key=lambda pair: -(pair[0].percent or 0))
            rows.append([test.name, anchor.name, ", ".join(f"{name} {bd}" for bd, name in known[:WORST]) or "no overlap"])
    return _table(["codec", "anchor", f"worst {WORST} images"], rows)


def report(curves: Sequence[Curve], references: Sequence[Curve], names: dict[str, str], remarks: Sequence[str]) -> str:
    """The text of `bd_rate.md`: every curve against every other, per metric, and what each was made with."""
    parts = [
        "# BD-rate",
        f"Rate at equal quality, averaged with Bjøntegaard's method (PCHIP over the common range, no extrapolation) over {len(names)} "
        "images; negative is fewer bits. Rates count every byte of the files. † less than half of the shorter curve is common to both.",
        *(f"- {curve.name}: {curve.settings} ({curve.library})" for curve in curves),
        *remarks,
    ]
    for metric, title in METRICS.items():
        usable = [curve for curve in curves if len(curve.points(metric)[0])]
        if not usable:
            parts += [f"## {title}", "No image has it."]
            continue
        parts += [f"## {title}", "Averaged curves:", markdown_table(usable, usable, metric)]
        published = [reference for reference in references if len(reference.points(metric)[0])]
        if published:
            parts += ["Against published curves:", markdown_table(usable, published, metric)]
        if len(usable) > 1:
            parts += ["Image by image (mean, median and worst of the images' own BD-rates):", per_image_table(usable, names, metric)]
        ours = [curve for curve in usable if curve.key.startswith("rdae")]
        if ours and len(names) > WORST:
            parts += ["The worst images for rdae:", worst_images_table(ours, usable, names, metric)]
    return "\n\n".join(parts) + "\n"
