"""What the encoder's search brings, and what it takes.

    python -m tools.effort IMAGES… --out data/results/effort.json --models hyperprior-9 --qualities 15 35 55 75 95 --efforts 0 4 9

Every image is coded at each effort and quality to a real file and decoded again. Of each effort, the table beside the JSON file shows

    steps      of the gradient
    time       processor time of encoding, as a multiple of effort 0's, on one thread; measured by --time IMAGE, once for each effort
    BD-rate    rate at equal RGB PSNR against effort 0, averaged curves, as everywhere else (`tools/bdrate.py`)
    objective  bits + λ·255²·MSE against effort 0, in per cent of its bits, a mean over images and qualities: what is searched for. Where
               curves are smooth it is the BD-rate, and a model for one rate has it too

What the file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import codec
from codec import image as image_files
from codec.model import Model
from codec.search import ITERATIONS
from tools import baselines, results
from tools.bdrate import bd_rate
from tools.measure import measure
from tools.rd_curve import UsageError, image_paths, processors, read_images, say, status_of, versions
from tools.results import Row, Store


def cpu_seconds(model: Model, path: Path, effort: int) -> float:
    """Processor time of encoding an image file's pixels at the default quality, the least of three tries (of one, for long searches)."""
    pixels = image_files.read(path)
    model.encode(pixels[:64, :64])
    tries = []
    for _ in range(3 if ITERATIONS[effort] < 10 else 1):
        began = time.process_time()
        model.encode(pixels, effort=effort)
        tries.append(time.process_time() - began)
    return min(tries)


def objective(row: Row, weight: float, pixels: int) -> float:
    """Bits + λ·255²·MSE for each pixel, of a measurement."""
    assert row["bytes"] is not None and row["psnr"] is not None
    return float(8 * row["bytes"] + weight * 255**2 * 10 ** (-row["psnr"] / 10) * pixels)


def gain(store: Store, model: Model, plain: dict[str, dict[str, Row]], searched: dict[str, dict[str, Row]]) -> float:
    """The objective against effort 0's in per cent of its bits, over settings and images that both were measured at."""
    each = []
    for setting, rows in searched.items():
        weight = model.lambda_at(int(setting) if setting.isdecimal() else 1)
        for image in rows.keys() & plain.get(setting, {}).keys():
            pixels = store.images[image]["width"] * store.images[image]["height"]
            before, after = plain[setting][image], rows[image]
            assert before["bytes"] is not None
            each.append(100 * (objective(after, weight, pixels) - objective(before, weight, pixels)) / (8 * before["bytes"]))
    return float(np.mean(each))


def table(store: Store, model: Model, key: str, images: list[str], seconds: dict[str, float]) -> list[str]:
    """The lines of a model's table."""
    lines = ["| effort | steps | time | BD-rate | objective | images |", "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    plain_key = f"{key}-effort-0"
    plain = store.codecs[plain_key]["points"]
    for effort, steps in enumerate(ITERATIONS):
        own = f"{key}-effort-{effort}"
        cells = [f"{effort}", f"{steps}", f"{seconds[str(effort)] / seconds['0']:.1f}×" if str(effort) in seconds else "–"]
        points = store.codecs[own]["points"] if own in store.codecs and effort else {}
        common = [image for image in images if all(image in rows for rows in points.values())]
        if points and common:
            ladders = {name: [setting for setting in points if setting in plain] for name in (plain_key, own)}
            curves = results.curves(store, ladders, common)[0]
            bd = bd_rate(curves[0].points("psnr"), curves[1].points("psnr"))
            cells += [str(bd), f"{gain(store, model, plain, points):+.1f} %".replace("-", "−"), f"{len(common)}"]
        else:
            cells += ["–", "–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def run(arguments: argparse.Namespace) -> int:
    """Measure what is missing, then write everything. Raises `UsageError` and its kin."""
    efforts = sorted({0, *arguments.efforts})
    if not 0 <= efforts[0] <= efforts[-1] < len(ITERATIONS):
        raise UsageError(f"efforts run from 0 to {len(ITERATIONS) - 1}")
    store = Store(arguments.out)
    images, failures = read_images(image_paths(arguments.images), store)
    parts = [__doc__.split("\n", 1)[0] if __doc__ else "", ""]
    torch.set_num_threads(1)
    for name in arguments.models:
        model = codec.load(name)
        (plain,) = baselines.rdae([name], arguments.qualities if model.qualities > 1 else ())
        codecs = [baselines.with_effort(plain, effort) for effort in efforts]
        timing: dict[str, Any] = store.codecs.get(codecs[0].key, {}).get("seconds", {})
        for one in codecs:
            if store.enter(one):
                say(f"{one.name}: settings or library changed, everything is measured anew")
                timing = {}
        store.codecs[codecs[0].key]["seconds"] = timing
        store.versions = versions()
        failures += measure(store, codecs, images, arguments.jobs)
        if arguments.time:
            timing.update({str(e): round(cpu_seconds(model, arguments.time, e), 3) for e in range(len(ITERATIONS)) if str(e) not in timing})
        store.save()
        settings = [str(value) for value in plain.ladder]
        parts += [
            f"## {model.name}",
            "",
            f"Qualities {', '.join(settings)}.",
            "",
            *table(store, model, plain.key, list(images), timing),
            "",
        ]
    image_files.write_bytes("\n".join(parts).encode(), arguments.out.with_suffix(".md"))
    print("\n".join(parts))
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    new = argparse.ArgumentParser(
        prog="python -m tools.effort", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    new.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, or folders of them")
    new.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="measurements; the table is written beside it")
    new.add_argument("--models", nargs="+", default=["hyperprior-9"], metavar="MODEL", help="names or files of models")
    new.add_argument("--qualities", nargs="+", type=int, default=[15, 35, 55, 75, 95], metavar="Q", help="of variable-rate models")
    new.add_argument("--efforts", nargs="+", type=int, default=[4, 9], metavar="N", help="those to measure besides 0")
    new.add_argument("--time", type=Path, metavar="IMAGE", help="measure the time of all efforts, with this image")
    new.add_argument("--jobs", type=int, default=processors(), help="processes, of one thread each (default: processors)")
    return status_of("effort", lambda: run(new.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
