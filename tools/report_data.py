"""What the report shows, as JSON: each image at equal file sizes, and the curves and BD-rates of a results file."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.baselines import Codec, Setting
from tools.bdrate import README_ANCHORS, bd_rate
from tools.measure import roundtrip
from tools.plot import PANELS
from tools.results import Curve, ResultsError, Store, curves, image_hash, read_reference
from tools.side_by_side import RATIOS, not_below

Pixels = npt.NDArray[np.uint8]
Json = dict[str, Any]
SHOWN: Final = ("bytes", "bpp", "psnr", "ms_ssim", "ms_ssim_db")
"""What the page says of a file; seconds are left out, so that the same images make the same page."""


@dataclass
class Album:
    """The page's pictures, each once, as lossless WebP in data URLs."""

    side: int
    """Of larger pictures, the middle part of at most so many pixels a side."""
    urls: dict[str, str] = field(default_factory=dict)

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, top, width, height) of the part that is shown."""
        shown = min(width, self.side), min(height, self.side)
        return (width - shown[0]) // 2, (height - shown[1]) // 2, *shown

    def add(self, pixels: Pixels) -> str:
        """The name under which a picture H×W×3 uint8 is found in `urls`."""
        left, top, width, height = self.window(*pixels.shape[:2])
        part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        name = image_hash(part)
        if name not in self.urls:
            buffer = io.BytesIO()
            Image.fromarray(part).save(buffer, "WEBP", lossless=True, method=4)
            self.urls[name] = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        return name


def rising(rival: Codec) -> Sequence[Setting]:
    """All settings of a rival that are worth telling apart, the smallest file first."""
    if rival.parameter == "quality":
        return range(int(rival.limits[0]), int(rival.limits[1]) + 1)
    if rival.parameter == "ratio":
        return RATIOS
    low, high = rival.limits
    return tuple(np.geomspace(high, low, 1000).round(4).tolist())  # a distance, less than one per cent apart


def remembering(rival: Codec, image: Pixels) -> Codec:
    """The codec for one image, which makes each file once however often it is asked for."""
    encode = functools.cache(functools.partial(rival.encode, image))
    return replace(rival, encode=lambda _, setting: encode(setting))


def model_of(version: Codec, setting: Setting) -> str:
    """The name of the model that one of our files is made with."""
    return version.name.removeprefix("rdae ") if version.parameter == "quality" else str(setting).split("@")[0]


def described(version: Codec, setting: Setting, image: Pixels, album: Album) -> Json:
    """A file made, opened, measured and put into the album."""
    _, decoded, row = roundtrip(version, setting, image)
    about = {"key": version.key, "name": version.name, "setting": f"{version.parameter} {setting}"}
    if version.key.startswith("rdae"):
        about = {
            "key": "rdae",
            "name": "rdae",
            "setting": about["setting"] if version.parameter == "quality" else model_of(version, setting),
        }
    return {**about, **{metric: row[metric] for metric in SHOWN}, "picture": album.add(decoded)}


def compared(path: Path, image: Pixels, ours: Sequence[tuple[Codec, Setting]], rivals: Sequence[Codec], album: Album, bar: Any) -> Json:
    """One image as the page shows it: for each of our files, those of the rivals at its size."""
    height, width = image.shape[:2]
    cached = [remembering(rival, image) for rival in rivals]
    sizes, failures = [], []
    several = len({version.key for version, _ in ours}) > 1
    for version, setting in ours:
        mine = described(version, setting, image, album)
        if several:
            mine["name"] = f"rdae {model_of(version, setting)}"
        bar.update()
        versions = []
        for rival in cached:
            try:
                versions.append(described(rival, not_below(rival, image, rising(rival), mine["bytes"]), image, album))
            except Exception as error:  # a rival that fails must not end the run
                failures.append(f"{rival.name} failed: {(str(error) or type(error).__name__).splitlines()[0]}")
            bar.update()
        sizes.append({"setting": mine["setting"], "bytes": mine["bytes"], "bpp": mine["bpp"], "versions": [*versions, mine]})
    sizes.sort(key=lambda size: size["bytes"])
    about = {"name": path.name, "width": width, "height": height, "window": album.window(height, width), "original": album.add(image)}
    return {**about, "sizes": sizes, "failures": sorted(set(failures))}


def drawn(curve: Curve, parameter: str) -> Json:
    """A curve as the page plots it. Raises ValueError when it cannot be plotted."""
    metrics = ("bpp", *(metric for metric, _ in PANELS), "ms_ssim")
    count = len(curve.means["bpp"])
    columns = [curve.means.get(metric, [None] * count) for metric in metrics]
    labels = [f"{parameter} {label.split('@')[0]}" for label in curve.labels] or [""] * count
    points = [
        {"setting": label, **dict(zip(metrics, values, strict=True))}
        for label, values in zip(labels, zip(*columns, strict=True), strict=True)
    ]
    numbers = np.array([value for column in columns for value in column if value is not None], dtype=np.float64)
    if not np.isfinite(numbers).all() or not all(point["bpp"] > 0 for point in points):
        raise ValueError(f"{curve.name} has a rate or metric that is out of range")
    return {"name": curve.name, "ours": curve.key.startswith("rdae"), "published": not curve.rows, "points": points}


def bd_rates(measured: Sequence[Curve], metric: str) -> Json:
    """Each codec against the anchors that the README's table has, or against all where there are none of these."""
    usable = [curve for curve in measured if len(curve.points(metric)[0])]
    anchors = [curve for key in README_ANCHORS for curve in usable if curve.key == key] or usable
    rows = [
        {
            "name": test.name,
            "ours": test.key.startswith("rdae"),
            "cells": ["—" if test is anchor else str(bd_rate(anchor.points(metric), test.points(metric))) for anchor in anchors],
        }
        for test in usable
    ]
    return {"anchors": [anchor.name for anchor in anchors], "rows": rows}


def published(path: Path) -> Json:
    """A published curve as the page plots it. Raises `ResultsError`."""
    try:
        return drawn(read_reference(path), "")
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error


def rate_distortion(path: Path, references: Sequence[Json]) -> Json:
    """What the page shows of a results file. Raises `ResultsError`."""
    try:
        store = Store(path)
        ladders = {key: list(entry["points"]) for key, entry in store.codecs.items()}
        measured, used, remarks = curves(store, ladders, list(store.images))
        if not measured:
            raise ResultsError(f"{path}: holds no measurements")
        lines = [drawn(curve, str(store.codecs[curve.key]["parameter"])) for curve in measured]
        return {
            "images": [str(store.images[image]["name"]) for image in used],
            "curves": [*lines, *references],
            "bd": {metric: bd_rates(measured, metric) for metric, _ in PANELS},
            "settings": {curve.name: f"{curve.settings} ({curve.library})" for curve in measured},
            "remarks": remarks,
        }
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ResultsError(f"{path}: not a results file, or a damaged one ({error!r})") from error
