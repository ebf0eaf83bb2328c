"""`results.json`: every measurement ever made into a folder, and the curves that are read out of it.

    {"format": "rdae-rd-1", "versions": {…},
     "images": {hash: {"name", "width", "height"}},
     "codecs": {key: {"name", "settings", "library", "parameter", "points": {setting: {hash: measurement}}}}}

An image's hash is that of its pixels. A measurement holds `bytes` of the whole file; `bpp` = 8·bytes / pixels; `psnr` over all RGB
samples, `psnr_luma` and `psnr_chroma` (BT.601) in dB, null where nothing was lost; `ms_ssim` and `ms_ssim_db`, null for images
under 161 pixels; `encode_s` and `decode_s`, seconds on
one thread unless the codec's settings name more.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codec import image as image_files
from tools.baselines import Codec
from tools.metrics import decibels

FORMAT: Final = "rdae-rd-1"
Row = dict[str, float | None]
Floats = npt.NDArray[np.float64]


class ResultsError(Exception):
    """A results or reference file cannot be used; the message is one line that names it."""


def image_hash(pixels: npt.NDArray[np.uint8]) -> str:
    """Identity of an image H×W×3 uint8."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


class Store:
    """The contents of a `results.json`."""

    def __init__(self, path: Path) -> None:
        """Reads the file if there is one. Raises `ResultsError` for one that is not ours, lest it be overwritten."""
        self.path = path
        self.images: dict[str, dict[str, Any]] = {}
        self.codecs: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, str] = {}
        if path.exists():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                if data["format"] != FORMAT:
                    raise ValueError(f"format {data['format']!r}")
                self.images, self.codecs, self.versions = data["images"], data["codecs"], data["versions"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ResultsError(f"{path}: not a results file: {_line(error)}") from error

    def enter(self, codec: Codec) -> bool:
        """Make room for a codec's measurements; True when older ones, of other settings or libraries, were dropped."""
        description = {"name": codec.name, "settings": codec.settings, "library": codec.library, "parameter": codec.parameter}
        known = self.codecs.pop(codec.key, None)  # and back at the end, so that the file has the order of the last run
        stale = known is not None and any(known[part] != description[part] for part in ("settings", "library"))
        points = {} if known is None or stale else known["points"]
        ladder = {str(value): points.get(str(value), {}) for value in codec.ladder}
        self.codecs[codec.key] = {**description, "points": ladder | {label: points[label] for label in points if label not in ladder}}
        return stale

    def has(self, key: str, setting: str, image: str) -> bool:
        """Whether this was measured."""
        return image in self.codecs[key]["points"].get(setting, {})

    def add(self, key: str, setting: str, image: str, row: Row) -> None:
        """Keep a measurement."""
        self.codecs[key]["points"][setting][image] = row

    def prune(self, codecs: list[Codec], images: list[str]) -> None:
        """Forget every codec, setting and image but these."""
        ladders = {codec.key: {str(value) for value in codec.ladder} for codec in codecs}
        self.images = {image: about for image, about in self.images.items() if image in images}
        self.codecs = {key: entry for key, entry in self.codecs.items() if key in ladders}
        for key, entry in self.codecs.items():
            entry["points"] = {
                setting: {image: row for image, row in rows.items() if image in images}
                for setting, rows in entry["points"].items()
                if setting in ladders[key]
            }

    def save(self) -> None:
        """Write the file, whole or not at all."""
        data = {"format": FORMAT, "versions": self.versions, "images": self.images, "codecs": self.codecs}
        image_files.write_bytes((_dump(data) + "\n").encode(), self.path)


def _dump(value: Any, indent: str = "") -> str:
    """JSON with each innermost object on a line of its own."""
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    lines = (f"{indent} {json.dumps(key, ensure_ascii=False)}: {_dump(part, indent + ' ')}" for key, part in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + indent + "}"


@dataclass(frozen=True)
class Curve:
    """Rates and distortions of a codec along its ladder: averages, and the images they are averages of."""

    key: str
    name: str
    settings: str
    library: str
    labels: tuple[str, ...]
    """What each point was made with; empty for a published curve."""
    rows: dict[str, list[Row]]
    """Per image, a measurement for each point; empty for a published curve."""
    means: dict[str, list[float | None]]

    def points(self, metric: str, image: str | None = None) -> tuple[Floats, Floats]:
        """(bpp, metric) of the average or of one image, without the points at which the metric is infinite or missing."""
        rows = self.rows[image] if image else []
        rates = [row["bpp"] for row in rows] if image else self.means["bpp"]
        values = [row[metric] for row in rows] if image else self.means.get(metric, [None] * len(rates))
        pairs = [(rate, value) for rate, value in zip(rates, values, strict=True) if value is not None]
        both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return both[:, 0], both[:, 1]


def _mean(rows: list[Row], metric: str) -> float | None:
    values = [row[metric] for row in rows]
    if metric == "ms_ssim":
        # It is missing for small images, the same ones for every codec.
        values = [value for value in values if value is not None]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def curves(store: Store, ladders: dict[str, list[str]], images: list[str]) -> tuple[list[Curve], list[str], list[str]]:
    """(curves, images they are averaged over, remarks) of these codecs' settings.

    All are averaged over the same images: those measured at every point of every curve. Points without any measurement are left
    out, then codecs without any complete image. The average of MS-SSIM in dB is the dB of the average.
    """
    remarks: list[str] = []
    tables: dict[str, dict[str, dict[str, Row]]] = {}
    used = list(images)
    for key, ladder in ladders.items():
        points = store.codecs[key]["points"]
        table = {label: points[label] for label in ladder if any(image in points.get(label, {}) for image in images)}
        complete = [image for image in images if all(image in rows for rows in table.values())] if table else []
        if not complete:
            remarks.append(f"{store.codecs[key]['name']}: left out, no image was measured at all of its settings")
            continue
        tables[key] = table
        used = [image for image in used if image in complete]
    remarks += [
        f"{store.images[image]['name']}: left out of all averages, some codec failed on it" for image in images if image not in used
    ]
    if not used:
        return [], [], [*remarks, "no image was measured by every codec"]
    found = []
    for key, table in tables.items():
        rows = {image: [table[label][image] for label in table] for image in used}
        means = {metric: [_mean([table[label][image] for image in used], metric) for label in table] for metric in rows[used[0]][0]}
        means["ms_ssim_db"] = [_finite(decibels(value)) for value in means["ms_ssim"]]
        about = store.codecs[key]
        found.append(Curve(key, about["name"], about["settings"], about["library"], tuple(table), rows, means))
    return found, used, remarks


def stored_curves(folder: Path) -> list[Curve]:
    """All curves of a folder's `results.json`, averaged over all of its images. Raises `ResultsError` when there are none."""
    store = Store(folder / "results.json")
    if not store.codecs:
        raise ResultsError(f"{folder / 'results.json'}: holds no measurements")
    return curves(store, {key: list(entry["points"]) for key, entry in store.codecs.items()}, list(store.images))[0]


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def summary(curve: Curve, images: int) -> str:
    """A curve in the layout of CompressAI's `results/`, which its `compressai.utils.plot` reads."""
    names = {
        "bpp": "bpp",
        "psnr-rgb": "psnr",
        "ms-ssim-rgb": "ms_ssim",
        "psnr-y": "psnr_luma",
        "psnr-cbcr": "psnr_chroma",
        "encoding_time": "encode_s",
        "decoding_time": "decode_s",
    }
    results = {name: [_rounded(value) for value in curve.means[metric]] for name, metric in names.items()}
    about = f"{curve.settings}; {curve.library}; mean over {images} images"
    data = {"name": curve.name, "description": about, "settings": list(curve.labels)}
    # A metric that some point lacks would make the plotting tool fail.
    data["results"] = {name: values for name, values in results.items() if None not in values}  # type: ignore[assignment]
    return _dump(data).replace("], ", "],\n  ") + "\n"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def read_reference(path: Path) -> Curve:
    """A published curve from a file in CompressAI's layout. Raises `ResultsError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        results = data.get("results", data)
        means: dict[str, list[float | None]] = {"bpp": [float(v) for v in results["bpp"]]}
        for metric, names in (("psnr", ("psnr-rgb", "psnr")), ("ms_ssim", ("ms-ssim-rgb", "ms-ssim"))):
            name = next((name for name in names if name in results), None)
            if name is not None:
                means[metric] = [float(v) for v in results[name]]
                if len(means[metric]) != len(means["bpp"]):
                    raise ValueError(f"{name} and bpp differ in length")
        if len(means) == 1:
            raise ValueError("holds neither psnr-rgb nor ms-ssim-rgb")
        if "ms_ssim" in means:
            means["ms_ssim_db"] = [_finite(decibels(value)) for value in means["ms_ssim"]]
        return Curve(path.stem, str(data.get("name", path.stem)), str(data.get("description", "")), "", (), {}, means)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: not a reference curve in CompressAI's layout: {_line(error)}") from error


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (str(error) or type(error).__name__).splitlines()[0]
