"""How long encoding and decoding take, what of it is arithmetic, and what others take: side by side, in one run.

python -m tools.benchmark                              on a photograph of data/samples, and on 12 megapixels
python -m tools.benchmark --images photo.png --threads 2 --rounds 9
python -m tools.benchmark --parts codecs               some of: codecs large scaling cold files; others stay as in --out
python -m tools.benchmark --device cuda                transforms, ours and CompressAI's, on a GPU

Every codec is run once to warm up and then in turn, round by round (12 megapixels: two rounds); medians and quartiles are over the
rounds. Images are in memory at both ends; reading and writing an image file is timed on its own. The 12 megapixels are mirrored
copies of the first image.
Multiply–accumulates are counted in the networks as they are defined. The peak, which rates are compared with, is that of a product
of two 2048×2048 matrices in the same precision and run: torch's matrix product or its 1×1 convolution, whichever is faster.

Prints tables, and writes them as JSON to --out (benchmark.json).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import codec
from codec import image as images
from codec import inference
from codec.errors import RdaeError
from tools.contenders import Contender, compressai, pillow, rdae, stopwatch
from tools.processes import ROOT, cold_starts, many_files, mosaic, summary

Pixels = npt.NDArray[np.uint8]
PARTS = ("codecs", "large", "scaling", "cold", "files")
NETWORKS = ("bmshj2018-factorized", "bmshj2018-hyperprior")
LARGE = (3000, 4000)
TRANSFORM = {"encode": "analysis", "decode": "synthesis"}


def peaks(precisions: list[str], device: str) -> dict[str, float]:
    """Floating-point operations per second of a large matrix product, for each precision."""
    out = {}
    for precision in precisions:
        a = torch.randn(2048, 2048, device=device).to(torch.float32 if precision == "fp32" else torch.bfloat16)
        places, kernel = a.view(1, 64, 32, 2048).permute(0, 3, 1, 2), a[:, :, None, None].contiguous(memory_format=torch.channels_last)
        ways: list[Callable[[], torch.Tensor]] = [lambda a=a: a @ a, lambda x=places, w=kernel: F.conv2d(x, w)]  # type: ignore[misc]
        out[precision] = max(2 * 2048**3 / seconds(way, device) for way in ways)
    return out


def seconds(way: Callable[[], torch.Tensor], device: str, rounds: int = 7) -> float:
    """The median time of a call, on a device."""
    taken = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            way().flatten()[0].item()  # waits for a GPU
            taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def contenders(arguments: argparse.Namespace, precisions: list[str], like: Pixels) -> list[Contender]:
    """All that can run here; a line says what cannot, and why."""
    model = codec.load(arguments.model, "fp32")
    found = [rdae(model, precision, arguments.device) for precision in precisions]
    for name in NETWORKS:
        try:
            found += [compressai(name, precision, arguments.device, like) for precision in precisions]
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    found += pillow(arguments.threads)
    for name in {"JPEG 2000", "WebP", "AVIF"} - {contender.name for contender in found}:
        print(f"{name} is left out: this Pillow is built without it", file=sys.stderr)
    return found


def race(racers: list[Contender], image: Pixels, rounds: int, warm_up: int = 1) -> list[dict[str, Any]]:
    """Encoding and decoding of one image by all, in turn, `rounds` times after a warm-up."""
    taken: list[dict[str, list[tuple[float, dict[str, float]]]]] = [{"encode": [], "decode": []} for _ in racers]
    sizes = [0] * len(racers)
    for number in range(-warm_up, rounds):
        for which, racer in enumerate(racers):
            with stopwatch(racer.stages) as spent:
                began = time.perf_counter()
                stream = racer.encode(image)
                encoding = time.perf_counter() - began, dict(spent)
                spent.clear()
                began = time.perf_counter()
                racer.decode(stream)
                decoding = time.perf_counter() - began, dict(spent)
            sizes[which] = racer.size(stream)
            if number >= 0:
                taken[which]["encode"].append(encoding)
                taken[which]["decode"].append(decoding)
    return [_row(racer, runs, size, image) for racer, runs, size in zip(racers, taken, sizes, strict=True)]


def _row(racer: Contender, runs: dict[str, list[tuple[float, dict[str, float]]]], size: int, image: Pixels) -> dict[str, Any]:
    row: dict[str, Any] = {"codec": racer.name, "precision": racer.precision, "bytes": size, "macs_per_pixel": racer.macs}
    for direction, measured in runs.items():
        total = summary([whole for whole, _ in measured])
        stages = {stage: float(np.median([spent.get(stage, 0.0) for _, spent in measured])) for stage in racer.stages}
        rest = float(np.median([whole - sum(spent.values()) for whole, spent in measured]))
        row[direction] = {**total, "stages": {stage: time for stage, time in stages.items() if time} | {"copies and the rest": rest}}
    row["megapixels"] = image.shape[0] * image.shape[1] / 1e6
    return row


def derive(rows: list[dict[str, Any]], peak: dict[str, float]) -> None:
    """Add what follows from the times: fractions of the peak and ratios to ours in the same precision."""
    ours = {row["precision"]: row for row in rows if row["codec"] == "rdae"}
    for row in rows:
        for direction, stage in TRANSFORM.items():
            times = row[direction]
            times["megapixels_per_second"] = row["megapixels"] / times["median"]
            if row["macs_per_pixel"]:
                operations = 2 * row["macs_per_pixel"][direction] * 1e6 * row["megapixels"]
                times["fraction_of_peak"] = operations / times["stages"][stage] / peak[row["precision"]]
                times["not_transform"] = 1 - times["stages"][stage] / times["median"]
                times["times_ours"] = times["median"] / ours[row["precision"]][direction]["median"]


def show(rows: list[dict[str, Any]]) -> None:
    """The table of one image."""
    for direction, stage in TRANSFORM.items():
        print(f"\n{direction:24} {'ms':>9} {'quartiles':>17} {'× ours':>7} {'MP/s':>7} {'MAC/px':>7} {stage:>9} {'of peak':>8} {'rest':>6}")
        for row in rows:
            times = row[direction]
            low, high = 1e3 * times["first_quartile"], 1e3 * times["third_quartile"]
            line = f"{row['codec'] + ' ' + row['precision']:24.24} {1e3 * times['median']:9.1f} {low:8.1f}–{high:<8.1f} "
            if row["macs_per_pixel"]:
                line += f"{times['times_ours']:7.2f} {times['megapixels_per_second']:7.2f} {row['macs_per_pixel'][direction]:7.0f} "
                line += f"{1e3 * times['stages'][stage]:9.1f} {times['fraction_of_peak']:8.0%} {times['not_transform']:6.1%}"
                others = ", ".join(f"{k.strip()} {1e3 * v:.1f}" for k, v in times["stages"].items() if k != stage)
                line += f"  {others}"
            else:
                line += f"{'':7} {times['megapixels_per_second']:7.2f}"
            print(line)


def scaling(arguments: argparse.Namespace, precisions: list[str], image: Pixels) -> list[dict[str, Any]]:
    """Megapixels per second of ours against image size and against the number of threads."""
    model = codec.load(arguments.model, "fp32")
    ours = [rdae(model, precision, arguments.device) for precision in precisions]
    cases = [
        (arguments.threads, height, width) for height, width in ((128, 128), (256, 256), (512, 768), (1024, 1024), (2048, 2048), LARGE)
    ]
    cases += [(threads, 512, 768) for threads in range(1, arguments.threads)]
    out = []
    print(f"\n{'threads':>7} {'size':>10}" + "".join(f" {f'{d} {p} MP/s':>20}" for p in precisions for d in TRANSFORM))
    for threads, height, width in cases:
        torch.set_num_threads(threads)
        rows = race(ours, mosaic(image, height, width), max(2, min(arguments.rounds, 10_000_000 // (height * width))))
        derive(rows, dict.fromkeys(precisions, 1.0))
        speeds = {p: {d: row[d]["megapixels_per_second"] for d in TRANSFORM} for p, row in zip(precisions, rows, strict=True)}
        out.append({"threads": threads, "height": height, "width": width, "megapixels_per_second": speeds})
        print(f"{threads:7} {f'{width}×{height}':>10}" + "".join(f" {speeds[p][d]:20.2f}" for p in precisions for d in TRANSFORM))
    torch.set_num_threads(arguments.threads)
    return out


def file_times(path: Path, rounds: int) -> dict[str, float]:
    """Seconds to read an image file and to write a PNG file."""
    from tempfile import TemporaryDirectory

    taken: dict[str, list[float]] = {"read": [], "write": []}
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            began = time.perf_counter()
            pixels = images.read(path)
            taken["read"].append(time.perf_counter() - began)
            began = time.perf_counter()
            images.write(pixels, Path(folder) / "x.png")
            taken["write"].append(time.perf_counter() - began)
    return {what: float(np.median(times)) for what, times in taken.items()}


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and with what this is measured."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    versions = {}
    for name in ("torch", "numpy", "pillow", "constriction", "compressai"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    return {"processor": processor, "device": device, "threads": arguments.threads, "python": platform.python_version(), **versions}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All the parts that are asked for. Raises `RdaeError` for an image or a model that cannot be read."""
    torch.set_num_threads(arguments.threads)
    precisions = ["fp32", "bf16"] if arguments.device == "cuda" or inference.best_precision() == "bf16" else ["fp32"]
    photographs = {path.name: images.read(path) for path in arguments.images}
    first = next(iter(photographs.values()))
    result: dict[str, Any] = {"machine": machine(arguments)}
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    if {"codecs", "large"} & set(arguments.parts):
        result["peak_flops"] = peaks(precisions, arguments.device)
        print("peak: " + ", ".join(f"{1e-9 * value:.0f} GFLOP/s in {name}" for name, value in result["peak_flops"].items()))
        racers = contenders(arguments, precisions, first)
        result["images"] = {}
        field = photographs if "codecs" in arguments.parts else {}
        if "large" in arguments.parts:
            field = {**field, f"{LARGE[1]}×{LARGE[0]}": mosaic(first, *LARGE)}
        for name, image in field.items():
            large = name not in photographs
            # The other networks take half a minute for it; all codecs are warm from the smaller images.
            fast = [r for r in racers if r.name not in NETWORKS or (r.precision == "fp32" and r.name == NETWORKS[0])]
            rows = race(fast, image, min(2, arguments.rounds), 0) if large else race(racers, image, arguments.rounds)
            derive(rows, result["peak_flops"])
            print(f"\n{name}: {image.shape[1]}×{image.shape[0]}")
            show(rows)
            result["images"][name] = {"height": image.shape[0], "width": image.shape[1], "codecs": rows}
        for path in arguments.images if "codecs" in arguments.parts else ():
            files = result["images"][path.name]["files"] = file_times(path, arguments.rounds)
            print(f"\n{path.name}: read {1e3 * files['read']:.1f} ms, written as PNG {1e3 * files['write']:.1f} ms")
    if "scaling" in arguments.parts:
        result["scaling"] = scaling(arguments, precisions, first)
    if "cold" in arguments.parts:
        result["cold"] = cold_starts(first, arguments.threads, arguments.rounds)
        for command, row in result["cold"].items():
            more = row["median"] - result["cold"]["import torch"]["median"], row["peak_mib"] - result["cold"]["import torch"]["peak_mib"]
            print(f"{command:16} {row['median']:.3f} s ({more[0]:+.3f}), peak {row['peak_mib']:.0f} MiB ({more[1]:+.0f})")
    if "files" in arguments.parts:
        result["files"] = {"count": arguments.files, **many_files(first, arguments.files)}
        one, two = result["files"]["1 job"], result["files"]["2 jobs"]
        for direction in one:
            gain = one[direction] / two[direction]
            print(f"{direction} {arguments.files} files: {one[direction]:.1f} s, with --jobs 2 {two[direction]:.1f} s ({gain:.2f}×)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, nargs="+", default=[ROOT / "data" / "samples" / "astronaut.png"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (default: 7)")
    parser.add_argument("--files", type=int, default=200, help="how many files the part `files` takes (default: 200)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", help="a shipped model or a .safetensors file")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "benchmark.json")
    arguments = parser.parse_args(argv)
    try:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise RdaeError("--device cuda: there is no GPU that this torch can use")
        if min(arguments.threads, arguments.rounds, arguments.files) < 1:
            raise RdaeError("--threads, --rounds and --files are positive numbers")
        # What other parts have measured stays, if it was here.
        before = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
        result = measure(arguments)
        if before.get("machine") == result["machine"]:
            pictures = {**before.get("images", {}), **result.get("images", {})}
            result = {**before, **result, "images": pictures}
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (RdaeError, OSError, ValueError) as error:
        print(f"benchmark: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
